"""The shares of SN layers, ordered by depth.

They are a softmax of the gates (Luo et al., ICLR 2019, arXiv 1806.10779), or in sparse SN their
SparsestMax (Shao et al., CVPR 2019, arXiv 1903.03793).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from snzoo.errors import CheckpointError, printable

if TYPE_CHECKING:
    from torch import Tensor

GATES = ("mean_weight", "var_weight")


class Stat(NamedTuple):
    """The name and the colors of the statistics of a norm, in charts and terminals."""

    title: str
    color: str  # from Okabe and Ito's palette for color-blind readers
    terminal_color: int  # the most similar color of the 256-color palette


STATS = {
    "IN": Stat("instance norm", "#E69F00", 214),
    "LN": Stat("layer norm", "#009E73", 36),
    "BN": Stat("batch norm", "#0072B2", 31),
}


@dataclass(frozen=True)
class LayerGates:
    """The shares of the statistics that an SN layer mixes (equation 5 of the paper).

    Attributes:
        name: the layer's name in its network.
        stats: the norms whose statistics are mixed, keys of :data:`STATS`.
        mean: the share of each norm in the mean. The shares add up to 1.
        var: the share of each norm in the variance. The shares add up to 1.
        locked: those of ``"mean"`` and ``"var"`` whose shares sparse SN has locked.
    """

    name: str
    stats: tuple[str, ...]
    mean: tuple[float, ...]
    var: tuple[float, ...]
    locked: tuple[str, ...] = ()

    def shares(self, which: str) -> dict[str, float]:
        """Return the shares by norm; ``which`` is ``"mean"`` or ``"var"``."""
        return dict(zip(self.stats, self.mean if which == "mean" else self.var, strict=True))


def read_gates(state: Mapping[str, Tensor], *, where: str | Path) -> list[LayerGates]:
    """Return the gates of all SN layers in a state dict, in the order of depth.

    Any network is accepted: a layer is a pair of ``<layer>.mean_weight`` and
    ``<layer>.var_weight``. Three gates belong to IN, LN and BN. Two gates belong to LN and BN
    (SwitchNorm1d) if the layer has running statistics, else to IN and LN. One gate belongs to LN.

    Args:
        state: the state dict.
        where: the name of the file or model, for error messages.

    Raises:
        CheckpointError: there is no SN layer, or a layer does not have 1 to 3 finite gates for the
            mean and equally many for the variance.
    """
    pairs = [key.rpartition(".") for key in state]
    layers = dict.fromkeys(layer + dot for layer, dot, leaf in pairs if leaf in GATES)
    if not layers:
        raise missing_gates_error(where)
    return [_read_layer(state, prefix, where) for prefix in sorted(layers, key=_depth)]


def missing_gates_error(where: str | Path) -> CheckpointError:
    """Return the error for a network without SN layers."""
    return CheckpointError(
        f"{where} has no SN layer, so it has no gates; see: snzoo list --norm sn --pretrained"
    )


def average(gates: Sequence[LayerGates]) -> LayerGates:
    """Return the mean over layers. The share of a norm that a layer does not mix counts as 0."""
    stats = tuple(stat for stat in STATS if any(stat in layer.stats for layer in gates))

    def mean(which: str) -> tuple[float, ...]:
        rows = [layer.shares(which) for layer in gates]
        return tuple(sum(row.get(stat, 0.0) for row in rows) / len(rows) for stat in stats)

    return LayerGates("average", stats, mean("mean"), mean("var"))


def harden(layer: LayerGates) -> LayerGates:
    """Return the gates of a layer after :func:`snzoo.nn.harden_gates`: one share is 1."""

    def one_hot(shares: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(float(i == shares.index(max(shares))) for i in range(len(shares)))

    return replace(layer, mean=one_hot(layer.mean), var=one_hot(layer.var))


def _read_layer(state: Mapping[str, Tensor], prefix: str, where: str | Path) -> LayerGates:
    mean_key, var_key = (prefix + leaf for leaf in GATES)
    for key, other in ((mean_key, var_key), (var_key, mean_key)):
        if key not in state:
            raise CheckpointError(f"{where}: {other} is there, but {key} is missing")
        _check(state[key], f"{where}: {key}")
    mean, var = state[mean_key], state[var_key]
    if len(mean) != len(var):
        raise CheckpointError(
            f"{where}: {mean_key} has {len(mean)} gates, but {var_key} has {len(var)}"
        )
    with_bn = prefix + "running_mean" in state
    stats = {1: ("LN",), 2: ("LN", "BN") if with_bn else ("IN", "LN"), 3: tuple(STATS)}[len(mean)]
    name = (
        printable(prefix.removesuffix(".")) or "(root)"
    )  # the state dict is that of a single layer
    if prefix + "radius" in state:
        return LayerGates(name, stats, *_sparse_shares(state, prefix, where))
    return LayerGates(name, stats, _softmax(mean), _softmax(var))


def _sparse_shares(
    state: Mapping[str, Tensor], prefix: str, where: str | Path
) -> tuple[tuple[float, ...], tuple[float, ...], tuple[str, ...]]:
    """Return the shares in the mean and in the variance of sparse SN, and which are locked."""
    from snzoo.nn.sparse import sparse_shares

    radius = _read_number(state, prefix + "radius", where)
    fixed = {
        which: _read_number(state, f"{prefix}{which}_fixed", where) > 0 for which in ("mean", "var")
    }
    mean, var = (
        tuple(sparse_shares(state[f"{prefix}{which}_weight"].double(), is_fixed, radius).tolist())
        for which, is_fixed in fixed.items()
    )
    return mean, var, tuple(which for which, is_fixed in fixed.items() if is_fixed)


def _read_number(state: Mapping[str, Tensor], key: str, where: str | Path) -> Tensor:
    if key not in state or state[key].numel() != 1 or not state[key].isfinite():
        raise CheckpointError(f"{where}: {key} is missing, or not a single finite number")
    return state[key].reshape(1)


def _check(gates: Tensor, where: str) -> None:
    if gates.ndim != 1 or not 1 <= len(gates) <= 3 or not gates.is_floating_point():
        raise CheckpointError(
            f"{where} has shape {tuple(gates.shape)} and type {gates.dtype}, but gates are 1 to 3 "
            "floats"
        )
    if not gates.double().isfinite().all():
        raise CheckpointError(f"{where} is not finite: {gates.tolist()}")


def _softmax(gates: Tensor) -> tuple[float, ...]:
    return tuple(gates.double().softmax(0).tolist())


def _depth(prefix: str) -> list[tuple[int, list[str | tuple[int, str]]]]:
    """Return the key that sorts layers ``<layer>.`` by depth.

    safetensors files are sorted by key, so the order must be derived from the names. Numbers in
    them are compared as numbers. The norms of a module come before its children (``sn1`` before
    ``layer1``, and ``sn1`` to ``sn3`` of a block before its ``downsample``). ``sn_out`` comes last.
    """
    *parents, own = prefix.split(".")[:-1] or [""]
    rank = 1 if own.isdecimal() else 2 if own.endswith("_out") else 0  # numbers: a Sequential
    return [*((1, _natural(name)) for name in parents), (rank, _natural(own))]


def _natural(name: str) -> list[str | tuple[int, str]]:
    """Return a sort key of text and numbers. ``int`` is not used, because it limits the digits."""
    parts: list[str | tuple[int, str]] = list(re.split("([0-9]+)", name))
    for i in range(1, len(parts), 2):
        digits = str(parts[i]).lstrip("0")
        parts[i] = (len(digits), digits)
    return parts
