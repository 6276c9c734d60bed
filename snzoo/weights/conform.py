"""Check a state dict against the layout of a network and against published values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from snzoo.errors import CheckpointError
from snzoo.weights.pytorch import GATHER, find_damage
from snzoo.weights.safetensors import ALIGNMENT
from snzoo.weights.wrappers import StateDict, is_sharded, name_some

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def conform_state_dict(
    state: Mapping[str, Tensor],
    layout: Mapping[str, Tensor],
    *,
    where: str | Path,
    exact_dtypes: bool = False,
) -> StateDict:
    """Return ``state`` in the order and the dtypes of ``layout``. No two tensors share memory.

    Args:
        state: the state dict to check. It must have the keys and shapes of ``layout``.
            ``num_batches_tracked`` may be missing, because old files of batch norm lack it and no
            result depends on it.
        layout: the state dict of the network. Its tensors may be on the meta device.
        where: the name of the file, for errors.
        exact_dtypes: refuse floating-point tensors of another dtype instead of converting them
            (default: False).

    Raises:
        CheckpointError: keys are missing, unexpected or different. The message names them.
    """
    if any(is_sharded(value) for value in state.values()):
        raise CheckpointError(f"{where} is {GATHER}")
    missing = [k for k in layout if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in layout]
    problems = [
        name_some("missing", missing),
        name_some("unexpected", unexpected),
        name_some("different", _differences(state, layout, exact_dtypes)),
    ]
    if any(problems):
        found = "; ".join(filter(None, problems))
        hint = _how_to_strip(missing, unexpected)
        raise CheckpointError(f"{where} does not fit the network: {found}{hint}")
    seen: set[int] = set()
    return {
        key: _with_own_memory(state[key], seen).to(like.dtype)
        if key in state
        else torch.zeros_like(like, device="cpu")
        for key, like in layout.items()
    }


def nbytes_of(layout: Mapping[str, Tensor]) -> int:
    """Return the total size of the tensors in a network's state dict, in bytes."""
    return sum(tensor.nbytes for tensor in layout.values())


def check_fingerprint(
    state: Mapping[str, Tensor], fingerprint: Mapping[str, tuple[float, ...]], *, where: str | Path
) -> None:
    """Compare some tensors with their published values, with a tolerance of 1e-4.

    Raises:
        CheckpointError: a tensor differs from its published values.
    """
    for key, values in fingerprint.items():
        found = state[key].flatten().tolist() if key in state else []
        if len(found) != len(values) or not all(  # "not all": a comparison with NaN is false
            abs(a - b) <= 1e-4 for a, b in zip(found, values, strict=True)
        ):
            shown = [round(value, 4) for value in found[:3]]
            raise CheckpointError(f"{where}: {key} is {shown}, published: {list(values)}")


def check_whole(path: Path, state: Mapping[str, Tensor]) -> None:
    """Look for damage in a file without a checksum.

    Raises:
        CheckpointError: a CRC of a zip file is wrong, or a value is not finite.
    """
    if damaged := find_damage(path):
        raise CheckpointError(f"{path.name} is damaged: wrong CRC of {damaged}")
    if broken := [key for key, value in state.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{path.name}: {name_some('not finite', broken)}")


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


def _how_to_strip(missing: list[str], unexpected: list[str]) -> str:
    """Return how to remove a prefix from the keys, or "" if a prefix is not the problem."""
    for key in unexpected if missing else []:
        prefix = key.removesuffix(missing[0])
        if prefix != key and prefix.endswith("."):
            return (
                f"; its keys begin with {prefix!r}: save {{k.removeprefix({prefix!r}): v for k, v "
                f"in state_dict.items() if k.startswith({prefix!r})}}"
            )
    return ""


def _with_own_memory(tensor: Tensor, seen: set[int]) -> Tensor:
    """Return a tensor with aligned memory that no other tensor shares.

    Shared memory can't be saved or trained. The last bits of a matrix product may depend on the
    alignment, for example in mapped files.

    Args:
        seen: the addresses of the memory of earlier tensors; this tensor's address is added.
    """
    storage = tensor.untyped_storage()
    alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in seen
    seen.add(storage.data_ptr())
    if alone and tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)
