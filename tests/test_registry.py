"""List, look up and create models."""

import copy
import doctest
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import snzoo
from snzoo import registry
from snzoo.errors import CheckpointError, SnzooError, UnknownModelError
from snzoo.manifest import default_path
from snzoo.models.architectures import ARCHITECTURES
from snzoo.spec import ModelSpec


def test_listing_imports_no_torch():
    code = (
        "import sys, snzoo; snzoo.list_models('*v2*'); snzoo.get_info('resnet50v1_sn_8x1');"
        "sys.exit('torch' in sys.modules or 'requests' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_examples_of_the_docstrings_are_true():
    result = doctest.testmod(registry)
    assert result.attempted >= 2 and not result.failed


def test_filters_combine():
    several = snzoo.list_models(["resnet34v1*", "*_step"], exclude_filters=["*_gn", "*v1_bn"])
    assert several == ["resnet50v1_sn_8x32_step", "resnet34v1_sn", "resnet34v1_ssn"]
    assert snzoo.list_models("resnet34*", norm="gn") == ["resnet34v1_gn", "resnet34v2_gn"]
    assert snzoo.list_models("resnet34*", pretrained=True) == []


@pytest.mark.parametrize("name", ["resnet50v1_sn_8x23", "resnet50_sn_8x32", "ResNet34v1_SN"])
def test_a_wrong_name_suggests_the_nearest(name):
    with pytest.raises(UnknownModelError, match="did you mean resnet"):
        snzoo.get_info(name)


def test_a_hopeless_name_says_where_to_look():
    with pytest.raises(UnknownModelError, match="see: snzoo list"):
        snzoo.create_model("zzz")


@pytest.mark.parametrize("name", snzoo.list_models(pretrained=True))
def test_every_zoo_model_is_built_as_published(name):
    entry = snzoo.get_info(name)
    model = snzoo.create_model(name, drop_rate=0.25)
    assert sum(p.numel() for p in model.parameters()) == entry.num_params
    assert [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)] == [0.25]
    assert model.num_classes == entry.num_classes


def test_the_entry_gives_defaults_that_arguments_override():
    assert snzoo.create_model("resnet50v1_sn_8x1").layer1[0].sn1.mean_weight.shape == (2,)
    model = snzoo.create_model(
        "resnet50v1_sn_8x1", using_bn=True, in_chans=1, num_classes=3, width=8
    )
    assert model.layer1[0].sn1.mean_weight.shape == (3,)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 3)


def test_what_is_known_of_a_model_cannot_be_changed():
    for spec in (snzoo.get_info("resnet50v1_sn_8x1"), snzoo.create_model("resnet50v1_sn_8x1").spec):
        with pytest.raises(TypeError, match="frozen"):
            spec.arguments["width"] = 999
        with pytest.raises(TypeError, match="frozen"):
            spec.training.update(epochs=1)
    assert "width" not in snzoo.get_info("resnet50v1_sn_8x1").arguments
    model = snzoo.create_model("resnet18v1_sn", width=8)
    clone = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    assert clone.spec == model.spec and clone.spec.arguments == {"width": 8}


def test_an_unknown_architecture_hides_nothing_else(tmp_path, monkeypatch):
    document = json.loads(default_path().read_text())
    document["models"]["newer"] = document["models"]["resnet50v1_sn_8x1"] | {"architecture": "vit"}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    monkeypatch.setenv("SNZOO_MANIFEST", str(tmp_path / "manifest.json"))
    assert "newer" in snzoo.list_models(pretrained=True)
    assert "newer" not in snzoo.list_models(norm="sn")
    with pytest.raises(UnknownModelError, match="newer: no model named 'vit'"):
        snzoo.create_model("newer")


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match=r"takes no argument 'widht'; did you mean 'width'\?"):
        snzoo.create_model("resnet18v1_sn", widht=8)


def test_an_architecture_has_no_pretrained_weights():
    with pytest.raises(CheckpointError, match="no published weights"):
        snzoo.create_model("resnet18v1_sn", pretrained=True)


def save(tmp_path, model):
    path = tmp_path / "weights.pth"
    torch.save(model.state_dict(), path)
    return path


def test_a_file_gives_its_weights_and_draws_no_random_numbers(tmp_path):
    source = snzoo.create_model("resnet18v1_sn", width=8)
    path = save(tmp_path, source)
    state = torch.get_rng_state()
    model = snzoo.create_model("resnet18v1_sn", weights=path, width=8)
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), source.eval()(x))
    assert all(p.requires_grad and not p.is_meta for p in model.parameters())


