"""Accuracy figures against values computed by hand."""

import numpy as np
import pytest

from snzoo.evaluation.accuracy import (
    accuracy,
    calibration_error,
    count_classes,
    find_confusions,
    real_accuracy,
)
from snzoo.evaluation.results import Accuracy

CLASSES = np.array([[0, 1], [1, 0], [2, 1], [0, 2], [0, 2]], np.int32)
LABELS = np.array([0, 0, 1, 2, 2])
NAMES = ["a", "b", "c"]


@pytest.mark.parametrize(
    "correct, images, low, high",
    [(231, 250, 88.4358, 95.0809), (0, 10, 0, 27.754), (10, 10, 72.246, 100)],
)
def test_the_interval_is_wilsons(correct, images, low, high):
    # Brown, Cai & DasGupta (2001): never outside 0 to 100, not empty at the ends
    interval = Accuracy.count(correct, images).interval95
    assert interval == pytest.approx((low, high), abs=1e-3)


@pytest.mark.parametrize(
    "correct, published, options, agrees",
    [
        (38_000, 76.05, {"same_images": True}, True),
        (37_950, 75.85, {"same_images": True}, True),  # 0.05, up to rounding
        (38_000, 76.06, {"same_images": True}, False),
        (38_000, 76.06, {"same_images": True, "tolerance": 0.1}, True),
        (38_000, 76.3, {"same_images": False}, True),  # the interval is about 75.6 to 76.4
        (38_000, 76.5, {"same_images": False}, False),
        (38_000, None, {"same_images": True}, None),
    ],
)
def test_published_figures_agree_within_the_tolerance_or_the_interval(
    correct, published, options, agrees
):
    compared = Accuracy.count(correct, 50_000).compare(published, **options)
    assert (compared.published, compared.agrees) == (published, agrees)


def test_accuracy_counts_labels_among_the_classes():
    assert accuracy(CLASSES[:, :1], LABELS) == Accuracy.count(1, 5)
    assert accuracy(CLASSES, LABELS) == Accuracy.count(5, 5)


def test_real_accuracy_leaves_out_images_without_labels():
    sets = [(0, 7), (), (1, 2), (1,), (2,)]
    assert real_accuracy(CLASSES, sets) == Accuracy.count(2, 4)
    assert real_accuracy(CLASSES, [()] * 5) is None


def test_calibration_error_is_the_weighted_gap_of_the_bins():
    probabilities = np.array([[0.95], [0.92], [0.55], [0.6], [1.0]], np.float32)
    # By hand, in bins of a tenth: (0.5, 0.6] holds 0.55 and 0.6, both wrong: a gap of 0.575;
    # (0.9, 1] holds 0.95 (right), 0.92 and 1.0 (wrong): |1/3 - 0.9567| = 0.6233.
    expected = 2 / 5 * 0.575 + 3 / 5 * 0.62333
    measured = calibration_error(CLASSES, probabilities, LABELS, bins=10)
    assert measured == pytest.approx(expected, abs=1e-4)


def test_a_calibrated_network_has_almost_no_calibration_error():
    rng = np.random.default_rng(0)
    confidence = rng.random(200_000).astype(np.float32)
    labels = (rng.random(200_000) >= confidence).astype(int)  # 0, the answer, with confidence
    answers = np.zeros((200_000, 1), np.int32)
    assert calibration_error(answers, confidence[:, None], labels) < 0.005
    assert calibration_error(answers, np.ones_like(confidence)[:, None], labels) > 0.4


def test_every_class_with_images_is_counted():
    counts = count_classes(CLASSES, LABELS, NAMES)
    assert [(c.index, c.name, c.images, c.top1, c.top5) for c in counts] == [
        (0, "a", 2, 1, 2),
        (1, "b", 1, 0, 1),
        (2, "c", 2, 0, 2),
    ]


def test_confusions_come_most_frequent_first():
    pairs = find_confusions(CLASSES, LABELS, NAMES, ["0.jpg", "1.jpg", "2.jpg", "3\n", "4.jpg"])
    assert [(p.label_name, p.predicted_name, p.count, p.examples) for p in pairs] == [
        ("c", "a", 2, ("3\\n", "4.jpg")),
        ("a", "b", 1, ("1.jpg",)),
        ("b", "c", 1, ("2.jpg",)),
    ]
