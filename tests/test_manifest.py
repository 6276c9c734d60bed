"""The manifest: what it holds, that its schema and its parser agree, what they refuse."""

import copy
import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest

from snzoo.errors import ManifestError
from snzoo.manifest import load_manifest, parse_manifest
from snzoo.preprocessing import FACES
from snzoo.registry import get_info, list_models

ROOT = Path(__file__).parents[1]
DOCUMENT = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))
SCHEMA = json.loads((ROOT / "docs" / "weights_manifest.schema.json").read_text(encoding="utf-8"))


def test_the_manifest_fits_its_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(DOCUMENT, SCHEMA)


def test_the_zoo_is_complete():
    assert list_models(norm="sn", pretrained=True)[:7] == [
        "resnet101v2_sn_8x32",
        "resnet101v1_sn_8x32",
        "resnet50v2_sn_8x32",
        "resnet50v1_sn_8x32",
        "resnet50v1_sn_8x32_step",
        "resnet50v1_sn_8x4",
        "resnet50v1_sn_8x1",
    ]
    assert len(list_models("resnet50v1_ssn_*", pretrained=True)) == 5
    assert len(list_models("resnet50v1_bn_*", pretrained=True)) == 5


def test_the_face_networks_are_those_that_were_published():
    faces = {name: e for name, e in load_manifest().models.items() if name.startswith("face_")}
    assert {name: entry.identification[0].rank1 for name, entry in faces.items()} == {
        "face_resnet100_syncsn_16x32": 98.51,
        "face_resnet100_sn_10x52": 98.10,
        "face_resnet100_bn_8x64": 98.29,
        "face_resnet50_syncsn_16x32": 97.94,
        "face_resnet50_syncsn_8x64_argmax": 98.26,
        "face_resnet50_sn_8x64": 97.84,
        "face_resnet50_bn_8x64": 97.59,
    }
    assert {entry.preprocessing for entry in faces.values()} == {FACES}
    addresses = [url for entry in faces.values() for url in (*entry.file.urls, *entry.file.pages)]
    assert len(addresses) == len(set(addresses)) == 6 * 3 + 1


def test_no_checksum_is_claimed_for_files_published_without_one():
    for name, entry in load_manifest().models.items():
        if name.startswith(("resnet50v1_sn_8x", "resnet50v2_sn_8x", "resnet101", "face_")):
            assert (entry.file.sha256, entry.file.md5, entry.file.size) == (None, None, None)
            finetuned_elsewhere = "_8x2" in name or name.endswith(("_fpn", "_c4"))
            assert entry.license == (None if finetuned_elsewhere else "CC-BY-NC-4.0")


@pytest.mark.parametrize("name", list(DOCUMENT["models"]))
def test_parameter_counts_are_those_of_the_networks(name):
    entry = get_info(name)
    buffers = ("running_mean", "running_var", "num_batches_tracked", "_fixed", "radius")
    counts = [v.numel() for key, v in entry.layout().items() if not key.endswith(buffers)]
    assert sum(counts) == entry.num_params


