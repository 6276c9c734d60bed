"""A path → images with their class indices, or an error that says what lies there instead."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from snzoo.data.imagenet import check_ground_truth, check_published
from snzoo.data.layouts import (
    SOLUTION_HEADER,
    Classes,
    Labeled,
    class_indices,
    is_hidden,
    is_image,
    label_tree,
    numbered_lines,
    read_list,
    read_solution,
    tar_tree,
)
from snzoo.data.parquet import Parquet
from snzoo.data.sources import Files, Source, Tar, tar_members
from snzoo.errors import DataError, printable

VALIDATION_SET = "imagenet-1k-val"
VALIDATION_FOLDERS = ("val", "validation")
VALIDATION_TAR = "ILSVRC2012_img_val.tar"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT = "ILSVRC2012_devkit_t12"
SOLUTION = "LOC_val_solution.csv"
SOLUTION_FOLDERS = (".", "val", "ILSVRC/Data/CLS-LOC/val")
TAR_NAME = re.compile(r"\.(tar(\.\w+)?|t(gz|bz2?|xz|zst))$", re.IGNORECASE)
SHARD_NAME = re.compile(r"(.*?)[-_]?\d+(?:-of-(\d+))?(?:-[0-9a-f]{8,})?\.parquet", re.ASCII)


@dataclass(frozen=True)
class Samples:
    """Labeled images: ``labels[i]`` is the class index of the image ``i`` of ``source``.

    ``description`` tells people what was found, e.g. "250 images in 98 class folders";
    ``dataset`` names the set where these images are known to be all of it.
    """

    source: Source
    labels: tuple[int, ...]
    description: str
    dataset: str | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> Sequence[str]:
        return self.source.names

    def read(self, index: int) -> bytes:
        return self.source.read(index)

    def locate(self, index: int) -> str:
        return self.source.locate(index)


def find_samples(path: str | Path, classes: Classes = "imagenet-1k") -> Samples:
    """Label the images at ``path``.

    - class folders: named by wnid for ImageNet (any part of the 1,000), else by class name;
    - flat: ``ILSVRC2012_val_00000001.JPEG`` … (any part of the 50,000), by bundled labels,
      which the devkit's ground truth is held against where it lies there too;
    - a tar of either, or a folder that holds ``ILSVRC2012_img_val.tar``: read in place;
    - a list file: ``path index`` a line, relative to the file's folder;
    - Kaggle's ``LOC_val_solution.csv``, or the folder it lies in;
    - parquet files in the form of Hugging Face, or the folder of their validation split;
    - a folder with one of these in its ``val/`` or ``validation/``.

    Args:
        classes: ``"imagenet-1k"``, or the names of the classes in the order of the logits.

    Raises:
        DataError: nothing there can be labeled, or labels contradict the published ones;
            the message says what was found.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise DataError(f"{path} does not exist")
        if path.is_dir():
            return _from_folder(path, classes)
        if not path.is_file():  # a pipe would be waited for without end
            raise DataError(f"can't read {path}: not a regular file")
        if path.suffix == ".parquet":
            return _from_parquet([path], classes, f"in {path.name}")
        if TAR_NAME.search(path.name):
            return _from_tar(path, classes)
        return _from_text(path, classes)
    except DataError as error:
        raise DataError(printable(str(error))) from None  # names may hold anything
    except OSError as error:
        raise DataError(f"can't read {error.filename or path}: {error.strerror}") from None


