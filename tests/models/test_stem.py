"""Stems for other channels than their weights were made for."""

import doctest

import pytest
import torch

from snzoo.models import stem


def test_the_examples_of_the_docstring_are_true():
    result = doctest.testmod(stem)
    assert result.attempted >= 2 and not result.failed


@pytest.mark.parametrize(
    "channels, expected",
    [
        (1, [7.0]),
        (2, [1.0 + 4.0, 2.0]),
        (3, [1.0, 2.0, 4.0]),
        (4, [0.5, 2.0, 4.0, 0.5]),
        (7, [1 / 3, 1.0, 2.0, 1 / 3, 1.0, 2.0, 1 / 3]),
    ],
)
def test_channels_go_round_and_share_their_weight(channels, expected):
    weight = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1).expand(5, 3, 7, 7)
    adapted = stem.adapt_input(weight, channels)
    assert adapted.shape == (5, channels, 7, 7)
    assert torch.allclose(adapted, torch.tensor(expected).view(1, -1, 1, 1).expand_as(adapted))


def test_what_fits_stays_as_it_is():
    weight = torch.randn(4, 3, 7, 7)
    assert torch.equal(stem.adapt_input(weight, 3), weight)
