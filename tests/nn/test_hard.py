"""Gates replaced by their argmax."""

import copy

import pytest
import torch

from snzoo.nn import (
    SparseSwitchNorm2d,
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    SyncSwitchNorm2d,
    harden_gates,
    set_radius,
)

LAYERS = [SwitchNorm1d, SwitchNorm2d, SwitchNorm3d, SyncSwitchNorm2d, SparseSwitchNorm2d]
SHAPES = {SwitchNorm1d: (4, 6, 5), SwitchNorm3d: (4, 6, 3, 5, 4)}


def make(kind, seed=0):
    torch.manual_seed(seed)
    layer = kind(6).double()
    for gates in (layer.mean_weight, layer.var_weight):
        torch.nn.init.normal_(gates)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 2)
    return layer


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("seed", range(3))
def test_the_largest_gates_get_all_shares(kind, seed):
    layer = make(kind, seed)
    before = [gates.detach().clone() for gates in (layer.mean_weight, layer.var_weight)]
    assert harden_gates(layer) is layer
    for gates, shares in zip(before, layer.shares(), strict=True):
        expected = [float(i == gates.tolist().index(max(gates))) for i in range(len(gates))]
        assert shares.tolist() == expected
    state = copy.deepcopy(layer.state_dict())
    harden_gates(layer)
    assert all(torch.equal(value, state[key]) for key, value in layer.state_dict().items())


def statistics(x, layer):
    """Mean and variance by IN, LN and BN of a 2d layer, each for (N, C)."""
    n, c = x.shape[:2]
    rows = x.reshape(n, c, -1)
    var_in, mean_in = torch.var_mean(rows, 2)
    biased = rows.var(2, correction=0)
    second = var_in + mean_in**2
    mean_ln = mean_in.mean(1, keepdim=True)
    var_ln = second.mean(1, keepdim=True) - mean_ln**2
    if layer.training:
        mean_bn = mean_in.mean(0, keepdim=True)
        var_bn = second.mean(0, keepdim=True) - mean_bn**2
    else:
        mean_bn, var_bn = layer.running_mean.view(1, c), layer.running_var.view(1, c)
    assert not torch.equal(biased, var_in)
    kinds = zip((mean_in, mean_ln, mean_bn), (var_in, var_ln, var_bn), strict=True)
    return [(mean.expand(n, c), var.expand(n, c)) for mean, var in kinds]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mean", range(3))
@pytest.mark.parametrize("var", range(3))
def test_one_mean_and_one_variance_normalize(training, mean, var):
    layer = make(SwitchNorm2d).train(training)
    with torch.no_grad():
        layer.mean_weight[mean] = 9
        layer.var_weight[var] = 9
        layer.weight.normal_()
        layer.bias.normal_()
    harden_gates(layer)
    x = torch.randn(4, 6, 5, 3, dtype=torch.float64)
    found = statistics(x, layer)
    centered = x - found[mean][0][..., None, None]
    expected = centered / (found[var][1][..., None, None] + layer.eps).sqrt()
    expected = expected * layer.weight + layer.bias
    assert torch.allclose(layer(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", LAYERS)
def test_training_does_not_move_hard_gates(kind):
    layer = harden_gates(make(kind)).train()
    if kind is SparseSwitchNorm2d:
        set_radius(layer, 0.0)
    layer.requires_grad_(True)  # the gradient of the gates is zero even then
    before = [gates.detach().clone() for gates in (layer.mean_weight, layer.var_weight)]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        x = torch.randn(SHAPES.get(kind, (4, 6, 5, 3)), dtype=torch.float64)
        (layer(x) * torch.randn_like(x)).sum().backward()
        optimizer.step()
    assert layer.weight.grad.abs().max() > 0
    after = (layer.mean_weight, layer.var_weight)
    assert all(map(torch.equal, after, before))
    assert all(sorted(shares.tolist())[-2:] == [0.0, 1.0] for shares in layer.shares())


def test_equal_gates_give_the_first_and_gates_are_frozen():
    layer = harden_gates(SwitchNorm2d(3))
    assert [shares.tolist() for shares in layer.shares()] == [[1.0, 0.0, 0.0]] * 2
    trained = [name for name, p in layer.named_parameters() if p.requires_grad]
    assert trained == ["weight", "bias"]
