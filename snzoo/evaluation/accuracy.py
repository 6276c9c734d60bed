"""Figures computed from the ranked classes of every image: accuracy, calibration, confusions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from snzoo.errors import printable
from snzoo.evaluation.results import MOST_EXAMPLES, MOST_PAIRS, Accuracy, ClassCount, Pair

Labels = NDArray[np.int64]  # (n,)
Classes = NDArray[np.int32]  # (n, k), most probable first
Probabilities = NDArray[np.float32]  # (n, k)


def accuracy(classes: Classes, labels: Labels) -> Accuracy:
    """Return how often the label is among the classes: (n, 1) for top-1, (n, 5) for top-5."""
    return Accuracy.count(int((classes == labels[:, None]).sum()), len(labels))


def real_accuracy(classes: Classes, sets: Sequence[Sequence[int]]) -> Accuracy | None:
    """Return how often the first class is one of an image's labels, or None without any label.

    Images without a label do not count. This is the ReaL accuracy of Beyer et al. 2020, "Are we
    done with ImageNet?".
    """
    hits = [
        int(first) in labels for first, labels in zip(classes[:, 0], sets, strict=True) if labels
    ]
    return Accuracy.count(sum(hits), len(hits)) if hits else None


def calibration_error(
    classes: Classes, probabilities: Probabilities, labels: Labels, *, bins: int = 15
) -> float:
    """Return the expected calibration error of the first class, from 0 to 1.

    The bins have equal width (Guo et al. 2017, "On calibration of modern neural networks").
    """
    confidence = probabilities[:, 0].astype(np.float64)
    hits = classes[:, 0] == labels
    # Bin b holds the confidences in (b / bins, (b + 1) / bins].
    bin_of = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, hits, bins) - np.bincount(bin_of, confidence, bins)
    return float(np.abs(gaps).sum() / len(labels))


def count_classes(classes: Classes, labels: Labels, names: Sequence[str]) -> tuple[ClassCount, ...]:
    """Return the hits of every class that has images; ``names`` are the names of all classes."""
    hits = classes == labels[:, None]
    return tuple(
        ClassCount(int(c), names[c], int(at.sum()), int(hits[at, 0].sum()), int(hits[at].sum()))
        for c in np.unique(labels)
        for at in [labels == c]
    )


def find_confusions(
    classes: Classes, labels: Labels, names: Sequence[str], images: Sequence[str]
) -> tuple[Pair, ...]:
    """Return the most frequent confusions, most frequent first, then in the order of the classes.

    Args:
        names: the names of all classes.
        images: the names of the n images, for examples.
    """
    pairs: dict[tuple[int, int], list[int]] = {}
    for i in np.flatnonzero(classes[:, 0] != labels):
        pairs.setdefault((int(labels[i]), int(classes[i, 0])), []).append(int(i))
    ranked = sorted(pairs.items(), key=lambda item: (-len(item[1]), item[0]))
    return tuple(
        Pair(
            label,
            names[label],
            predicted,
            names[predicted],
            len(found),
            tuple(printable(images[i]) for i in found[:MOST_EXAMPLES]),
        )
        for (label, predicted), found in ranked[:MOST_PAIRS]
    )