def test_another_number_of_classes_keeps_the_backbone_under_a_new_head(tmp_path):
    source = snzoo.create_model("resnet18v1_sn", width=8)
    path = save(tmp_path, source)
    model = snzoo.create_model("resnet18v1_sn", weights=path, width=8, num_classes=4)
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 4)
    backbone = {key: value for key, value in source.state_dict().items() if key[:2] != "fc"}
    assert all(torch.equal(model.state_dict()[key], value) for key, value in backbone.items())


def test_a_file_with_its_own_head_loads_whole(tmp_path):
    source = snzoo.create_model("resnet18v1_sn", width=8, num_classes=4)
    path = save(tmp_path, source)
    model = snzoo.create_model("resnet18v1_sn", weights=path, width=8, num_classes=4)
    assert torch.equal(model.fc.weight, source.fc.weight)
    with pytest.raises(CheckpointError, match=r"fc.weight is \(4, 64\), not \(1000, 64\)"):
        snzoo.create_model("resnet18v1_sn", weights=path, width=8)


def test_other_input_channels_than_the_file_has_are_adapted_if_they_are_asked_for(tmp_path):
    source = snzoo.create_model("resnet18v1_sn", width=8, in_chans=4)
    path = save(tmp_path, source)
    with pytest.raises(
        CheckpointError, match=r"conv1.weight is \(8, 4, 7, 7\), not \(8, 3, 7, 7\)"
    ):
        snzoo.create_model("resnet18v1_sn", weights=path, width=8)
    gray = torch.randn(2, 1, 64, 64)
    expected = source.eval()(gray.expand(-1, 4, -1, -1))
    for channels in (1, 2, 3, 5, 8, 11):
        model = snzoo.create_model("resnet18v1_sn", weights=path, width=8, in_chans=channels)
        logits = model.eval()(gray.expand(-1, channels, -1, -1))
        assert torch.allclose(logits, expected, rtol=1e-4, atol=1e-4)
    same = snzoo.create_model("resnet18v1_sn", weights=path, width=8, in_chans=4)
    assert torch.equal(same.conv1.weight, source.conv1.weight)


def test_architectures_and_zoo_names_do_not_collide():
    assert not set(ARCHITECTURES) & set(snzoo.list_models(pretrained=True))


def describe(tmp_path, **fields):
    """A checkpoint of resnet50v1_bn_msra, narrow, that describes itself."""
    model = snzoo.create_model("resnet50v1_bn_msra", width=8, num_classes=2)
    recipe = snzoo.get_info("resnet50v1_bn_msra").preprocessing.as_dict()
    description = {"model": "resnet50v1_bn_msra", "arguments": {"width": 8}}
    description |= {"classes": ["a", "b"], "preprocessing": recipe} | fields
    path = tmp_path / "described.safetensors"
    save_file(model.state_dict(), path, {"snzoo": json.dumps(description)})
    return path, model


def test_a_described_checkpoint_keeps_its_rule_of_resizing(tmp_path):
    given = snzoo.get_info("resnet50v1_bn_msra").preprocessing.replace(resampling="torch7-bicubic")
    path, _ = describe(tmp_path, preprocessing=given.as_dict())
    found = ModelSpec.find(weights=path).preprocessing
    assert found == given and "bicubic as in Torch7" in found.describe()
    recipe = given.as_dict()
    del recipe["resampling"]  # as in files of earlier versions
    path, _ = describe(tmp_path, preprocessing=recipe)
    assert ModelSpec.find(weights=path).preprocessing.resampling == "pillow-bilinear"


