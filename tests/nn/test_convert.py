"""Batch norm converted to Switchable Normalization and back."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrize
from torchvision.ops import FrozenBatchNorm2d

import snzoo
from snzoo.nn import (
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    SyncSwitchNorm2d,
    convert_to_batchnorm,
    convert_to_switchnorm,
)
from snzoo.nn.switchnorm import SwitchNorm

SHARED = Path(__file__).parents[3] / "shared"
KINDS = [
    (nn.BatchNorm1d, SwitchNorm1d, (3, 4)),
    (nn.BatchNorm1d, SwitchNorm1d, (3, 4, 5)),
    (nn.BatchNorm2d, SwitchNorm2d, (3, 4, 5, 6)),
    (nn.BatchNorm3d, SwitchNorm3d, (3, 4, 2, 5, 6)),
    (nn.SyncBatchNorm, SyncSwitchNorm2d, (3, 4, 5, 6)),
]


def randomize(model, x=None):
    """Fill the parameters of all batch norms, and their running statistics with those of x."""
    layers = [m for m in model.double().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for layer in layers:
        for values, least in ((layer.weight, 0.5), (layer.bias, -0.5)):
            if values is not None:
                nn.init.uniform_(values, least, least + 1)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0
    if x is not None:
        with torch.no_grad():
            model.train()(x)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return model.eval()


def tensors(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same_state(model, state):
    found = model.state_dict()
    assert list(found) == list(state)
    assert all(
        torch.equal(found[key], value) for key, value in state.items() if "tracked" not in key
    )


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("kind, switch, shape", KINDS)
@pytest.mark.parametrize("affine, tracked", [(True, True), (False, True), (True, False)])
def test_a_layer_has_the_function_of_the_batch_norm(kind, switch, shape, affine, tracked):
    options = {"eps": 1e-3, "momentum": 0.3, "affine": affine, "track_running_stats": tracked}
    layer, x = randomize(kind(4, **options)), torch.randn(shape).double()
    if tracked:
        layer.running_mean.uniform_(-1, 1)
        layer.running_var.uniform_(0.5, 2)
    training = kind is nn.SyncBatchNorm and not tracked  # it refuses a CPU
    expected = None if training else layer(x)
    state, like = tensors(layer), switch(4)
    converted = convert_to_switchnorm(layer)
    assert converted is layer and type(layer) is switch and not layer.training
    assert (layer.eps, layer.momentum, layer.track_running_stats) == (1e-3, 0.7, tracked)
    assert layer.using_bn and layer.using_moving_average and layer.weight.requires_grad == affine
    assert layer.weight.shape == like.weight.shape
    if tracked:
        assert layer.running_mean.shape == like.running_mean.shape
        assert list(layer.state_dict()) == list(like.state_dict())
    if tracked:  # SN's batch variance is unbiased within each map
        assert torch.allclose(layer(x), expected, rtol=0, atol=1e-5)
    convert_to_batchnorm(layer)
    assert type(layer) is kind and layer.momentum == 0.3
    state |= {} if affine else {"weight": torch.ones(4), "bias": torch.zeros(4)}
    assert_same_state(layer, {key: state[key].double() for key in layer.state_dict()})
    if expected is not None:
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("share", [0.25, 0.5, 0.999])
def test_the_share_is_that_of_bn(share):
    for layer in (nn.BatchNorm1d(3), nn.BatchNorm2d(3)):
        convert_to_switchnorm(layer, share=share)
        for gates in (layer.mean_weight, layer.var_weight):
            *others, bn = gates.double().softmax(0).tolist()
            assert bn == pytest.approx(share)
            assert others == pytest.approx([(1 - share) / len(others)] * len(others), abs=1e-7)


def make_timm(name):
    return pytest.importorskip("timm").create_model(name, num_classes=5)


NETWORKS = {
    "torchvision resnet18": torchvision.models.resnet18,
    "torchvision mobilenet": torchvision.models.mobilenet_v3_small,
    "timm resnet": lambda: make_timm("resnet26"),
    "timm with activations": lambda: make_timm("mobilenetv2_050"),
    "timm 1d": lambda: make_timm("levit_128s"),
    "v1": lambda: snzoo.create_model("resnet18v1_bn"),
    "v2": lambda: snzoo.create_model("resnet18v2_bn"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_batch_norm_network(name):
    side = 224 if name == "timm 1d" else 64
    x = torch.randn(3, 3, side, side).double()
    model = randomize(NETWORKS[name](), x)
    with torch.no_grad():
        expected, state = model(x), tensors(model)
        logits = convert_to_switchnorm(model)(x)
        assert not torch.equal(logits, expected)
        assert (logits - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
        assert torch.equal(copied(x), logits)
        assert torch.equal(convert_to_batchnorm(copied)(x), expected)
        assert_same_state(copied, state)
    model.train()(x).square().sum().backward()
    gates = [layer.mean_weight for layer in model.modules() if isinstance(layer, SwitchNorm)]
    assert gates and all(gate.grad.isfinite().all() for gate in gates)


@pytest.mark.parametrize("name", ["resnet18v1_bn", "resnet50v1_bn", "resnet18v2_bn"])
def test_a_network_of_the_zoo_becomes_the_sn_network_of_its_name(name, tmp_path):
    model = randomize(snzoo.create_model(name, num_classes=3, width=8)).float()
    convert_to_switchnorm(model, share=0.9)
    like = snzoo.create_model(name.replace("_bn", "_sn"), num_classes=3, width=8)
    assert list(model.state_dict()) == list(like.state_dict())
    assert model.spec.architecture == like.spec.architecture
    snzoo.save_pretrained(model, tmp_path / "sn", classes=["a", "b", "c"])
    x = torch.randn(2, 3, 64, 64)
    loaded = snzoo.create_model(tmp_path / "sn").eval()
    assert torch.equal(loaded(x), model(x))
    convert_to_switchnorm(convert_to_batchnorm(model, tolerance=1))
    assert list(model.state_dict()) == list(like.state_dict())
    model.freeze(1)  # finds the stem's norm
    assert not model.sn1.weight.requires_grad and model.layer2[0].sn1.weight.requires_grad


def test_layers_stay_the_same_objects_with_what_hangs_on_them():
    shared = nn.BatchNorm2d(4)
    tied = nn.BatchNorm2d(4)
    tied.weight = shared.weight
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared), tied).train()
    tied.eval()
    tied.bias.requires_grad_(False)
    seen = []
    shared.register_forward_hook(lambda module, args, y: seen.append(type(module)))
    shared.note = own = "an attribute of the user's"
    convert_to_switchnorm(model)
    assert model[0] is model[2][0] is shared and shared.note == own
    assert shared.weight is tied.weight and shared.weight.shape == (1, 4, 1, 1)
    assert shared.training and not tied.training and not tied.bias.requires_grad
    model(torch.randn(2, 4, 3, 3))
    assert seen == [SwitchNorm2d, SwitchNorm2d]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_and_device_are_kept(dtype):
    layer = convert_to_switchnorm(nn.BatchNorm2d(4, dtype=dtype, device="meta"))
    assert {(t.dtype, t.device.type) for t in [*layer.parameters(), *layer.buffers()]} == {
        (dtype, "meta")
    }


def test_gates_of_frozen_layers_are_frozen_and_gradients_are_kept():
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model(torch.randn(2, 4, 3, 3)).square().sum().backward()
    model[0].requires_grad_(False)
    gradient = model[1].weight.grad.clone()
    convert_to_switchnorm(model)
    assert not any(parameter.requires_grad for parameter in model[0].parameters())
    assert all(parameter.requires_grad for parameter in model[1].parameters())
    assert torch.equal(model[1].weight.grad.flatten(), gradient)


def test_statistics_that_are_no_longer_tracked_stay_as_they_are():
    layer = nn.BatchNorm2d(4)
    layer.track_running_stats = False
    convert_to_switchnorm(layer)
    layer(torch.randn(2, 4, 3, 3))
    assert not layer.running_mean.any()
    assert not convert_to_batchnorm(layer).track_running_stats


def test_hooks_of_all_kinds_are_kept():
    layer, calls = nn.BatchNorm2d(4), []
    layer.register_forward_pre_hook(lambda *_: calls.append("before"))
    layer.register_full_backward_hook(lambda *_: calls.append("backward"))
    layer.register_state_dict_post_hook(lambda *_: calls.append("state"))
    convert_to_switchnorm(layer)
    layer(torch.randn(2, 4, 3, 3, requires_grad=True)).sum().backward()
    layer.state_dict()
    assert calls == ["before", "backward", "state"]


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm, "BatchNormAct2d"])
def test_no_setting_of_the_other_kind_is_left(kind):
    if isinstance(kind, str):
        kind = getattr(pytest.importorskip("timm.layers"), kind)
    layer = convert_to_switchnorm(kind(4))
    new = type(layer)(4)
    assert vars(layer).keys() - vars(new).keys() <= {"batch_norm", "_fast_norm"}
    assert not hasattr(layer, "affine")
    convert_to_batchnorm(layer)
    assert vars(layer).keys() == vars(kind(4)).keys() and repr(layer) == repr(kind(4))


def test_an_activation_is_applied_once_in_a_traced_network():
    timm = pytest.importorskip("timm.layers")
    model = nn.Sequential(randomize(timm.BatchNormAct2d(4, act_layer="silu")))
    x = torch.randn(2, 4, 3, 3).double()
    expected = model(x)
    torch.testing.assert_close(convert_to_switchnorm(model)(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)


def test_channels_of_very_different_variances_keep_their_outputs():
    layer = nn.BatchNorm2d(3).double().eval()
    layer.running_var.copy_(torch.tensor([1e-9, 1.0, 1e4]))
    x = torch.randn(4, 3, 9, 9).double() * layer.running_var.sqrt().view(1, 3, 1, 1)
    expected = layer(x)
    error = (convert_to_switchnorm(layer)(x) - expected).abs().amax((0, 2, 3))
    assert (error <= 1e-3 * expected.abs().amax((0, 2, 3))).all()


@pytest.mark.parametrize("side", [2, 14])
def test_the_difference_in_training_mode_is_that_of_unbiased_variances(side):
    layer, x = nn.BatchNorm2d(4, eps=1e-12).double(), torch.randn(2, 4, side, side).double()
    x -= x.mean((2, 3), keepdim=True)  # all of the variance is within the maps
    expected = layer(x)
    factor = (1 - 1 / side**2) ** 0.5
    torch.testing.assert_close(convert_to_switchnorm(layer)(x), factor * expected)


@pytest.mark.parametrize("dtype, device", [(torch.float64, "cpu"), (torch.float16, "meta")])
def test_a_layer_without_tensors_goes_where_the_network_is(dtype, device):
    place = {"dtype": dtype, "device": device}
    norm = nn.BatchNorm2d(4, affine=False, track_running_stats=False)
    model = convert_to_switchnorm(nn.Sequential(nn.Conv2d(3, 4, 3, **place), norm))
    assert {(p.dtype, p.device.type) for p in norm.parameters()} == {(dtype, device)}
    assert len([*norm.parameters()]) == 4
    model(torch.randn(2, 3, 8, 8, **place))


def test_a_network_in_ddp_is_refused(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        inner = nn.Sequential(nn.BatchNorm2d(4))
        model = nn.Sequential(nn.parallel.DistributedDataParallel(inner))
        with pytest.raises(ValueError, match="0 is DistributedDataParallel; convert its module"):
            convert_to_switchnorm(model)
    finally:
        torch.distributed.destroy_process_group()
    assert type(inner[0]) is nn.BatchNorm2d


def test_a_detector_is_converted():
    make = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn
    model = make(weights=None, weights_backbone=None, trainable_backbone_layers=6)
    body = randomize(model.backbone, torch.randn(2, 3, 64, 64).double())
    x = torch.randn(1, 3, 64, 64).double()
    with torch.no_grad():
        expected = body(x)
        maps = convert_to_switchnorm(model).backbone(x)
    for name, found in maps.items():
        assert (found - expected[name]).abs().max() <= 1e-5 * expected[name].abs().max()


def test_only_networks_of_the_zoo_with_converted_norms_are_renamed():
    model = nn.Sequential(snzoo.create_model("resnet18v1_gn", width=8), nn.BatchNorm1d(1000))
    keys = list(model[0].state_dict())
    convert_to_switchnorm(model)
    assert list(model[0].state_dict()) == keys and model[0].spec.architecture == "resnet18v1_gn"


def test_the_group_of_a_synchronized_batch_norm_is_kept():
    group = object()
    layer = nn.SyncBatchNorm(4)
    layer.process_group = group
    assert convert_to_switchnorm(layer).process_group is group
    assert convert_to_batchnorm(layer).process_group is group


class Own(nn.BatchNorm2d):
    pass


def parametrized():
    layer = nn.BatchNorm2d(4)
    parametrize.register_parametrization(layer, "weight", nn.ReLU())
    return layer


def normalized():
    return nn.utils.weight_norm(nn.BatchNorm2d(4))


def extended():
    layer = nn.BatchNorm2d(4)
    layer.register_buffer("mask", torch.ones(4))
    return layer


def replaced():
    layer = nn.BatchNorm2d(4)
    layer.forward = lambda x: x
    return layer


REFUSED = [
    (lambda: Own(4), "0.bn is a Own"),
    (lambda: nn.LazyBatchNorm2d(), "0.bn is lazy"),
    (parametrized, "0.bn is parametrized"),
    (lambda: nn.BatchNorm2d(4, momentum=None), "0.bn has momentum=None"),
    (normalized, "0.bn has no plain weight; remove weight norm"),
    (extended, "0.bn has a further tensor, mask"),
    (replaced, "the forward of 0.bn was replaced"),
    (lambda: torch.jit.script(nn.BatchNorm2d(4)), "0.bn is scripted"),
]


@pytest.mark.parametrize("make, message", REFUSED)
def test_other_layers_are_refused_by_name_and_nothing_is_changed(make, message):
    first = nn.BatchNorm2d(4)
    inner = nn.Module()
    inner.bn = make()
    with pytest.raises(ValueError, match=message):
        convert_to_switchnorm(nn.ModuleList([inner, first]))
    with pytest.raises(ValueError, match=message):
        convert_to_switchnorm(nn.ModuleList([inner]))
    assert type(first) is nn.BatchNorm2d and first.weight.shape == (4,)


def test_a_parameter_of_two_kinds_of_layers_is_refused():
    first, other = nn.BatchNorm2d(4), nn.GroupNorm(2, 4)
    other.weight = first.weight
    for second in (other, nn.BatchNorm1d(4)):
        second.weight = first.weight
        with pytest.raises(ValueError, match=r"1.weight and 0.weight are one parameter"):
            convert_to_switchnorm(nn.Sequential(first, second))
    assert type(first) is nn.BatchNorm2d and first.weight.shape == (4,)


def test_frozen_batch_norms_are_left_alone_and_named_if_there_is_nothing_else():
    frozen = FrozenBatchNorm2d(4)
    convert_to_switchnorm(nn.Sequential(frozen, nn.BatchNorm2d(4)))
    assert type(frozen) is FrozenBatchNorm2d
    with pytest.raises(ValueError, match="its norms are FrozenBatchNorm2d"):
        convert_to_switchnorm(nn.Sequential(frozen))
    with pytest.raises(ValueError, match="it has no norms"):
        convert_to_batchnorm(nn.Sequential(nn.ReLU()))


@pytest.mark.parametrize("share", [0, 1, -1, 2, float("nan")])
def test_a_share_is_between_0_and_1(share):
    with pytest.raises(ValueError, match="share must be greater than 0 and less than 1"):
        convert_to_switchnorm(nn.BatchNorm2d(4), share=share)


@pytest.mark.parametrize("tolerance", [-0.1, 1.1, float("nan")])
def test_a_tolerance_is_from_0_to_1(tolerance):
    with pytest.raises(ValueError, match="tolerance must be from 0 to 1"):
        convert_to_batchnorm(SwitchNorm2d(4), tolerance=tolerance)


def test_switch_norms_without_nearly_all_bn_are_refused():
    model = nn.Sequential(convert_to_switchnorm(nn.BatchNorm2d(4), share=0.99))
    with pytest.raises(ValueError, match=r"0 takes 99.0% of its mean from BN; at least 99.9% "):
        convert_to_batchnorm(model)
    assert type(convert_to_batchnorm(model, tolerance=0.011)[0]) is nn.BatchNorm2d
    for options, message in (
        ({"using_bn": False}, "has using_bn=False"),
        ({"using_moving_average": False}, "has using_moving_average=False"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_to_batchnorm(nn.Sequential(SwitchNorm2d(4, **options)), tolerance=1)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared with the MSRA checkpoint is absent")
def test_the_real_msra_network_gives_the_logits_that_it_gave_before():
    weights = SHARED / "weights" / "resnet50v1_bn_msra_bgr_fp16.pth"
    model = snzoo.create_model("resnet50v1_bn_msra", weights=weights).eval()
    transform = snzoo.create_transform(model)
    photos = sorted((SHARED / "data" / "imagenet_sample").rglob("*.JPEG"))[::25]
    x = torch.stack([transform(photo) for photo in photos])
    with torch.inference_mode():
        expected = model(x)
        actual = convert_to_switchnorm(model)(x)
    assert len(photos) == 10 and torch.equal(actual.argmax(1), expected.argmax(1))
    assert (actual - expected).abs().max() < 1e-4 * expected.abs().max()
