"""The softmaxed gates of SN layers (Luo et al., ICLR 2019, arXiv 1806.10779), ordered by depth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from snzoo.errors import CheckpointError, SnzooError, printable

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("IN", "LN", "BN")
GATES = ("mean_weight", "var_weight")


@dataclass(frozen=True)
class LayerGates:
    """What one SN layer mixes: for each of ``kinds`` its share, which add up to 1.

    ``mean`` are the shares of the mean, ``var`` those of the variance.
    """

    name: str
    kinds: tuple[str, ...]
    mean: tuple[float, ...]
    var: tuple[float, ...]

    def shares(self, which: str) -> dict[str, float]:
        """Kind → share, of ``"mean"`` or ``"var"``."""
        return dict(zip(self.kinds, self.mean if which == "mean" else self.var, strict=True))


def read_gates(state: Mapping[str, Tensor], *, where: str | Path) -> list[LayerGates]:
    """The SN layers of a state dict, in the order of depth.

    A layer is a pair of ``<layer>.mean_weight`` and ``<layer>.var_weight``, of any network.
    Three gates are IN, LN and BN; two are LN and BN with running statistics beside them
    (SwitchNorm1d), else IN and LN; one is LN.

    Args:
        where: the file or the model, for messages.

    Raises:
        CheckpointError: gates are no pair of 1 to 3 finite numbers each; names the key.
        SnzooError: there is no SN layer.
    """
    pairs = [key.rpartition(".") for key in state]
    layers = dict.fromkeys(layer + dot for layer, dot, leaf in pairs if leaf in GATES)
    if not layers:
        raise no_gates(where)
    return [_read_layer(state, prefix, where) for prefix in sorted(layers, key=_depth)]


def no_gates(where: str | Path) -> SnzooError:
    """The error for a network without SN layers."""
    return SnzooError(
        f"{where} has no SN layer, so no gates to inspect (batch norm has none); "
        "see: snzoo list --norm sn --pretrained"
    )


def average(gates: Sequence[LayerGates]) -> LayerGates:
    """The mean over layers, each counting the same; a kind that a layer lacks has share 0 there."""
    kinds = tuple(kind for kind in KINDS if any(kind in layer.kinds for layer in gates))

    def mean(which: str) -> tuple[float, ...]:
        rows = [layer.shares(which) for layer in gates]
        return tuple(sum(row.get(kind, 0.0) for row in rows) / len(rows) for kind in kinds)

    return LayerGates("average", kinds, mean("mean"), mean("var"))


def _read_layer(state: Mapping[str, Tensor], prefix: str, where: str | Path) -> LayerGates:
    mean_key, var_key = (prefix + leaf for leaf in GATES)
    for key, other in ((mean_key, var_key), (var_key, mean_key)):
        if key not in state:
            raise CheckpointError(f"{where}: {other} has no {key} beside it")
        _check(state[key], f"{where}: {key}")
    mean, var = state[mean_key], state[var_key]
    if len(mean) != len(var):
        raise CheckpointError(
            f"{where}: {mean_key} has {len(mean)} gates, but {var_key} has {len(var)}"
        )
    with_bn = prefix + "running_mean" in state
    kinds = {1: ("LN",), 2: ("LN", "BN") if with_bn else ("IN", "LN"), 3: KINDS}[len(mean)]
    name = printable(prefix.removesuffix(".")) or "(root)"  # the state dict of a layer alone
    return LayerGates(name, kinds, _softmax(mean), _softmax(var))


def _check(gates: Tensor, where: str) -> None:
    if gates.ndim != 1 or not 1 <= len(gates) <= 3 or not gates.is_floating_point():
        raise CheckpointError(
            f"{where} is {tuple(gates.shape)} of {gates.dtype}, but gates are 1 to 3 floats"
        )
    if not gates.double().isfinite().all():
        raise CheckpointError(f"{where} is not finite: {gates.tolist()}")


def _softmax(gates: Tensor) -> tuple[float, ...]:
    return tuple(gates.double().softmax(0).tolist())


def _depth(prefix: str) -> list[tuple[int, list[str | tuple[int, str]]]]:
    """Sorts ``<layer>.`` by depth.

    safetensors files are sorted by key, so the order of a state dict tells nothing, and
    names have to. Numbers count as numbers. Of what a module holds, its own norms come
    before its children: the stem's ``sn1`` before ``layer1``, a block's ``sn1`` to ``sn3``
    before ``downsample``; ``sn_out`` comes after them.
    """
    *parents, own = prefix.split(".")[:-1] or [""]
    rank = 1 if own.isdecimal() else 2 if own.endswith("_out") else 0  # numbered: a Sequential
    return [*((1, _natural(name)) for name in parents), (rank, _natural(own))]


def _natural(name: str) -> list[str | tuple[int, str]]:
    """Text and numbers in turn; numbers by length, then digits, as they may be too long for int."""
    parts: list[str | tuple[int, str]] = list(re.split("([0-9]+)", name))
    for i in range(1, len(parts), 2):
        digits = str(parts[i]).lstrip("0")
        parts[i] = (len(digits), digits)
    return parts
