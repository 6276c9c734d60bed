"""The Triton kernels of the (N, C) part against the plain formula in float64."""

import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from snzoo.nn import SparseSwitchNorm2d, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d, backends
from snzoo.nn.backends import torch as plain
from snzoo.nn.functional import Config, LayerTensors, Mixture, Statistics, switch_norm

triton = pytest.importorskip("snzoo.nn.backends.triton", reason="needs Triton")

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
FLOAT, DOUBLE = torch.float32, torch.float64
pytestmark = pytest.mark.skipif(
    not CUDA and os.environ.get("TRITON_INTERPRET") != "1",
    reason="no GPU; test_triton.py runs it in the interpreter",
)
# (N, C), the number of positions, a type, and the size of a tile.
CASES = [
    ((1, 1), 1, FLOAT, 2048),
    ((1, 7), 5, FLOAT, 2048),
    ((6, 1), 3, DOUBLE, 2048),
    ((3, 33), 49, FLOAT, 2048),
    ((40, 3), 1, DOUBLE, 2048),
    ((10, 19), 9, FLOAT, 32),  # many tiles along both, with ragged ends
]
cases = pytest.mark.parametrize("shape, positions, dtype, tile", CASES)
# Whether IN is mixed in, and the origin of BN statistics.
kinds = pytest.mark.parametrize("instance", [True, False])
origins = pytest.mark.parametrize("bn", ["batch", "running", None])
gates = pytest.mark.parametrize("shares", [True, False])


@pytest.fixture(autouse=True)
def tile_of_the_case(request, monkeypatch):
    if "tile" in request.fixturenames:
        monkeypatch.setattr(triton, "TILE", request.getfixturevalue("tile"))


def random(*shape, dtype=FLOAT, mean=0.0):
    return (torch.randn(shape, dtype=DOUBLE, device=DEVICE) + mean).to(dtype)


def layer(shape, dtype, instance, bn, shares, mean=3.0):
    """Return IN statistics, parameters and buffers of a random layer, and its config."""
    channels, count = shape[1], 1 + instance + (bn is not None)
    statistics = random(*shape, dtype=dtype, mean=mean), random(*shape, dtype=dtype).abs()
    running = (None, None)
    if bn == "running":
        running = random(channels, dtype=dtype, mean=mean), random(channels, dtype=dtype).abs()
    parameters = random(channels, dtype=dtype), random(channels, dtype=dtype)
    gates = random(count, dtype=dtype), random(count, dtype=dtype)
    if shares:
        gates = [values.softmax(0) for values in gates]
    config = Config(instance, bn == "batch", 1e-5, shares=shares)
    return *statistics, LayerTensors(*parameters, *gates, *running), config


def as_double(value):
    if isinstance(value, torch.Tensor):
        return value.double()
    if isinstance(value, LayerTensors | Mixture | Statistics):
        return type(value)(*map(as_double, value))
    return [as_double(item) for item in value] if isinstance(value, list) else value


def assert_near(actual, expected, size=0.0):
    """Compare to 1e-6 or 1e-12 of the largest value, or of ``size`` if that is larger."""
    error = 1e-12 if actual.dtype == DOUBLE else 1e-6
    assert actual.shape == expected.shape
    assert ((actual.double() - expected).abs() <= error * max(expected.abs().max(), size)).all()


@cases
@kinds
@origins
@gates
def test_mixture(shape, positions, dtype, tile, instance, bn, shares):
    mean, var, tensors, config = layer(shape, dtype, instance, bn, shares)
    mixture, scale = triton.coefficients(mean, var, tensors, config, positions)
    right, right_scale = plain.coefficients(
        mean.double(), var.double(), as_double(tensors), config, positions
    )
    assert_near(mixture.mean, right.mean)
    assert_near(mixture.var, right.var)
    assert_near(scale, right_scale)
    for own, expected in zip(mixture.stats, right.stats, strict=True):
        assert own[2:] == expected[2:]
        assert_near(own.mean, expected.mean)
        assert_near(own.var, expected.var)
    batch = mixture.batch_stats()
    assert (batch is None) == (bn != "batch")
    assert batch is None or batch[0].shape == batch[1].shape == shape[1:]


@cases
@kinds
@origins
@gates
def test_gradients(shape, positions, dtype, tile, instance, bn, shares):
    mean, var, tensors, config = layer(shape, dtype, instance, bn, shares)
    mixture, _ = plain.coefficients(mean, var, tensors, config, positions)
    sums = random(*shape, dtype=dtype), random(*shape, dtype=dtype)
    found = triton.gradient_coefficients(*sums, mixture, mean, tensors, config, positions)
    wide = [*map(as_double, (*sums, mixture, mean, tensors))]
    right = plain.gradient_coefficients(*wide, config, positions)
    sizes = sizes_of_terms(*wide, config, positions)
    for actual, expected, size in zip(flat(found), flat(right), flat(sizes), strict=True):
        assert actual.dtype == dtype
        assert_near(actual, expected, size.abs().max())


def flat(results):
    return [*results[0], *results[1]]


