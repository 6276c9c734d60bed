"""Names → labels: what a tree of names, a list or a table says about the classes of images.

Names alone decide, so that a folder and a tar of the same tree are labeled alike. A tree is the
names of two levels, folders with a slash at the end: ``n01440764/``, ``n01440764/a.JPEG``.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from posixpath import splitext
from typing import TextIO

from snzoo.data import imagenet
from snzoo.data.sources import Member
from snzoo.errors import DataError

# What Pillow opens and people keep photos in; other files are counted, not taken for photos.
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"}
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "lost+found"}
LONGEST_LINE = 1 << 16
SOLUTION_HEADER = ["ImageId", "PredictionString"]  # of Kaggle's LOC_val_solution.csv

Classes = str | tuple[str, ...]  # "imagenet-1k", or the names of the classes


@dataclass(frozen=True)
class Labeled:
    """``labels[i]`` is the class index of ``names[i]``."""

    names: tuple[str, ...]
    labels: tuple[int, ...]
    description: str


def class_indices(classes: Classes) -> dict[str, int]:
    """What folders are named by → class index."""
    names = imagenet.wnids() if isinstance(classes, str) else classes
    return {name: index for index, name in enumerate(names)}


def is_hidden(name: str) -> bool:
    """Whether a file or folder is the system's own rather than the user's."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def is_image(name: str) -> bool:
    return splitext(name)[1].lower() in SUFFIXES


def label_tree(tree: Collection[str], classes: Classes, *, where: str, of: str = "") -> Labeled:
    """Label class folders, or flat validation photos, by their names.

    Args:
        where: the path of the tree, for errors.
        of: the part of the path that was found rather than given, for the description.

    Raises:
        DataError: nothing there can be labeled; the message says what was found.
    """
    images = sorted((name for name in tree if is_image(name)), key=lambda name: name.split("/"))
    folders = sorted({name.split("/", 1)[0] for name in tree if "/" in name})
    top = sum(name.endswith("/") and name.count("/") == 1 for name in tree)
    flat = not folders or _is_flat(images, folders, classes)
    ignored = len(tree) - len(images) - (0 if flat else top)
    label = _label_flat if flat else _label_folders
    labels, found = label(images, folders, classes, where)
    of = f" of {of}" if of else ""
    left_out = f" ({ignored:,} other files or folders left out)" if ignored else ""
    return Labeled(tuple(images), labels, f"{found[0]}{of}{found[1]}{left_out}")


def _is_flat(images: list[str], folders: list[str], classes: Classes) -> bool:
    """Whether validation photos lie beside folders that are of something else."""
    index = class_indices(classes)
    return (
        isinstance(classes, str)
        and bool(images)
        and all("/" not in name and imagenet.validation_number(name) for name in images)
        and not any(folder in index or imagenet.is_number(folder) for folder in folders)
    )


def _label_folders(
    images: list[str], folders: list[str], classes: Classes, where: str
) -> tuple[tuple[int, ...], tuple[str, str]]:
    index = class_indices(classes)
    if unknown := [folder for folder in folders if folder not in index]:
        raise DataError(_why_not(images, folders, unknown, classes, where))
    if loose := [name for name in images if "/" not in name]:
        raise DataError(
            f"{where} holds class folders and {len(loose)} images beside them, e.g. "
            f"{loose[0]}; move one or the other away"
        )
    if not images:
        raise DataError(f"the {len(folders)} class folders in {where} hold no image")
    labels = tuple(index[name.split("/", 1)[0]] for name in images)
    part = f" of {len(index):,}" if len(folders) < len(index) else ""
    return labels, (f"{len(images):,} images in {len(folders):,}{part} class folders", "")


def _why_not(
    images: list[str], folders: list[str], unknown: list[str], classes: Classes, where: str
) -> str:
    imagenet_1k = isinstance(classes, str)
    expected = "wnids (n01440764 …)" if imagenet_1k else f"classes ({', '.join(classes)})"
    shown = ", ".join(unknown[:3]) + (" …" if len(unknown) > 3 else "")
    message = (
        f"{where}: {len(unknown)} of {len(folders)} folders are not named by {expected}: {shown}"
    )
    if imagenet_1k and all(map(imagenet.is_number, unknown)):
        for folder, name in (image.split("/", 1) for image in images if "/" in image):
            number = imagenet.validation_number(name)
            if number and imagenet.is_number(folder):
                label = imagenet.validation_labels()[number - 1]
                if int(folder) != label:
                    return (
                        f"{message}; folder {folder} holds photos of {imagenet.describe(label)}: "
                        "these numbers are not class indices; name folders by wnid"
                    )
    if all(map(imagenet.is_number, unknown)):
        by = "wnid" if imagenet_1k else "class"
        return f"{message}; numbers alone don't tell whose order they follow: name folders by {by}"
    for name in ("val", "validation", "test", "train"):
        if name in unknown and Path(where).is_dir():
            return f"{message}; did you mean {Path(where) / name}?"
    return message