@pytest.mark.parametrize("name", list(DOCUMENT["models"]))
def test_fingerprints_and_comparison_fit_what_they_describe(name):
    entry = get_info(name)
    layout = entry.layout()
    for key, values in entry.file.fingerprint.items():
        assert layout[key].shape == (len(values),)
    comparison = load_manifest().comparison
    assert all(len(row) == len(comparison.settings) for row in comparison.top1.values())


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("schema_version", 6, "schema_version must be 5"),
        ("models.resnet50v1_bn_msra.file.sha265", "0" * 64, "unknown field 'sha265'"),
        ("models.resnet50v1_bn_msra.file.sha256", "A" * 64, "64 lower-case"),
        ("models.resnet50v1_bn_msra.file.md5", "12", "32 lower-case"),
        ("models.resnet50v1_bn_msra.file.size", 0, "size must be positive"),
        ("models.resnet50v1_bn_msra.file.size", True, "size has the wrong type"),
        ("models.resnet50v1_bn_msra.file.urls", ["file:///etc/passwd"], "not an http"),
        ("models.resnet50v1_bn_msra.file.urls", ["https:///no-host"], "not an http"),
        ("models.resnet50v1_bn_msra.name", "x", "unknown field 'name'"),
        ("models.resnet50v1_bn_msra.file.name", "../weights.pth", "not a plain file name"),
        ("models.resnet50v1_bn_msra.file.bundled", "demo/../../x", "not a path inside"),
        ("models.resnet50v1_bn_msra.file.bundled", "/etc/passwd", "not a path inside"),
        ("models.resnet50v1_bn_msra.file.format", "joblib", "format must be one of"),
        ("models.resnet50v1_bn_msra.preprocessing", "other", "preprocessing must be one of"),
        ("models.resnet50v1_bn_msra.classes", "imagenet-22k", "classes"),
        ("models.resnet50v1_bn_msra.published", [{"dataset": "x"}], "images is missing"),
        ("models.a/b", DOCUMENT["models"]["resnet50v1_bn_msra"], "letters, digits"),
        ("models.x", [], "models.x must be an object"),
        ("preprocessing.msra.std", [1, 0, 1], "std must be positive"),
        ("preprocessing.msra.mean", [1, 2], "must have 3 items"),
        ("preprocessing.msra.mean", [1, 2, float("nan")], "wrong type"),
        ("models.resnet50v1_bn_msra.preprocessing", [], "preprocessing must be one of"),
        ("preprocessing.msra.mean", [1, 2, 10**400], "wrong type"),
        ("preprocessing.msra.resampling", "nearest", "resampling must be one of"),
        ("preprocessing.msra.crop", 300, "crop 300 must be between"),
        ("models.resnet50v1_bn_msra.published.0.top1", 250, "top1"),
        ("models.resnet50v1_bn_msra.published.0.images", 0, "images must be positive"),
        ("models.face_resnet50_sn_8x64.identification.0.rank1", 101, "rank1"),
        ("models.face_resnet50_sn_8x64.identification.0.probes", 0, "probes must be positive"),
        ("models.face_resnet50_sn_8x64.identification.0.distractors", -1, "distractors at least 0"),
        ("models.face_resnet50_sn_8x64.identification", [{"dataset": "x"}], "probes is missing"),
        ("demo.sha256", "x", "64 lower-case"),
        ("demo.bundled", "../photos", "not a path inside"),
        ("demo.model", "other", "demo.model must be one of"),
        ("preprocessing", {}, "preprocessing.imagenet"),
        ("surprise", 1, "unknown field 'surprise'"),
        ("recipes.finetune.epochs", 0, "recipes.finetune: epochs must be at least 1"),
        ("recipes.finetune.cutmix", 0.2, "recipes.finetune has an unknown field 'cutmix'"),
        ("recipes.a/b", DOCUMENT["recipes"]["finetune"], "recipe's name is letters, digits"),
        ("recipes.resnet50v1_bn_msra", DOCUMENT["recipes"]["finetune"], "a model has this name"),
        ("recipes", [], "recipes has the wrong type"),
        ("models.resnet50v1_sn_8x1.recipe.lr", "fast", "resnet50v1_sn_8x1.recipe.lr has the wrong"),
        ("models.resnet50v1_sn_8x1.recipe", {}, "recipe.optimizer is missing"),
    ],
)
def test_malformed_manifests_are_refused_with_the_field_named(path, value, message):
    document = copy.deepcopy(DOCUMENT)
    *parents, last = path.split(".")
    target = document
    for key in parents:
        target = target[int(key) if key.isdecimal() else key]
    target[last] = value
    with pytest.raises(ManifestError, match=message):
        parse_manifest(document)
    # What relates two fields, and numbers that JSON can't write, are beyond a schema.
    relates = ("models.resnet50v1_bn_msra.preprocessing", "demo.model", "preprocessing.msra.crop")
    relates += ("recipes.resnet50v1_bn_msra",)
    if path not in relates and "nan" not in str(value) and len(str(value)) < 400:
        assert not jsonschema.Draft202012Validator(SCHEMA).is_valid(document)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_older_versions_are_read(version):
    document = copy.deepcopy(DOCUMENT) | {"schema_version": version}
    del document["recipes"]
    for fields in document["models"].values():
        fields.pop("recipe", None)
        fields.pop("identification", None)
        if version == 1:
            fields["licence"] = fields.pop("license")
            fields["parameters"] = fields.pop("num_params")
    if version == 1:
        document["demo"]["licence"] = document["demo"].pop("license")
    old, new = parse_manifest(document), parse_manifest(DOCUMENT)
    assert old.recipes == {} and old.demo == new.demo
    for name, entry in new.models.items():
        assert old.models[name] == dataclasses.replace(entry, recipe=None, identification=())


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000, "\xff"])
def test_files_that_are_no_manifest_are_refused(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(ManifestError, match=str(path)):
        load_manifest(path)


def test_a_missing_manifest_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SNZOO_MANIFEST", str(tmp_path / "none.json"))
    with pytest.raises(ManifestError, match=r"none\.json: No such file"):
        list_models()


def test_a_url_that_no_parser_takes_is_refused():
    document = copy.deepcopy(DOCUMENT)
    document["models"]["resnet50v1_bn_msra"]["file"]["urls"] = ["http://[bad"]
    with pytest.raises(ManifestError, match="not an http"):
        parse_manifest(document)
