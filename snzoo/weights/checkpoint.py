"""Read untrusted checkpoint files of any supported format into state dicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from snzoo.errors import CheckpointError, first_line
from snzoo.weights.arcface import strip_face_head
from snzoo.weights.archive import is_archive
from snzoo.weights.detectron import rename_detectron_keys
from snzoo.weights.fbtorch import read_fbtorch
from snzoo.weights.keras import read_keras
from snzoo.weights.pytorch import read_pytorch, too_large
from snzoo.weights.safetensors import is_safetensors, read_metadata, read_safetensors
from snzoo.weights.slim import read_slim
from snzoo.weights.tensorflow import is_tensorflow
from snzoo.weights.torch7 import is_torch7
from snzoo.weights.wrappers import StateDict, select_state_dict

# By default, a file may unpack to RATIO times its size and SLACK more bytes. torch.save does not
# compress, and weights hardly shrink when they are compressed.
RATIO, SLACK = 16, 16 << 20


def read_state_dict(
    path: str | Path,
    *,
    averaged: bool | None = None,
    mmap: bool = False,
    max_bytes: int | None = None,
) -> StateDict:
    """Read the state dict of a network from a checkpoint, onto the CPU.

    The file may be a safetensors file, a PyTorch file (also a legacy one), which is read with
    ``weights_only=True``, the Keras ResNet-50, which needs h5py, the Torch7 ResNet-50 of
    fb.resnet.torch, or the ResNet-50 of TF-Slim, a TensorFlow V1 checkpoint that may be in a tar
    archive. The state dict may be the whole file or the value of a key such as ``state_dict``,
    ``model`` or ``model_ema``. The prefixes of wrappers (``module.``, ``_orig_mod.``, ``model.``,
    …) are removed, and the keys of a backbone of SwitchNorm_Detection are renamed. Of a published
    face network, the head is left out.

    Args:
        path: the path of the checkpoint.
        averaged: True loads averaged weights (EMA, SWA), False loads raw weights, and None loads
            the averaged ones if there are any, else the raw ones (default: None). With None, the
            logger ``snzoo`` warns if the checkpoint has both.
        mmap: map a safetensors file into memory instead of copying it (default: False). The file
            must then never be changed in place: a change would change the network, and a shorter
            file would end the process.
        max_bytes: the largest total size of the tensors in memory (default: 16 times the size of
            the file, plus 16 MiB). The size of the file itself is always allowed.

    Raises:
        CheckpointError: the file can't be read, needs too much memory, holds other objects than
            tensors, or holds no state dict.
        MissingPackageError: the file is an HDF5 file, and h5py is not installed.
    """
    path = Path(path)
    refuse_web_page(path)
    start, end, size = _read_ends(path)
    limit = max(size, RATIO * size + SLACK if max_bytes is None else max_bytes)
    if start.startswith(b"\x89HDF"):
        return read_keras(path, max_bytes=limit)
    if is_torch7(start):
        return read_fbtorch(path, max_bytes=limit)
    if is_archive(start) or is_tensorflow(start, end):
        return read_slim(path, archived=is_archive(start), max_bytes=limit)
    if is_safetensors(start):
        content: Any = read_safetensors(path, mmap=mmap)
    else:
        content = read_pytorch(path, max_bytes=limit)
    state = select_state_dict(content, averaged=averaged, where=path)
    if sum(value.nbytes for value in state.values()) > limit:  # tensors may share stored elements
        raise CheckpointError(f"can't read {path}: {too_large(limit)}")
    return strip_face_head(rename_detectron_keys(state, where=path))


def read_description(path: str | Path) -> dict[str, Any] | None:
    """Return the description in a safetensors checkpoint of snzoo, or None if there is none.

    Raises:
        CheckpointError: the file or its description can't be read.
    """
    path = Path(path)
    return read_metadata(path) if is_safetensors(_read_ends(path)[0]) else None


def refuse_web_page(path: Path) -> None:
    """Raise a CheckpointError if a file is a web page, as some hosts send instead of a file."""
    if looks_like_html(_read_ends(path)[0]):
        raise CheckpointError(f"{path} is a web page, not a weights file; download it again")


def looks_like_html(start: bytes) -> bool:
    """Return whether content that begins with ``start`` is a web page."""
    return start.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def _read_ends(path: Path) -> tuple[bytes, bytes, int]:
    """Return the first and the last bytes of a file, and its size."""
    try:
        with open(path, "rb") as file:
            start, size = file.read(512), path.stat().st_size
            file.seek(max(0, size - 8))
            return start, file.read(8), size
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {first_line(error)}") from None