def sizes_of_terms(total, centered, mixture, mean, tensors, config, positions):
    """Return the results without the cancellations: all sums of one sign, and no softmax."""
    gates = [values.abs().softmax(0) for values in tensors[2:4]]
    tensors = LayerTensors(tensors.weight.abs(), tensors.bias, *gates, *tensors[4:])
    sums, config = (total.abs(), centered.abs()), config._replace(shares=True)
    return plain.gradient_coefficients(*sums, mixture, mean, tensors, config, positions)


@kinds
@origins
def test_means_far_from_zero(instance, bn):
    """The gradients of logits depend on differences of means alone, which are exact."""
    mean, var, tensors, config = layer((10, 19), FLOAT, instance, bn, False, mean=1e3)
    mixture, scale = triton.coefficients(mean, var, tensors, config, 4)
    right, right_scale = plain.coefficients(*map(as_double, (mean, var, tensors)), config, 4)
    assert_near(mixture.mean, right.mean)
    assert_near(mixture.var, right.var)
    assert_near(scale, right_scale)
    sums = random(10, 19), random(10, 19)
    found = triton.gradient_coefficients(*sums, mixture, mean, tensors, config, 4)
    wide = [*map(as_double, (*sums, mixture, mean, tensors))]
    right = plain.gradient_coefficients(*wide, config, 4)
    by_mean = (right_scale * sums[0]).abs().sum()
    for actual, expected in zip(found[0], right[0], strict=True):
        assert_near(actual, expected)
    assert_near(found[1][2], right[1][2], by_mean)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 7), (1, 6, 3, 3), (4, 1, 3, 5), (2, 4, 3, 2, 5)])
@pytest.mark.parametrize("training, using_bn", [(True, True), (False, True), (True, False)])
def test_gradients_of_a_layer(shape, training, using_bn):
    make = {2: SwitchNorm1d, 3: SwitchNorm1d, 4: SwitchNorm2d, 5: SwitchNorm3d}[len(shape)]
    compare_gradients(make(shape[1], using_bn=using_bn), shape, training)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_shares(training):
    layer = SparseSwitchNorm2d(5)
    layer.radius.fill_(0.3)
    compare_gradients(layer, (3, 5, 4, 4), training)


def compare_gradients(layer, shape, training):
    layer = layer.to(DEVICE, DOUBLE).train(training)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = random(*shape, dtype=DOUBLE, mean=1.0).requires_grad_()
    y, (expected, _) = layer(x), switch_norm(x, *layer.tensors_and_config())
    assert (y - expected).abs().max() <= 1e-10
    weights, wanted = torch.randn_like(y), [x, *layer.parameters()]
    gradients = torch.autograd.grad(expected, wanted, weights)
    scale = max(gradient.abs().max() for gradient in gradients)
    for actual, right in zip(torch.autograd.grad(y, wanted, weights), gradients, strict=True):
        assert actual.shape == right.shape
        assert (actual - right).abs().max() <= 1e-10 * scale


class Launches(TorchDispatchMode):
    """The names of what launches on a GPU: kernels, and operations that are more than a view."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        name = operation.overloadpacket.__name__
        if not (operation.is_view or "empty" in name or name in ("_unsafe_view", "promote_types")):
            self.names.append(name)
        return operation(*arguments, **(options or {}))


def test_a_training_step_launches_ten_times(monkeypatch):
    """The (N, C) part is two kernels forward and two back."""
    launches, layer = Launches(), SwitchNorm2d(8).to(DEVICE)
    monkeypatch.setattr(backends, "select", lambda x: triton)
    record = lambda kernel, *arguments, **more: launches.names.append(kernel.__name__)  # noqa: E731
    monkeypatch.setattr(triton, "_launch", record)
    x = random(2, 8, 5, 5).requires_grad_()
    with launches:
        y = layer(x)
        forward = ["moments", "pool_columns", "mix_rows", "affine", "lerp_", "lerp_"]
        assert launches.names == forward
        launches.names.clear()
        y.backward(x.detach())
    backward = ["gradient_sums", "reduce_columns", "spread_rows", "input_gradient"]
    assert launches.names == backward


def test_a_group_is_served_by_the_plain_formula():
    config = Config(True, True, 1e-5)
    assert backends.select_mixing(triton, config) is triton
    assert backends.select_mixing(triton, config._replace(group=object())) is plain
    assert backends.select_mixing(plain, config) is plain


def test_parameters_of_any_strides_are_read_and_of_other_sizes_refused():
    torch.manual_seed(0)
    layer, x = SwitchNorm2d(8).eval(), torch.randn(2, 8, 3, 3)
    layer.weight = torch.nn.Parameter(torch.randn(1, 1, 1, 1).expand(1, 8, 1, 1))
    layer.bias = torch.nn.Parameter(torch.randn(1, 16, 1, 1)[:, ::2])
    tensors, config = layer.tensors_and_config()
    right, _ = switch_norm(x, tensors, config)
    with torch.no_grad():
        assert torch.allclose(triton.infer(x, tensors, config), right, atol=1e-5)
        tensors = tensors._replace(weight=torch.ones(4))
        with pytest.raises(ValueError, match="weight has 4 values; a layer of this input has 8"):
            triton.infer(x, tensors, config)
