"""Batch averages against their definition in float64."""

import copy

import pytest
import torch
from torch import nn

import snzoo
from snzoo.nn import (
    SwitchNorm1d,
    SwitchNorm2d,
    convert_sync_switchnorm,
    disable_running_stats_,
    update_bn_statistics,
)


class Net(nn.Module):
    """A layer after a batch norm, one that runs twice, one that never runs, one without BN."""

    def __init__(self, channels=2):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.first = SwitchNorm2d(channels)
        self.twice = SwitchNorm1d(channels, using_moving_average=False)
        self.never = SwitchNorm2d(channels)
        self.no_bn = SwitchNorm2d(channels, using_bn=False)
        for name, buffer in self.named_buffers():
            if "running" in name:
                nn.init.uniform_(buffer, 0.5, 2)

    def forward(self, x):
        y = self.no_bn(self.first(self.bn(x)))
        return self.twice(y.mean((2, 3))) + self.twice(y.amax((2, 3)))


def batches(count, channels=2):
    torch.manual_seed(0)
    return list(torch.randn(count, 6, channels, 5, 5) * 2 + 3)


def inputs_of(model, name, loader):
    """Return the inputs of a layer in training, batch by batch."""
    seen = []
    model = copy.deepcopy(model).double()
    model.get_submodule(name).register_forward_hook(lambda module, args, y: seen.append(args[0]))
    with torch.no_grad():
        for batch in loader:
            model.train()(batch.double())
    return seen


def assert_averages(layer, inputs, rtol=1e-5):
    positions = tuple(range(2, inputs[0].ndim))
    means, squares = [], []
    for x in inputs:
        if positions:
            mean, square = x.mean(positions), x.var(positions) + x.mean(positions) ** 2
            means.append(mean.mean(0))
            squares.append(square.mean(0))
        else:
            means.append(x.mean(0))
            squares.append(x.var(0) + x.mean(0) ** 2)
    mean = torch.stack(means).mean(0)
    var = torch.stack(squares).mean(0) - mean**2
    assert torch.allclose(layer.running_mean.flatten().double(), mean, rtol=rtol, atol=1e-5)
    assert torch.allclose(layer.running_var.flatten().double(), var, rtol=rtol, atol=1e-5)


def snapshot(model):
    flags = [module.training for module in model.modules()]
    return copy.deepcopy(model.state_dict()), flags, [vars(m).keys() for m in model.modules()]


def assert_same(model, before):
    state, flags, attributes = before
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert flags == [module.training for module in model.modules()]
    assert attributes == [vars(m).keys() for m in model.modules()]


@pytest.mark.parametrize("channels", [2, 3])
@pytest.mark.parametrize("convert", [lambda model: model, convert_sync_switchnorm])
def test_averages_are_over_all_calls_of_each_layer(channels, convert):
    model, loader = convert(Net(channels).eval()), batches(4, channels)
    model.no_bn.train()
    before = snapshot(model)
    buffers = dict(model.named_buffers())
    assert update_bn_statistics(model, iter(loader), 3) == 3
    for name in ("first", "twice"):
        assert_averages(model.get_submodule(name), inputs_of(model, name, loader[:3]))
    # Everything else is unchanged, and the buffers are the same tensors.
    assert all(buffers[name] is buffer for name, buffer in model.named_buffers())
    for name in (
        "first.running_mean",
        "first.running_var",
        "twice.running_mean",
        "twice.running_var",
    ):
        assert not torch.equal(buffers[name], before[0][name])
        buffers[name].copy_(before[0][name])
    assert_same(model, before)
    assert [module.using_moving_average for module in (model.first, model.twice)] == [True, False]


def test_evaluation_uses_them():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), SwitchNorm2d(4))
    (x,) = batches(1, 3)
    assert update_bn_statistics(model, [x]) == 1
    with torch.no_grad():
        # The average over one batch is its own statistics.
        assert torch.allclose(model.eval()(x), model.train()(x), atol=1e-5)


@pytest.mark.parametrize("pack", [lambda x: (x, torch.zeros(6)), lambda x: [x]])
def test_a_loader_may_be_short_and_give_labels_too(pack):
    model = SwitchNorm2d(2)
    loader = batches(3)
    assert update_bn_statistics(model, [pack(x) for x in loader]) == 3
    assert_averages(model, [x.double() for x in loader])


def test_no_more_batches_are_taken_than_used():
    loader = iter(batches(3))
    assert update_bn_statistics(SwitchNorm2d(2), loader, 2) == 2
    assert len(list(loader)) == 1


