"""The networks against float64 logits of the published code (tests/golden/nets.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from golden_weights import draw, rng

import snzoo
from snzoo.errors import SnzooError
from snzoo.models.architectures import ARCHITECTURES
from snzoo.models.build import build
from snzoo.models.features import FeatureExtractor

FOLDER = Path(__file__).parents[1] / "golden"
LOGITS = np.load(FOLDER / "nets.npz")
SPARSE = np.load(FOLDER / "sparse.npz")
LAYOUT = json.loads((FOLDER / "layout.json").read_text())
SPARSE_LAYOUT = json.loads((FOLDER / "sparse_layout.json").read_text())


def golden_model(name):
    model = build(ARCHITECTURES[name]).eval()
    state = {
        key: torch.from_numpy(draw(key, tuple(value.shape)).astype(np.float32))
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("name", LOGITS.files)
def test_logits_match_the_published_networks(name):
    model = golden_model(name)
    x = rng("input:" + name).standard_normal((2, 3, 224, 224)).astype(np.float32)
    x, expected = torch.from_numpy(x), torch.from_numpy(LOGITS[name])
    scale = expected.abs().max()
    with torch.no_grad():
        assert (model(x) - expected).abs().max() <= 1e-5 * scale
        assert (model.double()(x.double()) - expected).abs().max() <= 1e-10 * scale


@pytest.mark.parametrize("tag", SPARSE_LAYOUT)
def test_sparse_networks_match_the_published_ones(tag):
    depth, _, radius = tag.partition("@")
    model = golden_model(f"resnet{depth}v1_ssn").double()
    snzoo.nn.set_radius(model, float(radius))
    layout = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert list(layout) == list(SPARSE_LAYOUT[tag]) and layout == SPARSE_LAYOUT[tag]
    x = rng(f"input:ssn{tag}").standard_normal((2, 3, 224, 224)).astype(np.float32)
    x, expected = torch.from_numpy(x), torch.from_numpy(SPARSE[f"net/{tag}"])
    scale = expected.abs().max()
    with torch.no_grad():
        assert (model(x.double()) - expected).abs().max() <= 1e-10 * scale
        assert (model.float()(x) - expected).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("tag", LAYOUT)
def test_state_dict_layout_is_the_published_one(tag):
    model = build(ARCHITECTURES[tag.removesuffix("_nobn")], using_bn=not tag.endswith("_nobn"))
    layout = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert list(layout) == list(LAYOUT[tag]) and layout == LAYOUT[tag]


@pytest.mark.parametrize("name", [n for n, a in ARCHITECTURES.items() if not a.is_face])
@pytest.mark.parametrize("size", [32, 75])
def test_every_architecture_takes_any_size_from_32(name, size):
    model = build(ARCHITECTURES[name], num_classes=7, width=8).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 7) and logits.isfinite().all()


def test_torchvision_state_dict_loads_and_gives_its_logits():
    reference = torchvision.models.resnet50().eval()
    model = build(ARCHITECTURES["resnet50v1_bn"]).eval()
    model.load_state_dict(reference.state_dict())
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(model(x), reference(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride_on", ["1x1", "last_unit"])
def test_the_stride_variants_keep_keys_and_output_size(stride_on):
    model = build(ARCHITECTURES["resnet50v1_bn"], stride_on=stride_on, width=8).eval()
    assert list(model.state_dict()) == list(build(ARCHITECTURES["resnet50v1_bn"]).state_dict())
    with torch.no_grad():
        assert model.forward_features(torch.randn(1, 3, 64, 64)).shape[2:] == (2, 2)


def test_last_gamma_starts_residual_branches_at_zero():
    model = build(ARCHITECTURES["resnet18v1_sn"], last_gamma=True, width=8)
    assert all(not block.sn2.weight.any() and block.sn1.weight.all() for block in model.layer1)


@pytest.mark.parametrize(
    "name, options",
    [
        ("resnet50v1_bn", {"using_bn": False}),
        ("resnet50v2_sn", {"last_gamma": True}),
        ("resnet50v1_sn", {"last_gamma": True, "norm_after_add": True}),
        ("resnet50v1_sn", {"stem_pool": "none"}),
        ("resnet18v1_bn", {"stride_on": "1x1"}),
        ("resnet50v1_bn", {"stride_on": "2x2"}),
        ("resnet50v1_bn", {"num_classes": -1}),
        ("resnet50v1_bn", {"in_chans": -1}),
        ("resnet50v1_bn", {"width": 7.5}),
        ("resnet50v1_bn", {"drop_rate": 2}),
        ("resnet50v1_bn", {"output_stride": 4}),
    ],
)
def test_options_that_do_not_apply_are_refused(name, options):
    with pytest.raises(SnzooError, match=next(iter(options))):
        build(ARCHITECTURES[name], **options)


@pytest.mark.parametrize("stage", ["layer1", "layer2"])
def test_the_norm_may_follow_the_addition_and_a_projection_then_has_none(stage):
    model = build(ARCHITECTURES["resnet18v1_bn"], norm_after_add=True, width=8).eval()
    block = getattr(model, stage)[0]
    block.bn2.running_mean.fill_(0.3)
    block.bn2.weight.data.fill_(1.7)
    x = torch.randn(2, 8, 9, 9)
    inner = block.conv2(block.bn1(block.conv1(x)).relu())
    if stage == "layer2":
        shortcut = torch.einsum(
            "oi,nihw->nohw", block.downsample.weight[:, :, 0, 0], x[..., ::2, ::2]
        )
    else:
        shortcut = x
    assert torch.allclose(block(x), block.bn2(inner + shortcut).relu(), atol=1e-6)


def test_the_network_of_fb_resnet_torch_has_its_number_of_parameters():
    """7,680 fewer than torchvision's: the norms of the four projections."""
    with torch.device("meta"):
        model = build(ARCHITECTURES["resnet50v1_bn"], norm_after_add=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 25_549_352
    assert model.state_dict()["layer2.0.downsample.weight"].shape == (512, 256, 1, 1)


@pytest.mark.parametrize(
    "stride_on, strides, pooled",
    [
        ("3x3", {"layer2.0.conv2", "layer3.0.conv2", "layer4.0.conv2"}, 0),
        ("1x1", {"layer2.0.conv1", "layer3.0.conv1", "layer4.0.conv1"}, 0),
        ("last_unit", {"layer1.2.conv2", "layer2.3.conv2", "layer3.5.conv2"}, 3),
    ],
)
def test_the_stride_sits_where_it_is_asked_for(stride_on, strides, pooled):
    model = build(ARCHITECTURES["resnet50v1_bn"], stride_on=stride_on, width=8)
    found = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Conv2d)
        and module.stride == (2, 2)
        and name != "conv1"
        and "downsample" not in name
    }
    pools = [module for module in model.modules() if getattr(module, "kernel_size", None) == 1]
    assert found == strides and len(pools) == pooled


