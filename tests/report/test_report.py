"""The report page: what it says, what it escapes, and which documents are refused."""

import base64
import io
import json
import os
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from snzoo.cli import main
from snzoo.evaluation import results as schema
from snzoo.report.charts import histogram, ticks

ZOO = [("resnet101v2_sn_8x32", 78.81), ("resnet50v1_sn_8x32", 77.49), ("resnet50v1_gn", None)]
EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\u202e\n</style>"


@pytest.fixture
def zoo(make):
    names = make.names(40)
    models = [
        make.model(name, classes=names, published=value, top1=value or 76, seed=seed)
        for seed, (name, value) in enumerate(ZOO)
    ]
    return make.document(models)


def test_measured_and_published_figures_are_compared(report, zoo, parse):
    zoo["models"][1]["top1"] = {
        "correct": 1532,
        "percent": 76.6,
        "interval95": [74.6894, 78.4083],
        "published": 77.49,
        "agrees": False,
    }
    page = parse(report(zoo))
    rows = {row[2].split("8x32")[0]: row[2] for row in page.all("tr")}
    first, second = rows["resnet101v2_sn_"], rows["resnet50v1_sn_"]
    assert "1,57678.80" in first and "78.81−0.01 agrees" in first
    assert "1,53276.6074.69 to 78.41" in second and "77.49−0.89 differs" in second
    lead = next(
        text for tag, attributes, text in page.elements if attributes.get("class") == "lead"
    )
    assert "1 of 2 models reproduce the accuracy published for the same images." in lead
    assert "resnet50v1_sn_8x32 differs in top-1." in lead
    assert "No accuracy was published for 1 model." in lead


def test_figures_published_for_other_images_may_differ(report, make):
    model = make.model("a", classes=make.names(5), published=99.5, same=False)
    page = report(make.document([model]))
    assert "for other images" in page and "top-1 lies outside the 95\u00a0% interval." in page
    assert 'class="differs"' not in page and "outside</span>" in page
    assert "50,000 images of imagenet-1k-val" in page


@pytest.mark.slow
@pytest.mark.parametrize("models", [1, 2, 12])
@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_all_models_and_classes_are_listed(report, make, models, classes, parse):
    names = make.names(classes)
    some = [make.model(f"m{i}", classes=names, images=7, seed=i) for i in range(models)]
    page = parse(report(make.document(some)))
    headings = [text for _, _, text in page.all("h2")]
    assert headings[1:-1] == [model["name"] for model in some]
    lists = [text for _, _, text in page.all("details") if text.startswith("All ")]
    assert len(lists) == models
    for model, text in zip(some, lists, strict=True):
        for c in model["per_class"]:
            assert f"{c['index']}{c['name']}7{c['top1']}{100 * c['top1'] / 7:.1f}" in text


def test_the_lowest_and_the_highest_of_many_classes_have_bars(report, make, parse):
    model = make.model("a", classes=make.names(100))
    ordered = sorted(model["per_class"], key=lambda c: (c["top1"], c["index"]))
    page = parse(report(make.document([model])))
    lowest = next(text for _, _, text in page.all("table") if "10 classes with the lowest" in text)
    places = [lowest.index(f"{c['name']}{2 * c['top1']:.1f}") for c in ordered[:10]]
    assert places == sorted(places)
    assert f"{ordered[-1]['top1']} of 50" in next(
        text for _, _, text in page.all("table") if "10 classes with the highest" in text
    )
    bars = [text for tag, _, text in page.elements if tag == "title" and "classes" in text]
    assert sum(int(re.search(r": (\d+) classes", text)[1]) for text in bars) == 100


def test_settings_and_left_out_images_are_shown(report, zoo, parse):
    zoo["pixels"] = {"exact": False, "decoder": "someone's 7", "resize": "draft"}
    zoo["run"] |= {"seconds": 7322.4, "device": "NVIDIA H100", "precision": "bf16", "resumed": True}
    zoo["errors"] = [f"can't read /data/val/{i}.JPEG: truncated" for i in range(250)]
    text = " ".join(parse(report(zoo)).text)
    for words in ("approximately", "NVIDIA H100", "bf16", "2\u00a0h 2\u00a0min", "18.2 images/s"):
        assert words in text
    assert "2.14.1" in text and "someone&#x27;s" not in text and "someone's 7" in text
    assert "250 images that could not be read" in text and "/data/val/199.JPEG" in text
    assert "/data/val/200.JPEG" not in text and "50 more" in text


