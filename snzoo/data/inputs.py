"""Find the photos that a user names: files, folders, URLs, archives, other files, and lists.

Inputs are opened one after the other, when their turn comes, so that memory does not grow with
their number.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeGuard

import numpy as np
from PIL import Image

from snzoo.data.archives import Archived, list_members
from snzoo.data.labels import visible_parts
from snzoo.data.layouts import RANGE, expand_pattern, kind_of
from snzoo.data.nested import is_nested, list_photos
from snzoo.data.parquet import ParquetPhotos
from snzoo.data.photos import is_image, walk_folders
from snzoo.data.recordio import open_recordio
from snzoo.data.samples import printable_errors
from snzoo.data.sources import Files, PhotoList, unreadable
from snzoo.data.tables import number_lines
from snzoo.errors import ArgumentError, DataError, InputError, SnzooError

if TYPE_CHECKING:
    from snzoo.data.decode import Photo
    from snzoo.data.sources import Photos

STDIN = "-"  # the input that stands for a list on stdin
LINES = 4096  # lines of a list that are held in memory
WILDCARDS = set("*?[")


@dataclass(frozen=True)
class Chunk:
    """Consecutive photos of the inputs, which may belong to several sources.

    Attributes:
        start: the number of photos before these ones.
        photos: the source of each photo, and its index in the source.
    """

    start: int
    photos: Sequence[tuple[Photos, int]]

    def __len__(self) -> int:
        return len(self.photos)

    def read(self, index: int) -> Photo:
        source, place = self.photos[index]
        return source.read(place)

    def locate(self, index: int) -> str:
        source, place = self.photos[index]
        return source.locate(place)

    def list_unreadable(self) -> list[str]:
        """Return the names of inputs that cannot be read as a whole."""
        return [
            source.locate(place) for source, place in self.photos if isinstance(source, Unreadable)
        ]

    def digest(self) -> str:
        """Return the first 16 hexadecimal digits of the SHA-256 of the names of the photos."""
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(f"{self.locate(index)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Unreadable:
    """An input whose photos cannot be found. It counts as one photo that cannot be read."""

    name: str
    error: SnzooError

    def __len__(self) -> int:
        return 1

    def read(self, index: int) -> NoReturn:
        raise InputError(str(self.error))

    def locate(self, index: int) -> str:
        return self.name


def iter_chunks(inputs: Photo | Iterable[Photo], size: int) -> Iterator[Chunk]:
    """Yield the photos of inputs in chunks of ``size``; the last chunk may be smaller.

    Args:
        inputs: one or several of:

            - the path of a photo; a folder (the photos in it and below it, see
              :func:`~snzoo.data.photos.walk_folders`); an http(s) URL;
            - an uncompressed tar or a zip file (the photos in it), such as a webdataset shard;
            - a parquet file, see :class:`~snzoo.data.parquet.ParquetPhotos`;
            - a RecordIO file ``NAME.rec`` with ``NAME.idx`` beside it;
            - several of these files as ``NAME-{0000..0063}.tar`` or ``NAME-*.tar``;
            - a list ``NAME.txt`` with the path of a photo, relative to the folder of the list, or
              a URL in each line; blank lines are skipped;
            - ``"-"``, a list on stdin, with paths relative to the current folder;
            - a photo in memory: the content of an image file (bytes), a PIL image, or an array.
        size: the number of photos of a chunk.

    An input that cannot be opened counts as one photo that cannot be read.

    Raises:
        ArgumentError: a name is empty.
        MissingPackageError: a parquet file is named, but pyarrow is not installed.
    """
    photos = ((source, i) for source in _iter_sources(inputs) for i in range(len(source)))
    start = 0
    while chunk := list(islice(photos, size)):
        yield Chunk(start, chunk)
        start += len(chunk)


def list_items(inputs: Photo | Iterable[Photo]) -> Iterable[Photo]:
    """Return one or several inputs as an iterable."""
    if isinstance(inputs, (str, bytes, os.PathLike, Image.Image, np.ndarray)):
        return [inputs]
    return inputs


def is_path(item: object) -> TypeGuard[str | os.PathLike[str]]:
    """Return whether an input is a path: neither a URL nor a photo in memory.

    Raises:
        ArgumentError: the name is empty.
    """
    from snzoo.data.remote import is_url  # requests takes long to import

    if isinstance(item, str) and not item:
        raise ArgumentError("one of the names is empty; name a file, a folder or a URL")
    return isinstance(item, os.PathLike) or (isinstance(item, str) and not is_url(item))


def list_files(path: str | os.PathLike[str]) -> list[Path]:
    """Return the files that a pattern stands for. Any other path is returned as it is.

    Raises:
        DataError: a file does not exist, or no file matches.
        OSError: the folder cannot be read.
    """
    path = Path(path)
    is_pattern = RANGE.fullmatch(path.name) or WILDCARDS & set(path.name)
    return list(expand_pattern(path)) if is_pattern and not os.path.lexists(path) else [path]


def _iter_sources(inputs: Photo | Iterable[Photo]) -> Iterator[Photos]:
    count = 0
    for item in list_items(inputs):
        for source in _open_input(item, count):
            yield source
            count += len(source)


def _open_input(item: Any, position: int) -> Iterator[Photos]:
    """Yield the photos of an input, the first of which has this position among all photos."""
    if not is_path(item):
        yield PhotoList([item], position)
        return
    try:
        with printable_errors(Path(item)):
            if item == STDIN:
                yield from _read_stdin()
            elif (files := list_files(item)) == [Path(item)]:
                yield from _open_path(Path(item))
            else:
                for file in files:  # an error of one leaves the others as they are
                    yield from _open_input(file, position)
    except DataError as error:
        yield Unreadable(os.fspath(item), error)


def _open_path(path: Path) -> Iterator[Photos]:
    if path.is_dir():
        yield from _walk(path)
        return
    kind = kind_of(path.name)
    if kind == "text" and path.suffix.lower() != ".txt":
        if not is_image(path.name):
            path.stat()  # what is missing may be a folder
        yield PhotoList([path])
        return
    if not S_ISREG(path.stat().st_mode):
        raise unreadable(path, "not a regular file")  # reading a pipe could wait forever
    if kind == "archives":
        yield _open_archive(path)
    elif kind == "parquet":
        yield ParquetPhotos([path])
    elif kind == "recordio":
        yield open_recordio(path)
    else:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from _read_list(file, path, path.parent)


def _walk(path: Path) -> Iterator[Files | Unreadable]:
    is_empty = True
    for folder, names in walk_folders(path):
        if isinstance(names, OSError):
            yield Unreadable(str(folder), unreadable(folder, names))
        elif images := [name for name in names if is_image(name)]:
            yield Files(folder, images)
        else:
            continue
        is_empty = False
    if is_empty:
        raise DataError(f"no image in or below {path}")


def _open_archive(path: Path) -> Archived:
    members = list_members(path)
    if is_nested(members):
        members = list_photos(members)
    photos = [
        member
        for member in members
        if not member.is_folder and is_image(member.name) and visible_parts(member.name)
    ]
    if not photos:
        raise DataError(f"no image in {path}")
    return Archived([member.name for member in photos], photos)


def _read_stdin() -> Iterator[PhotoList]:
    with open(0, encoding="utf-8-sig", errors="surrogateescape", closefd=False) as file:
        yield from _read_list(file, Path("stdin"), Path())


def _read_list(file: TextIO, path: Path, folder: Path) -> Iterator[PhotoList]:
    from snzoo.data.remote import is_url

    lines = (_check_line(line.rstrip("\n"), i, path) for i, line in number_lines(file, path))
    names = (line if is_url(line) else str(folder / line) for line in lines if line.strip())
    is_empty = True
    while part := list(islice(names, LINES)):
        yield _Listed(part)
        is_empty = False
    if is_empty:
        raise DataError(f"{path} lists no image")


def _check_line(line: str, number: int, path: Path) -> str:
    if "\0" in line:
        raise DataError(
            f"{path} is no list: line {number} has a NUL byte; write one path in each line"
        )
    return line


class _Listed(PhotoList):
    """The photos that a list names."""

    def read(self, index: int) -> Photo:
        name = self.locate(index)
        if not is_image(name) and (kind_of(name) != "text" or os.path.isdir(name)):
            raise unreadable(name, "a list names photos; name this on the command line instead")
        return super().read(index)