def find_images(path: str | Path) -> list[Path]:
    """The image, or every image directly in the folder, sorted.

    Raises:
        DataError: there is none, or the folder can't be read.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return [path]
        found = sorted(path / name for name in _items(path) if is_image(name))
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from None
    if not found:
        raise DataError(f"no image directly in {path}")
    return found


def _from_folder(path: Path, classes: Classes, *, of: str = "") -> Samples:
    """Label the images of the folder itself, or what it holds instead of them."""
    items = [item for item in _items(path) if item not in (GROUND_TRUTH, f"{DEVKIT}/")]
    index = class_indices(classes)
    if not any(item.endswith("/") and item[:-1] in index for item in items):
        if (path / SOLUTION).is_file() and _solution_folder(path):
            return _from_text(path / SOLUTION, classes)
        if not any(map(is_image, items)) and (found := _from_inside(path, items, classes, of)):
            return found
    tree = list(items)
    for item in items:
        if item.endswith("/") and (item[:-1] in index or item[:-1].isdecimal()):
            tree += (item + inner for inner in _items(path / item))
    labeled = label_tree(tree, classes, where=str(path), of=of)
    beside = path.name in VALIDATION_FOLDERS
    labeled = _checked(labeled, [path, path.parent] if beside else [path])
    return _samples(Files(path, labeled.names), labeled, classes, path)


def _from_inside(path: Path, items: list[str], classes: Classes, of: str) -> Samples | None:
    """A validation folder (not below another), parquet shards, or the validation tar."""
    folders = [name for name in VALIDATION_FOLDERS if f"{name}/" in items]
    if len(folders) > 1:
        raise DataError(f"{path} holds {' and '.join(folders)}; name the one to use")
    if folders and not of:
        return _from_folder(path / folders[0], classes, of=f"{folders[0]}/")
    if (path / SOLUTION_FOLDERS[-1]).is_dir():
        return _from_folder(path / SOLUTION_FOLDERS[-1], classes, of=f"{SOLUTION_FOLDERS[-1]}/")
    for folder in (path, path / "data"):
        if folder.is_dir() and (found := _shards(folder)):
            shards, description = found
            return _from_parquet(shards, classes, f"{description} of {of}" if of else description)
    if VALIDATION_TAR in items:
        return _from_tar(path / VALIDATION_TAR, classes, of=of)
    return None


def _shards(folder: Path) -> tuple[list[Path], str] | None:
    """The parquet files of the validation split, or of the only one, and what they are."""
    splits: dict[str, list[str]] = {}
    counts: dict[str, set[int]] = {}
    for name in sorted(_items(folder)):
        if name.endswith(".parquet"):
            found = SHARD_NAME.fullmatch(name)
            split = found[1] if found else name.removesuffix(".parquet")
            splits.setdefault(split, []).append(name)
            counts.setdefault(split, set()).add(int(found[2] or 0) if found else 0)
    if not splits:
        return None
    split = next((s for s in VALIDATION_FOLDERS if s in splits), next(iter(splits)))
    if split not in VALIDATION_FOLDERS and len(splits) > 1:
        raise DataError(
            f"{folder} holds parquet files of {len(splits)} splits ({', '.join(splits)}) and "
            "none is named validation; name the file to use"
        )
    names, (count, *more) = splits[split], counts[split]
    if more or len(names) > count > 0:
        raise DataError(f"{folder} mixes {split} shards of different counts; move some away")
    part = f"{len(names)} of {count}" if len(names) < count else f"{len(names)}"
    return [folder / name for name in names], f"in {part} {split or 'parquet'} shards"


def _from_parquet(paths: list[Path], classes: Classes, description: str) -> Samples:
    source, count = Parquet(paths), len(class_indices(classes))
    if source.class_count not in (None, count):
        raise DataError(f"{paths[0]} has labels of {source.class_count} classes, not of {count:,}")
    labels = []
    for i, label in enumerate(source.labels):
        if label is None or not 0 <= label < count:
            raise DataError(f"{source.locate(i)}: label {label} is not from 0 to {count - 1}")
        labels.append(label)
    if not labels:
        raise DataError(f"{paths[0]} holds no image")
    labeled = Labeled(source.paths, tuple(labels), f"{len(labels):,} images {description}")
    return _samples(source, labeled, classes, paths[0] if len(paths) == 1 else paths[0].parent)


def _from_tar(path: Path, classes: Classes, *, of: str = "") -> Samples:
    members = tar_tree(tar_members(path), classes, where=str(path))
    labeled = label_tree(members.keys(), classes, where=str(path), of=of + path.name)
    labeled = _checked(labeled, [path.parent])
    source = Tar(path, {name: members[name] for name in labeled.names})
    return _samples(source, labeled, classes, path)


def _from_text(path: Path, classes: Classes) -> Samples:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = numbered_lines(file, path)
            first = next(lines, (1, ""))
            lines = chain([first], lines)
            if first[1].strip().split(",") != SOLUTION_HEADER:
                labeled = read_list(lines, classes, path=path)
                return _samples(Files(path.parent, labeled.names), labeled, classes, path)
            table = read_solution(lines, classes, path=path)
    except UnicodeDecodeError:
        raise DataError(
            f"{path} is neither a folder nor a text file of 'path index' lines"
        ) from None
    folder = _solution_folder(path.parent)
    names = tuple(name for name in sorted(_items(folder)) if name in table) if folder else ()
    if not folder or not names:
        raise DataError(
            f"none of the {len(table):,} images that {path} names lies beside it, in val/ or in "
            f"{SOLUTION_FOLDERS[-1]}/; wnid folders need no csv: name the folder that holds them"
        )
    missing, more = len(table) - len(names), sum(map(is_image, _items(folder))) - len(names)
    part = f" (a part: {missing:,} that it names are not there)" if missing else ""
    left_out = f" ({more:,} images that it does not name left out)" if more else ""
    description = f"{len(names):,} images labeled by {path.name}{part}{left_out}"
    labeled = Labeled(names, tuple(table[name] for name in names), description)
    return _samples(Files(folder, names), labeled, classes, path)


def _solution_folder(path: Path) -> Path | None:
    """Where the photos of a solution file in ``path`` lie."""
    for folder in (path / name for name in SOLUTION_FOLDERS):
        if folder.is_dir() and any(item.endswith(".JPEG") for item in _items(folder)):
            return folder
    return None


def _checked(labeled: Labeled, folders: list[Path]) -> Labeled:
    """Flat validation photos, held against the devkit's ground truth if it lies in a folder."""
    if any("/" in name for name in labeled.names):
        return labeled
    for folder in folders:
        for path in (folder / GROUND_TRUTH, folder / DEVKIT / "data" / GROUND_TRUTH):
            if path.is_file():
                with open(path, encoding="utf-8-sig", errors="replace") as file:
                    check_ground_truth(numbered_lines(file, path), path=path)
                description = f"{labeled.description}, checked against {GROUND_TRUTH}"
                return replace(labeled, description=description)
    return labeled


def _samples(source: Source, labeled: Labeled, classes: Classes, path: Path) -> Samples:
    whole = isinstance(classes, str) and check_published(
        labeled.names, labeled.labels, where=str(path)
    )
    dataset = VALIDATION_SET if whole else None
    return Samples(source, labeled.labels, labeled.description, dataset)


def _items(folder: Path) -> list[str]:
    """What is in a folder and not hidden; the names of folders end in a slash."""
    with os.scandir(folder) as entries:
        return [
            entry.name + "/" * (os.path.isdir(entry) if entry.is_symlink() else entry.is_dir())
            for entry in entries
            if not is_hidden(entry.name)
        ]