def test_real_labels_and_present_classes_are_shown_if_counted(report, zoo, parse):
    page = report(zoo)
    assert "exactly those of the reference transform" in page and "approximately" not in page
    assert "ReaL" not in page
    real = {"correct": 1500, "percent": 83.33, "interval95": [81.5, 85.0], "images": 1800}
    zoo["models"][0]["real"] = real
    top1 = {"correct": 9, "images": 10, "percent": 90.0, "interval95": [60.0, 98.0]}
    zoo["models"][0]["present"] = {"classes": 40, "top1": top1, "top5": top1}
    page = parse(report(zoo))
    rows = [row[2] for row in page.all("tr")]
    assert any("1,500of 1,80083.33" in row for row in rows)
    assert "ReaL top-1, %" in rows[0]
    words = "top-1 90.00\u00a0%, top-5 90.00\u00a0%, when only the 40 classes in the data compete"
    assert words in " ".join(page.text)


def test_thumbnails_are_the_images(report, make, tmp_path, parse):
    names = ["cat", "cow", "dog"]
    colors = make.photos(tmp_path / "photos", names)
    model = make.model("a", classes=names)
    document = make.document([model], path="/data", classes=names)
    page = parse(report(document, "--images", tmp_path / "photos"))
    images = {attributes["alt"]: attributes for _, attributes, _ in page.all("img")}
    assert images.keys() == {name for pair in model["confused"] for name in pair["examples"]}
    for name, attributes in images.items():
        start, content = attributes["src"].split(",")
        assert start == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.format == "JPEG" and max(image.size) < 128
            pixel = image.getpixel((60, 60))
        assert max(abs(a - b) for a, b in zip(pixel, colors[name], strict=True)) < 8


def test_no_picture_is_read_from_a_path_in_the_document(report, make, tmp_path):
    names = ["cat", "dog"]
    make.photos(tmp_path / "photos", names)
    document = make.document([make.model("a", classes=names)], classes=names)
    document["data"]["path"] = str(tmp_path / "photos")
    page = report(document)
    assert "<img" not in page and "snzoo report RESULTS --images PATH" in page
    document["data"]["path"] = None  # but the bundled photos have other classes
    page = report(document)
    assert "<img" not in page and "The images are not shown" in page


def test_missing_images_are_counted(report, refused, make, tmp_path, parse):
    names = ["cat", "dog"]
    make.photos(tmp_path / "photos", names)
    (tmp_path / "photos" / "cat" / "0.png").write_bytes(b"no image")
    (tmp_path / "photos" / "dog" / "1.png").unlink()
    document = make.document([make.model("a", classes=names)], classes=names)
    page = parse(report(document, "--images", tmp_path / "photos"))
    assert len(page.all("img")) == 4
    assert "2 of 6 images could not be found or read, e.g. cat/0.png." in " ".join(page.text)
    assert "none" in refused(tmp_path / "results.json", "--images", tmp_path / "none")


def test_only_images_of_the_recorded_class_are_shown(report, make, tmp_path, parse):
    names = ["cat", "dog"]
    make.photos(tmp_path / "photos", names)
    model = make.model("a", classes=names)
    for pair in model["confused"]:
        other = names[1 - pair["label"]]
        pair["examples"] = [f"{other}/0.png", "../secret.png", f"{pair['label_name']}/1.png"]
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    document = make.document([model], classes=names)
    page = parse(report(document, "--images", tmp_path / "photos"))
    assert sorted(a["alt"] for _, a, _ in page.all("img")) == ["cat/1.png", "dog/1.png"]


def spoil(value):
    """Replace every text by one that would be a script, if it were not escaped."""
    if isinstance(value, dict):
        return {key: spoil(item) for key, item in value.items()}
    if isinstance(value, list):
        return [spoil(item) for item in value]
    return EVIL if isinstance(value, str) else value


def hostile(make):
    model = make.model("a", classes=make.names(30), published=70.0)
    document = spoil(make.document([model, model | {"weights": "w", "same_images": False}]))
    document["data"]["classes"] = "imagenet-1k"
    document["versions"][EVIL] = EVIL
    document["errors"] = [EVIL, "lone surrogate \ud800"]
    for model in document["models"]:
        model["preprocessing"]["channel_order"] = "RGB"
    return document


