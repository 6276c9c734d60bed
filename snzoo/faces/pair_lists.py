"""Read lists of pairs of face photos: LFW's ``pairs.txt`` and insightface's ``pairs_label.txt``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

from snzoo.data.tables import number_lines
from snzoo.errors import DataError, first_line

LFW_LIST, LABEL_LIST = "pairs.txt", "pairs_label.txt"
SUFFIXES = (".jpg", ".jpeg", ".png")
MOST_LINES = 2_000_000
FOLDS = 10  # of a list that does not say it


class PairList(NamedTuple):
    """The photos and the pairs of a list, as in :class:`~snzoo.faces.pairs.FacePairs`."""

    photos: list[Path]
    first: NDArray[np.int64]
    second: NDArray[np.int64]
    same: NDArray[np.bool_]
    folds: int


def read_list(path: Path) -> PairList:
    """Return the pairs of a list, ``pairs.txt`` or ``pairs_label.txt``.

    Raises:
        DataError: the list cannot be read, a line is wrong, or a photo that it names does not
            exist or lies outside the folder of the list.
    """
    if not path.is_file():  # reading a pipe could wait forever
        raise DataError(f"{path} is not a regular file")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return (_read_lfw if path.name == LFW_LIST else _read_labels)(file, path)
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8; convert it") from None


def _read_lfw(file: TextIO, path: Path) -> PairList:
    lines = _split_lines(file, path)
    _, header = next(lines, (1, []))
    if len(header) != 2 or not all(map(_is_count, header)):
        raise DataError(
            f"{path}, line 1: expected the numbers of folds and of pairs of each kind in a fold, "
            f"as in '10 300', got {' '.join(header)[:80]!r}"
        )
    folds, count = map(int, header)
    rows = []
    for number, fields in lines:
        match fields:
            case [name, i, j] if _is_count(i) and _is_count(j):
                pair = (name, i), (name, j)
            case [name, i, other, j] if _is_count(i) and _is_count(j):
                pair = (name, i), (other, j)
            case _:
                raise DataError(
                    f"{path}, line {number}: expected 'NAME i j' or 'NAME1 i NAME2 j', got "
                    f"{' '.join(fields)[:80]!r}"
                )
        first, second = (f"{name}/{name}_{int(index):04}" for name, index in pair)
        rows.append((number, first, second, len(fields) == 3))
    if len(rows) != 2 * folds * count:
        raise DataError(
            f"{path} lists {len(rows):,} pairs, but its first line says {folds} · 2 · {count}"
        )
    return _collect(rows, path, suffixes=SUFFIXES, folds=folds)


def _read_labels(file: TextIO, path: Path) -> PairList:
    rows = []
    for number, fields in _split_lines(file, path):
        match fields:
            case [first, second, "0" | "1" as label]:
                rows.append((number, first, second, label == "1"))
            case _:
                raise DataError(
                    f"{path}, line {number}: expected 'PATH1 PATH2 1' (or 0), got "
                    f"{' '.join(fields)[:80]!r}"
                )
    return _collect(rows, path, suffixes=("",), folds=FOLDS)


def _split_lines(file: TextIO, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the number and the fields of each line that is not empty."""
    for number, line in number_lines(file, path):
        if number > MOST_LINES:
            raise DataError(f"{path} has more than {MOST_LINES:,} lines; split the set")
        if fields := line.split():
            yield number, fields


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 6 and int(text) > 0


def _collect(
    rows: Iterable[tuple[int, str, str, bool]],
    path: Path,
    *,
    suffixes: tuple[str, ...],
    folds: int,
) -> PairList:
    """Return the pairs of the rows of a list.

    Args:
        rows: the number of a line, the names of its two photos without suffix, and whether they
            show the same person.
        path: the path of the list.
        suffixes: the suffixes that photos may have.
        folds: the number of folds.
    """
    root = path.parent.resolve()
    photos: list[Path] = []
    indices: dict[str, int] = {}  # in ``photos``
    pairs, same = [], []
    for number, first, second, flag in rows:
        for name in (first, second):
            if name not in indices:
                try:
                    photos.append(_find_photo(root, name, suffixes))
                except (OSError, ValueError) as error:
                    raise DataError(f"{path}, line {number}: {first_line(error)}") from None
                indices[name] = len(indices)
        pairs.append((indices[first], indices[second]))
        same.append(flag)
    if not pairs:
        raise DataError(f"{path} lists no pair")
    columns = np.array(pairs, np.int64)
    is_same = np.array(same, np.bool_)
    return PairList(photos, columns[:, 0], columns[:, 1], is_same, folds)


def _find_photo(root: Path, name: str, suffixes: tuple[str, ...]) -> Path:
    """Return the path of a photo in ``root``.

    Raises:
        ValueError: there is no such photo, or it lies elsewhere.
    """
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{name[:80]!r} may leave the folder; write paths below it")
    for suffix in suffixes:
        path = root / f"{name}{suffix}"
        if path.is_file():
            check_inside(path, root)
            return path
    names = " nor ".join(f"{name[:80]}{suffix}" for suffix in suffixes)
    raise ValueError(f"{root} holds no photo {names}; copy it there, or remove the line")


def check_inside(path: Path, root: Path) -> None:
    """Raise a ValueError if a path leads out of ``root``, which has no links in it."""
    if not Path(os.path.realpath(path)).is_relative_to(root):
        raise ValueError(f"{path} is a link out of {root}; copy the photo there")
