"""The operator against float64 results of the published code (tests/golden/layers.npz)."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from snzoo.nn import (
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    SyncSwitchNorm1d,
    SyncSwitchNorm2d,
)

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("moving", [True, False])
@pytest.mark.parametrize("side", [1, 16])  # the plain formula, and the backend's passes
def test_running_statistics_of_half_precision_are_mixed_in_float32(dtype, moving, side):
    batches = [(torch.randn(4, 8, side, 16) * std).to(dtype) for std in (300, 30)]
    layer = SwitchNorm2d(8, using_moving_average=moving)
    half = SwitchNorm2d(8, using_moving_average=moving).to(dtype)
    for x in batches[not moving :]:  # a sum of 90,000 is beyond float16
        layer(x.float())
        assert half(x).isfinite().all()
    for name, buffer in half.named_buffers():
        right = layer.get_buffer(name)
        # Cast once per step.
        assert torch.allclose(buffer.float(), right, rtol=3 * torch.finfo(dtype).eps, atol=0.1)
    assert half.eval()(batches[1]).isfinite().all()


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
        (SwitchNorm2d(4), (), "(N, C, H, W) with C = 4, got shape ()"),
        (SwitchNorm1d(4), (2, 4, 3, 3), "(N, C) or (N, C, L) with C = 4"),
        (SwitchNorm1d(4), (4,), "(N, C) or (N, C, L) with C = 4, got shape (4,)"),
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


@pytest.mark.parametrize("layer", [*LAYERS.values(), SyncSwitchNorm1d, SyncSwitchNorm2d])
@pytest.mark.parametrize("factory", [{"dtype": torch.bfloat16}, {"device": "meta"}])
def test_factory_arguments_are_those_of_torch(layer, factory):
    made = layer(8, **factory, bias_correction=True)
    like = torch.nn.BatchNorm2d(8, **factory)
    for name, tensor in made.state_dict().items():
        right = like.state_dict()["num_batches_tracked" if "num" in name else "weight"]
        assert (tensor.device, tensor.dtype) == (right.device, right.dtype), name


def test_timms_networks_take_the_layer():
    timm = pytest.importorskip("timm")

    def sn_act(channels, apply_act=True, act_layer=torch.nn.SiLU, inplace=True, **options):
        factory = {key: options.get(key) for key in ("device", "dtype")}
        norm = SwitchNorm2d(channels, **factory)
        return torch.nn.Sequential(norm, act_layer(inplace)) if apply_act else norm

    for name, norm_layer in {"resnet18": SwitchNorm2d, "efficientnet_b0": sn_act}.items():
        model = timm.create_model(name, norm_layer=norm_layer, num_classes=3).eval()
        assert any(isinstance(module, SwitchNorm2d) for module in model.modules())
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
        with torch.inference_mode():
            assert model(torch.randn(1, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize("layer, shape", [(SwitchNorm1d, (64, 6)), (SwitchNorm3d, (8, 6, 2, 3, 4))])
def test_bias_correction_is_adams_and_evaluates_early(layer, shape):
    published, corrected = layer(6), layer(6, bias_correction=True)
    assert "num_batches_tracked" not in published.state_dict()
    for step in range(1, 21):
        x = torch.randn(shape) * 3 + 2
        y = published(x)
        assert torch.equal(corrected(x), y)
        factor = 1 - published.momentum**step
        for name in ("running_mean", "running_var"):
            expected = published.get_buffer(name) / factor
            assert torch.allclose(corrected.get_buffer(name), expected, rtol=1e-4)
    assert corrected.num_batches_tracked == 20
    error, wrong = ((each.eval()(x) - y).abs().mean() for each in (corrected, published))
    assert error < wrong / 2


@pytest.mark.parametrize("momentum", [-0.1, 5])
def test_momentum_is_a_share(momentum):
    with pytest.raises(ValueError, match=f"a step keeps: 0 to 1, got {momentum}"):
        SwitchNorm2d(3, momentum=momentum)
    SwitchNorm2d(3, momentum=momentum, using_moving_average=False)  # it is not used


@pytest.mark.parametrize("options", [{"using_moving_average": False}, {"momentum": 1.0}])
def test_bias_correction_needs_a_moving_average(options):
    with pytest.raises(ValueError, match="bias_correction is for moving averages"):
        SwitchNorm2d(3, bias_correction=True, **options)