def test_sums_are_of_float64():
    model = SwitchNorm2d(2)
    (x,) = batches(1)
    x = x + 1e4  # mean² in float32 has no room for the variance
    update_bn_statistics(model, [x] * 20)
    assert_averages(model, [x.double()], rtol=1e-3)


def test_frozen_layers_keep_theirs():
    class Frozen(Net):
        def train(self, mode=True):
            super().train(mode)
            self.first.eval()
            return self

    model = Frozen()
    before = copy.deepcopy(model.first.state_dict())
    old = model.twice.running_mean.clone()
    update_bn_statistics(model, batches(2))
    assert all(torch.equal(before[name], t) for name, t in model.first.state_dict().items())
    assert not torch.equal(model.twice.running_mean, old)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_after_an_exception_all_is_as_before(error):
    def loader():
        yield from batches(2)
        raise error

    model = Net().eval()
    model.first.train()
    before = snapshot(model)
    with pytest.raises(error):
        update_bn_statistics(model, loader())
    assert_same(model, before)
    model.train()(batches(1)[0])  # and it learns again
    assert not torch.equal(model.first.running_mean, before[0]["first.running_mean"])


@pytest.mark.parametrize(
    "model, loader, count, message",
    [
        (Net(), batches(1), 0, "batches must be at least 1, got 0"),
        (Net(), [], 5, "the loader gave no batch"),
        (Net(), [{"image": 1}], 5, "or a tuple that starts with one, from the loader, got dict"),
        (Net().no_bn, batches(1), 5, "no SwitchNorm layer with using_bn is in training mode"),
        (nn.BatchNorm2d(2), batches(1), 5, "no SwitchNorm layer with using_bn"),
    ],
)
def test_mistakes_are_named_and_change_nothing(model, loader, count, message):
    before = snapshot(model.eval())
    with pytest.raises(ValueError, match=message) as caught:
        update_bn_statistics(model, loader, count)
    assert "\n" not in str(caught.value)
    assert_same(model, before)


def test_a_network_of_the_zoo():
    model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=5).eval()
    torch.manual_seed(0)
    x = torch.randn(4, 3, 64, 64)
    assert update_bn_statistics(model, [x, x + 1]) == 2
    layer = model.layer4[1].sn2
    assert layer.running_var.min() > 0 and not model.training
    assert_averages(model.layer1[0].sn1, inputs_of(model, "layer1.0.sn1", [x, x + 1]))


@pytest.mark.parametrize("dtype, value", [(torch.float32, float("nan")), (torch.float16, 300)])
def test_statistics_that_are_not_finite_are_refused_and_the_old_ones_stay(dtype, value):
    model = nn.Sequential(SwitchNorm2d(3)).to(dtype)
    before = copy.deepcopy(model.state_dict())
    images = (torch.randn(2, 3, 40, 40) * value).to(dtype)  # float16 has no variance of 90,000
    with pytest.raises(ValueError, match="not finite"):
        update_bn_statistics(model, [images])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_variance_of_constant_channels_is_not_negative():
    model = SwitchNorm2d(512).double()
    x = torch.rand(512, dtype=torch.float64)[:, None, None].expand(2, 512, 3, 3)
    update_bn_statistics(model, [x] * 3)  # in float64, E[mean²] − E[mean]² rounds to ±1e-17
    assert model.running_var.min() >= 0


@pytest.mark.parametrize("convert", [lambda model: model, convert_sync_switchnorm])
def test_without_running_statistics_the_batch_gives_them_in_evaluation_too(convert):
    model = convert(nn.Sequential(SwitchNorm2d(3, bias_correction=True), nn.BatchNorm2d(3)))
    x = torch.randn(4, 3, 5, 5)
    right = model[0].train()(x)
    assert disable_running_stats_(model) is model
    names = ["weight", "bias", "mean_weight", "var_weight"]
    assert list(model[0].state_dict()) == names and model[1].running_mean is not None
    layer = SwitchNorm2d(3, track_running_stats=False)
    assert list(layer.state_dict()) == names and "track_running_stats=False" in repr(layer)
    for each in (model[0], layer):
        for training in (True, False):
            assert torch.allclose(each.train(training)(x), right, atol=1e-6)
    with pytest.raises(ValueError, match="no SwitchNorm layer with using_bn"):
        update_bn_statistics(model, [x])


def test_running_statistics_that_are_no_longer_tracked_stay_and_serve_evaluation():
    layer, x = SwitchNorm2d(3), torch.randn(4, 3, 5, 5) + 2
    layer(x)
    layer.track_running_stats = False
    before = copy.deepcopy(layer.state_dict())
    right = layer.eval()(x)
    layer.train()(x + 1)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    assert torch.equal(layer.eval()(x), right)
