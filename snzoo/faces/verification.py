"""Figures of face verification (1:1), computed from embeddings alone.

Two photos are taken for the same person if the squared L2 distance of their embeddings is below a
threshold. The accuracy follows the protocol of LFW (Huang et al. 2007) as insightface computes it:
each fold of pairs is judged by the threshold that is best on the other folds.
"""

from dataclasses import dataclass
from math import log

import numpy as np
from numpy.typing import NDArray

from snzoo.errors import ArgumentError, NonFiniteError
from snzoo.faces.rates import Rate

Embeddings = NDArray[np.floating]  # (photos, dimensions), rows L2-normalized
Indices = NDArray[np.int64]  # (pairs,)
Flags = NDArray[np.bool_]  # (pairs,)
Distances = NDArray[np.float64]
Counts = NDArray[np.int64]

ONE_IN = (1_000, 10_000, 100_000, 1_000_000)  # impostor pairs accepted: the targets of TAR at FAR
FOLD_FAR = 1e-3  # the target of insightface's TAR
MOST_POINTS = 500  # of the ROC curve
CHUNK = 1024  # pairs, whose embeddings are in memory as float64
TOLERANCE = 0.01  # of squared norms: more than the rounding of bfloat16


@dataclass(frozen=True)
class FoldAccuracy:
    """The accuracy over folds in percent: the mean and the population standard deviation.

    ``correct`` is the number of right pairs in all folds together. ``folds`` has the accuracy of
    each fold, and ``thresholds`` the squared distance it is judged by.
    """

    percent: float
    std: float
    correct: int
    folds: tuple[float, ...]
    thresholds: tuple[float, ...]


@dataclass(frozen=True)
class FoldTar:
    """The true accept rate as insightface computes it, in percent over folds.

    For each fold, the threshold is interpolated linearly to the target FAR on the other folds; it
    is 0 if they never reach the target. ``far`` is the mean measured FAR, from 0 to 1.
    """

    percent: float
    std: float
    far: float


@dataclass(frozen=True)
class TarAtFar:
    """The true accept rate at the largest threshold with a FAR of at most ``far``, over all pairs.

    ``false_accepts`` is the number of impostor pairs below the threshold. All but ``far`` are None
    if there are fewer than 1 / ``far`` impostor pairs, which cannot measure this FAR. The interval
    of the rate takes the threshold as given, and does not contain the threshold's own uncertainty.
    """

    far: float
    tar: Rate | None = None
    threshold: float | None = None
    false_accepts: int | None = None


@dataclass(frozen=True)
class Verification:
    """The figures of verification on pairs of photos.

    The fields ``percent`` and ``std`` are in percent; all FARs, the equal error rate, the area and
    the ROC curve are from 0 to 1.

    Attributes:
        genuine: the number of pairs of the same person.
        impostors: the number of pairs of different people.
        accuracy: the accuracy over folds.
        tar_at_far: the true accept rate at FAR 1e-3, 1e-4, 1e-5 and 1e-6.
        fold_tar: insightface's TAR at FAR 1e-3, or None if a fold lacks pairs of one kind.
        equal_error_rate: the FAR at the point of the ROC curve where it equals the false reject
            rate; the curve is straight between neighboring distances.
        auc: the area under the ROC curve: the probability that a genuine pair is nearer than an
            impostor pair, with ties counted as one half.
        roc: at most ``MOST_POINTS`` points (FAR, TAR) of the ROC curve, from (0, 0) to (1, 1).
    """

    genuine: int
    impostors: int
    accuracy: FoldAccuracy
    tar_at_far: tuple[TarAtFar, ...]
    fold_tar: FoldTar | None
    equal_error_rate: float
    auc: float
    roc: tuple[tuple[float, float], ...]


