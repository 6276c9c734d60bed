"""Find out how the photos at a path are stored: in folders, archives, other files or a list.

This module looks at the names of files and folders only. ``labels`` determines the classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from snzoo.data.labels import Classes, class_indices
from snzoo.data.photos import is_image, list_names
from snzoo.data.sources import unreadable
from snzoo.errors import DataError

Split = Literal["train", "validation"]
FOLDERS: dict[Split, tuple[str, ...]] = {"train": ("train",), "validation": ("val", "validation")}
VALIDATION_FOLDERS = FOLDERS["validation"]
TRAINING_TAR = "ILSVRC2012_img_train.tar"
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
KAGGLE_TRAINING_FOLDER = "ILSVRC/Data/CLS-LOC/train"
KAGGLE_FOLDER = "ILSVRC/Data/CLS-LOC/val"
SOLUTION = "LOC_val_solution.csv"
SOLUTION_FOLDERS = (".", "val", KAGGLE_FOLDER)
# Compressed tars match too: opening one raises an error that says how to decompress it.
ARCHIVE = re.compile(r"\.(zip|tar(\.\w+)?|t(gz|bz2?|xz|zst))$", re.IGNORECASE)
SHARD = re.compile(r"(?:(.*?)[-_.])?\d+(?:-of-(\d+))?(?:-[0-9a-f]{8,})?\.(?:parquet|tar)", re.ASCII)
RANGE = re.compile(r"(.*)\{(\d{1,9})\.\.(\d{1,9})\}(.*)", re.ASCII)
MOST_SHARDS = 100_000

Kind = Literal["folder", "archives", "parquet", "recordio", "text"]


@dataclass(frozen=True)
class Layout:
    """The place where photos were found, and how they are stored.

    Attributes:
        kind: how the photos are stored.
        paths: one folder, one text or RecordIO file, or one or several archives or parquet files.
        found: the part of the path that the user did not name, e.g. ``val/``, for descriptions.
    """

    kind: Kind
    paths: tuple[Path, ...]
    found: str = ""

    @property
    def where(self) -> Path:
        """The path that errors name."""
        return self.paths[0] if len(self.paths) == 1 else self.paths[0].parent


def find_layout(path: Path, classes: Classes) -> Layout:
    """Return the layout of the photos at ``path``.

    In a folder, photos as files are preferred to archives and parquet files. After that, the folder
    itself is preferred to the folders in it.

    Raises:
        DataError: ``path`` does not exist, or there are several data sets to choose from.
        OSError: a folder cannot be read.
    """
    if path.is_dir():
        for find in (_find_loose, _find_packed):
            for folder, name in _folders_to_search(path):
                if layout := find(folder, name, classes):
                    return layout
        folder, name = list(_folders_to_search(path))[-1]
        return Layout("folder", (folder,), name)
    if path.is_file():
        return Layout(kind_of(path.name), (path,), path.name)
    if path.exists():  # reading a pipe could wait forever
        raise unreadable(path, "not a regular file")
    paths = expand_pattern(path)
    kinds = {kind_of(path.name) for path in paths}
    if len(kinds) > 1 or kinds & {"recordio", "text"}:
        raise DataError(f"{path} must stand for tar files or for parquet files only")
    return Layout(kinds.pop(), paths, f"{len(paths)} shards")


def solution_folder(path: Path) -> Path | None:
    """Return the folder of the photos of a Kaggle solution file in ``path``, or None."""
    for folder in (path / name for name in SOLUTION_FOLDERS):
        if folder.is_dir() and any(name.endswith(".JPEG") for name in list_names(folder)):
            return folder
    return None


def kind_of(name: str) -> Kind:
    """Return how a file of this name stores photos; ``"text"`` stands for any other file."""
    if name.endswith(".parquet"):
        return "parquet"
    if name.endswith(".rec"):
        return "recordio"
    return "archives" if ARCHIVE.search(name) else "text"


def _folders_to_search(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the folders to search, each with its name in descriptions."""
    yield path, ""
    names = [name for name in VALIDATION_FOLDERS if (path / name).is_dir()]
    if len(names) > 1:
        raise DataError(f"{path} holds {' and '.join(names)}; name the one to use")
    for name in (*names, KAGGLE_FOLDER):
        if (path / name).is_dir():
            yield path / name, f"{name}/"