def test_text_of_the_document_stays_text(report, make, parse):
    source = report(hostile(make))
    page = parse(source)
    assert not page.all("script", "img", "iframe", "base", "form", "object")
    assert {
        name for _, attributes, _ in page.elements for name in attributes if name[:2] == "on"
    } == set()
    assert len(page.all("style")) == 1 and "\u202e" not in source and "\ud800" not in source
    assert "alert(1)" in " ".join(page.text) and r"\u202e" in " ".join(page.text)


@pytest.mark.parametrize("bad", [False, True])
def test_the_page_loads_nothing(report, make, zoo, bad, parse):
    source = report(hostile(make) if bad else zoo)
    page = parse(source)
    (policy,) = [a["content"] for _, a, _ in page.all("meta") if "http-equiv" in a]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    for _, attributes, _ in page.elements:
        for name in ("src", "href", "srcset", "data", "action", "poster", "background", "style"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:")), (name, value)
    style = page.all("style")[0][2]
    assert "url(" not in style and "@import" not in style and "//" not in style


def test_the_page_is_accessible(report, make, tmp_path, parse):
    names = make.names(30)
    make.photos(tmp_path / "photos", names)
    model = make.model("a", classes=names, published=76.0)
    page = parse(report(make.document([model], classes=names), "--images", tmp_path / "photos"))
    assert page.all("html")[0][1]["lang"] == "en" and page.all("title")[0][2]
    levels = [int(tag[1]) for tag, *_ in page.all("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for _, attributes, _ in page.all("a")]
    assert links and {link.removeprefix("#") for link in links} <= set(ids)
    assert all("scope" in attributes for _, attributes, _ in page.all("th"))
    assert all(attributes["alt"] for _, attributes, _ in page.all("img")) and page.all("img")
    plots = [attributes for _, attributes, _ in page.elements if attributes.get("role") == "img"]
    assert len(plots) == 3 and all(attributes["aria-label"] for attributes in plots)


def replaced(document, place, value):
    *path, last = place
    for step in path:
        document = document[step]
    if value is KeyError:
        del document[last]
    else:
        document[last] = value


REAL = {"correct": 8, "images": 8, "percent": 100.0, "interval95": [60.0, 100.0]}
PAIR = {"label": 0, "label_name": "a", "predicted": 1, "predicted_name": "b", "count": 1}
PAIR |= {"examples": []}


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (["schema_version"], 3, "schema_version must be one of [1, 2]"),
        (["schema_version"], True, "schema_version"),
        (["schema_version"], KeyError, "schema_version"),
        (["run"], KeyError, "results.run is missing"),
        (["run", "seconds"], "13", "results.run.seconds has the wrong type"),
        (["run", "compile"], 0, "results.run.compile"),
        (["run", "color"], "red", "unknown field 'color'"),
        (["run", "seconds"], -1, "results.run: "),
        (["run", "seconds"], float("nan"), "results.run.seconds"),
        (["pixels", "exact"], None, "results.pixels.exact"),
        (["data", "classes"], "imagenet-21k", "results.data.classes"),
        (["versions", "torch"], 2, "results.versions.torch"),
        (["errors"], [1], "results.errors[0]"),
        (["models"], [], "results: must be: 1 to 100 models"),
        (["models"], {}, "results.models has the wrong type"),
        (["models", 1, "top1", "percent"], 101.0, "results.models[1].top1: must be"),
        (["models", 1, "top1", "interval95"], [1, 2, 3], "interval95 must have 2 items"),
        (["models", 1, "top1", "agrees"], None, "agrees goes with published"),
        (["models", 1, "top1", "correct"], -1, "results.models[1].top1: must be: 0 <= correct"),
        (["models", 1, "calibration_error"], 3, "calibration_error"),
        (["models", 1, "preprocessing", "crop"], 0, "preprocessing: crop 0"),
        (["models", 1, "per_class", 3, "images"], 0, "per_class[3]"),
        (["models", 1, "per_class", 3, "name"], ["x" * 10_000], "per_class[3].name"),
        (["models", 1, "confused", 0, "examples"], ["a"] * 4, "at most 3 examples"),
        (["models", 1, "real"], {"correct": 1}, "results.models[1].real.images is missing"),
        (["models", 1, "real"], REAL | {"correct": 9}, "0 <= correct <= images"),
        (["models", 1, "top1", "percent"], 77.4, "percent as counted"),
        (["models", 1, "per_class", 3, "top5"], 0, "0 <= top1 <= top5 <= images"),
        (["models", 1, "confused", 0, "count"], 0, "count >= 1"),
        (["models", 1, "confused"], [PAIR] * 21, "at most 20 confused pairs"),
    ],
)
def test_a_malformed_document_is_refused_by_field(refused, zoo, tmp_path, place, value, words):
    replaced(zoo, place, value)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(zoo))
    assert words in refused(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe\xfd", "not JSON"),
        (b"9" * 5000, "not JSON"),
        (b"[]", "schema_version"),
        (b"null", "schema_version"),
    ],
)
def test_a_file_that_is_no_document_is_refused(refused, tmp_path, content, words):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    message = refused(path)
    assert words in message and str(path) in message


