"""Sparse SN against float64 results of the published code (tests/golden/sparse.npz)."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import snzoo
from snzoo.nn import SparseSwitchNorm2d, convert_to_batchnorm, set_radius
from snzoo.nn.functional import sparsestmax

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "sparse.npz")
RADII = ["0.0", "0.2", "0.45", "0.7", "0.9"]


def golden(key):
    return torch.from_numpy(GOLDEN[key])


def layer_before(radius):
    prefix = f"layer/{radius}/before/"
    layer = SparseSwitchNorm2d(4, dtype=torch.float64)
    layer.load_state_dict(
        {key.removeprefix(prefix): golden(key) for key in GOLDEN.files if key.startswith(prefix)}
    )
    set_radius(layer, float(radius))
    return layer


def assert_matches(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-10


def project(v):
    """Return the projection onto the simplex by bisection of the threshold."""
    low, high = min(v) - 1, max(v)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(a - middle, 0) for a in v) > 1 else (low, middle)
    return np.array([max(a - low, 0) for a in v])


def push(v, radius, center=None):
    """Return SparsestMax in plain Python: from the face of each projection to a smaller one."""
    shares = project(v)
    support = shares > 1e-12
    own = support / support.sum()
    if support.sum() == 1:
        return shares
    if center is not None:
        radius = np.sqrt(radius**2 - sum((own - center) ** 2))
    distance = np.sqrt(sum((shares - own) ** 2))
    if distance >= radius:
        return shares
    pushed = own + radius * (shares - own) / distance
    return push(pushed, radius, own) if pushed.min() < 0 else pushed


def test_sparsestmax_matches_the_published_one():
    rows = golden("sparsestmax")
    v = rows[:, :3].clone().requires_grad_()
    shares = sparsestmax(v, rows[:, 3:4])
    assert_matches(shares.detach(), rows[:, 4:7])
    (shares * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    assert_matches(v.grad, rows[:, 7:])


@pytest.mark.parametrize("count", [2, 3, 5])
def test_sparsestmax_matches_a_scalar_computation(count):
    random = np.random.default_rng(count)
    for _ in range(200):
        v, radius = random.normal(0, 0.4, count), random.uniform(0, 1)
        found = sparsestmax(torch.from_numpy(v), radius)
        assert np.abs(found.numpy() - push(v, radius)).max() <= 3e-6, (v, radius)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [-3.0, 1 / 3, 1.0, 50.0])
def test_equal_values_have_equal_shares_and_a_gradient(value, dtype):
    v = torch.full((3,), value, dtype=dtype, requires_grad=True)
    shares = sparsestmax(v, 0.5)
    shares[0].backward()
    assert torch.allclose(shares, torch.full_like(v, 1 / 3), atol=1e-5)
    assert torch.allclose(v.grad, torch.tensor([2, -1, -1], dtype=dtype) / 3, atol=1e-6)


@pytest.mark.parametrize("spread", [1e-6, 1e-5, 1e-4, 1e-2])
def test_shares_of_nearly_equal_values_add_up_to_one(spread):
    torch.manual_seed(0)
    v = 1 + spread * torch.randn(5000, 3)
    for radius in (0.1, 0.7, 0.9):
        shares = sparsestmax(v, radius)
        assert (shares >= 0).all() and (shares.sum(1) - 1).abs().max() <= 1e-6


@pytest.mark.parametrize("values", [[3e8, 0, 0], [0, -1e38, -1e38], [-4.7, -0.3, -2.2]])
def test_large_and_negative_values_become_one_hot(values):
    assert sparsestmax(torch.tensor(values), 1).tolist() == [
        float(v == max(values)) for v in values
    ]


def test_nan_stays_nan():
    layer = SparseSwitchNorm2d(2)
    layer.mean_weight.data[0] = torch.nan
    set_radius(layer, 0.5)
    assert layer(torch.randn(2, 2, 3, 3)).isnan().all()


def test_batch_averages_leave_the_gates_alone():
    layer = SparseSwitchNorm2d(4)
    layer.mean_weight.data.copy_(torch.tensor([1.02, 0.99, 1.0]))
    set_radius(layer, 0.9)
    before = layer.mean_weight.clone()
    snzoo.nn.update_bn_statistics(layer, [torch.randn(3, 4, 5, 5)])
    assert torch.equal(layer.mean_weight, before) and not layer.mean_fixed


@pytest.mark.parametrize("radius", RADII)
def test_a_training_step_matches_the_published_layer(radius):
    layer, at = layer_before(radius), f"layer/{radius}/"
    x = golden(at + "x").requires_grad_()
    y = layer(x)
    y.backward(golden(at + "grad_y"))
    assert_matches(y.detach(), golden(at + "train_y"))
    assert_matches(x.grad, golden(at + "grad_x"))
    for key, parameter in layer.named_parameters():
        known = at + f"grad/{key}" in GOLDEN.files  # the published code drops those of locked gates
        expected = golden(at + f"grad/{key}") if known else torch.zeros_like(parameter)
        assert_matches(parameter.grad, expected)
    for key, value in layer.state_dict().items():
        if key != "radius":
            assert_matches(value, golden(at + f"after/{key}"))
    assert_matches(layer.eval()(x.detach()), golden(at + "eval_y"))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("radius", [0.1, 0.6, 0.9])
def test_fast_inference_computes_what_the_formula_does(radius, memory_format):
    torch.manual_seed(0)
    layer = SparseSwitchNorm2d(8).eval()
    for name, tensor in layer.state_dict().items():
        if name not in ("mean_fixed", "var_fixed"):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    set_radius(layer, radius)
    x = torch.randn(2, 8, 32, 32).to(memory_format=memory_format)
    expected = layer.double()(x.double().requires_grad_()).detach()
    with torch.no_grad():
        assert (layer.float()(x) - expected).abs().max() <= 1e-5


def test_locked_gates_stay_locked_through_steps_with_momentum():
    torch.manual_seed(0)
    layer = SparseSwitchNorm2d(4)
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor([1.02, 0.99, 1.0]))
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(30):
        set_radius(layer, step / 20 if step < 20 else 1)
        optimizer.zero_grad()
        (layer(torch.randn(3, 4, 5, 5)) * torch.randn(3, 4, 5, 5)).sum().backward()
        optimizer.step()
    assert layer.mean_fixed and layer.var_fixed
    mean, var = layer.shares()
    assert sorted(mean.tolist()) == sorted(var.tolist()) == [0, 0, 1]
    x = torch.randn(2, 4, 5, 5)
    drifted, layer = layer.eval(), copy.deepcopy(layer)
    layer.train()(x)
    assert sorted(layer.mean_weight.tolist()) == [0, 0, 1]
    layer.load_state_dict(drifted.state_dict() | {"mean_weight": layer.mean_weight})
    assert torch.equal(layer.eval()(x), drifted(x))


def test_half_precision_gates_have_shares():
    layer = SparseSwitchNorm2d(4).half()
    with torch.no_grad():
        layer.mean_weight.copy_(torch.tensor([1.1, 0.95, 0.9]))
    set_radius(layer, 0.6)
    y = layer(torch.randn(2, 4, 6, 6).half())
    assert y.dtype == torch.float16 and y.isfinite().all()
    assert torch.allclose(layer.shares()[0], torch.tensor([0.8109, 0.1891, 0]).double(), atol=2e-3)


def test_a_layer_that_locked_to_bn_becomes_batch_norm():
    layer = SparseSwitchNorm2d(4).eval()
    for name in ("mean_weight", "var_weight"):
        layer.get_parameter(name).data.copy_(torch.tensor([0.0, 0.1, 0.2]))
    torch.nn.init.uniform_(layer.running_var, 0.5, 1)
    set_radius(layer, 1)
    x = torch.randn(2, 4, 5, 5)
    expected = layer(x)
    converted = convert_to_batchnorm(torch.nn.Sequential(layer))
    assert type(converted[0]) is torch.nn.BatchNorm2d
    assert torch.allclose(converted(x), expected, atol=1e-6)


@pytest.mark.parametrize("radius", [-0.1, 1.5, float("nan"), "0.5", None])
def test_set_radius_refuses_other_values(radius):
    with pytest.raises(ValueError, match="radius must be a number from 0 to 1, got"):
        set_radius(SparseSwitchNorm2d(4), radius)


def test_set_radius_refuses_a_network_without_sparse_layers():
    with pytest.raises(ValueError, match="Sequential has no SparseSwitchNorm2d"):
        set_radius(torch.nn.Sequential(snzoo.nn.SwitchNorm2d(4)), 0.5)


@pytest.mark.parametrize(
    "v, radius, words",
    [
        (5, 0.1, "v must be a floating-point tensor .*, got int"),
        ([0.1, 0.2], 0.1, "got list"),
        (torch.tensor([1, 2, 3]), 0.1, "got \\(3,\\) of torch.int64"),
        (torch.tensor(1.0), 0.1, "got \\(\\) of torch.float32"),
        (torch.ones(2, 0), 0.1, "got \\(2, 0\\)"),
        (torch.ones(3), float("nan"), "radius must be a tensor or a number from 0, got nan"),
        (torch.ones(3), -0.1, "radius must be"),
        (torch.ones(3), "0.1", "radius must be .* got '0.1'"),
    ],
)
def test_sparsestmax_refuses_other_values(v, radius, words):
    with pytest.raises(ValueError, match=words):
        sparsestmax(v, radius)


def test_a_converted_network_keeps_the_pool_of_its_stem(tmp_path):
    torch.manual_seed(0)
    model = snzoo.create_model("resnet18v1_ssn", width=8, num_classes=2).eval()
    for layer in model.modules():
        if isinstance(layer, SparseSwitchNorm2d):
            for gates in (layer.mean_weight, layer.var_weight):
                gates.data.copy_(torch.tensor([0.0, 0.1, 0.2]))
            torch.nn.init.uniform_(layer.running_var, 0.5, 1)
    set_radius(model, 1)
    x = torch.randn(1, 3, 64, 64)
    expected = model(x)
    convert_to_batchnorm(model)
    snzoo.save_pretrained(model, tmp_path / "bn.safetensors", classes=["a", "b"])
    loaded = snzoo.create_model(tmp_path / "bn.safetensors").eval()
    assert loaded.spec.architecture == "resnet18v1_bn"
    assert torch.allclose(loaded(x), expected, atol=1e-5)
