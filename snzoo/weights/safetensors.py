"""Read and write safetensors files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from snzoo.errors import CheckpointError, first_line

DESCRIPTION = "snzoo"  # the metadata key of a checkpoint's description
ALIGNMENT = 64  # bytes; torch aligns the memory that it allocates to this
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


def is_safetensors(start: bytes) -> bool:
    """Return whether a file is a safetensors file: a length of 8 bytes, then a JSON header.

    Args:
        start: the first bytes of the file, at least 9.
    """
    return start[8:9] == b"{"


def read_safetensors(path: Path, *, mmap: bool) -> dict[str, Tensor]:
    """Return the tensors of a file.

    The tensors cannot need more memory than the size of the file.

    Args:
        path: the path of the file.
        mmap: map the file into memory, so that tensors are read when they are used.

    Raises:
        CheckpointError: the file can't be read.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"can't read {path}: {first_line(error)}") from None
    return tensors if mmap else {key: value.clone() for key, value in tensors.items()}


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Return the description in the metadata of a file, or None if it has none.

    Raises:
        CheckpointError: the file or the description can't be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(DESCRIPTION)
        description = None if text is None else json.loads(text)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"can't read {path}: {first_line(error)}") from None
    if description is not None and not isinstance(description, dict):
        raise CheckpointError(f"can't read {path}: its description is not a JSON object")
    return description


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any] | None = None
) -> None:
    """Write tensors to a file, and align those whose size is a multiple of 64 bytes to 64 bytes.

    Mapped tensors then have the same alignment as allocated ones. The last bits of a matrix product
    may depend on it. :func:`safetensors.torch.save_file` orders tensors by name, so it does not
    align them.

    Args:
        path: the path of the file.
        tensors: the tensors by name.
        description: the description to write into the metadata, or None.

    Raises:
        OSError: the file can't be written.
    """
    metadata = {"format": "pt"}
    if description is not None:
        metadata[DESCRIPTION] = json.dumps(description)
    ordered = sorted(tensors.items(), key=lambda item: item[1].nbytes % ALIGNMENT != 0)
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for key, tensor in ordered:
        start, end = end, end + tensor.nbytes
        shape, dtype = list(tensor.shape), DTYPES[tensor.dtype]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            content = tensor.detach().cpu().contiguous().flatten()
            file.write(content.view(torch.uint8).numpy().data)
