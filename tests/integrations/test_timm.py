"""The networks as timm makes, feeds and trains them, against snzoo's own ways."""

import hashlib
import importlib
import json
import math
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_dataset, create_loader, create_transform, resolve_model_data_config
from timm.models import load_checkpoint, model_entrypoint, save_for_hf
from timm.optim import create_optimizer_v2
from timm.utils import accuracy

import snzoo
import snzoo.integrations.timm as integration
from snzoo.data.pixels import load_pixels, normalize
from snzoo.errors import CheckpointError, SnzooError
from snzoo.manifest import default_path, load_manifest
from snzoo.models.stem import adapt_input
from snzoo.weights import import_file

OLDER = [f"1.0.{patch}" for patch in range(16, 31)]

DEMO = "resnet18v1_sn_clothing"
MSRA = "resnet50v1_bn_msra"
CLASSIFIERS = snzoo.list_models(exclude_filters="face_*")
PHOTOS = Path(snzoo.__file__).parent / load_manifest().demo.bundled


def make(name, **arguments):
    return timm.create_model(f"snzoo_{name}", **arguments)


@pytest.fixture(scope="module")
def demo():
    return make(DEMO, pretrained=True).eval()


def test_all_names_are_registered_and_listed():
    names = [f"snzoo_{name}" for name in CLASSIFIERS]
    assert sorted(timm.list_models("snzoo_*")) == sorted(names)
    assert sorted(timm.list_models(module="timm")) == sorted(names)
    assert sorted(integration.__all__) == sorted(names) and "timm" in timm.list_modules()
    pretrained = {f"snzoo_{name}" for name in CLASSIFIERS if snzoo.get_info(name).file}
    assert set(timm.list_models("snzoo_*", pretrained=True)) == pretrained


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_name_builds_and_describes_itself(name):
    entry = snzoo.get_info(name)
    model = make(name, width=8)
    assert isinstance(model, type(snzoo.create_model("resnet18v1_sn", width=8)))
    assert model.num_classes == entry.num_classes == model.pretrained_cfg["num_classes"]
    assert [*model.state_dict()] == [*entry.layout()]
    config = resolve_model_data_config(model)
    crop, resize = entry.preprocessing.crop, entry.preprocessing.resize
    assert config["input_size"] == (3, crop, crop)
    assert math.floor(crop / config["crop_pct"]) == resize
    assert model.get_submodule(model.default_cfg["first_conv"]) is model.conv1
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()


def test_the_crop_fraction_gives_every_size_back():
    recipe = snzoo.get_info(DEMO).preprocessing
    inexact = 0
    for resize in range(1, 320):
        for crop in range(1, resize + 1):
            fraction = integration.crop_fraction(replace(recipe, resize=resize, crop=crop))
            assert math.floor(crop / fraction) == resize
            assert fraction == pytest.approx(crop / resize, rel=1e-15)
            inexact += math.floor(crop / (crop / resize)) != resize
    assert inexact  # the plain quotient would not do


def test_weights_and_logits_are_those_of_snzoo(demo):
    own = snzoo.create_model(DEMO, pretrained=True).eval()
    x = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(demo(x), own(x))
        assert torch.equal(demo.forward_head(demo.forward_features(x)), own(x))
        assert demo.forward_head(demo.forward_features(x), True).shape == (2, demo.num_features)
    assert demo.default_cfg["label_names"] == snzoo.get_info(DEMO).classes


def test_other_heads_and_inputs():
    x = torch.randn(2, 1, 64, 64)
    for name in ("resnet18v1_sn", "resnet50v2_sn"):
        model = make(name, width=8, in_chans=1, num_classes=7, drop_rate=0.1)
        assert model(x).shape == (2, 7) and model.drop.p == 0.1
        model.reset_classifier(0, "")
        assert model(x).shape == (2, model.num_features, 2, 2)
        model.reset_classifier(0, "avg")
        assert model(x).shape == (2, model.num_features)
    assert make(name, width=8, num_classes=0, global_pool="", output_stride=8)(
        torch.randn(1, 3, 64, 64)
    ).shape == (1, 256, 8, 8)


def test_other_sizes_keep_the_rest_of_the_weights(demo):
    model = make(DEMO, pretrained=True, in_chans=1, num_classes=7)
    assert torch.equal(model.conv1.weight, adapt_input(demo.conv1.weight, 1))
    assert torch.equal(model.layer1[0].conv1.weight, demo.layer1[0].conv1.weight)
    assert model.fc.out_features == 7


