"""Read photos from files, or from objects in memory.

``archives`` and ``parquet`` have further sources. Nothing is ever written, so a photo may have any
name. Each read is limited to ``LARGEST`` bytes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Protocol

from snzoo.errors import DataError, first_line, printable

if TYPE_CHECKING:
    from snzoo.data.decode import Photo

LARGEST = 256 << 20  # bytes of a photo


class Photos(Protocol):
    """The photos that :func:`~snzoo.data.batches.read_batches` reads by index.

    Many threads may call its methods at once.
    """

    def __len__(self) -> int:
        """Return the number of photos."""

    def read(self, index: int) -> Photo:
        """Return a photo in a form that :func:`~snzoo.data.pixels.load_pixels` accepts.

        Raises:
            DataError: the photo cannot be read; the message names it.
        """

    def locate(self, index: int) -> str:
        """Return the name of the photo in errors."""


@dataclass(frozen=True)
class PhotoList:
    """A list of photos: http(s) URLs or any of the types of :data:`~snzoo.data.decode.Photo`.

    A photo in memory is named ``image N``, where N counts from ``first``.
    """

    photos: Sequence[Photo]
    first: int = 0

    def __len__(self) -> int:
        return len(self.photos)

    def read(self, index: int) -> Photo:
        """Return a photo, which is downloaded if it is a URL.

        Raises:
            DownloadError: see :func:`~snzoo.data.remote.fetch_image`.
        """
        from snzoo.data.remote import fetch_image, is_url  # requests takes long to import

        photo = self.photos[index]
        return fetch_image(photo) if isinstance(photo, str) and is_url(photo) else photo

    def locate(self, index: int) -> str:
        photo = self.photos[index]
        return (
            os.fspath(photo)
            if isinstance(photo, (str, os.PathLike))
            else f"image {self.first + index}"
        )


class Source(Protocol):
    """The files or archives that :class:`~snzoo.data.samples.Samples` are read from.

    Many threads may call its methods at once.
    """

    @property
    def names(self) -> Sequence[str]:
        """The unique name of each photo: its POSIX path below the root or in an archive."""

    def read(self, index: int) -> bytes:
        """Return the whole content of a photo.

        Raises:
            DataError: the photo cannot be read; the message names it.
        """

    def locate(self, index: int) -> str:
        """Return the place of the photo for errors: ``val/n01/x.JPEG``, ``val.tar: n01/x.JPEG``."""

    def stamp(self) -> str:
        """Return a digest that changes if a file of the source changes."""


@dataclass(frozen=True)
class Files:
    """A source of photos in files. Photo ``i`` is the file ``root / names[i]``."""

    root: Path
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> bytes:
        return read_file(self.root / self.names[index])

    def locate(self, index: int) -> str:
        return str(self.root / self.names[index])

    def stamp(self) -> str:
        return stamp_of(self.root / name for name in self.names)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a file.

    Raises:
        DataError: the file cannot be read, is not a regular file, or is larger than ``LARGEST``
            bytes.
    """
    try:
        status = os.stat(path)
        if not S_ISREG(status.st_mode):
            raise ValueError("not a regular file")  # reading a pipe could wait forever
        check_size(status.st_size)
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise unreadable(os.fspath(path), error) from None


def check_size(size: int) -> None:
    """Raise ValueError if a photo has more than ``LARGEST`` bytes."""
    if size > LARGEST:
        raise ValueError(f"{size >> 20} MiB, more than the {LARGEST >> 20} MiB of any photo")


def stamp_of(paths: Iterable[Path]) -> str:
    """Return the sha256 of the files' paths, sizes and modification times."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
            digest.update(f"{status.st_size} {status.st_mtime_ns} ".encode())
        except OSError:
            digest.update(b"- ")
        digest.update(os.fsencode(path.absolute()))
    return digest.hexdigest()


def unreadable(name: object, reason: str | Exception) -> DataError:
    """Return a DataError that a photo or a file cannot be read, with a message of one line."""
    reason = first_line(reason) if isinstance(reason, Exception) else reason
    return DataError(printable(f"can't read {name}: {reason}"))
