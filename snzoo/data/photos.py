"""Decide which files are photos, for evaluation, prediction and training alike."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from posixpath import basename, splitext

from snzoo.data.sources import Photos, unreadable
from snzoo.errors import DataError, printable

# Those of the formats of photos that Pillow opens. Other files are left out.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"}
    | {".png", ".apng", ".webp", ".avif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".tga", ".ico"}
    | {".ppm", ".pgm", ".pbm", ".pnm"}
)
# Operating systems and storage devices create these:
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
SYSTEM_NAMES = SYSTEM_FOLDERS | {"Thumbs.db", "desktop.ini"}


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden (``._photo.jpg``) or made by the system."""
    return name.startswith(".") or name in SYSTEM_NAMES


def is_image(path: str) -> bool:
    """Return whether a path names a photo: it has the suffix of a photo and is not hidden."""
    name = basename(path)
    return splitext(name)[1].lower() in SUFFIXES and not is_hidden(name)


def list_names(folder: Path) -> list[str]:
    """Return the names in a folder except hidden ones. Names of folders end in a slash.

    Raises:
        OSError: the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        return [
            entry.name + "/" * (os.path.isdir(entry) if entry.is_symlink() else entry.is_dir())
            for entry in entries
            if not is_hidden(entry.name)
        ]


def find_images(path: str | Path, *, recursive: bool = False) -> list[Path]:
    """Return the sorted paths of the photos in a folder. A file is returned as it is.

    Args:
        path: the path of a folder or a file.
        recursive: search all subfolders too (default: False), see :func:`walk_folders`.

    Raises:
        DataError: the folder holds no photo, or a folder cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return [path]
        found = []
        for folder, names in walk_folders(path) if recursive else [(path, list_names(path))]:
            if isinstance(names, OSError):
                raise names
            found += [folder / name for name in names if is_image(name)]
    except OSError as error:
        raise unreadable(error.filename or path, error) from None
    if not found:
        where = "in or below" if recursive else "directly in"
        raise DataError(printable(f"no image {where} {path}"))
    return sorted(found)


def walk_folders(path: Path) -> Iterator[tuple[Path, list[str] | OSError]]:
    """Yield a folder and all folders below it, each with the sorted names in it.

    An error takes the place of the names if a folder cannot be read. Names are those of
    :func:`list_names`. Links to folders are followed, except to a folder above the link.
    """
    folders: list[tuple[Path, frozenset[tuple[int, int]]]] = [(path, frozenset())]
    while folders:
        folder, above = folders.pop()
        try:
            status = folder.stat()
            identity = (status.st_dev, status.st_ino)
            if identity in above:
                continue
            names = sorted(list_names(folder))
        except OSError as error:
            yield folder, error
            continue
        yield folder, names
        below = (folder / name for name in reversed(names) if name.endswith("/"))
        folders += [(each, above | {identity}) for each in below]


def check_photos(photos: Photos, *, workers: int) -> None:
    """Decode every photo once, to find damaged ones before a long computation.

    Args:
        photos: :class:`~snzoo.data.samples.Samples`, or anything with their ``__len__``, ``read``
            and ``locate``.
        workers: the number of threads.

    Raises:
        DataError: photos cannot be read. The message names the first three.
    """
    from snzoo.data.decode import decode
    from snzoo.data.read_ahead import read_ahead

    def read(index: int, _: object) -> None:
        decode(photos.read(index), name=photos.locate(index))

    count, size = len(photos), 64
    groups = (range(start, min(start + size, count)) for start in range(0, count, size))
    checked = read_ahead(groups, read, size=size, side=0, workers=workers)
    errors = [str(error) for group in checked for error in group.errors.values()]
    if errors:
        raise DataError(
            f"{len(errors)} of {count:,} photos can't be used; remove or convert them: "
            + "; ".join(errors[:3])
        )
