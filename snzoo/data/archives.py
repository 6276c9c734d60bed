"""Read photos in place from uncompressed tar and zip files.

Nothing is extracted, so no member of an archive can write to the disk. Each read opens the archive
and returns one member of at most ``LARGEST`` bytes. Reads share no state, so many threads may read
at once.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snzoo.data.sources import check_size, stamp_of, unreadable
from snzoo.errors import DataError, first_line

COMPRESSED = {  # first bytes of a compressed tar → its format, the command to decompress it
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
LARGEST_HEADER = 1 << 20  # bytes; the largest header of a tar that is read
# Photos are already compressed, so an archive that unpacks to more than this many times its size is
# a zip bomb.
MOST_GROWTH = 100
UNSUSPICIOUS = 1 << 30  # bytes; any archive may unpack to this size
LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field (zip)


@dataclass(frozen=True, slots=True)
class Zipped:
    """How a zip file stores a member."""

    size: int  # bytes in the archive
    deflated: bool
    crc: int


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive.

    Attributes:
        path: the path of the archive.
        name: the name of the member in the archive.
        offset: the position in bytes of the content (tar) or of the local header (zip).
        size: the size of the content in bytes.
        is_folder: whether the member is a folder.
        flaw: the reason why the content cannot be read, or None.
        zipped: how a zip file stores the member; None for a tar.
    """

    path: Path
    name: str
    offset: int
    size: int
    is_folder: bool
    flaw: str | None
    zipped: Zipped | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.name}"


class Archived:
    """A source of photos in archives: ``members[i]`` has the unique name ``names[i]``."""

    def __init__(self, names: Sequence[str], members: Sequence[Member]) -> None:
        self.names = names
        self._members = members

    def __len__(self) -> int:
        return len(self._members)

    def read(self, index: int) -> bytes:
        return read_member(self._members[index])

    def locate(self, index: int) -> str:
        return str(self._members[index])

    def stamp(self) -> str:
        return stamp_of(dict.fromkeys(member.path for member in self._members))


def read_member(member: Member) -> bytes:
    """Return the content of a member.

    Raises:
        DataError: the member cannot be read, has a flaw, is damaged, or is larger than
            ``LARGEST`` bytes.
    """
    try:
        if member.flaw:
            raise ValueError(member.flaw)
        check_size(member.size)
        with open(member.path, "rb", buffering=0) as file:
            file.seek(member.offset)
            if member.zipped:
                return _read_zipped(file, member.zipped, member.size)
            content = file.read(member.size)
        if len(content) < member.size:
            raise ValueError("the archive was cut short")
    except (OSError, ValueError, zlib.error) as error:
        raise unreadable(member, error) from None
    return content