def verify(
    embeddings: Embeddings, first: Indices, second: Indices, same: Flags, *, folds: int = 10
) -> Verification:
    """Return the figures of verification on P pairs of M photos.

    The folds are contiguous, and the first P mod ``folds`` of them have one pair more, as in
    scikit-learn's KFold without shuffling. The order of the pairs therefore matters: a fold should
    have pairs of both kinds. Distances are computed in float64.

    Args:
        embeddings: the L2-normalized embeddings of the photos, (M, dimensions).
        first: the photo that comes first in each pair, (P,), an index into ``embeddings``.
        second: the other photo of each pair, (P,).
        same: whether a pair shows the same person, (P,).
        folds: the number of folds.

    Raises:
        ArgumentError: the pairs do not fit together or to the embeddings, are all of one kind, or
            are fewer than the folds; or an embedding of a pair is not normalized.
        NonFiniteError: an embedding of a pair is not finite.
    """
    first, second, same = np.asarray(first), np.asarray(second), np.asarray(same)
    _check_pairs(len(embeddings), first, second, same, folds)
    distances = pair_distances(embeddings, first, second)
    genuine, impostors = np.sort(distances[same]), np.sort(distances[~same])
    accepted = _count_accepted(genuine, impostors)
    return Verification(
        genuine=len(genuine),
        impostors=len(impostors),
        accuracy=_fold_accuracy(distances, same, folds),
        tar_at_far=tuple(_tar_at_far(genuine, impostors, one_in=number) for number in ONE_IN),
        fold_tar=_fold_tar(distances, same, folds),
        equal_error_rate=_equal_error_rate(*accepted),
        auc=_area(*accepted),
        roc=_thin(*accepted),
    )


def pair_distances(embeddings: Embeddings, first: Indices, second: Indices) -> Distances:
    """Return the squared L2 distance of each pair of L2-normalized embeddings, from 0 to 4.

    Raises:
        ArgumentError: an embedding of a pair is not normalized.
        NonFiniteError: an embedding of a pair is not finite.
    """
    distances = np.empty(len(first))
    for start in range(0, len(first), CHUNK):
        pairs = slice(start, start + CHUNK)
        a, b = (_take(embeddings, which[pairs]) for which in (first, second))
        distances[pairs] = np.square(a - b).sum(axis=1)
    return distances


def _take(embeddings: Embeddings, photos: Indices) -> NDArray[np.float64]:
    rows = embeddings[photos].astype(np.float64)
    norms = np.square(rows).sum(axis=1)
    for bad in np.flatnonzero(~(np.abs(norms - 1) <= TOLERANCE))[:1]:  # NaN is bad too
        photo = f"the embedding of photo {photos[bad]}"
        if not np.isfinite(norms[bad]):
            raise NonFiniteError(f"{photo} is not finite; leave out the pairs of this photo")
        norm = f"has the squared norm {norms[bad]:.3g}, not 1"
        raise ArgumentError(f"{photo} {norm}; L2-normalize the embeddings")
    return rows


def _check_pairs(photos: int, first: Indices, second: Indices, same: Flags, folds: int) -> None:
    if same.dtype != np.bool_:
        raise ArgumentError(f"same must have booleans, not {same.dtype}")
    for name, indices in (("first", first), ("second", second)):
        if indices.shape != (len(same),):
            raise ArgumentError(f"{name} must have one photo for each of {len(same)} pairs")
        if len(indices) and not 0 <= indices.min() <= indices.max() < photos:
            raise ArgumentError(f"{name} must have indices from 0 to {photos - 1}")
    if not 2 <= folds <= len(same):
        raise ArgumentError(
            f"folds must be from 2 to the number of pairs, {len(same)}; got {folds}"
        )
    if same.all() or not same.any():
        kind = "the same person" if same.all() else "different people"
        raise ArgumentError(f"all pairs show {kind}; verification needs pairs of both kinds")


def _fold_sizes(pairs: int, folds: int) -> Counts:
    return pairs // folds + (np.arange(folds) < pairs % folds)


def _count_in_folds(
    distances: Distances, same: Flags, thresholds: Distances, folds: int
) -> tuple[Counts, Counts]:
    """Return how many pairs each fold accepts by each threshold, and how many it has.

    The shapes are (2, folds, thresholds) and (2, folds); impostors come first.
    """
    fold = np.repeat(np.arange(folds), _fold_sizes(len(same), folds))
    # A pair is accepted from the first threshold on that exceeds its distance.
    start = np.searchsorted(thresholds, distances, side="right")
    size = len(thresholds) + 1
    cell = (same * folds + fold) * size + start
    counts = np.bincount(cell, minlength=2 * folds * size).reshape(2, folds, size).cumsum(axis=2)
    return counts[..., :-1], counts[..., -1]


