"""Where images lie: files, a tar (and parquet shards). Each gives an image's content by its index.

Nothing is ever written, so a name may say what it likes; all reads are bounded by ``LARGEST``.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Protocol

from snzoo.data.remote import fetch_image, is_url
from snzoo.errors import DataError, printable

if TYPE_CHECKING:
    from snzoo.data.decode import Photo

LARGEST = 256 << 20  # bytes of an image
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class Photos(Protocol):
    """Photos by index, for :func:`~snzoo.data.batches.read_batches`.

    Many threads may call its methods at once.
    """

    def __len__(self) -> int:
        """Return the number of photos."""

    def read(self, index: int) -> Photo:
        """Return a photo, as :func:`~snzoo.data.pixels.load_pixels` takes it.

        Raises:
            DataError: it cannot be read; the message names it.
        """

    def locate(self, index: int) -> str:
        """Return what errors call the photo."""


@dataclass(frozen=True)
class PhotoList:
    """Photos in any of the forms of :data:`~snzoo.data.decode.Photo`, and http(s) URLs."""

    photos: Sequence[Photo]

    def __len__(self) -> int:
        return len(self.photos)

    def read(self, index: int) -> Photo:
        """Return a photo; fetch it if it is a URL.

        Raises:
            DownloadError: see :func:`~snzoo.data.remote.fetch_image`.
        """
        photo = self.photos[index]
        return fetch_image(photo) if isinstance(photo, str) and is_url(photo) else photo

    def locate(self, index: int) -> str:
        photo = self.photos[index]
        return os.fspath(photo) if isinstance(photo, (str, os.PathLike)) else f"image {index}"


class Source(Protocol):
    """Images by index; its methods may be called by many threads at once."""

    @property
    def names(self) -> Sequence[str]:
        """One unique name an image: its POSIX path below the root, or what stands for it."""

    def read(self, index: int) -> bytes:
        """The whole content of an image.

        Raises:
            DataError: it can't be read; the message names it.
        """

    def locate(self, index: int) -> str:
        """Where the image lies, to be shown: ``val/n01/x.JPEG``, ``val.tar: n01/x.JPEG``."""

    def stamp(self) -> str:
        """Something else once a file was changed."""


@dataclass(frozen=True)
class Files:
    """Regular files at ``root / name``."""

    root: Path
    names: Sequence[str]

    def read(self, index: int) -> bytes:
        return read_file(self.root / self.names[index])

    def locate(self, index: int) -> str:
        return printable(str(self.root / self.names[index]))

    def stamp(self) -> str:
        return stamp_of(self.root / name for name in self.names)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the whole content of an image file.

    Raises:
        DataError: it can't be read, is no regular file, or larger than ``LARGEST``.
    """
    try:
        status = os.stat(path)
        if not S_ISREG(status.st_mode):
            raise ValueError("not a regular file")  # a pipe would be waited for without end
        check_size(status.st_size)
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"can't read {printable(str(path))}: {one_line(error)}") from None


@dataclass(frozen=True)
class Member:
    """A member of a tar: the place of its content, or the ``flaw`` that it can't be read for."""

    name: str
    offset: int
    size: int
    flaw: str | None


class Tar:
    """Members of an uncompressed tar, under the names (keys) given to them, read in place."""

    def __init__(self, path: Path, members: Mapping[str, Member]) -> None:
        self.path = path
        self.names: Sequence[str] = tuple(members)
        self._members = tuple(members.values())
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def read(self, index: int) -> bytes:
        member, content = self._members[index], b""
        try:
            check_size(member.size)
            # pread: no position that threads would share
            while part := os.pread(
                self._file, member.size - len(content), member.offset + len(content)
            ):
                content += part
            if len(content) < member.size:
                raise ValueError("the archive was cut short")
        except (OSError, ValueError) as error:
            raise DataError(f"can't read {self.locate(index)}: {one_line(error)}") from None
        return content

    def locate(self, index: int) -> str:
        return f"{printable(str(self.path))}: {self._members[index].name}"

    def stamp(self) -> str:
        return stamp_of([self.path])


class _Headers(io.FileIO):
    """A tar for tarfile, which would take a header of any size into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= 1 << 20:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""


def tar_members(path: Path) -> list[Member]:
    """Everything in an uncompressed tar; the names of folders end in a slash.

    Raises:
        DataError: it is compressed, damaged or cut short.
        OSError: it can't be read.
    """
    if not path.is_file():
        raise DataError(f"can't read {path}: not a regular file")
    members = []
    with _Headers(path) as file:
        start = file.read(8)
        if kind := next((kind for magic, kind in COMPRESSED.items() if start.startswith(magic)), 0):
            raise DataError(
                f"{path} is compressed ({kind}), so images can't be read from where they lie "
                "in it; decompress it first"
            )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar:
                last = -1
                while member := tar.next():
                    if member.offset <= last:
                        raise tarfile.ReadError("a header points back")
                    last = member.offset
                    members.append(_member(member))
                    tar.members.clear()  # type: ignore[attr-defined]  # or all headers stay in memory
                file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end mark where the last member ends")
        except Exception as error:  # tarfile raises almost anything on damaged headers
            raise DataError(f"{path} is no tar, damaged or cut short: {one_line(error)}") from None
    return members


def _member(info: tarfile.TarInfo) -> Member:
    flaw = None
    if info.issparse():
        flaw = "a sparse file"
    elif info.issym() or info.islnk():
        flaw = "a link"
    elif not info.isreg():
        flaw = "not a regular file"
    name = printable(info.name) + "/" * info.isdir()
    return Member(name, info.offset_data, info.size, flaw)


def check_size(size: int) -> None:
    if size > LARGEST:
        raise ValueError(f"{size >> 20} MiB, more than the {LARGEST >> 20} MiB of any photo")


def stamp_of(paths: Iterable[Path]) -> str:
    """sha256 of the files' paths, sizes and times of the last change."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
            digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        except OSError:
            digest.update(b"- ")
        digest.update(os.fsencode(path.absolute()))
    return digest.hexdigest()


def one_line(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return printable(reason.splitlines()[0])