def _find_loose(folder: Path, name: str, classes: Classes) -> Layout | None:
    """Return the layout of class folders, Kaggle's validation set, or photos, or None."""
    names, index = list_names(folder), class_indices(classes)
    if any(item.endswith("/") and item[:-1] in index for item in names):
        return Layout("folder", (folder,), name)
    if SOLUTION in names and solution_folder(folder):
        return Layout("text", (folder / SOLUTION,))
    return Layout("folder", (folder,), name) if any(map(is_image, names)) else None


def _find_packed(folder: Path, name: str, classes: Classes) -> Layout | None:
    """Return the layout of shards in a folder or its ``data/``, or of ImageNet's validation tar."""
    for place in filter(Path.is_dir, (folder, folder / "data")):
        for suffix in (".parquet", ".tar"):
            if layout := find_shards(place, suffix, of=f" of {name}" if name else ""):
                return layout
    tar = folder / VALIDATION_TAR
    return Layout("archives", (tar,), name + VALIDATION_TAR) if tar.is_file() else None


def find_shards(
    folder: Path, suffix: str, *, of: str = "", split: Split | None = None
) -> Layout | None:
    """Return the layout of the shards in a folder, or None.

    Args:
        folder: the folder, which is not searched any deeper.
        suffix: the suffix of the shards, ``.parquet`` or ``.tar``.
        of: the part of the path that the user did not name, for the description.
        split: the split that the shards must be named after (default: the validation split, or
            else the only split, of any name).

    Raises:
        DataError: the shards belong to several splits, or to several versions of one.
    """
    splits: dict[str, list[str]] = {}
    counts: dict[str, set[int]] = {}
    for name in sorted(list_names(folder)):
        match = SHARD.fullmatch(name)
        if name.endswith(suffix) and (match or suffix == ".parquet"):
            key = (match[1] or "") if match else name.removesuffix(suffix)
            splits.setdefault(key, []).append(name)
            counts.setdefault(key, set()).add(int(match[2] or 0) if match else 0)
    if not splits:
        return None
    wanted = "train(ing)?" if split == "train" else "val(idation)?"
    chosen = [key for key in splits if re.fullmatch(rf"(.*[-_.])?{wanted}", key)]
    if split and not chosen:
        return None
    chosen = chosen or list(splits)
    if len(chosen) > 1:
        raise DataError(
            f"{folder} holds {suffix} files of {len(splits)} splits ({', '.join(splits)}), not "
            f"one that is named {split or 'validation'}; name the file to use"
        )
    names, (count, *more) = splits[chosen[0]], counts[chosen[0]]
    if more or len(names) > count > 0:
        raise DataError(f"{folder} mixes {chosen[0]} shards of different counts; move some away")
    part = f"{len(names)} of {count}" if len(names) < count else f"{len(names)}"
    found = f"{part} {chosen[0] or suffix[1:]} shards{of}"
    return Layout(kind_of(names[0]), tuple(folder / name for name in names), found)


def expand_pattern(path: Path) -> tuple[Path, ...]:
    """Return the files that ``NAME-{0000..0063}.tar`` or ``NAME-*.tar`` stands for.

    Raises:
        DataError: a file does not exist, or no file matches.
        OSError: the folder cannot be read.
    """
    if match := RANGE.fullmatch(path.name):
        before, first, last, after = match.groups()
        numbers = range(int(first), min(int(last), int(first) + MOST_SHARDS) + 1)
        paths = [path.with_name(f"{before}{i:0{len(first)}}{after}") for i in numbers]
        missing = [path for path in paths if not path.is_file()]
    else:
        names = list_names(path.parent) if path.parent.is_dir() else []
        paths = [path.with_name(name) for name in sorted(names) if fnmatchcase(name, path.name)]
        missing = []
    if missing or not paths:
        raise DataError(f"{missing[0] if missing else path} does not exist")
    return tuple(paths)
