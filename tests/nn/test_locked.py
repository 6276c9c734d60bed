"""simplify: cheaper networks of the same function."""

import copy

import pytest
import torch
from torch import nn

import snzoo
from snzoo.nn import SparseSwitchNorm2d, SwitchNorm2d, set_radius, simplify
from snzoo.nn.fused import Folded


def randomize(model, choices):
    """Give each sparse layer gates that lock to one of ``choices``: pairs of indices."""
    generator = torch.Generator().manual_seed(1)
    layers = [m for m in model.modules() if isinstance(m, SparseSwitchNorm2d)]
    for i, layer in enumerate(layers):
        for tensor in (layer.weight.data, layer.running_var):
            tensor.uniform_(0.5, 1.5, generator=generator)
        for tensor in (layer.bias.data, layer.running_mean):
            tensor.normal_(0, 0.2, generator=generator)
        for gates, chosen in zip(
            (layer.mean_weight, layer.var_weight), choices[i % len(choices)], strict=True
        ):
            gates.data.fill_(0)
            gates.data[chosen] = 0.1
    set_radius(model, 1)
    return model


def network(name="resnet50v1_ssn", **options):
    torch.manual_seed(0)
    return snzoo.create_model(name, width=8, num_classes=7, drop_rate=0.0, **options).eval()


EVERY_PAIR = [(i, j) for i in range(3) for j in range(3)]


@pytest.mark.parametrize("size", [64, 75])
@pytest.mark.parametrize("choices", [EVERY_PAIR, [(2, 2)], [(0, 0), (1, 1)]])
def test_the_logits_stay_the_same(choices, size):
    model = randomize(network(), choices)
    for dtype, error in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        x = torch.randn(2, 3, size, size, dtype=dtype)
        before = model.to(dtype)(x)
        after = simplify(copy.deepcopy(model))(x)
        assert (before - after).abs().max() <= error * before.abs().max()


def test_layers_locked_to_bn_are_folded_and_the_others_are_plain_sn():
    model = simplify(randomize(network(), [(2, 2), (0, 1)]))
    norms = [m for m in model.modules() if isinstance(m, (Folded, SwitchNorm2d, nn.BatchNorm2d))]
    assert [type(norm) for norm in norms[:4]] == [Folded, SwitchNorm2d, Folded, SwitchNorm2d]
    assert len(norms) == 53 and model.conv1.bias is not None
    assert not any(name.startswith("sn1.") for name in model.state_dict())


def test_gates_that_are_not_locked_keep_their_shares():
    model = network("resnet18v1_ssn")
    for layer in model.modules():
        if isinstance(layer, SparseSwitchNorm2d):
            nn.init.normal_(layer.mean_weight, std=0.2)
            nn.init.normal_(layer.var_weight, std=0.2)
    set_radius(model, 0.3)
    x = torch.randn(1, 3, 64, 64)
    before = model(x)
    assert (simplify(model)(x) - before).abs().max() <= 1e-5 * before.abs().max()
    assert not any(isinstance(m, Folded) for m in model.modules())


class Shared(nn.Module):
    """The first output is used twice, and the second convolution runs twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = SparseSwitchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 1)
        self.after = SparseSwitchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        y = self.norm(y) + y
        return self.after(self.twice(self.twice(y)))


class Weighed(nn.Module):
    """The weights of the convolution are used once more."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), SparseSwitchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) + self.conv.weight.sum()


class Dynamic(nn.Module):
    """A network that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), SparseSwitchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) if x.sum() > 0 else x


@pytest.mark.parametrize("make", [Shared, Weighed, Dynamic])
def test_nothing_is_folded_where_another_layer_would_see_it(make):
    torch.manual_seed(0)
    model = randomize(make().eval(), [(2, 2)])
    x = torch.rand(1, 3, 8, 8)
    before = model(x)
    assert torch.allclose(simplify(model)(x), before, atol=1e-5)
    assert isinstance(model.norm, nn.BatchNorm2d) and not isinstance(model.norm, Folded)


def test_a_hooked_convolution_is_not_folded():
    model = randomize(nn.Sequential(nn.Conv2d(3, 4, 3), SparseSwitchNorm2d(4)).eval(), [(2, 2)])
    seen = []
    model[0].register_forward_hook(lambda module, inputs, y: seen.append(y))
    x = torch.rand(1, 3, 8, 8)
    before = model[0](x).detach()
    simplify(model)(x)
    assert torch.equal(seen[-1], before) and isinstance(model[1], nn.BatchNorm2d)


@pytest.mark.parametrize("choices", [[(2, 2)], [(0, 1)]], ids=["folded", "plain"])
def test_a_simplified_network_cannot_be_saved(tmp_path, choices):
    model = randomize(network("resnet18v1_ssn"), choices)
    path, classes, state = tmp_path / "x.safetensors", list("abcdefg"), model.state_dict()
    with pytest.raises(snzoo.errors.CheckpointError, match=r"snzoo\.nn\.simplify.*save it before"):
        snzoo.save_pretrained(simplify(copy.deepcopy(model)), path, classes=classes)
    snzoo.save_pretrained(simplify(model), path, classes=classes, state_dict=state)
    loaded, x = snzoo.create_model(path).eval(), torch.randn(1, 3, 64, 64)
    assert (loaded(x) - model(x)).abs().max() <= 1e-5 * model(x).abs().max()


def test_other_networks_are_refused():
    with pytest.raises(ValueError, match=r"call model\.eval"):
        simplify(network("resnet18v1_ssn").train())
    with pytest.raises(ValueError, match="ResNet has no SparseSwitchNorm2d"):
        simplify(network("resnet18v1_sn"))


def test_sums_and_batch_statistics_are_no_batch_norm():
    """Their running statistics are not what a batch norm would use."""
    for option in ("using_moving_average", "track_running_stats"):
        torch.manual_seed(0)
        layers = SparseSwitchNorm2d(3), SparseSwitchNorm2d(3, **{option: False})
        model = nn.Sequential(*layers).eval()
        for layer in layers:
            for gates in (layer.mean_weight, layer.var_weight):
                gates.data.copy_(torch.tensor([0.0, 0.1, 0.2]))
            if layer.running_var is not None:
                nn.init.uniform_(layer.running_var, 0.5, 1)
        set_radius(model, 1)
        x = torch.randn(2, 3, 8, 8)
        before = model(x)
        assert torch.allclose(simplify(model)(x), before, atol=1e-5)
        assert [type(layer) for layer in model] == [nn.BatchNorm2d, SwitchNorm2d]


def test_a_layer_that_is_refused_is_named_and_nothing_is_changed():
    model = randomize(nn.Sequential(SparseSwitchNorm2d(3), SparseSwitchNorm2d(3)).eval(), [(2, 2)])
    model[1].register_buffer("more", torch.ones(1))
    with pytest.raises(ValueError, match="1 has a further tensor, more"):
        simplify(model)
    assert all(type(layer) is SparseSwitchNorm2d for layer in model)
