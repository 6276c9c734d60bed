"""Evaluations from Python: options, records, outputs, networks that are left as they were."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import snzoo
from snzoo.errors import ArgumentError, DataError, UnknownModelError
from snzoo.evaluation import EvaluationConfig, Results, run_evaluation
from snzoo.evaluation.config import NOT_IN_IDENTITY
from snzoo.evaluation.records import Journal
from snzoo.evaluation.run import choose_models
from snzoo.inference import Network
from snzoo.report.page import make_report
from snzoo.report.thumbnails import Thumbnails

PHOTOS = Path(snzoo.__file__).parent / "demo" / "photos"
DEMO = "resnet18v1_sn_clothing"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SNZOO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return snzoo.create_model("resnet18v1_sn", width=8, num_classes=12)


def test_the_demo_is_the_default():
    results = snzoo.evaluate()
    (found,) = results.models
    assert isinstance(results, Results) and found.name == DEMO
    assert found.top1.agrees and found.top1.images == 149


def test_a_network_and_its_name_give_the_same(tmp_path):
    network = snzoo.create_model(DEMO, pretrained=True)
    modes = [module.training for module in network.modules()]
    strides = [parameter.stride() for parameter in network.parameters()]
    snzoo.evaluate(network, PHOTOS, channels_last=True)
    by_network = snzoo.evaluate(network, PHOTOS, json=tmp_path / "results.json")
    assert [module.training for module in network.modules()] == modes
    assert [parameter.stride() for parameter in network.parameters()] == strides
    by_name = snzoo.evaluate([DEMO], str(PHOTOS))
    assert by_network.models == by_name.models
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == json.loads(json.dumps(by_network.as_dict()))


def test_another_rule_of_resizing_is_used_and_recorded(tmp_path):
    network = snzoo.create_model(DEMO, pretrained=True).eval()
    given = network.spec.preprocessing.replace(resampling="torch7-bicubic")
    network.spec = dataclasses.replace(network.spec, preprocessing=given)
    results = snzoo.evaluate(network, PHOTOS)
    page = make_report(results, Thumbnails())
    (found,) = results.models
    assert results.pixels.resize.startswith("numpy ") and found.top1.images == 149
    assert found.preprocessing.resampling == "torch7-bicubic"
    assert "bicubic as in Torch7, not antialiased" in page
    photos = sorted(PHOTOS.glob("*/*"))[:20]
    ranked = snzoo.predict(network, photos)
    transform = snzoo.create_transform(network)
    with torch.inference_mode():
        logits = network(torch.stack([transform(photo) for photo in photos]))
    assert [p.indices[0] for p in ranked] == logits.argmax(1).tolist()


def test_networks_with_classes_of_ones_own(model, samples):
    results = snzoo.evaluate(model, samples)
    assert results.data.classes == tuple(f"class {i}" for i in range(12))
    assert results.data.path is None and results.models[0].images == 12


def test_models_of_the_same_name_are_told_apart(model, samples):
    other = snzoo.create_model("resnet18v1_sn", width=8, num_classes=12)
    results = snzoo.evaluate([model, other, model], samples)
    names = [found.name for found in results.models]
    assert names == ["resnet18v1_sn (1)", "resnet18v1_sn (2)"]  # one of them was named twice


def test_folders_of_save_pretrained_are_evaluated(tmp_path):
    network = snzoo.create_model(DEMO, pretrained=True)
    snzoo.save_pretrained(network, tmp_path / "mine")
    (found,) = snzoo.evaluate(tmp_path / "mine", PHOTOS).models
    assert found.weights == str(tmp_path / "mine")
    assert found.top1.correct == snzoo.evaluate().models[0].top1.correct


OTHER = {
    "models": DEMO,
    "weights": "x.pth",
    "data": "x",
    "classes": "present",
    "labels": "real",
    "on_error": "skip",
    "check": True,
    "tolerance": 1.0,
    "device": "cpu",
    "batch_size": 3,
    "workers": 7,
    "precision": "bf16",
    "compile": True,
    "channels_last": True,
    "decode": "fast",
    "resume": True,
    "json": "x.json",
    "predictions": "x.csv",
}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(EvaluationConfig)])
def test_every_option_is_in_the_identity_of_a_record_or_known_not_to_matter(field):
    other = EvaluationConfig(**{field: OTHER[field]})
    changed = other.identity() != EvaluationConfig().identity()
    assert changed == (field not in NOT_IN_IDENTITY)


@pytest.mark.parametrize(
    "options, resumed",
    [
        ({}, True),
        ({"workers": 1, "on_error": "skip", "tolerance": 1.0}, True),
        ({"device": "cpu"}, True),
        ({"batch_size": 16}, True),  # the default
        ({"batch_size": 3}, False),
        ({"decode": "fast"}, False),
        ({"precision": "bf16"}, False),
        ({"channels_last": True}, False),
        ({"classes": "present"}, False),
    ],
    ids=str,
)
def test_records_are_resumed_by_runs_that_would_compute_the_same(
    model, samples, monkeypatch, options, resumed
):
    expected = snzoo.evaluate(model, samples, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda self: None)  # as if it had been killed at the end
        snzoo.evaluate(model, samples, device="cpu", **({} if resumed else options))
    options = options if resumed else {}
    said = []
    config = EvaluationConfig(model, data=samples, resume=True, **{"device": "cpu"} | options)
    results = run_evaluation(config, report=said.append)
    assert results.run.resumed == resumed and len(said) == (not resumed)
    assert results.models == expected.models


def test_records_of_other_weights_and_images_are_not_resumed(model, samples, monkeypatch, photos):
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "remove", lambda self: None)
        snzoo.evaluate(model, samples)
    model.fc.bias.data[0] += 1
    assert not snzoo.evaluate(model, samples, resume=True).run.resumed
    model.fc.bias.data[0] -= 1
    shutil.copy(photos / "01.jpg", photos / "00.jpg")
    assert not snzoo.evaluate(model, samples, resume=True).run.resumed


@pytest.mark.parametrize(
    "options, words",
    [
        ({"precision": "fp8"}, "precision must be one of fp32, tf32, bf16, fp16, got 'fp8'"),
        ({"decode": "quick"}, "decode must be one of exact, fast"),
        ({"classes": "some"}, "classes must be one of all, present"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1, got 0"),
        ({"workers": True}, "workers"),
        ({"tolerance": float("nan")}, "tolerance must be from 0 to 100"),
        ({"check": True, "decode": "fast"}, "--decode fast"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(ArgumentError, match=words):
        EvaluationConfig(**options)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="presicion"):
        snzoo.evaluate(presicion="bf16")


def test_wildcards_and_names():
    def names(*models):
        return [candidate.spec.name for candidate in choose_models(EvaluationConfig(models))]

    others = ["*clothing", "face_*"]
    zoo = snzoo.list_models("*_sn_*", pretrained=True, exclude_filters=others)
    assert names("*_sn_*") == zoo  # those of ImageNet alone
    assert names("*clothing") == [DEMO] == names(DEMO, "*_sn_*")
    with pytest.raises(UnknownModelError, match="no model with weights matches 'vgg"):
        names("vgg*")
    with pytest.raises(ArgumentError, match="different classes"):
        names("resnet50v1_sn_8x32", DEMO)


def test_present_classes_in_class_folders(tmp_path):
    for name in ("hat", "shoes"):
        shutil.copytree(PHOTOS / name, tmp_path / "two" / name)
    (found,) = snzoo.evaluate(DEMO, tmp_path / "two", classes="present").models
    assert found.present.classes == 2 and found.present.top5.correct == found.images
    assert found.present.top1.correct >= found.top1.correct
    assert snzoo.evaluate(DEMO, tmp_path / "two").models[0].present is None


def test_images_that_cannot_be_read(model, samples, photos):
    (photos / "04.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"04\.jpg"):
        snzoo.evaluate(model, samples)
    assert model.training  # as it was
    results = snzoo.evaluate(model, samples, on_error="skip")
    assert len(results.errors) == 1 and results.models[0].images == 11


def test_the_reference_does_not_turn_photos(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, options in (("tagged", {"exif": exif}), ("plain", {})):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "x.png", **options)
        (tmp_path / name / "list.txt").write_text("x.png 0\n")
    models = [
        snzoo.evaluate(model, tmp_path / name / "list.txt").models for name in ("tagged", "plain")
    ]
    assert models[0] == models[1]


def test_networks_of_another_structure_are_other_runs():
    """The weights fit all four networks, but the options change the logits."""
    digests = set()
    for options in ({}, {"stride_on": "1x1"}, {"output_stride": 8}, {"stem_pool": "ceil"}):
        torch.manual_seed(0)
        model = snzoo.create_model("resnet50v1_bn", width=8, num_classes=2, **options)
        digests.add(Network(model, model.spec.preprocessing).digest())
    assert len(digests) == 4


def test_a_head_with_another_number_of_logits_is_refused():
    model = snzoo.create_model("resnet18v1_sn_clothing", pretrained=True)
    model.fc = torch.nn.Linear(model.num_features, 7)
    with pytest.raises(ValueError, match="returns 7 logits for 10 classes"):
        snzoo.evaluate(model)


def test_a_misspelled_option_is_named():
    with pytest.raises(TypeError, match="takes no argument 'batchsize'; did you mean 'batch_size'"):
        snzoo.evaluate("resnet18v1_sn_clothing", batchsize=3)
