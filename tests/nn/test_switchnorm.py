"""The operator against float64 results of the published code (tests/golden/layers.npz)."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from snzoo.nn import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "layers.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN.files})
LAYERS = {"1d": SwitchNorm1d, "2d": SwitchNorm2d, "3d": SwitchNorm3d}


def golden(case, key):
    return torch.from_numpy(GOLDEN[f"{case}/{key}"])


def keys_under(case, prefix):
    start = f"{case}/{prefix}/"
    return [key.removeprefix(start) for key in GOLDEN.files if key.startswith(start)]


def make(case):
    rank, _, mode, bn = case.split("_")
    x = golden(case, "x")
    layer = LAYERS[rank](x.shape[1], using_moving_average=mode == "ma", using_bn=bn == "bn")
    layer = layer.double()
    layer.load_state_dict({key: golden(case, f"param/{key}") for key in keys_under(case, "param")})
    return layer, x


def assert_matches(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_eval_output_matches_the_published_operator(case):
    layer, x = make(case)
    assert_matches(layer.eval()(x), golden(case, "eval/y"))


@pytest.mark.parametrize("case", CASES)
def test_training_matches_the_published_operator(case):
    layer, x = make(case)
    x.requires_grad_()
    y = layer.train()(x)
    y.backward(golden(case, "grad_y"))
    assert_matches(y.detach(), golden(case, "train/y"))
    assert_matches(x.grad, golden(case, "train/grad_x"))
    for key in keys_under(case, "train/grad"):
        assert_matches(layer.get_parameter(key).grad, golden(case, f"train/grad/{key}"))
    for key in keys_under(case, "train/buffer"):
        assert_matches(layer.get_buffer(key), golden(case, f"train/buffer/{key}"))


@pytest.mark.parametrize("training", [True, False])
def test_1d_takes_sequences_and_agrees_with_length_one(training):
    layer = SwitchNorm1d(5).train(training)
    x = torch.randn(4, 5)
    assert torch.allclose(layer(x[:, :, None])[:, :, 0], layer(x), atol=1e-6)
    assert layer(torch.randn(4, 5, 7)).shape == (4, 5, 7)


@pytest.mark.parametrize(
    "layer, shape", [(SwitchNorm2d(6), (2, 6, 1, 1)), (SwitchNorm1d(1), (1, 1))]
)
@pytest.mark.parametrize("training", [True, False])
def test_one_position_is_finite_with_its_gradient(layer, shape, training):
    x = torch.randn(shape, requires_grad=True)
    y = layer.train(training)(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


@pytest.mark.parametrize(
    "layer, shape",
    [(SwitchNorm2d(4), (0, 4, 5, 5)), (SwitchNorm2d(4), (2, 4, 0, 5)), (SwitchNorm1d(4), (0, 4))],
)
def test_nothing_in_changes_nothing(layer, shape):
    x = torch.empty(shape, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == shape and x.grad.shape == shape
    assert not layer.running_mean.any() and not layer.running_var.any()


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"floating-point input, got torch\.int64"):
        SwitchNorm2d(4)(torch.zeros(2, 4, 3, 3, dtype=torch.int64))


def test_half_precision_keeps_float32_statistics():
    layer = SwitchNorm2d(8)
    x = (torch.randn(2, 8, 40, 40) * 300).half()  # squares overflow in float16
    y = layer(x)
    assert y.dtype == torch.float16
    assert torch.allclose(y.float(), layer(x.float()), atol=1e-2)


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (SwitchNorm2d(4), (2, 5, 3, 3), "(N, C, H, W) with C = 4, got shape (2, 5, 3, 3)"),
        (SwitchNorm2d(4), (2, 4, 3), "(N, C, H, W) with C = 4, got shape (2, 4, 3)"),
        (SwitchNorm1d(4), (2, 4, 3, 3), "(N, C) or (N, C, L) with C = 4"),
    ],
)
def test_wrong_shapes_say_what_was_expected(layer, shape, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        layer(torch.randn(shape))


@pytest.mark.parametrize(
    "layer, shape, memory_format",
    [
        (SwitchNorm2d(8), (2, 8, 6, 5), torch.channels_last),
        (SwitchNorm3d(8), (2, 8, 3, 6, 5), torch.channels_last_3d),
    ],
)
def test_channels_last_is_kept_and_equal(layer, shape, memory_format):
    layer.eval()
    x = torch.randn(shape)
    y = layer(x.to(memory_format=memory_format))
    assert y.is_contiguous(memory_format=memory_format)
    assert torch.allclose(y, layer(x), atol=1e-5)
