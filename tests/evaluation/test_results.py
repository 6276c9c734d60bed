"""The schema of results: written, read, and read from older versions."""

import copy
import json

import pytest

import snzoo
from snzoo.errors import FileError, ManifestError
from snzoo.evaluation import read_results
from snzoo.evaluation.results import Accuracy, Present, parse_results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNZOO_HOME", str(tmp_path_factory.mktemp("home")))
        return snzoo.evaluate(classes="present")


def test_results_are_read_as_they_were_written(results, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results.as_dict()))
    assert read_results(path) == results
    assert next(iter(results.as_dict().items())) == ("schema_version", 2)


def test_results_without_a_rule_of_resizing_have_pillows(results):
    document = json.loads(json.dumps(results.as_dict()))
    preprocessing = document["models"][0]["preprocessing"]
    assert preprocessing.pop("resampling") == "pillow-bilinear"
    assert parse_results(document) == results
    preprocessing["resampling"] = "torch7-bicubic"
    rule = parse_results(document).models[0].preprocessing.resampling
    assert rule == "torch7-bicubic"


def as_version_1(document):
    """What snzoo wrote before version 2."""
    old = copy.deepcopy(document) | {"schema_version": 1}
    for model in old["models"]:
        del model["present"], model["real"], model["top1"]["images"], model["top5"]["images"]
    return old


def test_version_1_is_read(results):
    old = as_version_1(json.loads(json.dumps(results.as_dict())))
    upgraded = parse_results(old).as_dict()
    expected = results.as_dict()
    expected["models"][0]["present"] = None
    assert json.dumps(upgraded) == json.dumps(expected)


@pytest.mark.parametrize("models", [None, 7, [7], [{}], [{"top1": 3}], [{"top1": {"correct": 1}}]])
def test_malformed_documents_of_version_1_are_refused_by_field(results, models):
    old = as_version_1(json.loads(json.dumps(results.as_dict()))) | {"models": models}
    with pytest.raises(ManifestError, match=r"results\.models"):
        parse_results(old)


def test_present_figures_are_checked(results):
    document = json.loads(json.dumps(results.as_dict()))
    (model,) = results.models
    plain = [Accuracy.count(a.correct, a.images) for a in (model.top1, model.top5)]
    assert model.present == Present(10, *plain)  # all ten classes have photos
    document["models"][0]["present"]["top1"]["correct"] = 150
    with pytest.raises(ManifestError, match=r"present\.top1: must be: 0 <= correct <= images"):
        parse_results(document)


def test_files_that_are_no_results_are_refused(tmp_path):
    with pytest.raises(FileError, match="No such file"):
        read_results(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ManifestError, match=r"x\.json is not what .* schema_version"):
        read_results(tmp_path / "x.json")
