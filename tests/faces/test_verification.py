"""Figures of verification against insightface's procedure in plain loops, and against counting."""

import dataclasses
import json
from fractions import Fraction
from statistics import fmean, pstdev

import numpy as np
import pytest

from snzoo.errors import ArgumentError, NonFiniteError
from snzoo.faces import verification, verify


def random_pairs(seed, pairs, *, ties=False, noise=0.9):
    """Embeddings of people and mixed pairs of them; with ties, only a few embeddings differ."""
    chance = np.random.default_rng(seed)
    people, photos = (4, 3) if ties else (pairs, 2)
    centers = chance.normal(size=(people, 1, 16))
    rows = (centers + noise * chance.normal(size=(people, photos, 16))).reshape(-1, 16)
    embeddings = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    person, other = chance.integers(people, size=(2, pairs))
    first = person * photos
    wanted = chance.random(pairs) < 0.5
    second = np.where(wanted, first + 1, other * photos + chance.integers(photos, size=pairs))
    return embeddings, first, second, first // photos == second // photos


def pairs_at(genuine, impostors):
    """Pairs of the given squared distances: unit vectors at these distances from the first one."""
    distances = np.array([*genuine, *impostors])
    cosines = 1 - distances / 2
    others = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)
    count = len(distances)
    same = np.arange(count) < len(genuine)
    embeddings = np.concatenate([[[1.0, 0.0]], others])
    return embeddings, np.zeros(count, np.int64), np.arange(1, count + 1), same


def split(count, folds):
    """The test and training indices of each fold, dealt out one by one."""
    sizes = [0] * folds
    for i in range(count):
        sizes[i % folds] += 1
    start = 0
    for size in sizes:
        test = list(range(start, start + size))
        start += size
        yield test, [i for i in range(count) if i not in set(test)]


def rates(threshold, distances, same):
    accepted = distances < threshold
    return np.sum(accepted & same) / same.sum(), np.sum(accepted & ~same) / (~same).sum()


def insightface(embeddings, first, second, same, folds):
    """The accuracies of the folds, and TAR (mean, deviation) with the FAR at a FAR of 1e-3."""
    wide = embeddings.astype(np.float64)
    pairs = zip(first, second, strict=True)
    distances = np.array([((wide[a] - wide[b]) ** 2).sum() for a, b in pairs])
    accuracies, tars, fars = [], [], []
    for test, train in split(len(same), folds):
        best = max((np.mean((distances[train] < i * 0.01) == same[train]), -i) for i in range(400))
        accuracies.append(np.mean((distances[test] < -best[1] * 0.01) == same[test]))
        if any(not 0 < same[part].sum() < len(part) for part in (test, train)):
            continue
        impostors = distances[train][~same[train]]
        curve = [np.sum(impostors < i * 0.001) / len(impostors) for i in range(4000)]
        threshold = 0.0
        if max(curve) >= 1e-3:
            i = max(i for i, far in enumerate(curve) if far <= 1e-3)
            threshold = i * 0.001
            if i < 3999:
                threshold += 0.001 * (1e-3 - curve[i]) / (curve[i + 1] - curve[i])
        tar, far = rates(threshold, distances[test], same[test])
        tars.append(tar)
        fars.append(far)
    complete = len(tars) == folds
    return accuracies, (fmean(tars), pstdev(tars), fmean(fars)) if complete else None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("pairs", "folds", "ties"),
    [(600, 10, False), (437, 10, False), (300, 10, True), (200, 3, True), (11, 10, False)],
)
def test_folds_are_judged_as_insightface_judges_them(seed, pairs, folds, ties):
    data = random_pairs(seed, pairs, ties=ties)
    accuracies, tar = insightface(*data, folds)
    figures = verify(*data, folds=folds)
    assert figures.accuracy.folds == pytest.approx([100 * a for a in accuracies], abs=1e-9)
    assert figures.accuracy.percent == pytest.approx(100 * fmean(accuracies), abs=1e-9)
    assert figures.accuracy.std == pytest.approx(100 * pstdev(accuracies), abs=1e-9)
    assert (figures.fold_tar is None) == (tar is None) == (pairs == 11)
    if tar is not None:
        found = figures.fold_tar
        assert (found.percent / 100, found.std / 100, found.far) == pytest.approx(tar, abs=1e-9)


