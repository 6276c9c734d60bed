"""What lies at a path: a tree of photos, archives, parquet files, or a text file that lists photos.

Only the names of files and folders are looked at here; ``labels`` reads what they mean.
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
from snzoo.errors import DataError

VALIDATION_FOLDERS = ("val", "validation")
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
KAGGLE_FOLDER = "ILSVRC/Data/CLS-LOC/val"
SOLUTION = "LOC_val_solution.csv"
SOLUTION_FOLDERS = (".", "val", KAGGLE_FOLDER)
# .tar.gz and .tgz are archives too: that they are compressed is said when they are opened.
ARCHIVE = re.compile(r"\.(zip|tar(\.\w+)?|t(gz|bz2?|xz|zst))$", re.IGNORECASE)
SHARD = re.compile(r"(?:(.*?)[-_.])?\d+(?:-of-(\d+))?(?:-[0-9a-f]{8,})?\.(?:parquet|tar)", re.ASCII)
RANGE = re.compile(r"(.*)\{(\d{1,9})\.\.(\d{1,9})\}(.*)", re.ASCII)
MOST_SHARDS = 100_000

Kind = Literal["folder", "archives", "parquet", "text"]


@dataclass(frozen=True)
class Layout:
    """Where photos were found, and how they are stored.

    ``paths`` are one folder, one text file, or one or several archives or parquet files.
    ``found`` is what a description adds to the path that the user gave, e.g. ``val/``.
    """

    kind: Kind
    paths: tuple[Path, ...]
    found: str = ""

    @property
    def where(self) -> Path:
        """The path that errors name."""
        return self.paths[0] if len(self.paths) == 1 else self.paths[0].parent


def find_layout(path: Path, classes: Classes) -> Layout:
    """Return the first layout that is found at ``path``.

    In a folder, loose photos go before packed ones, and the folder before those in it.

    Raises:
        DataError: nothing is there, or several things between which only the user can choose.
        OSError: a folder cannot be read.
    """
    if path.is_dir():
        for find in (_find_loose, _find_packed):
            for folder, name in _places(path):
                if layout := find(folder, name, classes):
                    return layout
        folder, name = list(_places(path))[-1]
        return Layout("folder", (folder,), name)
    if path.is_file():
        return Layout(_kind_of(path.name), (path,), path.name)
    if path.exists():  # reading a pipe could wait forever
        raise DataError(f"can't read {path}: not a regular file")
    paths = _expand(path)
    kinds = {_kind_of(path.name) for path in paths}
    if len(kinds) > 1 or "text" in kinds:
        raise DataError(f"{path} must stand for tar files or for parquet files only")
    return Layout(kinds.pop(), paths, f"{len(paths)} shards")


def solution_folder(path: Path) -> Path | None:
    """Return where the photos of a Kaggle solution file in ``path`` lie."""
    for folder in (path / name for name in SOLUTION_FOLDERS):
        if folder.is_dir() and any(name.endswith(".JPEG") for name in list_names(folder)):
            return folder
    return None


def _kind_of(name: str) -> Kind:
    if name.endswith(".parquet"):
        return "parquet"
    return "archives" if ARCHIVE.search(name) else "text"


def _places(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield the folders to look into, and what a description calls them."""
    yield path, ""
    names = [name for name in VALIDATION_FOLDERS if (path / name).is_dir()]
    if len(names) > 1:
        raise DataError(f"{path} holds {' and '.join(names)}; name the one to use")
    for name in (*names, KAGGLE_FOLDER):
        if (path / name).is_dir():
            yield path / name, f"{name}/"


def _find_loose(folder: Path, name: str, classes: Classes) -> Layout | None:
    """Find class folders, Kaggle's validation set, or photos directly in the folder."""
    names, index = list_names(folder), class_indices(classes)
    if any(item.endswith("/") and item[:-1] in index for item in names):
        return Layout("folder", (folder,), name)
    if SOLUTION in names and solution_folder(folder):
        return Layout("text", (folder / SOLUTION,))
    return Layout("folder", (folder,), name) if any(map(is_image, names)) else None


def _find_packed(folder: Path, name: str, classes: Classes) -> Layout | None:
    """Find shards, in the folder or its ``data/``, or the tar of ImageNet's validation set."""
    for place in filter(Path.is_dir, (folder, folder / "data")):
        for suffix in (".parquet", ".tar"):
            if layout := _find_shards(place, suffix, f" of {name}" if name else ""):
                return layout
    tar = folder / VALIDATION_TAR
    return Layout("archives", (tar,), name + VALIDATION_TAR) if tar.is_file() else None


def _find_shards(folder: Path, suffix: str, of: str) -> Layout | None:
    """Find the shards of the validation split, or of the only one."""
    splits: dict[str, list[str]] = {}
    counts: dict[str, set[int]] = {}
    for name in sorted(list_names(folder)):
        match = SHARD.fullmatch(name)
        if name.endswith(suffix) and (match or suffix == ".parquet"):
            split = (match[1] or "") if match else name.removesuffix(suffix)
            splits.setdefault(split, []).append(name)
            counts.setdefault(split, set()).add(int(match[2] or 0) if match else 0)
    if not splits:
        return None
    chosen = [s for s in splits if re.fullmatch(r"(.*[-_.])?val(idation)?", s)] or list(splits)
    if len(chosen) > 1:
        raise DataError(
            f"{folder} holds {suffix} files of {len(splits)} splits ({', '.join(splits)}), not "
            "one that is named validation; name the file to use"
        )
    split, kind = chosen[0], suffix[1:]
    names, (count, *more) = splits[split], counts[split]
    if more or len(names) > count > 0:
        raise DataError(f"{folder} mixes {split} shards of different counts; move some away")
    part = f"{len(names)} of {count}" if len(names) < count else f"{len(names)}"
    found = f"{part} {split or kind} shards{of}"
    return Layout(_kind_of(names[0]), tuple(folder / name for name in names), found)


def _expand(path: Path) -> tuple[Path, ...]:
    """Return the files that ``NAME-{0000..0063}.tar`` or ``NAME-*.tar`` stands for."""
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