def test_what_is_no_file_or_too_large_a_one_is_refused(refused, tmp_path, monkeypatch):
    assert "No such file" in refused(tmp_path / "missing.json")
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refused(tmp_path / "pipe")
    monkeypatch.setattr(schema, "LARGEST", 100)
    (tmp_path / "large.json").write_bytes(b" " * 101)
    assert "larger than" in refused(tmp_path / "large.json")


def test_output_that_cannot_be_written_is_refused(refused, zoo, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(zoo))
    before = path.read_bytes()
    assert "can't write" in refused(path, "--output", tmp_path / "none" / "page.html")
    assert "Is a directory" in refused(path, "--output", tmp_path)
    assert "No space left" in refused(path, "--output", "/dev/full")
    assert "holds the results" in refused(path, "--output", path)
    assert "named like a photo" in refused(path, "--output", tmp_path / "photo.JPG")
    path.rename(tmp_path / "results.html")  # where the page would go
    assert "holds the results" in refused(tmp_path / "results.html")
    assert (tmp_path / "results.html").read_bytes() == before


def test_a_failed_report_keeps_the_old_page(refused, report, zoo, tmp_path):
    page = report(zoo)
    del zoo["run"]
    (tmp_path / "results.json").write_text(json.dumps(zoo))
    refused(tmp_path / "results.json")
    assert (tmp_path / "results.html").read_text(encoding="utf-8") == page


def test_output_names_the_page(report, zoo, tmp_path, capsys):
    page = report(zoo)
    assert (
        main(["report", str(tmp_path / "results.json"), "--output", str(tmp_path / "p.htm")]) == 0
    )
    assert capsys.readouterr().out == f"{tmp_path / 'p.htm'}\n"
    assert (tmp_path / "p.htm").read_text(encoding="utf-8") == page


def test_an_evaluation_of_the_demo_can_be_reported(tmp_path, capsys, parse):
    document = tmp_path / "results.json"
    assert main(["eval", "--json", str(document)]) == 0
    assert main(["report", str(document)]) == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'results.html'}\n")
    page = parse((tmp_path / "results.html").read_text(encoding="utf-8"))
    figures = json.loads(document.read_text())["models"][0]
    assert any(f"{figures['top1']['percent']:.2f}" in row[2] for row in page.all("tr"))
    shown = [attributes["alt"] for _, attributes, _ in page.all("img")]
    assert shown == [name for pair in figures["confused"] for name in pair["examples"]]


values = st.lists(st.floats(0, 100), min_size=1, max_size=20)


@given(values, st.booleans())
def test_ticks_are_few_even_and_around_the_values(some, whole):
    axis = ticks(some, whole=whole)
    assert 2 <= len(axis) <= 6
    assert axis[0] <= min(some) + 1e-6 and max(some) <= axis[-1] + 1e-6
    steps = {round(b - a, 6) for a, b in pairwise(axis)}
    assert len(steps) == 1 and axis[0] >= 0 and axis[-1] <= max(100, axis[0] + 1)


def test_bins_of_the_histogram_hold_their_lower_edge():
    text = histogram([0, 4.9, 5, 99.9, 100], label="")
    assert "0 to 5 %: 2 classes" in text and "5 to 10 %: 1 classes" in text
    assert "95 to 100 %: 2 classes" in text
