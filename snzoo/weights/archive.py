"""Read one file of a tar archive into limited memory, without unpacking the archive to disk."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

from snzoo.errors import CheckpointError, first_line
from snzoo.weights.pytorch import RESAVE, too_large

GZIP = b"\x1f\x8b"
MOST_MEMBERS = 100
HEADERS = 1 << 20  # bytes of an archive besides the content of its members


class BoundedStream:
    """A stream that refuses to return more than ``left`` bytes."""

    def __init__(self, stream: io.BufferedReader | gzip.GzipFile, left: int) -> None:
        self.stream, self.left = stream, left

    def read(self, size: int) -> bytes:
        content = self.stream.read(min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise ValueError("it unpacks to more bytes than its headers say; refused")
        return content


def is_archive(start: bytes) -> bool:
    """Return whether a file that begins with ``start`` is a tar archive or a gzip file."""
    return start.startswith(GZIP) or start[257:262] == b"ustar"


def read_member(path: Path, name: str, *, max_bytes: int) -> memoryview:
    """Return the content of a file in a tar archive, which may be compressed with gzip.

    Args:
        path: the path of the archive.
        name: the name of the file in the archive. Other files are skipped.
        max_bytes: the largest total size of all members.

    Raises:
        CheckpointError: the archive is damaged or too large, holds links, devices or paths outside
            of it, or does not hold exactly one file of this name.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == GZIP
            file.seek(0)
            stream = BoundedStream(gzip.GzipFile(fileobj=file) if packed else file, HEADERS)
            return _read_member(stream, name, max_bytes)
    except Exception as error:  # tarfile and gzip raise almost anything on damaged files
        raise CheckpointError(f"can't read {path}: {first_line(error)}") from None


def _read_member(stream: BoundedStream, name: str, max_bytes: int) -> memoryview:
    found: list[io.BytesIO] = []
    total = 0
    readable: Any = stream  # with the mode "r|", tarfile needs no method but read
    with tarfile.open(fileobj=readable, mode="r|") as archive:
        for count, member in enumerate(archive, start=1):
            total += _check_member(member)
            if total > max_bytes:
                raise ValueError(too_large(max_bytes))
            if count > MOST_MEMBERS:
                raise ValueError(f"it holds more than {MOST_MEMBERS} members; refused")
            stream.left += member.size
            content = archive.extractfile(member)
            if content and PurePosixPath(member.name) == PurePosixPath(name):
                found.append(io.BytesIO())
                shutil.copyfileobj(content, found[-1], 1 << 20)
    if len(found) != 1:
        count = len(found)
        raise ValueError(f"it holds {count} files {name!r}, not 1; for other weights: {RESAVE}")
    return found[0].getbuffer()


def _check_member(member: tarfile.TarInfo) -> int:
    """Return the size of a member. Raise an error unless it is a plain file or a folder."""
    place = PurePosixPath(member.name)
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
        raise ValueError(f"its member {member.name[:80]!r} is no plain file; refused")
    if place.is_absolute() or ".." in place.parts or member.size < 0:
        raise ValueError(f"its member {member.name[:80]!r} has a wrong place or size; refused")
    return member.size
