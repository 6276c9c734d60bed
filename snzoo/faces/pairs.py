"""Read verification sets: pairs of photos that show the same person, or different people."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from snzoo.data.layouts import Layout
from snzoo.data.photos import list_names
from snzoo.data.samples import printable_errors, read_layout
from snzoo.data.sources import PhotoList, Photos
from snzoo.data.tables import number_lines
from snzoo.errors import DataError, first_line
from snzoo.faces.bin_sets import read_bin_set

FOLDS = 10
LFW_LIST, LABEL_LIST = "pairs.txt", "pairs_label.txt"
SUFFIXES = (".jpg", ".jpeg", ".png")
MOST_PAIRS = 1_000_000  # of each kind from the folders of people, and in a list

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class FacePairs:
    """P pairs of M photos. The photos are not decoded.

    Attributes:
        name: the name of the set, for people to read.
        photos: the M photos, for :func:`~snzoo.data.batches.read_batches`.
        first: the photo that comes first in each pair, int64 (P,), an index into ``photos``.
        second: the other photo of each pair, int64 (P,).
        same: whether a pair shows the same person, bool (P,).
        folds: the number of folds for the accuracy, which are contiguous parts of the pairs.
    """

    name: str
    photos: Photos = field(repr=False)
    first: Indices
    second: Indices
    same: NDArray[np.bool_]
    folds: int = FOLDS

    def __len__(self) -> int:
        return len(self.same)

    @property
    def description(self) -> str:
        return f"{len(self):,} pairs of {len(self.photos):,} photos ({self.name})"


def read_pairs(path: str | Path) -> FacePairs:
    """Return the pairs of a verification set.

    ``path`` may be:

    - insightface's ``NAME.bin``, see :mod:`snzoo.faces.bin_sets`;
    - a folder with LFW's ``pairs.txt`` and a folder of photos ``NAME/NAME_0001.jpg`` (or ``.jpeg``
      or ``.png``) for each person. The first line has the number of folds and the number n of pairs
      of each kind in a fold; each fold has n lines ``NAME i j`` and n lines ``NAME1 i NAME2 j``;
    - a folder with a ``pairs_label.txt`` of lines ``PATH1 PATH2 1`` for pairs of the same person
      and ``PATH1 PATH2 0`` for others, where paths are relative to the folder;
    - a folder with one folder of photos for each person. All pairs are made, or 1,000,000 of a kind
      drawn at random (always the same ones) if there are more; then the name says so. Both kinds
      are spread evenly over the pairs, so that each fold has its share of both. Impostor pairs are
      usually many more; :func:`balance` takes as many as there are genuine pairs.

    Raises:
        DataError: there is no such set, a line of a list is wrong, a photo that it names does not
            exist or lies outside the folder, or one kind of pairs is missing.
    """
    path = Path(path)
    with printable_errors(path):
        if path.suffix == ".bin" and not path.is_dir():
            pairs = _read_bin(path)
        elif not path.is_dir():
            raise DataError(
                f"{path} is no verification set; name a .bin file, or a folder with {LFW_LIST}, "
                f"{LABEL_LIST} or one folder of photos for each person"
            )
        else:
            pairs = _read_folder(path)
        if pairs.same.all() or not pairs.same.any():
            kind = "the same person" if pairs.same.all() else "different people"
            raise DataError(
                f"{path}: all pairs show {kind}; verification needs pairs of both kinds"
            )
    return pairs


def balance(pairs: FacePairs, *, seed: int = 0) -> FacePairs:
    """Return as many genuine as impostor pairs, drawn from the kind of which there are more.

    Both kinds are spread evenly over the pairs. A set that has equally many is returned as it is.
    The accuracy of a set with far more impostors would say little: it is high if all pairs are
    rejected.

    Args:
        pairs: the pairs.
        seed: the seed of the random numbers.
    """
    kinds = [np.flatnonzero(pairs.same), np.flatnonzero(~pairs.same)]
    count = min(map(len, kinds))
    if len(pairs.same) == 2 * count:
        return pairs
    kinds = [kind[_draw(len(kind), count, seed=seed)] for kind in kinds]
    kept = np.concatenate(kinds)[_spread(count, count)]
    first, second, same = pairs.first[kept], pairs.second[kept], pairs.same[kept]
    return replace(pairs, first=first, second=second, same=same)


def _read_bin(path: Path) -> FacePairs:
    photos, is_same = read_bin_set(path)
    first = np.arange(0, len(photos), 2)
    return FacePairs(path.stem, photos, first, first + 1, np.array(is_same, np.bool_))


def _read_folder(folder: Path) -> FacePairs:
    lists = [name for name in (LFW_LIST, LABEL_LIST) if (folder / name).exists()]
    if len(lists) > 1:
        raise DataError(f"{folder} holds {' and '.join(lists)}; move one of them away")
    if not lists:
        return _pair_people(folder)
    path = folder / lists[0]
    if not path.is_file():  # reading a pipe could wait forever
        raise DataError(f"{path} is not a regular file")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return (_read_lfw if lists[0] == LFW_LIST else _read_labels)(file, path)
    except UnicodeDecodeError:
        raise DataError(f"{path} is no text in UTF-8; convert it") from None


def _read_lfw(file: TextIO, path: Path) -> FacePairs:
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


def _read_labels(file: TextIO, path: Path) -> FacePairs:
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
        if number > 2 * MOST_PAIRS:
            raise DataError(f"{path} has more than {2 * MOST_PAIRS:,} lines; split the set")
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
) -> FacePairs:
    """Return the pairs of a list.

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
    return FacePairs(root.name, PhotoList(photos), columns[:, 0], columns[:, 1], is_same, folds)


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
            _check_inside(path, root)
            return path
    names = " nor ".join(f"{name[:80]}{suffix}" for suffix in suffixes)
    raise ValueError(f"{root} holds no photo {names}; copy it there, or remove the line")


