"""Read files of ``torch.save``, zipped or legacy, without running code and in limited memory."""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from snzoo.errors import CheckpointError

RESAVE = "where it was made, save the weights alone: torch.save(model.state_dict(), 'weights.pth')"
GATHER = (
    "sharded over processes (FSDP, DTensor); gather a full state dict first: "
    "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
    "options=StateDictOptions(full_state_dict=True, cpu_offload=True))"
)


def read_pytorch(path: Path, *, max_bytes: int) -> Any:
    """Return the content of a file of ``torch.save``, with its tensors on the CPU.

    ``argparse.Namespace`` objects are allowed next to tensors, because the scripts of timm and
    torchvision save their arguments this way.

    Args:
        path: the path of the file.
        max_bytes: the largest size that a zip file may unpack to. It is checked before anything is
            unpacked.

    Raises:
        CheckpointError: the file can't be read, is too large, or holds other objects.
    """
    try:
        if unpacked_bytes(path) > max_bytes:
            raise CheckpointError(f"can't read {path}: {too_large(max_bytes)}")
        with (
            warnings.catch_warnings(action="ignore"),  # files that cause warnings are refused below
            torch.serialization.safe_globals([argparse.Namespace]),
        ):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except CheckpointError:
        raise
    except Exception as error:  # torch.load raises almost anything on damaged files
        raise CheckpointError(f"can't read {path}: {_explain(path, str(error))}") from None


def unpacked_bytes(path: Path) -> int:
    """Return the unpacked size of a zip file in bytes, or 0 for other files.

    Raises:
        zipfile.BadZipFile, OSError: the file can't be read.
    """
    if not _is_zip(path):
        return 0
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist())


def find_damage(path: Path) -> str | None:
    """Return the name of the first member of a zip file whose CRC is wrong, or None.

    torch does not check the CRCs.
    """
    if not _is_zip(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\3\4"  # the test of torch.load


def too_large(max_bytes: int) -> str:
    """Return the reason why a file is refused because of its size in memory."""
    return f"it unpacks to more than {max_bytes:,} bytes, too many for these weights; refused"


def _explain(path: Path, message: str) -> str:
    """Return the reason why ``torch.load`` refused a file, and what to do, from its message."""
    if path.suffix == ".distcp":
        return (
            "it is one part of a distributed checkpoint; join them: python -m "
            "torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER weights.pth"
        )
    name = re.search(r"GLOBAL ([\w.]+)", message)
    if re.search(r"torch\.distributed\.", message):
        return f"it is {GATHER}"
    if name:
        return f"it holds {name[1]}, which could run code; refused; {RESAVE}"
    if re.search(r"[Ii]nstruction|[Oo]perand|Trying to (?:call|build)", message):
        return f"it is not a weights file, or holds more than tensors; refused; {RESAVE}"
    for kind in ("legacy .tar", "TorchScript"):
        if kind in message:
            return f"it is not a weights file, or a {kind} archive; {RESAVE}"
    return "it is damaged, cut short or not a weights file"