@pytest.mark.parametrize("name", ["resnet18v1_sn", "resnet50v2_sn"])
@pytest.mark.parametrize("output_stride", [8, 32])
def test_maps_are_described_and_are_those_of_snzoo(name, output_stride):
    options = {"width": 8, "output_stride": output_stride}
    model = make(name, features_only=True, **options).eval()
    own = snzoo.create_model(name, features_only=True, out_indices=range(5), **options).eval()
    own.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64)
    maps = model(x)
    info = model.feature_info
    assert info.channels() == [m.shape[1] for m in maps]
    assert info.reduction() == [64 // m.shape[2] for m in maps] == model.feature_info.reduction()
    for level, expected, found in zip(info.module_name(), own(x), maps, strict=True):
        assert torch.equal(expected, found) and model.get_submodule(level)
    assert not {"num_classes", "classifier"} & model.pretrained_cfg.keys()


@pytest.mark.parametrize(
    "given, levels", [(2, (3, 4)), ((1, -2), (1, 3)), ((1, 2, 3, 4), (1, 2, 3, 4))]
)
def test_maps_are_chosen_as_in_timm(given, levels):
    model = make(DEMO, pretrained=True, features_only=True, out_indices=given, num_classes=0)
    whole = timm.create_model("resnet18", features_only=True, out_indices=given)
    assert model.feature_info.reduction() == whole.feature_info.reduction()
    assert model.out_indices == levels and len(model(torch.randn(1, 3, 64, 64))) == len(levels)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"widht": 8}, "takes no argument 'widht'"),
        ({"drop_path_rate": 0.1}, "takes no argument 'drop_path_rate'"),
        ({"features_only": True, "feature_cls": "fx"}, "takes no argument 'feature_cls'"),
        ({"features_only": True, "out_indices": (5,)}, "out_indices must be"),
        ({"global_pool": "max"}, "global_pool must be 'avg'"),
        ({"global_pool": ""}, "takes num_classes=0"),
        ({"scriptable": True}, "scriptable"),
        ({"weights": "file.pth"}, "checkpoint_path"),
        ({"pretrained": True, "cache_dir": "there"}, "SNZOO_HOME"),
    ],
)
def test_what_cannot_be_honoured_is_refused(arguments, message):
    with pytest.raises(SnzooError, match=message):
        make(DEMO, **arguments)


def test_refusals_of_names_and_of_checkpointing(demo):
    with pytest.raises(CheckpointError, match="no published weights"):
        make("resnet18v1_sn", pretrained=True)
    with pytest.raises(RuntimeError, match="Invalid pretrained tag"):
        make("resnet18v1_sn.best")
    demo.set_grad_checkpointing(False)
    with pytest.raises(SnzooError, match="twice a step"):
        demo.set_grad_checkpointing()


def test_checkpoints_of_the_caller_are_loaded_by_timm(tmp_path, demo):
    state = {key: value + 1 for key, value in demo.state_dict().items()}
    file = tmp_path / "trained.safetensors"
    save_file(state, file)
    ways = (
        {"checkpoint_path": file},
        {"pretrained": True, "pretrained_cfg_overlay": {"file": str(file)}},
    )
    for way in ways:
        assert torch.equal(make(DEMO, **way).fc.bias, state["fc.bias"])
    maps = make(DEMO, features_only=True, out_indices=(1, 2), **ways[1])
    assert torch.equal(maps.layer2[0].conv1.weight, state["layer2.0.conv1.weight"])
    save_file({"fc.bias": state["fc.bias"]}, file)
    with pytest.raises(RuntimeError, match="Missing key"):
        load_checkpoint(demo, file)
    with pytest.raises(RuntimeError, match="Missing key"):
        make(DEMO, features_only=True, **ways[1])


@pytest.mark.skipif(
    version("timm") in OLDER, reason="this timm does not read safetensors of local-dir:"
)
def test_a_folder_that_timm_saved_gives_the_network_again(tmp_path):
    model = make("resnet18v2_sn", width=8, num_classes=3, in_chans=1).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 1, 64, 64)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("name", ["resnet18v1_sn", "resnet50v2_sn", "resnet18v1_gn"])