def _check_inside(path: Path, root: Path) -> None:
    if not path.resolve().is_relative_to(root):
        raise ValueError(f"{path} is a link out of {root}; copy the photo there")


def _pair_people(folder: Path) -> FacePairs:
    """Return all pairs of the photos in folders of people, or many of them."""
    people = tuple(sorted(name[:-1] for name in list_names(folder) if name.endswith("/")))
    if not people:
        raise DataError(
            f"{folder} holds neither {LFW_LIST} nor {LABEL_LIST} nor folders of people; name a "
            "folder with one of these"
        )
    samples = read_layout(Layout("folder", (folder,)), people)
    root = folder.resolve()
    for index in range(len(samples)):
        try:
            _check_inside(Path(samples.locate(index)), root)
        except ValueError as error:
            raise DataError(str(error)) from None
    # Photos are sorted by person. The partners of a photo are those before it.
    labels = np.array(samples.labels)
    start = np.searchsorted(labels, labels)  # the first photo of the same person
    genuine, genuine_total = _list_partners(start, np.arange(len(labels)))
    impostors, impostor_total = _list_partners(np.zeros_like(start), start)
    counts = genuine.shape[1], impostors.shape[1]
    order = _spread(*counts)
    first, second = np.concatenate([genuine, impostors], axis=1)[:, order]
    same = np.repeat([True, False], counts)[order]
    name = root.name
    for kind, count, total in zip(
        ("genuine", "impostor"), counts, (genuine_total, impostor_total), strict=True
    ):
        if count < total:
            name += f", {count:,} of {total:,} {kind} pairs"
    return FacePairs(name, samples, first, second, same)


def _list_partners(low: Indices, end: Indices) -> tuple[Indices, int]:
    """Return pairs of each photo j with the photos ``low[j]`` to ``end[j]`` - 1.

    Args:
        low: the first partner of each photo.
        end: the end of its partners.

    Returns:
        All pairs or ``MOST_PAIRS`` of them, int64 (2, P), and the number of all.
    """
    ends = np.cumsum(end - low)
    total = int(ends[-1])
    ranks = _draw(total, MOST_PAIRS, seed=0)
    second = np.searchsorted(ends, ranks, side="right")
    first = end[second] - (ends[second] - ranks)
    return np.stack([first, second]), total


def _draw(population: int, most: int, *, seed: int) -> Indices:
    """Return sorted numbers below ``population``: all, or ``most`` of them drawn at random."""
    if population <= most:
        return np.arange(population)
    return np.array(sorted(random.Random(seed).sample(range(population), most)), np.int64)


def _spread(genuine: int, impostors: int) -> Indices:
    """Return the order that spreads both kinds evenly; genuine pairs are numbered first."""
    places = [(np.arange(count) + 0.5) / count for count in (genuine, impostors)]
    return np.argsort(np.concatenate(places), kind="stable")
