"""ImageNet-1k's classes and the labels of its 50,000 validation photos, as bundled data."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
VALIDATION_IMAGES = 50_000


@cache
def wnids() -> tuple[str, ...]:
    """The 1,000 WordNet ids, sorted: their positions are the class indices."""
    return tuple(line.split(" ", 1)[0] for line in _synsets())


@cache
def class_names() -> tuple[str, ...]:
    """The first name of each class, e.g. ``tench``, in the order of :func:`wnids`.

    Two names stand for two classes each (crane, maillot); those have their wnid beside them.
    """
    names = [line.split(" ", 1)[1].split(",")[0] for line in _synsets()]
    twice = {name for name, count in Counter(names).items() if count > 1}
    pairs = zip(names, wnids(), strict=True)
    return tuple(f"{name} ({wnid})" if name in twice else name for name, wnid in pairs)


@cache
def validation_labels() -> array[int]:
    """Class index of ILSVRC2012_val_00000001 … 00050000 (16-bit little-endian on disk)."""
    labels = array("H", (FOLDER / "imagenet_val_labels.u16").read_bytes())
    if sys.byteorder == "big":
        labels.byteswap()
    return labels


def _synsets() -> list[str]:
    return (FOLDER / "imagenet_synsets.txt").read_text(encoding="utf-8").splitlines()
