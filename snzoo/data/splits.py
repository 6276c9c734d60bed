"""Find the training and the validation photos of a data set, and its classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from snzoo.data.archives import list_members
from snzoo.data.imagenet import is_number
from snzoo.data.labels import Classes, label_members
from snzoo.data.layouts import (
    FOLDERS,
    KAGGLE_FOLDER,
    KAGGLE_TRAINING_FOLDER,
    SOLUTION,
    TRAINING_TAR,
    VALIDATION_TAR,
    Layout,
    Split,
    find_layout,
    find_shards,
    solution_folder,
)
from snzoo.data.nested import is_nested, list_class_tars
from snzoo.data.parquet import read_class_names
from snzoo.data.photos import list_names
from snzoo.data.recordio import open_recordio
from snzoo.data.samples import Samples, printable_errors, read_layout
from snzoo.data.tables import read_rows
from snzoo.errors import DataError

SUFFIXES = (".tar", ".zip", ".csv", ".txt", ".parquet", ".rec")
TARS: dict[Split, str] = {"train": TRAINING_TAR, "validation": VALIDATION_TAR}
KAGGLE: dict[Split, str] = {"train": KAGGLE_TRAINING_FOLDER, "validation": KAGGLE_FOLDER}
OTHER: dict[Split, Split] = {"train": "validation", "validation": "train"}


def find_splits(
    data: str | Path, classes: Classes, *, validation: str | Path | None = None
) -> tuple[Samples, Samples]:
    """Return the training and the validation photos of a data set; see :func:`find_split`.

    Args:
        data: the path of the data set, or of its training photos.
        classes: ``"imagenet-1k"``, or the names of the classes in the order of the logits.
        validation: the path of the validation photos (default: they are searched in ``data``).

    Raises:
        DataError: see :func:`find_split`; or both splits are the same, or a class has no photo
            (ImageNet may be a part).
    """
    with printable_errors(data):
        layouts = [
            _find_split(Path(data), "train", classes),
            _find_split(Path(validation or data), "validation", classes),
        ]
        train = read_layout(layouts[0], classes)
        first, second = ([path.resolve() for path in layout.paths] for layout in layouts)
        if first == second:
            raise DataError(
                f"{layouts[0].where} can't be the training and the validation photos at once; "
                "add --validation PATH"
            )
        held_out = read_layout(layouts[1], classes)
        _check_classes(train, classes, "training")
        _check_classes(held_out, classes, "validation")
    return train, held_out


def find_split(
    data: str | Path, split: Split, classes: Classes, *, by_number: bool = False
) -> Samples:
    """Find and label the photos of a split.

    The training photos are searched in this order: in the folder ``train/``; in
    ``ILSVRC/Data/CLS-LOC/train/`` (Kaggle); in ``train.tar``, ``.zip``, ``.csv``, ``.txt``,
    ``.parquet`` or ``.rec``; in shards like ``train-00000-of-00008.parquet`` or ``.tar``, which may
    be in ``data/``; in ``ILSVRC2012_img_train.tar``. The validation photos are searched in the same
    way, in ``val`` or ``validation`` and in Kaggle's layout.

    If ``data`` holds neither split, it is itself the split, in one of the forms of
    :func:`~snzoo.data.samples.find_samples`.

    Args:
        data: the path of a data set, or of the split.
        split: ``"train"`` or ``"validation"``.
        classes: ``"imagenet-1k"``, or the names of the classes in the order of the logits.
        by_number: whether numbers in a list or csv file are names, as in :func:`find_classes`.

    Raises:
        DataError: ``data`` holds the other split only, or no photo can be labeled.
    """
    with printable_errors(data):
        layout = _find_split(Path(data), split, classes)
        return read_layout(layout, classes, by_number=by_number)


def find_classes(data: str | Path, *, by_number: bool = False) -> tuple[str, ...]:
    """Return the names of the classes of the training photos; see :func:`find_split`.

    They are the sorted names of the class folders, or of the labels in a list or csv file, the
    names in the metadata of Hugging Face, or the numbers of the labels in a RecordIO file.

    Args:
        data: the path of the data set, or of its training photos.
        by_number: whether numbers in a list or csv file are names, too. Otherwise they are class
            indices, whose names are unknown.

    Raises:
        DataError: there are no names, or fewer than two.
    """
    with printable_errors(data):
        layout = _find_split(Path(data), "train", ())
        if layout.kind == "parquet":
            classes = read_class_names(layout.paths[0]) or ()
        elif layout.kind == "recordio":
            classes = tuple(map(str, np.unique(open_recordio(layout.where).labels).tolist()))
        else:
            read: dict[str, Callable[[Layout], list[str]]] = {
                "folder": _classes_of_folder,
                "archives": _classes_of_archives,
                "text": partial(_classes_of_text, by_number=by_number),
            }
            classes = tuple(read[layout.kind](layout))
        if not classes:
            raise DataError(
                f"{layout.where} doesn't name its classes; write their names into a text file, "
                "one per line in the order of the labels, and add --classes FILE"
            )
        if len(classes) == 1:
            raise DataError(f"{layout.where} has one class only, {classes[0]}; training needs two")
    return classes


def _find_split(data: Path, split: Split, classes: Classes) -> Layout:
    """Return the layout of a split in ``data``, or of ``data`` itself if it is the split."""
    if not data.is_dir():
        return find_layout(data, classes)
    if layout := _find_inside(data, split, classes):
        return layout
    if _find_inside(data, OTHER[split], classes):
        kind = "training" if split == "train" else "validation"
        folders = " nor ".join(f"{name}/" for name in (*FOLDERS[split], KAGGLE[split]))
        raise DataError(
            f"{data} holds no {kind} photos: neither {folders} nor {FOLDERS[split][0]}.tar, .zip, "
            f".csv, .txt, .parquet or .rec, nor shards of {split}, nor {TARS[split]}"
        )
    return find_layout(data, classes)


def _find_inside(data: Path, split: Split, classes: Classes) -> Layout | None:
    """Return the layout of the photos in ``data`` that are named after a split, or None."""
    if split == "validation" and (data / SOLUTION).is_file() and solution_folder(data):
        return Layout("text", (data / SOLUTION,))
    names = FOLDERS[split]
    folders = [name for name in (*names, KAGGLE[split]) if (data / name).is_dir()]
    if len(folders) > 1:
        raise DataError(f"{data} holds {' and '.join(folders)}; name the one to use")
    for name in (*folders, *(name + suffix for name in names for suffix in SUFFIXES)):
        if (data / name).exists():
            return find_layout(data / name, classes)
    for place in filter(Path.is_dir, (data, data / "data")):
        for suffix in (".parquet", ".tar"):
            if layout := find_shards(place, suffix, split=split):
                return layout
    tar = data / TARS[split]
    return Layout("archives", (tar,), tar.name) if tar.is_file() else None


def _check_classes(samples: Samples, classes: Classes, split: str) -> None:
    """Check that each class has photos. ImageNet-1k may be a part."""
    present = set(samples.classes_present)
    names = [] if isinstance(classes, str) else list(classes)
    missing = [name for index, name in enumerate(names) if index not in present]
    if missing:
        more = " …" if len(missing) > 3 else ""
        raise DataError(
            f"{len(missing)} of {len(names):,} classes have no {split} photo "
            f"({samples.description}): {', '.join(missing[:3])}{more}"
        )


def _classes_of_folder(layout: Layout) -> list[str]:
    return sorted(name[:-1] for name in list_names(layout.where) if name.endswith("/"))


def _classes_of_archives(layout: Layout) -> list[str]:
    if len(layout.paths) > 1:  # shards hold class indices
        return []
    members = list_members(layout.where)
    if is_nested(members):
        return sorted(list_class_tars(members))
    if any(member.name.endswith(".cls") for member in members):
        return []
    tree = label_members(members, (), where=str(layout.where))
    return sorted({name.split("/", 1)[0] for name in tree if "/" in name})


def _classes_of_text(layout: Layout, *, by_number: bool) -> list[str]:
    with open(layout.where, encoding="utf-8-sig", errors="replace") as file:
        labels = {label for _, _, label in read_rows(file, layout.where)}
    if by_number and all(map(is_number, labels)):
        return [str(number) for number in sorted(set(map(int, labels)))]
    return [] if any(map(is_number, labels)) else sorted(labels)