def test_decay_and_layers_are_those_of_parameter_groups(name):
    model = make(name, width=8)
    groups = snzoo.parameter_groups(model, lr=1, weight_decay=0.1, layer_decay=0.5)
    expected = {p: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    plain = create_optimizer_v2(model, "sgd", lr=1, weight_decay=0.1)
    found = {p: g["weight_decay"] for g in plain.param_groups for p in g["params"]}
    assert found == {p: decay for p, (_, decay) in expected.items()}
    layered = create_optimizer_v2(model, "sgd", lr=1, weight_decay=0.1, layer_decay=0.5)
    found = {
        p: (g["lr_scale"], g["weight_decay"]) for g in layered.param_groups for p in g["params"]
    }
    assert found == expected and len({rate for rate, _ in found.values()}) > 9
    stages = timm.models.group_parameters(model, model.group_matcher(coarse=True))
    assert len(stages) == (7 if "v2" in name else 6)  # stem, 4 stages, v2's last norm, fc


def test_pixels_are_those_of_snzoo(demo):
    transform = create_transform(**resolve_model_data_config(demo), is_training=False)
    recipe = snzoo.get_info(DEMO).preprocessing
    dataset = create_dataset("", root=str(PHOTOS), transform=transform)
    for i in range(0, len(dataset), 30):
        content = (PHOTOS / dataset.filename(i)).read_bytes()
        pixels = torch.tensor(load_pixels(content, recipe)).permute(2, 0, 1)[None]
        torch.testing.assert_close(
            dataset[i][0][None], normalize(pixels, recipe), atol=1e-6, rtol=0
        )


def test_timm_counts_what_is_published(demo):
    config = resolve_model_data_config(demo)
    loader = create_loader(
        create_dataset("", root=str(PHOTOS), split="validation"),
        batch_size=32,
        num_workers=0,
        persistent_workers=False,  # timm before 1.0.31 would ask for workers
        device=torch.device("cpu"),
        pin_memory=False,
        **config,
    )
    hits = torch.zeros(2)
    with torch.inference_mode():
        for x, target in loader:
            hits += torch.stack(accuracy(demo(x), target, topk=(1, 5))) * len(x) / 100
    published = {result.dataset: result for result in snzoo.get_info(DEMO).published}
    figures = published["clothing-demo"]
    assert hits.round().tolist() == [134, 147]
    assert (hits / 149 * 100).tolist() == pytest.approx([figures.top1, figures.top5], abs=0.005)


@pytest.fixture
def msra(tmp_path, monkeypatch):
    """The zoo with a narrow network under the name of the one for BGR, in the cache."""
    weights = tmp_path / "made.safetensors"
    save_file(snzoo.create_model(MSRA, width=8).state_dict(), weights)
    document = json.loads(default_path().read_text())
    entry = document["models"][MSRA]
    entry["arguments"] |= {"width": 8}
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    entry["file"] |= {"format": "safetensors", "name": weights.name, "sha256": digest, "md5": None}
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    monkeypatch.setenv("SNZOO_MANIFEST", str(tmp_path / "manifest.json"))
    monkeypatch.setenv("SNZOO_HOME", str(tmp_path / "home"))
    import_file(snzoo.get_info(MSRA), weights, snzoo.get_info(MSRA).layout)
    return snzoo.create_model(MSRA, pretrained=True).eval()


def test_a_network_for_bgr_takes_what_timm_feeds(tmp_path, msra):
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    model = make(MSRA, pretrained=True).eval()
    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    x = (pixels / 255 - mean) / std
    with torch.no_grad():
        expected = msra(normalize(pixels, msra.spec.preprocessing))
        close = {"rtol": 0, "atol": 1e-5 * expected.abs().max().item()}
        torch.testing.assert_close(model(x), expected, **close)
        difference = model(x.flip(1)) - expected
    assert difference.abs().max() > 1000 * close["atol"]  # the order does matter
    four = make(MSRA, pretrained=True, in_chans=4)
    assert torch.equal(four.conv1.weight, adapt_input(model.conv1.weight, 4))
    # Saved by snzoo, it is a network for RGB.
    snzoo.save_pretrained(model, tmp_path / "saved")
    again = snzoo.create_model(str(tmp_path / "saved")).eval()
    with torch.no_grad():
        found = again(normalize(pixels, again.spec.preprocessing))
    torch.testing.assert_close(found, expected, **close)


def test_a_rule_of_resizing_that_timm_lacks_is_named(tmp_path, msra, monkeypatch):
    document = json.loads((tmp_path / "manifest.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(MSRA, pretrained=True)  # Pillow's rule
    document["preprocessing"]["msra"]["resampling"] = "torch7-bicubic"
    (tmp_path / "other.json").write_text(json.dumps(document))
    monkeypatch.setenv("SNZOO_MANIFEST", str(tmp_path / "other.json"))
    with pytest.warns(UserWarning, match=f"{MSRA} .* by the rule torch7-bicubic, .*create_trans"):
        model = make(MSRA, pretrained=True).eval()
    photo = Image.effect_noise((40, 50), 90)
    with torch.no_grad():
        found, expected = (
            network(snzoo.create_transform(source, resize=32, crop=32)(photo)[None])
            for network, source in ((model, model), (msra, MSRA))
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_importing_again_changes_nothing():
    before = {name: model_entrypoint(name) for name in timm.list_models("snzoo_*")}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(integration)
    assert {name: model_entrypoint(name) for name in timm.list_models("snzoo_*")} == before
    assert sorted(integration.__all__) == sorted(before)


@pytest.mark.slow
def test_a_name_that_timm_has_is_left_alone():
    code = """if True:
        import timm
        def snzoo_resnet18v1_sn(**_): pass
        timm.models.register_model(snzoo_resnet18v1_sn)
        import snzoo.integrations.timm
        assert timm.models.model_entrypoint("snzoo_resnet18v1_sn") is snzoo_resnet18v1_sn
        assert timm.create_model("snzoo_resnet18v2_sn", width=8).num_classes == 1000
    """
    done = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code])
    assert done.returncode == 0


def test_without_timm_it_says_what_to_install():
    code = """if True:
        import sys
        sys.modules["timm"] = None
        from snzoo.errors import SnzooError
        try:
            import snzoo.integrations.timm
        except SnzooError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'snzoo[timm]'" in done.stdout and done.stdout.count("\n") == 1, done.stderr