def _read_zipped(file: io.FileIO, zipped: Zipped, size: int) -> bytes:
    check_size(zipped.size)
    header = file.read(LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size or not header.startswith(b"PK\3\4"):
        raise ValueError("its header is damaged")
    file.seek(sum(LOCAL_HEADER.unpack(header)[1:]), io.SEEK_CUR)
    content = file.read(zipped.size)
    if zipped.deflated:
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
    if len(content) != size or zlib.crc32(content) != zipped.crc:
        raise ValueError("it is damaged: its size or checksum is wrong")
    return content


def list_members(path: Path) -> list[Member]:
    """Return all members of an uncompressed tar or a zip file.

    Raises:
        DataError: the archive is a compressed tar, damaged, cut short, or a zip bomb.
        OSError: the archive cannot be read.
    """
    if not path.is_file():  # reading a pipe could wait forever
        raise unreadable(path, "not a regular file")
    return _list_zip(path) if path.suffix.lower() == ".zip" else _list_tar(path)


def list_inner(outer: Member) -> list[Member]:
    """Return all members of a tar that is a member of another tar.

    The members lie in the outer tar, so their offsets are counted from its start.

    Raises:
        DataError: the inner tar is damaged or cut short, or a member leaves its bounds.
        OSError: the archive cannot be read.
    """
    return _list_tar(outer.path, outer)


class _Headers(io.FileIO):
    """The headers of a tar: a file, or a part of a file, which starts at position 0.

    Large reads are refused, because tarfile reads headers of any size into memory.
    """

    def __init__(self, path: Path, outer: Member | None) -> None:
        super().__init__(path)
        self.start = outer.offset if outer else 0
        self.size = outer.size if outer else os.fstat(self.fileno()).st_size
        self.seek(0)
        if hasattr(os, "posix_fadvise"):  # else the system may read the photos ahead, too
            os.posix_fadvise(self.fileno(), 0, 0, os.POSIX_FADV_RANDOM)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(max(0, min(size, self.size - self.tell()))) or b""

    def seek(self, position: int, whence: int = os.SEEK_SET, /) -> int:
        return super().seek(self.start + position) - self.start

    def tell(self) -> int:
        return super().tell() - self.start


def _list_tar(path: Path, outer: Member | None = None) -> list[Member]:
    members = []
    with _Headers(path, outer) as file:
        start = file.read(8)
        for magic, (kind, command) in COMPRESSED.items():
            if start.startswith(magic) and not outer:
                raise DataError(_explain_compression(path, kind, command))
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar:
                last = -1
                while info := tar.next():
                    if info.offset <= last:
                        raise tarfile.ReadError("a header points back")
                    last = info.offset
                    member = _tar_member(path, info, file.start)
                    if not member.flaw and info.offset_data + info.size > file.size:
                        raise tarfile.ReadError(f"{info.name} leaves its bounds")
                    members.append(member)
                    tar.members.clear()  # type: ignore[attr-defined]  # saves memory
                file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end mark after the last member")
        except Exception as error:  # tarfile raises exceptions of many types for damaged headers
            raise DataError(
                f"{outer or path} is no tar, damaged or cut short: {first_line(error)}"
            ) from None
    return members


def _explain_compression(path: Path, kind: str, command: str) -> str:
    stem = re.sub(r"\.(tar(\.\w+)?|t\w+)$", "", path.name, flags=re.IGNORECASE)
    target = path.with_name(f"{stem}.tar")
    if target == path:
        target = path.with_name(f"{stem}.decompressed.tar")
    return (
        f"{path} is compressed ({kind}), so photos can't be read from it in place; decompress it: "
        f"{command} -c {shlex.quote(str(path))} > {shlex.quote(str(target))}"
    )


def _tar_member(path: Path, info: tarfile.TarInfo, start: int) -> Member:
    flaw = None
    if info.issparse():
        flaw = "a sparse file"
    elif info.issym() or info.islnk():
        flaw = "a link"
    elif not info.isreg():
        flaw = "not a regular file"
    return Member(path, info.name, start + info.offset_data, info.size, info.isdir(), flaw)


def _list_zip(path: Path) -> list[Member]:
    try:
        with zipfile.ZipFile(path) as file:
            members = [_zip_member(path, info) for info in file.infolist()]
    except OSError:
        raise
    except Exception as error:  # zipfile raises exceptions of several types for damaged files
        raise DataError(f"{path} is no zip, damaged or cut short: {first_line(error)}") from None
    size = path.stat().st_size
    total = sum(member.size for member in members)
    packed = sum(member.zipped.size for member in members if member.zipped)
    if packed > size or total > max(UNSUSPICIOUS, MOST_GROWTH * size):
        raise DataError(
            f"{path} looks like a zip bomb: {size:,} bytes that claim to hold {total:,}; pack the "
            "photos again"
        )
    return members


def _zip_member(path: Path, info: zipfile.ZipInfo) -> Member:
    name = info.filename
    if info.create_system == 0:  # Windows: some tools write backslashes
        name = name.replace("\\", "/")
    flaw = None
    if info.flag_bits & 0x1:
        flaw = "encrypted"
    elif stat.S_ISLNK(info.external_attr >> 16):
        flaw = "a link"
    elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        flaw = f"compressed by method {info.compress_type}, not deflated"
    zipped = Zipped(info.compress_size, info.compress_type == zipfile.ZIP_DEFLATED, info.CRC)
    is_folder = name.endswith("/")
    return Member(path, name, info.header_offset, info.file_size, is_folder, flaw, zipped)
