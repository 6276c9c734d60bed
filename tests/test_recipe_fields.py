"""Each value of a recipe: what is refused, by the parser and by the schema alike."""

import dataclasses
import json
import math
from pathlib import Path

import jsonschema
import pytest

from snzoo.errors import ManifestError
from snzoo.manifest import load_manifest
from snzoo.recipes import Recipe
from snzoo.typed_json import convert

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((ROOT / "docs" / "weights_manifest.schema.json").read_text(encoding="utf-8"))
MANIFEST = load_manifest(ROOT / "weights_manifest.json")
COSINE = MANIFEST.models["resnet50v1_sn_8x32"].recipe
FINETUNE = MANIFEST.recipes["finetune"]

WRONG = {
    "lr": [0, -1, math.inf, math.nan],
    "step_factor": [0],
    "clip_norm": [0],
    "gate_clip_norm": [0],
    "final_radius": [-0.1, 1.1],
    "random_crop_epochs": [-1, 1.5],
    "ratio": [[0, 1], [2, 1]],
    "final_lr": [-1],
    "power": [-1],
    "warmup_epochs": [-1],
    "warmup_lr": [-1, math.inf],
    "weight_decay": [-1],
    "gate_lr_factor": [-1],
    "color_jitter": [[0, 0, -1]],
    "lighting_std": [-1],
    "center_crop_epochs": [-1, 1.5],
    "batch_size": [0, 1.5],
    "images_per_gpu": [0],
    "epochs": [0],
    "epochs_per_pass": [0, 1.5],
    "steps": [[0], [30, 30], [60, 30]],
    "statistics_batches": [0],
    "statistics_batch_size": [0],
    "resize": [0, 100],  # smaller than the crop
    "crop": [0, 257],
    "freeze": [-1, 5],
    "head": ["softmax"],
    "head_scale": [0],
    "head_margin": [-0.1],
    "momentum": [-0.1, 1],
    "ema_decay": [0, 1],
    "warmup_limit": [0, 1.1],
    "layer_decay": [0, 1.1],
    "scale": [[0, 1], [0.5, 1.1], [1, 0.5]],
    "drop_rate": [-0.1, 1.1],
    "norm_momentum": [-0.1, 1.1],
    "flip": [-0.1, 1.1],
    "label_smoothing": [-0.1, 1.1],
    "mixup": [-0.1],
    "optimizer": ["adam"],
    "schedule": ["linear"],
    "warmup": ["cosine"],
    "warmup_first_step": [2, True],
    "nesterov": [0],
    "decay": ["none"],
    "last_gamma": [0],
    "statistics": ["mean"],
    "lighting": [True],
    "drop_last": [None],
    "upright": [None],
}
OPTIONAL = {"gate_clip_norm", "final_radius", "random_crop_epochs", "epochs_per_pass"}
OPTIONAL |= {"head", "head_scale", "head_margin"}
# What relates two values, and numbers that JSON can't write, are beyond a schema.
BEYOND = (math.inf, [2, 1], [30, 30], [60, 30], 100, 257, [1, 0.5])


def test_every_value_of_a_recipe_is_tested_and_described():
    assert {*WRONG} == {field.name for field in dataclasses.fields(Recipe)}
    properties = SCHEMA["$defs"]["recipe"]["properties"]
    assert list(properties) == list(document(COSINE))
    required = [name for name in properties if name not in OPTIONAL]
    assert SCHEMA["$defs"]["recipe"]["required"] == required
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    table = page.partition("| field | meaning |\n| --- | --- |\n")[2].partition("\n\n")[0]
    assert [row.split("`")[1] for row in table.splitlines()] == list(document(COSINE))


@pytest.mark.parametrize("name, value", [(name, value) for name in WRONG for value in WRONG[name]])
def test_wrong_values_name_their_field(name, value):
    wrong = document(COSINE) | {name: value}
    with pytest.raises(ManifestError, match=name):
        convert(wrong, Recipe, "recipe")
    if value not in BEYOND and value == value:
        assert not fits_schema(wrong)


def test_a_recipe_must_be_whole():
    assert fits_schema(document(COSINE))
    for name in document(COSINE).keys() - OPTIONAL:
        part = {key: value for key, value in document(COSINE).items() if key != name}
        with pytest.raises(ManifestError, match=rf"recipe\.{name} is missing"):
            convert(part, Recipe, "recipe")
        assert not fits_schema(part)


def test_nesterov_needs_a_momentum():
    with pytest.raises(ManifestError, match="nesterov needs a momentum"):
        convert(document(FINETUNE) | {"momentum": 0}, Recipe, "recipe")


def document(recipe):
    return json.loads(json.dumps(dataclasses.asdict(recipe)))


def fits_schema(recipe):
    schema = SCHEMA | {"$ref": "#/$defs/recipe"}
    for name in ("required", "properties", "additionalProperties"):
        del schema[name]
    return jsonschema.Draft202012Validator(schema).is_valid(recipe)