def test_a_described_checkpoint_is_built_as_it_was_whatever_it_is_called(tmp_path):
    path, source = describe(tmp_path)
    x = torch.randn(2, 3, 64, 64)
    for name in ("resnet50v1_bn_msra", "resnet50v1_bn", "resnet50v1_bn_torchvision"):
        model = snzoo.create_model(name, weights=path)
        assert torch.equal(model.eval()(x), source.eval()(x))
    assert torch.equal(snzoo.create_model(path).eval()(x), source.eval()(x))
    entry = ModelSpec.find(weights=path)
    assert entry.classes == ("a", "b") and entry.preprocessing.channel_order == "BGR"
    assert entry.published == ()


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model": "resnet50v1_sn"}, "was made from resnet50v1_sn"),
        ({"model": "resnet51"}, "no model named"),
        ({"classes": "cats"}, "classes has the wrong type"),
        ({"preprocessing": {}}, "preprocessing.resize is missing"),
        ({"arguments": {"depth": 3}}, "takes no argument 'depth'; .*width"),
        ({"arguments": {"width": -8}}, "width must be a whole number from 1"),
        ({"arguments": {"num_classes": 3}}, "arguments.num_classes"),
        ({"arguments": {"width": 10**12}}, "width must be a whole number from 1 to"),
        ({"arguments": {"last_gamma": "x"}}, "last_gamma must be a bool, got 'x'"),
        ({"classes": ["a", "a"]}, "must be printable and differ, got 'a'"),
        ({"classes": ["a", "\x1b[31m"]}, "must be printable"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused(tmp_path, fields, message):
    path, _ = describe(tmp_path, **fields)
    with pytest.raises(SnzooError, match=message):
        snzoo.create_model("resnet50v1_bn", weights=path)


@pytest.mark.parametrize("empty", ["", "local-dir:"])
def test_an_empty_path_is_not_the_current_folder(empty):
    with pytest.raises(ValueError, match="must not be empty"):
        snzoo.create_model("resnet18v1_sn", weights=empty)


def test_weights_come_from_one_place(tmp_path):
    with pytest.raises(SnzooError, match="not from both"):
        snzoo.create_model("resnet18v1_sn_clothing", pretrained=True, weights="x.pth")


def test_a_head_of_another_rank_is_refused_by_name(tmp_path):
    state = snzoo.create_model("resnet18v1_sn", width=8).state_dict()
    torch.save(state | {"fc.weight": torch.tensor(1.0)}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"fc\.weight is \(\)"):
        snzoo.create_model("resnet18v1_sn", weights=tmp_path / "x.pth", width=8, num_classes=3)


@pytest.mark.parametrize("number", [-1, "7", 7.5, True])
def test_a_number_of_classes_that_makes_no_sense_is_refused(number):
    for pretrained in (False, True):
        with pytest.raises(SnzooError, match="num_classes must be a whole number from 0"):
            snzoo.create_model("resnet18v1_sn_clothing", pretrained=pretrained, num_classes=number)


def test_an_unknown_norm_is_refused():
    with pytest.raises(SnzooError, match="norm must be one of sn, ssn, syncsn, bn, gn"):
        snzoo.list_models(norm="in")


@pytest.mark.parametrize(
    "name",
    ["", "x" * 5000, "./no-folder", "x/" * 300, "hf-hub:", "hf-hub:owner", "hf-hub:../../etc"],
)
def test_a_name_that_cannot_exist_gives_an_error_of_one_line(name):
    with pytest.raises(ValueError if name in ("", "x" * 5000) else SnzooError) as error:
        snzoo.create_model(name)
    assert "can't read" in str(error.value) or name[1:2] != "/"
    assert "\n" not in str(error.value) and "None" not in str(error.value)


def test_a_new_head_has_no_names(tmp_path):
    source = snzoo.create_model("resnet18v1_sn_clothing", num_classes=20)
    model = snzoo.create_model(
        "resnet18v1_sn_clothing", weights=save(tmp_path, source), num_classes=10
    )
    assert model.spec.classes == ()


def test_numpys_whole_numbers_are_numbers():
    model = snzoo.create_model("resnet18v1_sn", width=np.int64(8), num_classes=np.int32(3))
    model.reset_classifier(np.int64(5))
    assert model.num_classes == 5 and type(model.spec.arguments["width"]) is int


def test_a_folder_does_not_shadow_a_name_of_the_zoo(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet18v1_sn").mkdir()
    assert snzoo.create_model("resnet18v1_sn", width=8).spec.name == "resnet18v1_sn"
    for path in (Path("resnet18v1_sn"), tmp_path / "resnet18v1_sn", "local-dir:resnet18v1_sn"):
        with pytest.raises(CheckpointError, match=r"has no config\.json"):
            snzoo.create_model(path)


@pytest.mark.parametrize("value", ["w.pth", "False", 1, None])
def test_pretrained_is_a_switch_and_not_a_path(value):
    with pytest.raises(TypeError, match="pretrained must be True or False"):
        snzoo.create_model("resnet18v1_sn_clothing", pretrained=value)


def test_a_misspelled_pretrained_is_named():
    with pytest.raises(TypeError, match="did you mean 'pretrained'"):
        snzoo.create_model("resnet18v1_sn", pretraned=True)