def _fold_accuracy(distances: Distances, same: Flags, folds: int) -> FoldAccuracy:
    thresholds = np.arange(0, 4, 0.01)
    (false, true), (impostors, _) = _count_in_folds(distances, same, thresholds, folds)
    correct = true + impostors[:, None] - false
    best = (correct.sum(axis=0) - correct).argmax(axis=1)  # the first one, on the other folds
    counts = correct[np.arange(folds), best]
    percents = 100 * (counts / _fold_sizes(len(same), folds))
    return FoldAccuracy(
        float(percents.mean()),
        float(percents.std()),
        int(counts.sum()),
        tuple(percents.tolist()),
        tuple(thresholds[best].tolist()),
    )


def _fold_tar(distances: Distances, same: Flags, folds: int) -> FoldTar | None:
    thresholds = np.arange(0, 4, 0.001)
    (false, _), (impostors, genuine) = _count_in_folds(distances, same, thresholds, folds)
    if min(impostors.min(), genuine.min()) == 0:
        return None
    tars, fars = np.empty(folds), np.empty(folds)
    ends = np.cumsum(_fold_sizes(len(same), folds))[:-1]
    tests = zip(np.split(distances, ends), np.split(same, ends), strict=True)
    for i, (test, genuine_test) in enumerate(tests):
        far = (false.sum(axis=0) - false[i]) / (impostors.sum() - impostors[i])
        # np.interp takes the last of equal FARs, as scipy's interp1d did when it allowed them.
        threshold = np.interp(FOLD_FAR, far, thresholds) if far[-1] >= FOLD_FAR else 0.0
        tars[i] = (test[genuine_test] < threshold).mean()
        fars[i] = (test[~genuine_test] < threshold).mean()
    return FoldTar(float(100 * tars.mean()), float(100 * tars.std()), float(fars.mean()))


def _tar_at_far(genuine: Distances, impostors: Distances, *, one_in: int) -> TarAtFar:
    """Return the TAR at a FAR of 1 / ``one_in``; the distances are sorted."""
    if len(impostors) < one_in:
        return TarAtFar(1 / one_in)
    # Any threshold above the distance of the first impostor pair that must be refused accepts it.
    threshold = impostors[len(impostors) // one_in]
    hits, false = (int(np.searchsorted(d, threshold)) for d in (genuine, impostors))
    return TarAtFar(1 / one_in, Rate.count(hits, len(genuine)), float(threshold), false)


def _count_accepted(genuine: Distances, impostors: Distances) -> tuple[Counts, Counts]:
    """Return the impostor and genuine pairs accepted up to no distance and up to each distance.

    They are the corners of the ROC curve. The distances are sorted.
    """
    distances = np.unique(np.concatenate([genuine, impostors]))
    false, true = (np.searchsorted(d, distances, side="right") for d in (impostors, genuine))
    return np.append(0, false), np.append(0, true)


def _area(false: Counts, true: Counts) -> float:
    twice = int((np.diff(false) * (true[1:] + true[:-1])).sum())
    return twice / (2 * int(false[-1]) * int(true[-1]))


def _equal_error_rate(false: Counts, true: Counts) -> float:
    # FAR minus false reject rate, times both numbers of pairs: exact, and it only grows.
    excess = false * true[-1] + (true - true[-1]) * false[-1]
    i = int((excess >= 0).argmax())
    share = -excess[i - 1] / (excess[i] - excess[i - 1])
    return float((false[i - 1] + share * (false[i] - false[i - 1])) / false[-1])


def _thin(false: Counts, true: Counts) -> tuple[tuple[float, float], ...]:
    """Return the corners (FAR, TAR) of the ROC curve, or ``MOST_POINTS`` of them at most.

    Those kept are spaced evenly in the TAR plus the logarithm of the FAR, each scaled to 0 to 1, so
    that a chart with a logarithmic axis shows no difference. The ends and the first FAR above 0 are
    among them.
    """
    far, tar = false / false[-1], true / true[-1]
    if len(far) <= MOST_POINTS:
        return tuple(zip(far.tolist(), tar.tolist(), strict=True))
    least = 1 / int(false[-1])
    way = tar + 1 + np.log(np.maximum(far, least)) / max(-log(least), 1.0)
    even = np.searchsorted(way, np.linspace(way[0], way[-1], MOST_POINTS - 3))
    kept = np.unique([0, *even.tolist(), int((false > 0).argmax()), len(way) - 1])
    return tuple(zip(far[kept].tolist(), tar[kept].tolist(), strict=True))
