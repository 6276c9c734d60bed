"""Untrusted checkpoint files → flat state dicts, checked against a network's layout."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from snzoo.errors import CheckpointError

StateDict = dict[str, Tensor]

DESCRIPTION = "snzoo"  # the safetensors metadata key under which a checkpoint describes itself
FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
NESTED = ("state_dict", "model")
NAMED = 3  # how many keys a message names


def read_state(path: str | Path) -> StateDict:
    """The tensors of a checkpoint, on the CPU, without ``module.`` prefixes.

    Reads safetensors (memory-mapped), PyTorch files, legacy ones too, with
    ``weights_only=True``, and the Keras ResNet-50 (needs h5py). The state dict may be
    the whole file or stand under ``state_dict`` or, as torchvision's scripts save it, ``model``.

    Raises:
        CheckpointError: the file can't be read, holds more than tensors, or no state dict.
    """
    path = Path(path)
    start = _first_bytes(path)
    if looks_like_html(start):
        raise CheckpointError(f"{path} is a web page, not a weights file; download it again")
    if start[8:9] == b"{":
        return _flatten(_read_safetensors(path), path)
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
    seen: set[int] = set()
    return {
        key: _own(state[key], seen).to(like.dtype)
        if key in state
        else torch.zeros_like(like, device="cpu")
        for key, like in layout.items()
    }


def _own(tensor: Tensor, seen: set[int]) -> Tensor:
    """Memory of its own, contiguous: what is shared or repeated can't be saved or trained."""
    storage = tensor.untyped_storage()
    alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
    seen.add(storage.data_ptr())
    if alone and tensor.is_contiguous():
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def check_fingerprint(
    state: Mapping[str, Tensor], fingerprint: Mapping[str, tuple[float, ...]], *, where: str | Path
) -> None:
    """Raises CheckpointError where a tensor is not the published one, to 4 decimals."""
    for key, values in fingerprint.items():
        found = state[key].flatten().tolist() if key in state else []
        if len(found) != len(values) or not all(  # "not all", because NaN is near nothing
            abs(a - b) <= 1e-4 for a, b in zip(found, values, strict=True)
        ):
            shown = [round(value, 4) for value in found[:NAMED]]
            raise CheckpointError(f"{where}: {key} is {shown}, published: {list(values)}")


def check_whole(path: Path, state: Mapping[str, Tensor]) -> None:
    """What stands in for a checksum: zip files carry CRCs, which torch does not look at.

    Raises:
        CheckpointError: a CRC is wrong, or a value is not finite.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise CheckpointError(f"{path.name} is damaged: wrong CRC of {damaged}")
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{path.name}: {_name('not finite', broken)}")


def _first_bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(512)
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror}") from None


def looks_like_html(start: bytes) -> bool:
    return start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def _read_safetensors(path: Path) -> StateDict:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"can't read {path}: {_first_line(error)}") from None


def _unpickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # what they warn of is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load has no error of its own for damaged files
        text = str(error)
        if found := re.search(
            r"GLOBAL ([\w.]+)|[Ii]nstruction|[Oo]perand|Trying to (?:call|build)", text
        ):
            reason = (
                f"it holds {found[1]}, which could run code; refused"
                if found[1]
                else "it is no weights file, or holds more than tensors; refused"
            )
        elif "legacy .tar" in text:
            reason = "it is no weights file, or a legacy tar; save it again with torch.save"
        else:
            reason = "it is damaged, cut short or no weights file"
        raise CheckpointError(f"can't read {path}: {reason}") from None


def _flatten(content: Any, path: Path) -> StateDict:
    state = content
    if isinstance(content, dict):
        nested = [content[key] for key in NESTED if isinstance(content.get(key), dict)]
        state = nested[0] if nested else content
    if not isinstance(state, dict) or not state:
        raise CheckpointError(f"{path} holds no state dict but a {type(state).__name__}")
    strays = [str(key) for key, value in state.items() if not _is_dense(value)]
    strays += [repr(key) for key in state if not isinstance(key, str)]
    if strays:
        raise CheckpointError(f"{path}: not a state dict: {_name('no dense tensors', strays)}")
    prefix = "module." if all(key.startswith("module.") for key in state) else ""  # DataParallel
    return {key.removeprefix(prefix): value.detach() for key, value in state.items()}


def _is_dense(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return value.device.type == "cpu" and not value.is_quantized


def _differences(
    state: Mapping[str, Tensor], layout: Mapping[str, Tensor], exact_dtypes: bool
) -> list[str]:
    differences = []
    for key in layout.keys() & state.keys():
        found, like = state[key], layout[key]
        if found.shape != like.shape:
            differences.append(f"{key} is {tuple(found.shape)}, not {tuple(like.shape)}")
        elif found.dtype != like.dtype and (
            exact_dtypes or not {found.dtype, like.dtype} <= FLOATS
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
