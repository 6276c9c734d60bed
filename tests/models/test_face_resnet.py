"""The face networks against float64 embeddings of the published code (tests/golden/faces.npz)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import draw, rng
from torch import nn

from snzoo.errors import ArgumentError
from snzoo.models.architectures import ARCHITECTURES
from snzoo.models.build import build
from snzoo.nn import SwitchNorm2d, SyncSwitchNorm2d

FOLDER = Path(__file__).parents[1] / "golden"
EMBEDDINGS = np.load(FOLDER / "faces.npz")
LAYOUT = json.loads((FOLDER / "faces_layout.json").read_text())
FACES = [name for name, architecture in ARCHITECTURES.items() if architecture.is_face]


def count_parameters(name, **options):
    with torch.device("meta"):
        model = build(ARCHITECTURES[name], **options)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("tag", LAYOUT)
def test_embeddings_match_the_published_networks(tag):
    model = build(ARCHITECTURES[f"face_resnet{tag}"]).eval()
    state = {
        key: torch.from_numpy(draw(key, tuple(value.shape)).astype(np.float32))
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    x = torch.from_numpy(rng("input:" + tag).standard_normal((2, 3, 112, 112)).astype(np.float32))
    expected = torch.from_numpy(EMBEDDINGS[tag])
    with torch.no_grad():
        assert (model(x) - expected).abs().max() <= 1e-5
        assert (model.double()(x.double()) - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("tag", LAYOUT)
def test_the_state_dict_has_the_published_layout(tag):
    with torch.device("meta"):
        model = build(ARCHITECTURES[f"face_resnet{tag}"])
    layout = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert list(layout) == list(LAYOUT[tag]) and layout == LAYOUT[tag]


@pytest.mark.parametrize(
    "name, se, count",
    [
        ("face_resnet18_bn", False, 24_023_625),
        ("face_resnet34_bn", False, 34_135_505),
        ("face_resnet50_bn", False, 43_584_985),
        ("face_resnet50_bn", True, 43_807_729),
        ("face_resnet50_sn", False, 43_585_453),
        ("face_resnet50_syncsn", False, 43_585_453),
        ("face_resnet100_bn", False, 65_145_074),
        ("face_resnet100_bn", True, 65_517_347),
        ("face_resnet100_sn", False, 65_145_992),
    ],
)
def test_the_number_of_parameters_is_the_published_one(name, se, count):
    assert count_parameters(name, se=se) == count


@pytest.mark.parametrize("depth, norms", [(18, 30), (34, 54), (50, 78), (100, 153)])
@pytest.mark.parametrize(
    "norm, kind",
    [("bn", nn.BatchNorm2d), ("sn", SwitchNorm2d), ("syncsn", SyncSwitchNorm2d)],
)
def test_norms_are_made_as_published(depth, norms, norm, kind):
    with torch.device("meta"):
        model = build(ARCHITECTURES[f"face_resnet{depth}_{norm}"])
    found = [module for module in model.modules() if type(module) is kind]
    assert len(found) == norms
    assert {(layer.eps, layer.momentum) for layer in found} == {(2e-5, 0.9)}
    last = model.output_layer[4]
    assert type(last) is nn.BatchNorm1d and (last.eps, last.momentum) == (1e-5, 0.1)


def test_the_dropout_is_before_the_linear_layer():
    model = build(ARCHITECTURES["face_resnet18_sn"], width=8)
    assert model.output_layer[1].p == 0.4 and model.output_layer[3].out_features == 512
    assert build(ARCHITECTURES["face_resnet18_sn"], width=8, drop_rate=0.1).output_layer[1].p == 0.1


@pytest.mark.parametrize("name", FACES)
def test_every_face_network_returns_embeddings_of_length_one(name):
    model = build(ARCHITECTURES[name], width=4)
    embeddings = model(torch.randn(3, 3, 112, 112))
    assert embeddings.shape == (3, model.embedding_size) == (3, 512)
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(3), atol=1e-5)


def test_squeeze_and_excitation_scales_channels_by_their_means():
    """The block by NumPy, from the output of its third norm."""
    torch.manual_seed(0)
    block = build(ARCHITECTURES["face_resnet18_sn"], width=32, se=True).eval().layer1[1].double()
    x = torch.randn(2, 32, 5, 7, dtype=torch.float64)
    with torch.no_grad():
        branch = block.norm3(block.conv2(block.prelu(block.norm2(block.conv1(block.norm1(x))))))
        found = block(x).numpy()
        before, after = (
            getattr(block.se, name).weight[:, :, 0, 0].numpy() for name in ("fc1", "fc2")
        )
    assert before.shape == (2, 32) and block.se.fc1.bias is None
    squeezed = branch.numpy().mean((2, 3)) @ before.T
    squeezed = np.where(squeezed > 0, squeezed, 0.25 * squeezed)
    scales = 1 / (1 + np.exp(-squeezed @ after.T))
    total = branch.numpy() * scales[:, :, None, None] + x.numpy()
    assert np.abs(found - np.where(total > 0, total, 0.25 * total)).max() < 1e-12


def test_both_activations_of_a_block_share_one_slope():
    block = build(ARCHITECTURES["face_resnet18_bn"], width=4).layer1[0]
    assert [tuple(key.shape) for key in block.prelu.parameters()] == [(1,)]
    assert sum(isinstance(module, nn.PReLU) for module in block.modules()) == 1


def test_weights_start_as_published():
    torch.manual_seed(0)
    model = build(ARCHITECTURES["face_resnet18_bn"])
    conv, linear = model.layer3[1].conv1.weight, model.output_layer[3]
    assert conv.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.01)
    bound = (3 / 25088) ** 0.5
    assert 0.999 * bound < linear.weight.abs().max().item() <= bound
    assert not linear.bias.any()


@pytest.mark.parametrize("side", [96, 111, 113, 224])
def test_images_of_another_size_are_refused(side):
    model = build(ARCHITECTURES["face_resnet18_bn"], width=4)
    with pytest.raises(ArgumentError, match=rf"\(N, C, 112, 112\), got \(2, 3, {side}, {side}\)"):
        model(torch.randn(2, 3, side, side))
