"""Figures made from what a network said of every image: accuracies, calibration, confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

TOLERANCE = 0.05  # points by which the same images may differ across libraries

Labels = NDArray[np.int64]  # (n,)
Classes = NDArray[np.int32]  # (n, k), best first
Probabilities = NDArray[np.float32]  # (n, k)


@dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``total`` images."""

    correct: int
    total: int

    @property
    def percent(self) -> float:
        return 100 * self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval, in percent."""
        z, n, p = 1.96, self.total, self.correct / self.total
        center = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return 100 * max(0.0, center - half), 100 * min(1.0, center + half)

    def agrees(self, published: float, *, same_images: bool, tolerance: float = TOLERANCE) -> bool:
        """Within ``tolerance`` points on the published images, within the interval on others."""
        if same_images:
            return abs(self.percent - published) <= tolerance + 1e-9  # both are rounded
        low, high = self.interval
        return low <= published <= high


def accuracy(classes: Classes, labels: Labels) -> Accuracy:
    """How often the label is among the classes: (n, 1) for top-1, (n, 5) for top-5."""
    return Accuracy(int((classes == labels[:, None]).sum()), len(labels))


def reassessed(classes: Classes, sets: Sequence[Sequence[int]]) -> Accuracy | None:
    """How often the best class is one of an image's labels; images without any don't count.

    ReaL accuracy of Beyer et al. 2020, "Are we done with ImageNet?". None where no image
    has a label.
    """
    hits = [int(best) in labels for best, labels in zip(classes[:, 0], sets, strict=True) if labels]
    return Accuracy(sum(hits), len(hits)) if hits else None


def calibration_error(
    classes: Classes, probabilities: Probabilities, labels: Labels, *, bins: int = 15
) -> float:
    """Expected calibration error of the best class, from 0 to 1, over bins of equal width.

    Guo et al. 2017, "On calibration of modern neural networks".
    """
    confidence = probabilities[:, 0].astype(np.float64)
    hits = classes[:, 0] == labels
    # Bin b holds the confidences in (b / bins, (b + 1) / bins].
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, hits, bins) - np.bincount(bin_of, confidence, bins)
    return float(np.abs(gaps).sum() / len(labels))


class ClassCount(NamedTuple):
    """How many of a class's images have it as their best class, and among their best five."""

    label: int
    images: int
    top1: int
    top5: int


def per_class(classes: Classes, labels: Labels) -> list[ClassCount]:
    """The counts of every class that has images."""
    hits = classes == labels[:, None]
    return [
        ClassCount(int(c), int(at.sum()), int(hits[at, 0].sum()), int(hits[at].sum()))
        for c in np.unique(labels)
        for at in [labels == c]
    ]


class Confusion(NamedTuple):
    """``images`` (positions) of class ``label`` whose best class is ``predicted``."""

    label: int
    predicted: int
    images: list[int]


def confused(classes: Classes, labels: Labels, *, most: int = 20) -> list[Confusion]:
    """The most frequent confusions, most frequent first, then in the order of the classes."""
    wrong = np.flatnonzero(classes[:, 0] != labels)
    pairs: dict[tuple[int, int], list[int]] = {}
    for i in wrong:
        pairs.setdefault((int(labels[i]), int(classes[i, 0])), []).append(int(i))
    ranked = sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0]))
    return [Confusion(*pair, images) for pair, images in ranked[:most]]
