"""Untrusted checkpoint files → flat state dicts, checked against a network's layout."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from snzoo.errors import CheckpointError
from snzoo.weights.download import looks_like_html

StateDict = dict[str, Tensor]

DESCRIPTION = "snzoo"  # the safetensors metadata key under which a checkpoint describes itself
NAMED = 3  # how many keys a message names


def read_state(path: str | Path) -> StateDict:
    """The tensors of a checkpoint, on the CPU, without ``module.`` prefixes.

    Reads safetensors (memory-mapped), PyTorch files, legacy ones too, with
    ``weights_only=True``, and the Keras ResNet-50 (needs h5py). The state dict may be
    the whole file or stand under ``state_dict``.

    Raises:
        CheckpointError: the file can't be read, holds more than tensors, or no state dict.
    """
    path = Path(path)
    start = _first_bytes(path)
    if looks_like_html(start):
        raise CheckpointError(f"{path} is a web page, not a weights file; download it again")
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start.startswith(b"\x89HDF"):
        from snzoo.weights.keras import read_keras

        return read_keras(path)
    return _flatten(_unpickle(path), path)


def read_description(path: str | Path) -> dict[str, Any] | None:
    """What a checkpoint of ``examples/finetune.py`` says of itself (not checked), else None.

    Raises:
        CheckpointError: the file or its description can't be read.
    """
    path = Path(path)
    if _first_bytes(path)[8:9] != b"{":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(DESCRIPTION)
        description = None if text is None else json.loads(text)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {_first_line(error)}") from None
    if description is not None and not isinstance(description, dict):
        raise CheckpointError(f"{path}: its description is not an object")
    return description


def match(
    state: Mapping[str, Tensor],
    layout: Mapping[str, Tensor],
    *,
    where: str | Path,
    exact_dtypes: bool = False,
) -> StateDict:
    """``state`` in the order and the dtypes of ``layout`` (whose tensors may be on "meta").

    Every key must be there, no other, with its shape; floating-point tensors of
    another width are converted unless ``exact_dtypes``. ``num_batches_tracked``, which
    older batch-norm files lack and no result depends on, may be missing.

    Raises:
        CheckpointError: naming what is missing, unexpected or different.
    """
    missing = [k for k in layout if k not in state and not k.endswith("num_batches_tracked")]
    problems = [
        _name("missing", missing),
        _name("unexpected", [key for key in state if key not in layout]),
        _name("different", _differences(state, layout, exact_dtypes)),
    ]
    if any(problems):
        raise CheckpointError(
            f"{where} does not fit the network: {'; '.join(filter(None, problems))}"
        )
    return {
        key: (state[key].to(like.dtype) if key in state else torch.zeros((), dtype=like.dtype))
        for key, like in layout.items()
    }


def check_fingerprint(
    state: Mapping[str, Tensor], fingerprint: Mapping[str, tuple[float, ...]], *, where: str | Path
) -> None:
    """Raises CheckpointError where a tensor is not the published one, to 4 decimals."""
    for key, values in fingerprint.items():
        found = state[key].flatten().tolist()
        if len(found) != len(values) or any(
            abs(a - b) > 1e-4 for a, b in zip(found, values, strict=True)
        ):
            shown = [round(value, 4) for value in found[:NAMED]]
            raise CheckpointError(f"{where}: {key} is {shown}, published: {list(values)}")


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(512)
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror}") from None


def _read_safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"can't read {path}: {_first_line(error)}") from None


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own for damaged files
        text = str(error)
        if found := re.search(
            r"GLOBAL ([\w.]+)|[Ii]nstruction|[Oo]perand|Trying to (?:call|build)", text
        ):
            what = found[1] or "more than tensors"
            reason = f"it holds {what}, which could run code; refused"
        elif "legacy .tar" in text:
            reason = "the legacy tar serialization is not read; save it again with torch.save"
        else:
            reason = f"it is damaged, cut short or no weights file ({_first_line(error)})"
        raise CheckpointError(f"can't read {path}: {reason}") from None


def _flatten(content: Any, path: Path) -> StateDict:
    state = content
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        state = content["state_dict"]
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path} holds no state dict but a {type(state).__name__}")
    strays = [str(key) for key, value in state.items() if not isinstance(value, Tensor)]
    strays += [repr(key) for key in state if not isinstance(key, str)]
    if strays:
        raise CheckpointError(f"{path}: not a state dict: {_name('no tensors', strays)}")
    if all(key.startswith("module.") for key in state):  # saved from DataParallel
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _differences(
    state: Mapping[str, Tensor], layout: Mapping[str, Tensor], exact_dtypes: bool
) -> list[str]:
    differences = []
    for key in layout.keys() & state.keys():
        found, like = state[key], layout[key]
        if found.shape != like.shape:
            differences.append(f"{key} is {tuple(found.shape)}, not {tuple(like.shape)}")
        elif found.layout != torch.strided or found.is_quantized:
            differences.append(f"{key} is not a dense tensor")
        elif found.dtype != like.dtype and (
            exact_dtypes or found.is_floating_point() != like.is_floating_point()
        ):
            differences.append(f"{key} is {found.dtype}, not {like.dtype}")
    return sorted(differences)


def _name(what: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return f"{what}: {', '.join(items[:NAMED])}{more}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip()