def test_a_far_that_the_other_folds_never_reach_has_threshold_zero():
    # Impostors at a squared distance of 4 are beyond the largest threshold, 3.999.
    embeddings, first, second, same = pairs_at([0.1] * 20, [4.0] * 20)
    mixed = np.argsort(np.arange(40) % 20, kind="stable")
    figures = verify(embeddings, first, second[mixed], same[mixed])
    assert (figures.fold_tar.percent, figures.fold_tar.far) == (0, 0)
    assert figures.accuracy.percent == 100


@pytest.mark.parametrize(
    ("genuine", "threshold"),
    [([1.0, 0.0], 0.01), ([0.0, 1.0], 2.01), ([-0.6, 0.8], 3.21)],
    ids=["same photo", "right angle", "wide"],
)
def test_a_pair_at_the_threshold_itself_is_refused(genuine, threshold):
    embeddings = np.array([[1.0, 0.0], genuine, [-1.0, 0.0]])
    accuracy = verify(embeddings, np.zeros(6, int), [1, 2] * 3, [True, False] * 3, folds=3).accuracy
    assert accuracy.thresholds == pytest.approx([threshold] * 3)
    assert accuracy.percent == 100


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("impostors", [999, 1000, 10_500])
def test_tar_is_counted_at_the_largest_threshold_that_keeps_the_far(impostors, ties):
    chance = np.random.default_rng(impostors)
    genuine, others = chance.beta(2, 8, 300) * 4, chance.beta(8, 3, impostors) * 4
    if ties:
        genuine, others = genuine.round(1), others.round(1)
    data = pairs_at(genuine, others)
    distances = verification.pair_distances(*data[:3])
    figures = verify(*data)
    for figure, one_in in zip(figures.tar_at_far, (1000, 10_000, 100_000, 1_000_000), strict=True):
        assert figure.far == pytest.approx(1 / one_in)
        if impostors < one_in:
            assert figure.tar is figure.threshold is figure.false_accepts is None
            continue
        # Between two neighboring distances, all thresholds accept the same pairs.
        for threshold in sorted(set(distances.tolist()), reverse=True):
            false = int((distances[300:] < threshold).sum())
            if Fraction(false, impostors) <= Fraction(1, one_in):
                break
        hits = int((distances[:300] < threshold).sum())
        assert (figure.tar.hits, figure.tar.trials) == (hits, 300)
        assert (figure.threshold, figure.false_accepts) == (threshold, false)
        low, high = figure.tar.interval95
        # The bounds of Wilson solve |p - hits/n| = z sqrt(p (1 - p) / n).
        for bound in (low / 100, high / 100):
            gap = abs(bound - hits / 300)
            assert gap == pytest.approx(1.96 * (bound * (1 - bound) / 300) ** 0.5, abs=1e-12)


@pytest.mark.parametrize(
    ("genuine", "impostors", "rate", "area"),
    [
        ([0.1, 0.2], [0.3, 0.4, 0.5], 0, 1),
        ([3.0, 3.1], [0.3, 0.4, 0.5], 1, 0),
        ([1.0] * 3, [1.0] * 4, 0.5, 0.5),
        ([0.1, 0.2, 0.3, 0.9], [0.25, 1.0, 1.1, 1.2], 0.25, 14 / 16),
        ([0.1, 0.5], [0.5, 0.9], 0.25, 3.5 / 4),  # half of the tie counts
        ([0.1, 0.2, 0.6], [0.4, 0.7], 1 / 3, 5 / 6),  # the rates meet within a step
    ],
)
def test_equal_error_rate_and_area_by_hand(genuine, impostors, rate, area):
    figures = verify(*pairs_at(genuine, impostors), folds=2)
    assert figures.equal_error_rate == pytest.approx(rate, abs=1e-12)
    assert figures.auc == pytest.approx(area, abs=1e-12)


