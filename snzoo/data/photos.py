"""Which files are photos: the one rule for evaluation, prediction and training."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from posixpath import basename, splitext
from typing import NamedTuple

from snzoo.errors import DataError, printable

# Formats that Pillow opens and photos are kept in. Other files are counted as left out.
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
)
# What operating systems and storage devices create on their own:
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "System Volume Information"}
SYSTEM_FILES = {"Thumbs.db", "desktop.ini"}


class ClassFolders(NamedTuple):
    """A training set: ``labels[i]`` is the index in ``classes`` of the photo at ``paths[i]``."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden (``._photo.jpg``) or the system's own."""
    return name.startswith(".") or name in SYSTEM_FOLDERS | SYSTEM_FILES


def is_image(path: str) -> bool:
    """Return whether a file is a photo, by its name: a photo's suffix, and not hidden."""
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
    """Return the photos in a folder, sorted, or the file itself.

    Args:
        recursive: look into all folders below too, except through links.

    Raises:
        DataError: there is no photo, or a folder cannot be read.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return [path]
        folders = [path, *(_list_folders(path) if recursive else ())]
        found = [folder / name for folder in folders for name in list_names(folder)]
    except OSError as error:
        raise DataError(
            printable(f"can't read {error.filename or path}: {error.strerror}")
        ) from None
    found = sorted(file for file in found if is_image(file.name))
    if not found:
        where = "in or below" if recursive else "directly in"
        raise DataError(printable(f"no image {where} {path}"))
    return found


def _list_folders(path: Path) -> Iterator[Path]:
    for name in list_names(path):
        if name.endswith("/") and not (path / name).is_symlink():
            yield path / name
            yield from _list_folders(path / name)


def list_class_folders(folder: str | Path, *, check: bool = True) -> ClassFolders:
    """List a training set: a folder of class folders, each with its photos directly in it.

    The classes are the names of the folders, sorted.

    Args:
        check: decode every photo once, on all cores, so that none stops a training later.

    Raises:
        DataError: there are no class folders, one holds no photo, photos lie beside them, or
            photos cannot be read; the message names the first ones.
    """
    folder = Path(folder)
    try:
        names = list_names(folder)
        classes = sorted(name[:-1] for name in names if name.endswith("/"))
        photos = [find_images(folder / name) for name in classes]
    except OSError as error:
        raise DataError(printable(f"can't read {folder}: {error.strerror}")) from None
    loose = [name for name in names if is_image(name)]
    if loose or not classes:
        found = f"{len(loose)} photos beside class folders, e.g. {loose[0]}" if loose else "none"
        raise DataError(
            printable(
                f"{folder} must hold one folder of photos per class and nothing else, has {found}"
            )
        )
    paths = [path for group in photos for path in group]
    if check:
        _check_photos(paths)
    labels = [label for label, group in enumerate(photos) for _ in group]
    return ClassFolders(tuple(paths), tuple(labels), tuple(classes))


def _check_photos(paths: Sequence[Path]) -> None:
    from snzoo.data.decode import decode

    def find_error(path: Path) -> str | None:
        try:
            decode(path)
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        errors = [error for error in pool.map(find_error, paths) if error]
    if errors:
        raise DataError(
            f"{len(errors)} of {len(paths):,} photos can't be used; remove or convert them: "
            + "; ".join(errors[:3])
        )
