"""The face networks against float64 embeddings of the published code (tests/golden/faces.npz)."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_weights import draw, rng
from torch import nn

import snzoo
from snzoo.errors import ArgumentError, CheckpointError, SnzooError
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


@pytest.mark.parametrize("prefix", ["", "basemodel.", "module.basemodel."])
def test_published_files_load_with_and_without_their_head(tmp_path, prefix):
    source = snzoo.create_model("face_resnet18_sn", width=4).eval()
    state = {prefix + key: value for key, value in source.state_dict().items()}
    if prefix:
        state[prefix.replace("basemodel", "head") + "weight"] = torch.zeros(7, 512)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "face.pth")
    x = torch.randn(2, 3, 112, 112)
    for name in ("face_resnet18_sn", "face_resnet18_syncsn"):
        model = snzoo.create_model(name, width=4, weights=tmp_path / "face.pth").eval()
        assert torch.equal(model(x), source(x))
    maps = snzoo.create_model(
        "face_resnet18_sn", width=4, weights=tmp_path / "face.pth", features_only=True
    )
    assert torch.equal(maps.eval()(x)[-1], source.forward_features(x))


def test_other_keys_beside_a_published_network_are_named(tmp_path):
    state = snzoo.create_model("face_resnet18_sn", width=4).state_dict()
    state = {f"basemodel.{key}": value for key, value in state.items()}
    torch.save(state | {"neck.weight": torch.zeros(1)}, tmp_path / "face.pth")
    with pytest.raises(CheckpointError, match=r"its keys begin with 'basemodel\.'"):
        snzoo.create_model("face_resnet18_sn", width=4, weights=tmp_path / "face.pth")


def test_the_input_is_adapted_to_other_channels(tmp_path):
    source = snzoo.create_model("face_resnet18_bn", width=4).eval()
    torch.save(source.state_dict(), tmp_path / "face.pth")
    gray = snzoo.create_model(
        "face_resnet18_bn", width=4, in_chans=1, weights=tmp_path / "face.pth"
    ).eval()
    x = torch.randn(2, 1, 112, 112)
    assert torch.allclose(gray(x), source(x.expand(-1, 3, -1, -1)), atol=1e-5)


@pytest.mark.parametrize("norm, se", [("bn", False), ("sn", True), ("syncsn", False)])
def test_a_saved_face_network_comes_back_bit_for_bit(tmp_path, norm, se):
    source = snzoo.create_model(f"face_resnet18_{norm}", width=4, se=se, drop_rate=0.1)
    source(torch.randn(2, 3, 112, 112))
    snzoo.save_pretrained(source, tmp_path / "face")
    model = snzoo.create_model(tmp_path / "face")
    x = torch.randn(2, 3, 112, 112)
    assert torch.equal(model.eval()(x), source.eval()(x))
    assert (model.spec.classes, model.spec.name) == ((), f"face_resnet18_{norm}")
    assert model.spec.arguments == {"width": 4, "se": se, "drop_rate": 0.1}
    card = (tmp_path / "face" / "README.md").read_text()
    assert "embeddings of faces" in card and "image-feature-extraction" in card


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("face_resnet18_sn", {"num_classes": 10}, "takes no num_classes: a face network has no"),
        ("face_resnet18_sn", {"stem_pool": "ceil"}, "takes no stem_pool: a face network"),
        ("face_resnet18_sn", {"output_stride": 8}, "takes no output_stride: a face network"),
        ("face_resnet18_sn", {"last_gamma": True}, "last_gamma=True applies to v1 networks only"),
        ("face_resnet18_sn", {"stride_on": "1x1"}, "applies to v1 bottleneck networks only"),
        ("face_resnet18_sn", {"se": 1}, "se must be a bool, got 1"),
        ("face_resnet18_bn", {"hard_gates": True}, "applies to SN and sparse SN networks only"),
        ("face_resnet18_bn", {"using_bn": False}, "applies to SN networks only"),
        ("face_resnet18_sn", {"drop_rate": 2}, "drop_rate must be from 0 to 1"),
        ("resnet18v1_sn", {"se": True}, "se=True applies to face networks only"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(SnzooError, match=re.escape(message)) as error:
        snzoo.create_model(name, **options)
    assert name in str(error.value) or "must be" in message
    assert "\n" not in str(error.value)


def test_a_face_network_has_no_classifier_and_no_predictions():
    model = snzoo.create_model("face_resnet18_sn", width=4)
    with pytest.raises(ArgumentError, match="it returns embeddings"):
        model.reset_classifier(10)
    photo = np.zeros((112, 112, 3), np.uint8)
    for wanted in (model, "face_resnet18_sn"):
        with pytest.raises(ArgumentError, match="a face network, which returns embeddings"):
            snzoo.predict(wanted, photo)
        with pytest.raises(ArgumentError, match="a face network, which returns embeddings"):
            snzoo.evaluate(wanted)
    with pytest.raises(ArgumentError, match="a face network, which returns embeddings"):
        snzoo.evaluate("face_resnet50_*")


def test_aligned_faces_are_not_resized():
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    x = snzoo.create_transform("face_resnet18_sn")(pixels)
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    assert torch.allclose(x, expected, atol=1e-6)


def test_hard_gates_are_made_of_the_loaded_ones(tmp_path):
    source = snzoo.create_model("face_resnet18_sn", width=4).eval()
    for layer in source.modules():
        if isinstance(layer, SwitchNorm2d):
            nn.init.normal_(layer.mean_weight)
            nn.init.normal_(layer.var_weight)
    torch.save(source.state_dict(), tmp_path / "face.pth")
    model = snzoo.create_model(
        "face_resnet18_syncsn", width=4, hard_gates=True, weights=tmp_path / "face.pth"
    ).eval()
    x = torch.randn(2, 3, 112, 112)
    assert not torch.allclose(model(x), source(x), atol=1e-3)
    for name, layer in model.named_modules():
        if isinstance(layer, SwitchNorm2d):
            soft = source.get_submodule(name).shares()
            for hard, shares in zip(layer.shares(), soft, strict=True):
                assert hard.sort().values.tolist() == [0, 0, 1] and hard.argmax() == shares.argmax()
    assert torch.equal(snzoo.nn.harden_gates(source)(x), model(x))
    snzoo.save_pretrained(model, tmp_path / "hard")
    again = snzoo.create_model(tmp_path / "hard").eval()
    assert again.spec.arguments["hard_gates"] and torch.equal(again(x), model(x))


def test_batch_norm_converts_to_sn_and_back(tmp_path):
    model = snzoo.create_model("face_resnet18_bn", width=4)
    model(torch.randn(8, 3, 112, 112))
    x = torch.randn(2, 3, 112, 112)
    expected = model.eval()(x)
    for convert, norm in (
        (snzoo.nn.convert_to_switchnorm, "sn"),
        (snzoo.nn.convert_to_batchnorm, "bn"),
    ):
        convert(model)
        assert model.spec.name == f"face_resnet18_{norm}"
        assert torch.allclose(model(x), expected, atol=1e-5)
        snzoo.save_pretrained(model, tmp_path / norm)
        assert torch.equal(snzoo.create_model(tmp_path / norm).eval()(x), model(x))
    assert type(model.output_layer[4]) is nn.BatchNorm1d
    assert (model.output_layer[4].eps, model.output_layer[4].momentum) == (1e-5, 0.1)


def test_hard_gates_of_bn_become_batch_norm(tmp_path):
    model = snzoo.create_model("face_resnet18_sn", width=4)
    for layer in model.modules():
        if isinstance(layer, SwitchNorm2d):
            nn.init.constant_(layer.mean_weight[2:], 2)
            nn.init.constant_(layer.var_weight[2:], 2)
    torch.save(model.state_dict(), tmp_path / "face.pth")
    model = snzoo.create_model(
        "face_resnet18_sn", width=4, hard_gates=True, weights=tmp_path / "face.pth"
    )
    snzoo.nn.convert_to_batchnorm(model, tolerance=0)
    snzoo.save_pretrained(model, tmp_path / "bn")
    assert snzoo.create_model(tmp_path / "bn").spec.architecture == "face_resnet18_bn"