@pytest.mark.parametrize("side", [16, 17, 112])
def test_the_ceil_pool_pads_the_last_window_only(side):
    """As Caffe does; TensorFlow does it for even sides."""
    x = torch.randn(1, 4, side, side)
    missing = (3 - side) % 2  # what the last window of three lacks with a stride of 2
    padded = torch.nn.functional.pad(x, (0, missing, 0, missing), value=-torch.inf)
    found = build(ARCHITECTURES["resnet18v1_bn"], stem_pool="ceil").maxpool(x)
    expected = padded.unfold(2, 3, 2).unfold(3, 3, 2).amax((-1, -2))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name, default", [("resnet18v1_ssn", "ceil"), ("resnet18v1_sn", "padded")])
def test_the_default_pool_is_that_of_the_published_networks(name, default):
    sizes = {"num_classes": 5, "width": 8}
    model = build(ARCHITECTURES[name], **sizes).eval()
    x = torch.randn(1, 3, 64, 64)
    for pool in ("ceil", "padded"):
        other = build(ARCHITECTURES[name], stem_pool=pool, **sizes).eval()
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x), model(x)) == (pool == default)
        features = FeatureExtractor(other)
        for level in range(1, 5):
            assert torch.equal(features(x)[level - 1], other.forward_levels(x, [level])[0])
