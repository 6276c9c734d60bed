"""Recipes: the published values, other values, and where a recipe is shown and kept."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import snzoo
from snzoo.cli import main
from snzoo.errors import ArgumentError, ManifestError
from snzoo.manifest import load_manifest, parse_description
from snzoo.spec import ModelSpec
from snzoo.weights import save_description

ROOT = Path(__file__).parents[1]
DOCUMENT = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))
MANIFEST = load_manifest(ROOT / "weights_manifest.json")
COSINE = MANIFEST.models["resnet50v1_sn_8x32"].recipe
FINETUNE = MANIFEST.recipes["finetune"]

# The published configurations, apart from the manifest: what all have in common, then one a line.
PUBLISHED = {
    "optimizer": "sgd",
    "final_lr": 0.0,
    "momentum": 0.9,
    "nesterov": False,
    "weight_decay": 1e-4,
    "decay": "all",
    "gate_lr_factor": 1.0,
    "layer_decay": 1.0,
    "clip_norm": None,
    "label_smoothing": 0.0,
    "mixup": 0.0,
    "ema_decay": None,
    "warmup_lr": 0.0,
    "warmup_limit": 1.0,
    "warmup_first_step": 0,
    "freeze": None,
    "drop_rate": 0.5,
    "norm_momentum": 0.997,
    "statistics_batches": 200,
    "statistics_batch_size": 256,
    "resize": 256,
    "crop": 224,
    "scale": (0.08, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "color_jitter": (0.0, 0.0, 0.0),
    "lighting": "published",
    "lighting_std": 0.1,
    "center_crop_epochs": 5,
    "drop_last": False,
    "upright": False,
}
COLUMNS = ("batch_size", "images_per_gpu", "lr", "epochs", "schedule", "warmup_epochs")
COLUMNS += ("last_gamma", "statistics")
ROWS = {
    "resnet50v1_sn_8x32": (256, 32, 0.1, 120, "cosine", 5, True, "moving"),
    "resnet101v1_sn_8x32": (256, 32, 0.1, 120, "cosine", 5, True, "moving"),
    "resnet50v2_sn_8x32": (256, 32, 0.1, 120, "cosine", 5, None, "moving"),
    "resnet101v2_sn_8x32": (256, 32, 0.1, 120, "cosine", 5, None, "moving"),
    "resnet50v1_sn_8x32_step": (256, 32, 0.1, 100, "step", 0, True, "moving"),
    "step_batch_average": (256, 32, 0.1, 100, "step", 0, True, "batch"),
    "resnet50v1_sn_8x4": (32, 4, 0.0125, 100, "step", 0, True, "moving"),
    "resnet50v1_sn_8x1": (8, 1, 0.003125, 100, "step", 0, True, "moving"),
}
FINETUNING = {
    "optimizer": "sgd",
    "lr": 0.01,
    "batch_size": 32,
    "images_per_gpu": None,
    "epochs": 20,
    "schedule": "cosine",
    "final_lr": 0.0,
    "warmup": "linear",
    "warmup_epochs": 3.0,
    "warmup_limit": 0.1,
    "warmup_lr": 0.0,
    "warmup_first_step": 1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
    "decay": "weights",
    "gate_lr_factor": 1.0,
    "layer_decay": 1.0,
    "clip_norm": None,
    "label_smoothing": 0.1,
    "mixup": 0.0,
    "ema_decay": None,
    **dict.fromkeys(("freeze", "drop_rate", "last_gamma", "norm_momentum", "resize", "crop")),
    "statistics": "moving",
    "scale": (0.35, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "color_jitter": (0.3, 0.3, 0.3),
    "lighting": "none",
    "center_crop_epochs": 0,
    "drop_last": True,
    "upright": True,
}
DEMO = FINETUNING | {"lr": 0.05, "weight_decay": 5e-4, "epochs": 80, "resize": 144, "crop": 128}


def all_recipes():
    entries = {name: e.recipe for name, e in MANIFEST.models.items() if e.recipe is not None}
    return entries | MANIFEST.recipes


def values_of(recipe, names):
    return {name: getattr(recipe, name) for name in names}


@pytest.mark.parametrize("name", ROWS)
def test_published_recipes_have_the_published_values(name):
    recipe, row = all_recipes()[name], dict(zip(COLUMNS, ROWS[name], strict=True))
    assert values_of(recipe, row) == row
    assert values_of(recipe, PUBLISHED) == PUBLISHED
    if recipe.schedule == "step":
        assert (recipe.steps, recipe.step_factor) == ((30, 60, 90), 0.1)
    else:
        assert recipe.warmup == "linear"


@pytest.mark.parametrize(
    "name, values", [("finetune", FINETUNING), ("resnet18v1_sn_clothing", DEMO)]
)
def test_recipes_of_finetuning_have_the_values_of_the_example(name, values):
    assert values_of(all_recipes()[name], values) == values


def test_every_trained_network_of_the_zoo_has_a_recipe_that_fits_its_name():
    published_without = ["*_8x2", "*_8x16", "*_8x8", "*_ssn_8x4", "*_fpn", "*_c4", "*_bn_*"]
    published_without += ["face_*"]
    names = snzoo.list_models(exclude_filters=published_without, pretrained=True)
    faces = snzoo.list_models("face_*", pretrained=True)
    assert {*names, *faces, "finetune", "step_batch_average", "arcface"} == set(all_recipes())
    for name in set(names) - {"resnet18v1_sn_clothing"}:
        recipe = MANIFEST.models[name].recipe
        gpus, images = map(int, name.removesuffix("_step").rpartition("_")[2].split("x"))
        assert recipe.images_per_gpu == images and recipe.batch_size == gpus * images
        assert recipe.lr == 0.1 * recipe.batch_size / 256
        # What the recipe and the entry both say, they say alike.
        entry = MANIFEST.models[name]
        assert recipe.drop_rate == entry.arguments["drop_rate"]
        sizes = entry.preprocessing.resize, entry.preprocessing.crop
        assert (recipe.resize, recipe.crop) == sizes


FACES = {
    "lr": 0.1,
    "epochs": 40,
    "epochs_per_pass": 2,
    "schedule": "step",
    "steps": (24, 30, 36),
    "step_factor": 0.1,
    "warmup_epochs": 0.0,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "decay": "all",
    "head": "arcface_published",
    "head_scale": 64.0,
    "head_margin": 0.5,
    "scale": (1.0, 1.0),
    "flip": 0.5,
}


@pytest.mark.parametrize("name", ["arcface", *snzoo.list_models("face_*", pretrained=True)])
def test_face_networks_have_the_published_recipe(name):
    recipe, expected = all_recipes()[name], FACES
    if name.endswith("argmax"):
        expected = FACES | {"lr": 0.001, "epochs": 20, "steps": (10,)}
    assert values_of(recipe, expected) == expected
    gpus, images = (8, 64) if name == "arcface" else map(int, name.split("_")[3].split("x"))
    assert (recipe.batch_size, recipe.images_per_gpu) == (gpus * images, images)


def test_the_rates_are_scaled_with_the_batch_size():
    assert COSINE.replace(batch_size=32).lr == 0.0125
    assert COSINE.replace(batch_size=8).lr == 0.003125
    recipe = COSINE.replace(final_lr=0.01, warmup_lr=0.02)
    doubled = recipe.replace(batch_size=512, epochs=7)
    assert (doubled.lr, doubled.final_lr, doubled.warmup_lr) == (0.2, 0.02, 0.04)
    assert doubled == dataclasses.replace(
        recipe, batch_size=512, epochs=7, lr=0.2, final_lr=0.02, warmup_lr=0.04
    )
    kept = recipe.replace(batch_size=512, lr=0.3)
    assert (kept.lr, kept.final_lr, kept.warmup_lr) == (0.3, 0.01, 0.02)
    assert recipe.replace(batch_size=512, final_lr=0.005).final_lr == 0.005
    assert recipe.replace(batch_size=256) == recipe


def test_values_of_python_are_taken_as_those_of_json():
    recipe = FINETUNE.replace(lr=1, steps=[3, 4], scale=(1, 1), crop=None)
    assert type(recipe.lr) is float
    assert (recipe.steps, recipe.scale, recipe.crop) == ((3, 4), (1.0, 1.0), None)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"epoch": 3}, "no value 'epoch'; did you mean 'epochs'"),
        ({"zzz": 3}, "no value 'zzz'; it has optimizer, lr"),
        ({"epochs": 2.5}, "epochs has the wrong type: 2.5"),
        ({"epochs": "3"}, "epochs has the wrong type"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"scale": [0.1]}, "scale must have 2 items"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_wrong_values_of_python_are_refused(values, message):
    with pytest.raises(ArgumentError, match=message):
        FINETUNE.replace(**values)


def document(recipe):
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def test_info_shows_the_recipe(capsys):
    assert main(["info", "resnet50v1_sn_8x4"]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  recipe ")]
    assert [line.split()[1] for line in shown] == ["optimization:", "network:", "images:"]
    assert "lr 0.0125, batch_size 32, images_per_gpu 4, epochs 100, schedule step, " in shown[0]
    assert "steps 30/60/90, step_factor 0.1" in shown[0] and "nesterov no" in shown[0]
    assert "power" not in shown[0] and "warmup_lr" not in shown[0]  # they have no effect here
    assert "norm_momentum 0.997" in shown[1] and "statistics_batches" not in shown[1]
    assert "scale 0.08/1, ratio 0.75/1.33333" in shown[2]
    assert main(["info", "resnet50v1_sn_8x4", "--json"]) == 0
    entry = DOCUMENT["models"]["resnet50v1_sn_8x4"]
    assert json.loads(capsys.readouterr().out)["recipe"] == entry["recipe"]
    assert main(["info", "resnet34v2_sn"]) == 0
    assert "recipe" not in capsys.readouterr().out


def test_a_built_network_keeps_the_recipe():
    assert snzoo.create_model("resnet50v1_sn_8x1", width=8).spec.recipe.images_per_gpu == 1


@pytest.fixture
def checkpoint(tmp_path):
    """Write a checkpoint with these fields in its description."""

    def write(**fields):
        model = snzoo.create_model("resnet18v1_sn_clothing", width=8)
        described = {
            "model": "resnet18v1_sn_clothing",
            "arguments": {"width": 8},
            "classes": list(model.spec.classes),
            "preprocessing": model.spec.preprocessing.as_dict(),
        }
        path = tmp_path / "trained.safetensors"
        save_description(path, model.state_dict(), described | fields)
        return path

    return write


def test_a_checkpoint_has_its_own_recipe_or_none(checkpoint, tmp_path, capsys):
    path = checkpoint(recipe=document(FINETUNE.replace(lr=0.002)))
    assert ModelSpec.find(path).recipe == FINETUNE.replace(lr=0.002)
    assert snzoo.create_model(path).spec.recipe.lr == 0.002
    assert main(["info", str(path)]) == 0
    assert "optimization: optimizer sgd, lr 0.002," in capsys.readouterr().out
    assert ModelSpec.find(checkpoint()).recipe is None  # not that of the demo
    assert main(["info", str(path)]) == 0
    assert "recipe" not in capsys.readouterr().out
    bare = tmp_path / "bare.pth"
    torch.save({}, bare)
    assert ModelSpec.find("resnet50v1_sn_8x32", weights=bare).recipe is None


def test_a_wrong_recipe_in_a_checkpoint_is_refused_and_another_versions_left_out(checkpoint):
    with pytest.raises(ManifestError, match=r"trained\.safetensors.*recipe.*lr must be"):
        ModelSpec.find(checkpoint(recipe=document(FINETUNE) | {"lr": 0}))
    newer = document(FINETUNE) | {"cutmix": 0.2}
    older = {name: value for name, value in document(FINETUNE).items() if name != "mixup"}
    for recipe in (newer, older):
        assert snzoo.create_model(checkpoint(recipe=recipe)).spec.recipe is None


def test_descriptions_have_an_optional_recipe():
    described = {
        "model": "x",
        "arguments": {},
        "classes": "imagenet-1k",
        "preprocessing": DOCUMENT["preprocessing"]["imagenet"],
    }
    assert parse_description(described, "x").recipe is None
    whole = described | {"recipe": document(FINETUNE)}
    assert parse_description(whole, "x").recipe == FINETUNE