@pytest.mark.parametrize(("pairs", "ties"), [(500, False), (500, True), (20_000, False)])
def test_the_curve_has_corners_of_the_whole_curve_and_stays_near_it(pairs, ties):
    data = random_pairs(1, pairs, ties=ties)
    distances, same = verification.pair_distances(*data[:3]), data[3]
    genuine, impostors = np.sort(distances[same]), np.sort(distances[~same])
    corners = {(0.0, 0.0)} | {
        (
            np.searchsorted(impostors, d, side="right") / len(impostors),
            np.searchsorted(genuine, d, side="right") / len(genuine),
        )
        for d in distances
    }
    figures = verify(*data)
    assert len(figures.roc) <= verification.MOST_POINTS
    assert set(figures.roc) <= corners
    assert list(figures.roc) == sorted(figures.roc)
    assert (figures.roc[0], figures.roc[-1]) == ((0, 0), (1, 1))
    assert min(x for x, _ in figures.roc if x > 0) == min(x for x, _ in corners if x > 0)
    far, tar = np.array(figures.roc).T
    for x, y in corners:  # within 1/100 of the height, or of the logarithmic width
        near = np.abs(tar - y) + np.abs(np.log10(np.maximum(far, 1e-5) / max(x, 1e-5))) / 5
        assert near.min() < 0.01
    assert len(figures.roc) == len(corners) or pairs == 20_000


def test_a_long_curve_keeps_its_first_far_above_zero():
    impostors = [0.5001, 0.5002, *np.linspace(2, 3, 1000)]
    figures = verify(*pairs_at(np.linspace(0.1, 1, 1000), impostors))
    assert len(figures.roc) <= verification.MOST_POINTS
    assert min(far for far, _ in figures.roc if far > 0) == 1 / 1002


@pytest.mark.parametrize("ties", [False, True])
def test_the_area_is_the_chance_that_a_genuine_pair_is_nearer(ties):
    data = random_pairs(2, 700, ties=ties)
    distances, same = verification.pair_distances(*data[:3]), data[3]
    gaps = distances[~same][:, None] - distances[same]
    expected = np.mean((gaps > 0) + 0.5 * (gaps == 0))
    assert verify(*data).auc == pytest.approx(expected, abs=1e-12)


def test_a_result_is_json():
    document = json.loads(json.dumps(dataclasses.asdict(verify(*random_pairs(0, 40)))))
    assert document["tar_at_far"][0]["tar"] is None and document["roc"][0] == [0, 0]


def test_only_embeddings_of_pairs_must_be_finite():
    embeddings, first, second, same = random_pairs(0, 3000)
    spare = np.concatenate([embeddings, [[np.nan] * 16]])
    assert verify(spare, first, second, same) == verify(embeddings, first, second, same)
    photo = int(second[2000])
    embeddings[photo, 3] = np.inf
    with pytest.raises(NonFiniteError, match=f"photo {photo} is not finite"):
        verify(embeddings, first, second, same)


DATA = random_pairs(0, 30)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"embeddings": 2 * DATA[0]}, "squared norm 4, not 1"),
        ({"first": DATA[1][1:]}, "first must have one photo for each of 30 pairs"),
        ({"second": DATA[2] - 60}, "second must have indices from 0 to 59"),
        ({"same": DATA[3].astype(int)}, "same must have booleans, not int64"),
        ({"same": np.ones(30, bool)}, "all pairs show the same person"),
        ({"same": np.zeros(30, bool)}, "all pairs show different people"),
        ({"folds": 31}, "folds must be from 2 to the number of pairs, 30"),
        ({"folds": 1}, "folds must be from 2 to the number of pairs, 30"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changed, words):
    names = ("embeddings", "first", "second", "same")
    with pytest.raises(ArgumentError, match=words):
        verify(**(dict(zip(names, DATA, strict=True)) | changed))
