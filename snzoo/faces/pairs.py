"""Read verification sets: pairs of photos that show the same person, or different people."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snzoo.data.layouts import Layout
from snzoo.data.photos import list_names
from snzoo.data.samples import printable_errors, read_layout
from snzoo.data.sources import PhotoList, Photos
from snzoo.errors import DataError
from snzoo.faces.bin_sets import read_bin_set
from snzoo.faces.pair_lists import FOLDS, LABEL_LIST, LFW_LIST, check_inside, read_list

MOST_PAIRS = 1_000_000  # of each kind, of the photos in folders of people

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


def check_folds(pairs: FacePairs, path: str | Path) -> None:
    """Raise an error if pairs have no accuracy over folds.

    Raises:
        DataError: there is one fold only, or the balanced pairs are fewer than the folds.
    """
    if pairs.folds < 2:
        raise DataError(f"{path} has one fold of pairs; the accuracy over folds needs two or more")
    kinds = {"genuine": int(pairs.same.sum()), "impostor": int((~pairs.same).sum())}
    fewest = min(kinds, key=kinds.__getitem__)
    needed = -(-pairs.folds // 2)
    if kinds[fewest] < needed:
        raise DataError(
            f"{path} has {kinds[fewest]} {fewest} pairs only; the accuracy over {pairs.folds} "
            f"folds needs {needed} or more: add photos"
        )


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
    found = read_list(folder / lists[0])
    photos = PhotoList(found.photos)
    return FacePairs(folder.resolve().name, photos, *found[1:])


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
            check_inside(Path(samples.locate(index)), root)
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