def _label_flat(
    images: list[str], folders: list[str], classes: Classes, where: str
) -> tuple[tuple[int, ...], tuple[str, str]]:
    if not images:
        raise DataError(f"{where} holds neither class folders nor images")
    if not isinstance(classes, str):
        raise DataError(
            f"{where} holds {len(images)} images without class folders ({', '.join(classes)}), "
            "so nothing tells their classes"
        )
    numbers = [imagenet.validation_number(name) for name in images]
    if None in numbers:
        raise DataError(
            f"{where} holds {len(images)} images without wnid folders, and the name "
            f"{images[numbers.index(None)]} is not of the form "
            "ILSVRC2012_val_00000001.JPEG (to 00050000), so nothing tells its class"
        )
    truth = imagenet.validation_labels()
    labels = tuple(truth[number - 1] for number in numbers if number)
    part = "" if len(images) == len(truth) else f" (a part: {len(images):,} of {len(truth):,})"
    return labels, (f"{len(images):,} flat validation images", part)


def read_list(lines: Iterable[tuple[int, str]], classes: Classes, *, path: Path) -> Labeled:
    """Label by lines ``path index``.

    Raises:
        DataError: a line is not of this form, or names an image again.
    """
    found: dict[str, int] = {}
    count = len(class_indices(classes))
    for number, line in lines:
        if not line.strip():
            continue
        *rest, index = line.strip().rsplit(maxsplit=1)
        if not rest or not imagenet.is_number(index) or int(index) >= count:
            raise DataError(
                f"{path}, line {number}: expected 'path index' with an index from 0 to "
                f"{count - 1}, got {line.strip()[:80]!r}"
            )
        if rest[0] in found:
            raise DataError(f"{path}, line {number}: {rest[0]!r} is listed before")
        found[rest[0]] = int(index)
    if not found:
        raise DataError(f"{path} lists no image")
    return Labeled(
        tuple(found), tuple(found.values()), f"{len(found):,} images listed in {path.name}"
    )


def read_solution(
    lines: Iterable[tuple[int, str]], classes: Classes, *, path: Path
) -> dict[str, int]:
    """File name → class index, by the lines of Kaggle's ``LOC_val_solution.csv``.

    A line is an image's id and its boxes, each with the same wnid: ``id,wnid x1 y1 x2 y2 …``.

    Raises:
        DataError: a line is not of this form, or names an image again.
    """
    index = class_indices(classes)
    found: dict[str, int] = {}
    rows = csv.reader((line for _, line in lines), strict=True)
    try:
        for row in rows:
            if not row or row == SOLUTION_HEADER:
                continue
            image, prediction = row if len(row) == 2 else ("", "")
            wnids = set(prediction.split()[::5])
            if not re.fullmatch(r"[\w.-]+", image, re.ASCII) or len(wnids) != 1:
                reason = "expected 'ImageId,wnid x1 y1 x2 y2 …' with one wnid"
            elif not wnids <= index.keys():
                reason = f"{wnids.pop()[:80]!r} is no class"
            elif f"{image}.JPEG" in found:
                reason = f"{image} is listed before"
            else:
                found[f"{image}.JPEG"] = index[wnids.pop()]
                continue
            raise DataError(f"{path}, line {rows.line_num}: {reason}")
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}") from None
    if not found:
        raise DataError(f"{path} lists no image")
    return found


def numbered_lines(file: TextIO, path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1; none of them fills the memory.

    Raises:
        DataError: a line is far too long for a path or a table's row.
    """
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), ""), 1):
        if len(line) == LONGEST_LINE and not line.endswith("\n"):
            raise DataError(f"{path}, line {number}: {LONGEST_LINE:,} characters or more")
        yield number, line


def tar_tree(members: Iterable[Member], classes: Classes, *, where: str) -> dict[str, Member]:
    """The tree of a tar's members, without the folder that all of them may lie in.

    Raises:
        DataError: an image is no regular file, or is there twice.
    """
    split = [([part for part in m.name.split("/") if part not in ("", ".")], m) for m in members]
    split = [(parts, m) for parts, m in split if parts and not any(map(is_hidden, parts))]
    index = class_indices(classes)
    while (
        len(first := {parts[0] for parts, _ in split}) == 1
        and not (common := next(iter(first))).isdecimal()
        and common not in index
        and all(len(parts) > 1 or m.name.endswith("/") for parts, m in split)
    ):
        split = [(parts[1:], m) for parts, m in split if len(parts) > 1]
    tree: dict[str, Member] = {}
    for parts, member in split:
        name = "/".join(parts[:2])
        if len(parts) > 2 or member.name.endswith("/"):
            tree[f"{name}/"] = member
        elif is_image(name) and member.flaw:
            raise DataError(f"{where}: {member.name} is {member.flaw}; pack the photos themselves")
        elif is_image(name) and name in tree:
            raise DataError(f"{where} holds {member.name} twice")
        else:
            tree[name] = member
    return tree
