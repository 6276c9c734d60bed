"""The classes of ImageNet-1k and the labels of its 50,000 validation photos, bundled with snzoo.

The ReaL labels (``imagenet_real_labels.u16``) are those of Beyer et al. 2020, "Are we done with
ImageNet?", under the Apache License 2.0 (``LICENSE-Apache-2.0.txt``), in a compact form.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from snzoo.errors import DataError

FOLDER = Path(__file__).parent
VALIDATION_IMAGES = 50_000
# The second form, with the wnid, is Hugging Face's.
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})(?:_(n\d{8}))?\.[A-Za-z]+", re.ASCII)


@cache
def wnids() -> tuple[str, ...]:
    """Return the 1,000 WordNet ids, sorted. Their positions are the class indices."""
    return tuple(line.split(" ", 1)[0] for line in _read_synsets())


@cache
def _wnid_set() -> frozenset[str]:
    return frozenset(wnids())


@cache
def class_names() -> tuple[str, ...]:
    """Return the first name of each class, e.g. ``tench``, in the order of :func:`wnids`.

    Two pairs of classes share a name (crane, maillot). The wnid is appended to these names.
    """
    names = [line.split(" ", 1)[1].split(",")[0] for line in _read_synsets()]
    twice = {name for name, count in Counter(names).items() if count > 1}
    pairs = zip(names, wnids(), strict=True)
    return tuple(f"{name} ({wnid})" if name in twice else name for name, wnid in pairs)


def names_of(classes: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the classes. ``"imagenet-1k"`` stands for those of ImageNet-1k."""
    return class_names() if isinstance(classes, str) else classes


@cache
def validation_labels() -> array[int]:
    """Return the class indices of ILSVRC2012_val_00000001 … 00050000."""
    return _read_numbers("imagenet_val_labels.u16")


@cache
def real_labels() -> tuple[tuple[int, ...], ...]:
    """Return the ReaL class indices of ILSVRC2012_val_00000001 … 00050000.

    3,163 photos have no label, because no class fits them. For each photo in turn, the file holds
    the number of its labels and then the labels (16-bit little-endian).
    """
    numbers = iter(_read_numbers("imagenet_real_labels.u16"))
    return tuple(tuple(next(numbers) for _ in range(count)) for count in numbers)


def real_labels_of(names: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the ReaL labels of validation photos.

    Raises:
        DataError: a name is not the name of a validation photo.
    """
    numbers = [validation_number(name) for name in names]
    if None in numbers:
        raise DataError(
            f"{names[numbers.index(None)]} is not named like a photo of the validation set "
            "(ILSVRC2012_val_00000001.JPEG), so its ReaL labels are not known"
        )
    return [real_labels()[number - 1] for number in numbers if number]


def validation_number(name: str) -> int | None:
    """Return the number, 1 to 50,000, in the name or path of a validation photo, else None."""
    found = VALIDATION_NAME.fullmatch(name.rpartition("/")[2])
    number = int(found[1]) if found else 0
    return number if 1 <= number <= VALIDATION_IMAGES else None


def validation_wnid(name: str) -> str | None:
    """Return the wnid in the name of a validation photo, if it has one (Hugging Face's form)."""
    found = VALIDATION_NAME.fullmatch(name.rpartition("/")[2])
    return found[2] if found else None


def training_wnid(name: str) -> str | None:
    """Return the wnid at the start of a training photo's name (``n01440764_10026.JPEG``)."""
    found = re.match(r"(n\d{8})_", name.rpartition("/")[2], re.ASCII)
    return found[1] if found and found[1] in _wnid_set() else None


def find_label(name: str) -> int | None:
    """Return the class index of a photo whose name has a validation number or a wnid, else None."""
    if number := validation_number(name):
        return validation_labels()[number - 1]
    wnid = training_wnid(name)
    return wnids().index(wnid) if wnid else None


def describe(label: int) -> str:
    """Return the wnid and the name of a class for messages: ``n01440764 (tench)``."""
    return f"{wnids()[label]} ({class_names()[label].split(' (')[0]})"


def is_number(text: str) -> bool:
    """Return whether a text consists of 1 to 9 decimal digits."""
    return re.fullmatch(r"\d{1,9}", text, re.ASCII) is not None


def check_published(names: Sequence[str], labels: Sequence[int], *, where: str) -> bool:
    """Return whether the photos are exactly the 50,000 ImageNet-1k validation photos.

    Args:
        names: the names or paths of the photos.
        labels: the class index of each photo.
        where: the path of the photos, for errors.

    Raises:
        DataError: a validation photo occurs twice, or a label contradicts the published one or
            the wnid in the name.
    """
    truth, ids = validation_labels(), wnids()
    numbers = [validation_number(name) for name in names]
    wrong = []
    for number, name, label in zip(numbers, names, labels, strict=True):
        if number is None:
            claimed = training_wnid(name)
            if claimed and claimed != ids[label]:
                raise DataError(
                    f"{where}: {name} is named after class {claimed}, but labeled {ids[label]}"
                )
            continue
        wnid = validation_wnid(name)
        if label != truth[number - 1]:
            wrong.append((number, str(label)))
        elif wnid and wnid != ids[label]:
            wrong.append((number, wnid))
    if wrong:
        number, claimed = wrong[0]
        label = truth[number - 1]
        raise DataError(
            f"{where}: {len(wrong):,} of {len(labels):,} labels contradict the published ones, "
            f"e.g. ILSVRC2012_val_{number:08} is class {label} ({ids[label]}), not {claimed}"
        )
    counts = Counter(numbers)
    del counts[None]
    if counts and (top := counts.most_common(1)[0])[1] > 1:
        raise DataError(f"{where} holds ILSVRC2012_val_{top[0]:08} {top[1]} times")
    return len(counts) == len(names) == len(truth)


def check_ground_truth(lines: Iterable[tuple[int, str]], *, path: Path) -> None:
    """Compare the devkit's ``ILSVRC2012_validation_ground_truth.txt`` with the bundled labels.

    The devkit uses ILSVRC ids (1 to 1,000), which are not class indices. Each id must stand for the
    same class in all 50,000 lines.

    Args:
        lines: the numbers and texts of the lines.
        path: the path of the file, for errors.

    Raises:
        DataError: a line contradicts the bundled labels, or there are not 50,000 ids.
    """
    truth = validation_labels()
    label_of: dict[int, int] = {}
    id_of: dict[int, int] = {}
    number = 0
    for number, line in lines:
        text = line.strip()
        if not (is_number(text) and 1 <= int(text) <= 1000):
            raise DataError(
                f"{path}, line {number}: expected an ILSVRC id from 1 to 1000, got {text[:80]!r}"
            )
        if number > len(truth):
            break
        ilsvrc_id, label = int(text), truth[number - 1]
        before = None
        if (known := label_of.setdefault(ilsvrc_id, label)) != label:
            before = f"id {ilsvrc_id} stood for {describe(known)}"
        elif (known := id_of.setdefault(label, ilsvrc_id)) != ilsvrc_id:
            before = f"the id of that class was {known}"
        if before:
            raise DataError(
                f"{path}, line {number}: id {ilsvrc_id} contradicts the published label, "
                f"{describe(label)}, since in the lines before {before}"
            )
    if number != len(truth):
        raise DataError(f"{path} must have {len(truth):,} lines, one per validation photo")


def _read_numbers(file: str) -> array[int]:
    numbers = array("H", (FOLDER / file).read_bytes())
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _read_synsets() -> list[str]:
    return (FOLDER / "imagenet_synsets.txt").read_text(encoding="utf-8").splitlines()
