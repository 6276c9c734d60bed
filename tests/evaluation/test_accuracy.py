"""Figures against what can be counted by hand."""

import numpy as np
import pytest

from snzoo.evaluation.accuracy import (
    Accuracy,
    accuracy,
    calibration_error,
    confused,
    per_class,
    reassessed,
)

CLASSES = np.array([[0, 1], [1, 0], [2, 1], [0, 2], [0, 2]], np.int32)
LABELS = np.array([0, 0, 1, 2, 2])


def test_the_interval_is_wilsons():
    # Brown, Cai & DasGupta (2001): never outside 0 to 100, not empty at the ends
    assert Accuracy(231, 250).interval == pytest.approx((88.4358, 95.0809), abs=1e-3)
    assert Accuracy(0, 10).interval == pytest.approx((0, 27.75), abs=1e-2)
    assert Accuracy(10, 10).interval == pytest.approx((72.25, 100), abs=1e-2)


def test_agreement_is_a_tolerance_on_the_same_images_and_an_interval_on_others():
    measured = Accuracy(38_000, 50_000)  # 76 %, interval about 75.6 to 76.4
    assert measured.agrees(76.05, same_images=True)
    assert Accuracy(37_950, 50_000).agrees(75.85, same_images=True)  # 0.05 and a rounding
    assert not measured.agrees(76.06, same_images=True)
    assert measured.agrees(76.06, same_images=True, tolerance=0.1)
    assert measured.agrees(76.3, same_images=False)
    assert not measured.agrees(76.5, same_images=False)


def test_accuracy_counts_labels_among_the_classes():
    assert accuracy(CLASSES[:, :1], LABELS) == Accuracy(1, 5)
    assert accuracy(CLASSES, LABELS) == Accuracy(5, 5)


def test_real_accuracy_leaves_out_images_without_labels():
    sets = [(0, 7), (), (1, 2), (1,), (2,)]
    assert reassessed(CLASSES, sets) == Accuracy(2, 4)
    assert reassessed(CLASSES, [()] * 5) is None


def test_calibration_error_is_the_weighted_gap_of_the_bins():
    probabilities = np.array([[0.95], [0.92], [0.55], [0.6], [1.0]], np.float32)
    # by hand, in bins of a tenth: (0.5, 0.6] holds 0.55 and 0.6, both wrong: a gap of 0.575;
    # (0.9, 1] holds 0.95 (right), 0.92 and 1.0 (wrong): |1/3 - 0.9567| = 0.6233
    expected = 2 / 5 * 0.575 + 3 / 5 * 0.62333
    measured = calibration_error(CLASSES, probabilities, LABELS, bins=10)
    assert measured == pytest.approx(expected, abs=1e-4)


def test_a_network_that_is_as_sure_as_it_is_right_is_calibrated():
    rng = np.random.default_rng(0)
    sure = rng.random(200_000).astype(np.float32)
    labels = (rng.random(200_000) >= sure).astype(int)  # 0, the answer, as often as it is sure
    answers = np.zeros((200_000, 1), np.int32)
    assert calibration_error(answers, sure[:, None], labels) < 0.005
    assert calibration_error(answers, np.ones_like(sure)[:, None], labels) > 0.4


def test_every_class_with_images_is_counted():
    assert [tuple(c) for c in per_class(CLASSES, LABELS)] == [
        (0, 2, 1, 2),
        (1, 1, 0, 1),
        (2, 2, 0, 2),
    ]


def test_confusions_come_most_frequent_first():
    assert [tuple(c) for c in confused(CLASSES, LABELS)] == [
        (2, 0, [3, 4]),
        (0, 1, [1]),
        (1, 2, [2]),
    ]
    assert len(confused(CLASSES, LABELS, most=2)) == 2
