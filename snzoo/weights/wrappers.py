"""Find the state dict of a network in a checkpoint that a trainer saved."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snzoo.errors import CheckpointError
from snzoo.weights.pytorch import GATHER

StateDict = dict[str, Tensor]

# A key or a prefix holds a network if it consists of words of these two sets only, for example
# ``model_state_dict``, ``module.`` or ``net.``. With a word of the second set, as in
# ``state_dict_ema``, the weights are averaged.
NETWORK_WORDS = {"state", "dict", "model", "module", "network", "net", "weights", "params"}
NETWORK_WORDS |= {"backbone", "current", "online"}
AVERAGED_WORDS = {"ema", "swa", "average", "averaged"}

COUNTERS = ("n_averaged", "initted", "step")  # of AveragedModel and ema_pytorch
# torch.compile, FSDP and activation checkpointing may insert these anywhere in a name:
TRANSPARENT = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
SHOWN = 3  # the number of keys that a message names


@dataclass(frozen=True)
class Candidate:
    """A state dict within a checkpoint, and the key or prefix under which it was found."""

    place: str
    state: Any
    averaged: bool


def select_state_dict(content: Any, *, averaged: bool | None, where: str | Path) -> StateDict:
    """Return the state dict of the network, without the prefixes of wrappers.

    Args:
        content: the content of the file: a state dict, or a dict that holds one under a key such as
            ``state_dict``, ``model`` or ``model_ema``.
        averaged: True takes the averaged weights, False the raw ones, and None the averaged ones
            if there are any, else the raw ones.
        where: the name of the file, for messages.

    Raises:
        CheckpointError: there is no such state dict, or there are several.
    """
    candidates = list(_find_candidates(content))
    usable = [candidate for candidate in candidates if not _find_problem(candidate.state)]
    for unusable in candidates if not usable else ():
        raise CheckpointError(f"{where} {_find_problem(unusable.state)}")
    if not usable:
        raise CheckpointError(f"{where} holds no state dict but a {type(content).__name__}")
    for ignored in candidates:
        if ignored.averaged and ignored not in usable and averaged is not False:
            _warn("%s: %s is not a state dict, so it is ignored", where, ignored.place)
    kinds = {candidate.averaged for candidate in usable}
    wanted = (True in kinds) if averaged is None else averaged
    chosen = [candidate for candidate in usable if candidate.averaged == wanted]
    if not chosen:
        here, there = ("raw", "averaged") if averaged else ("averaged", "raw")
        raise CheckpointError(f"{where} holds {here} weights only, not the {there} ones asked for")
    if len(chosen) > 1:
        places = ", ".join(repr(candidate.place) for candidate in chosen)
        raise CheckpointError(f"{where} holds several networks ({places}); save one of them alone")
    if averaged is None and len(kinds) > 1:
        _warn(
            "%s holds averaged weights (%s) and raw ones: the averaged ones are loaded; "
            "averaged=False chooses the others",
            where,
            chosen[0].place,
        )
    return {key: value.detach() for key, value in chosen[0].state.items()}


def is_sharded(value: Any) -> bool:
    """Return whether a value is a part of a tensor that is distributed over several processes."""
    return type(value).__module__.startswith("torch.distributed.")


def name_some(what: str, items: list[str]) -> str:
    """Return ``what: a, b, c and 4 more``, or an empty string if there are no items."""
    if not items:
        return ""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return f"{what}: {', '.join(items[:SHOWN])}{more}"


def _find_candidates(content: Any) -> Iterator[Candidate]:
    """Yield the state dicts of a checkpoint, and the other dicts in places of state dicts."""
    queue = [Candidate("", content, averaged=False)]
    seen: dict[int, Any] = {}  # a pickle may contain itself
    while queue:
        outer = queue.pop(0)
        content = outer.state
        if not isinstance(content, Mapping) or id(content) in seen:
            continue
        seen[id(content)] = content
        # Lightning's WeightAveraging saves averaged weights under the key of the raw ones.
        swapped = "state_dict" if "averaging_state" in content else None
        inner = [
            Candidate(str(key), value, outer.averaged or _is_averaged(key) or key == swapped)
            for key, value in content.items()
            if _holds_network(key) and isinstance(value, Mapping)
        ] or _strip_prefixes(outer)
        queue += inner
        if not inner:
            state = {k: v for k, v in content.items() if k not in COUNTERS}
            yield Candidate(outer.place, state, outer.averaged or "n_averaged" in content)


def _strip_prefixes(outer: Candidate) -> list[Candidate]:
    """Return the state dicts without the prefixes of wrappers, or [] if there are no prefixes.

    Lightning's modules have attributes such as ``model`` and ``net``, so keys in their checkpoints
    begin with ``model.`` or ``net.``. If the whole file is a state dict, these prefixes are kept as
    part of the names, unless it also holds averaged weights.
    """
    keys = [key for key in outer.state if key not in COUNTERS]
    if not all(isinstance(key, str) for key in keys):
        return []
    parts: dict[str, dict[str, Any]] = {}
    for key in keys:
        name = functools.reduce(lambda name, wrapper: name.replace(wrapper, ""), TRANSPARENT, key)
        head, _, rest = name.partition(".")
        head, rest = (head, rest) if _holds_network(head) else ("", name)
        parts.setdefault(head, {})[rest] = outer.state[key]
    found = [name for part in parts.values() for name in part]
    if found == keys or len(found) < len(keys) or "" in found or ("" in parts and len(parts) > 1):
        return []
    averaged = outer.averaged or "n_averaged" in outer.state
    wraps = averaged or parts.keys() <= {"", "module"} or any(map(_is_averaged, parts))
    if not (outer.place or wraps):
        return []
    inner = []
    for head, part in parts.items():
        place = f"{outer.place}/{head}.".removeprefix("/") if len(parts) > 1 else outer.place
        inner.append(Candidate(place, part, averaged or _is_averaged(head)))
    return inner


def _holds_network(name: Any) -> bool:
    """Return whether the words of a key or a prefix say that it holds a network."""
    words = set(str(name).split("_")) - {""}
    return bool(words) and words <= NETWORK_WORDS | AVERAGED_WORDS


def _is_averaged(name: Any) -> bool:
    return not AVERAGED_WORDS.isdisjoint(str(name).split("_"))


def _find_problem(state: Mapping[Any, Any]) -> str:
    """Return the reason why a dict is not a state dict of dense CPU tensors, or an empty string."""
    if not state:
        return "holds no state dict but a dict without entries"
    if any(is_sharded(value) for value in state.values()) or any(
        str(key).endswith("_flat_param") for key in state
    ):
        return f"is {GATHER}"
    strays = [str(key) for key, value in state.items() if not _is_dense(value)]
    strays += [repr(key) for key in state if not isinstance(key, str)]
    return name_some("is not a state dict; these are not dense tensors", strays)


def _is_dense(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return value.device.type == "cpu" and not value.is_quantized


def _warn(message: str, *args: object) -> None:
    logging.getLogger("snzoo").warning(message, *args)
