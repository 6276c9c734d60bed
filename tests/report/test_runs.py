"""The page of training runs: its curves and figures, and which run folders are refused."""

import json
import math
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snzoo.cli import main
from snzoo.evaluation.results import Accuracy
from snzoo.report import run_log
from snzoo.report.charts import ticks
from snzoo.report.curves import MOST_POINTS, Curve, line_chart, thin

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\u202e\n</style>"


def curves(page):
    """The (class, points) of the lines of each chart, in the units of its axes."""
    found = []
    for plot in page.split('<div class="plot')[1:]:
        plot = plot[: plot.index("</div>")]
        numbers = re.findall(r'text-anchor="(end|\w+)">([^<]+)</text>', plot)
        lines = len(re.findall('class="grid"', plot))
        up, across = (
            [float(text) for _, text in part] for part in (numbers[:lines], numbers[lines:])
        )
        box = [float(n) for n in re.search(r'viewBox="0 0 (\d+) (\d+)"', plot).groups()]
        paths = re.findall(r'<path class="([^"]+)" d="M([^"]+)"/>', plot)
        points = [[tuple(map(float, p.split())) for p in d.split("L")] for _, d in paths]
        found.append(
            [
                (
                    style,
                    [
                        (x / box[0] * across[-1], up[-1] - y / box[1] * (up[-1] - up[0]))
                        for x, y in line
                    ],
                )
                for (style, _), line in zip(paths, points, strict=True)
            ]
        )
    return found


def near(points):
    return [pytest.approx(point, rel=2e-3, abs=2e-3) for point in points]


@pytest.fixture
def finished(make):
    """The lines of a run of three epochs; the second is the best."""
    losses, rates = [2.5, 2.0, 1.2, 1.0, 0.9, 0.8], [0.004, 0.008, 0.01, 0.006, 0.003, 0]
    lines = [
        make.step(5 * i, loss, lr=lr, speed=90 + i)
        for i, (loss, lr) in enumerate(zip(losses, rates, strict=True), 1)
    ]
    lines.insert(2, make.epoch(1, 100, loss=1.4, best=True))
    lines.insert(5, make.epoch(2, 150, loss=0.9, best=True))
    lines += [make.epoch(3, 140, loss=1.1), {"event": "finished", "step": 30}]
    return lines


def test_curves_have_the_values_of_the_log(report_runs, make, finished, tmp_path):
    page = report_runs(make.run(tmp_path / "a", finished))
    loss, top1, rate = curves(page)
    steps = [line for line in finished if line["event"] == "step"]
    (thin_style, training), (style, validation) = loss
    assert training == near([(s["epoch"], s["loss"]) for s in steps])
    assert validation == near([(1, 1.4), (2, 0.9), (3, 1.1)])
    assert "strong" in style and "strong" not in thin_style
    assert top1[0][1] == near([(1, 43.1), (2, 43.1), (3, 43.1)])
    assert top1[1][1] == near([(1, 50), (2, 75), (3, 70)])
    ((_, rates),) = rate
    for (x, y), s in zip(rates, steps, strict=True):
        assert (x, y) == (pytest.approx(s["epoch"], abs=2e-3), pytest.approx(s["lr"], abs=1e-6))


def test_the_best_epoch_has_its_count_and_interval(report_runs, make, finished, parse, tmp_path):
    page = parse(report_runs(make.run(tmp_path / "a", finished)))
    text = "".join(page.text)
    low, high = Accuracy.count(150, 200).interval95
    assert (
        f"2: 150 of 200 images right, 75.00\xa0% (95\xa0% interval {low:.2f} to {high:.2f})" in text
    )
    assert "The run is finished: 3 of 3 epochs." in text
    facts = dict(zip(*([e[2] for e in page.all(tag)] for tag in ("dt", "dd")), strict=True))
    assert facts["Time"] == "93.0\xa0s, 93.5 images/s"
    assert facts["steps"] == "1, 2" and facts["nesterov"] == "yes" and facts["seed"] == "7"
    assert facts["Training"] == "320 images in 2 class folders"


def with_pairs(line, **changes):
    """The line of an epoch of a face network, with the counts of the given one."""
    if line["event"] != "epoch":
        return line
    counts = line["validation"]
    pairs = {"pairs": counts["images"], "correct": counts["top1"], "equal_error_rate": 0.125}
    return {key: value for key, value in line.items() if key != "validation"} | {
        "pairs": pairs | changes
    }


def test_a_run_of_a_face_network_shows_its_pairs(report_runs, make, finished, parse, tmp_path):
    lines = [with_pairs(line) for line in finished]
    source = report_runs(make.run(tmp_path / "a", lines))
    loss, share, _ = curves(source)
    assert len(loss) == 1  # pairs have no loss
    assert share[1][1] == near([(1, 50), (2, 75), (3, 70)])
    text = "".join(parse(source).text)
    assert "2: 150 of 200 pairs right, 75.00" in text and "equal error rate 12.50" in text
    assert "Right pairs over epochs, %" in text and "Top-1 over" not in text
    both = report_runs(tmp_path / "a", make.run(tmp_path / "b", finished))
    assert "Top-1 and Right pairs over epochs, %" in both


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"correct": 201}, "0 <= correct <= pairs"),
        ({"equal_error_rate": 1.5}, "0 <= equal_error_rate <= 1"),
        ({"pairs": 0, "correct": 0}, "pairs >= 1"),
    ],
)
def test_wrong_counts_of_pairs_are_refused(refused, make, finished, changes, words, tmp_path):
    lines = [with_pairs(line, **changes) for line in finished]
    assert words in refused(make.run(tmp_path / "a", lines))


def test_runs_are_side_by_side(report_runs, make, finished, parse, tmp_path):
    folders = [make.run(tmp_path / name, finished, lr=lr) for name, lr in (("a", 0.1), ("b", 0.2))]
    source = report_runs(*folders, make.run(tmp_path / "c", finished[:4], clip_norm=None))
    charts, page = curves(source), parse(source)
    assert [len(lines) for lines in charts] == [6, 6, 3]
    styles = [style.split()[-2:] for style, _ in charts[2]]
    assert len({hue for hue, _ in styles}) == len({dash for _, dash in styles}) == 3
    text = "".join(page.text)
    assert "2 of 3 runs are finished. The run c is not finished: 1.5 of 3 epochs." in text
    rows = [row[2] for row in page.all("tr")]
    assert "lr0.10.20.01" in rows and "clip_norm––none" in rows
    assert not any(row.startswith("seed") for row in rows)  # the same in all runs
    assert any(row.startswith("aresnet18v1_sn32032150 of 20075.00") for row in rows)


def test_runs_of_the_same_name_have_their_paths(report_runs, make, finished, tmp_path):
    folders = [make.run(tmp_path / name / "run", finished) for name in "ab"]
    page = report_runs(*folders)
    assert all(f">{folder}</a>" in page for folder in folders)


@pytest.mark.parametrize("lines", [0, 1, 2, 3])
def test_an_unfinished_run_is_drawn_as_far_as_it_goes(report_runs, make, finished, lines, tmp_path):
    page = report_runs(make.run(tmp_path / "a", finished[:lines]))
    assert "not finished" in page and "nan" not in page
    drawn = curves(page)
    assert [[len(points) for _, points in chart] for chart in drawn] == [
        [],
        [[1], [1]],
        [[2], [2]],
        [[2, 1], [1, 1], [2]],
    ][lines]
    assert page.count("Nothing is logged yet.") == 3 - len(drawn)
    assert ("no step is logged yet" in page) == (lines == 0)
    assert page.count("<circle") - 1 == [0, 2, 0, 3][lines]  # a line of one point needs a dot


def test_a_run_without_a_log_has_only_begun(report_runs, make, tmp_path):
    folder = make.run(tmp_path / "a", [])
    (folder / "log.ndjson").unlink()
    assert "no step is logged yet" in report_runs(folder)


def test_a_last_line_that_is_cut_off_is_left_out(report_runs, make, finished, tmp_path):
    last = json.dumps(finished[0] | {"step": 35, "epoch": 3.5})
    whole = report_runs(make.run(tmp_path / "whole", finished))
    for end in range(1, len(last)):
        folder = tmp_path / str(end) / "whole"
        assert end % 20 or report_runs(make.run(folder, finished, end=last[:end])) == whole
    page = report_runs(make.run(tmp_path / "ended", finished, end=last))
    assert len(curves(page)[0][0][1]) == 7


def test_a_resumed_run_repeats_no_step(report_runs, make, finished, parse, tmp_path):
    lines = [*finished[:5], {"event": "resumed", "step": 5}, *finished[1:]]
    source = report_runs(make.run(tmp_path / "a", lines))
    assert curves(source) == curves(report_runs(make.run(tmp_path / "b", finished)))
    assert "1 time, last after step 5" in "".join(parse(source).text)
    more = [*finished, {"event": "resumed", "step": 30}]
    assert "not finished" in report_runs(make.run(tmp_path / "c", more))


def test_skipped_photos_are_listed_once(report_runs, make, finished, parse, tmp_path):
    skipped = [{"event": "skipped", "photo": f"{i % 250}.jpg", "reason": "cut"} for i in range(500)]
    page = parse(report_runs(make.run(tmp_path / "a", skipped + finished)))
    text = "".join(page.text)
    assert "250 photos that could not be read" in text and "50 more, in the log" in text
    assert len(page.all("li")) == 200


def test_text_stays_text(report_runs, make, finished, parse, tmp_path):
    lines = [{"event": "skipped", "photo": EVIL, "reason": EVIL + "\ud800"}, *finished]
    folder = make.run(tmp_path / EVIL.replace("/", ""), lines, model=EVIL, **{EVIL: EVIL})
    settings = json.loads((folder / "recipe.json").read_text())
    settings |= {"versions": {EVIL: EVIL}, "command": EVIL}
    settings["train"]["description"] = settings["validation"]["description"] = EVIL
    (folder / "recipe.json").write_text(json.dumps(settings))
    other = make.run(tmp_path / "b" / "<b>", finished)
    for source in (report_runs(folder), report_runs(folder, other)):
        page = parse(source)
        assert not page.all("script", "img", "iframe", "base", "form", "object")
        names = {name for _, attributes, _ in page.elements for name in attributes}
        assert not any(name.startswith("on") for name in names)
        assert "\u202e" not in source and "alert(1)" in " ".join(page.text)


def test_the_page_is_accessible_and_loads_nothing(report_runs, make, finished, parse, tmp_path):
    folders = [make.run(tmp_path / name, finished, lr=i) for i, name in enumerate("ab")]
    for page in (parse(report_runs(*folders)), parse(report_runs(folders[0]))):
        plots = [a["aria-label"] for _, a, _ in page.elements if a.get("role") == "img"]
        assert len(plots) == 3 and "Loss over epochs" in plots[0]
        assert all("scope" in attributes for _, attributes, _ in page.all("th"))
        ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert {a["href"].removeprefix("#") for _, a, _ in page.all("a")} <= set(ids)
        assert {a["href"] for _, a, _ in page.all("link")} == {"data:,"}


STEP = {"event": "step", "step": 1, "epoch": 0.1, "loss": 1, "lr": 0.1, "images_per_second": 9}
EPOCH = {"event": "epoch", "epoch": 1, "step": 1, "train_loss": 1, "train_top1": 3, "seconds": 1}
EPOCH |= {"best": False}
COUNTS = {"images": 9, "top1": 3, "top5": 4, "loss": 1}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("9" * 5000, "is not JSON"),
        ("\0\0\0", "is not JSON"),
        ("[]", "must be an object"),
        ("{}", "the name of an event"),
        ('{"event": ["step"]}', "the name of an event"),
        (STEP | {"loss": math.nan}, "NaN is no number"),
        (STEP | {"loss": -math.inf}, "-Infinity is no number"),
        (json.dumps(STEP).replace("0.1", "1e999"), "step.epoch has the wrong type"),
        (STEP | {"loss": 1e40}, "loss"),
        (STEP | {"lr": -1}, "lr"),
        (STEP | {"step": True}, "step.step has the wrong type"),
        (STEP | {"step": 10**13}, "1e12"),
        ({k: v for k, v in STEP.items() if k != "lr"}, "step.lr is missing"),
        (STEP | {"loss": "x" * 100_000}, "step.loss has the wrong type"),
        (EPOCH | {"train_top1": 101}, "train_top1"),
        (EPOCH | {"validation": COUNTS | {"top1": 5}}, "top1 <= top5"),
        (EPOCH | {"validation": {"images": 3}}, "epoch.validation.top1 is missing"),
        (EPOCH | {"validation": {"images": 0, "top1": 0, "top5": 0, "loss": 0}}, "images >= 1"),
        ({"event": "skipped", "photo": 3, "reason": ""}, "skipped.photo"),
        ({"event": "resumed"}, "resumed.step is missing"),
    ],
)
def test_a_wrong_line_is_refused_by_file_and_number(refused, make, finished, line, words, tmp_path):
    folder = make.run(tmp_path / "a", finished)
    lines = (folder / "log.ndjson").read_text().splitlines()
    lines.insert(2, line if isinstance(line, str) else json.dumps(line))
    (folder / "log.ndjson").write_text("\n".join(lines) + "\n")
    message = refused(folder)
    assert f"{folder / 'log.ndjson'}, line 3" in message and words in message


def test_what_a_later_version_adds_is_left_out(report_runs, make, finished, tmp_path):
    later = [line | {"new": [line]} for line in finished]
    later[2]["validation"] |= {"new": 1}
    later.insert(0, {"event": "new"})
    page = report_runs(make.run(tmp_path / "1" / "a", later))
    assert page == report_runs(make.run(tmp_path / "2" / "a", finished))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": None}, "settings.model has the wrong type"),
        ({"recipe": {"lr": {"a": 1}}}, "settings.recipe.lr has the wrong type"),
        ({"recipe": {"lr": [[1]]}}, "settings.recipe.lr has the wrong type"),
        ({"recipe": {"lr": math.nan}}, "NaN is no number"),
        ({"recipe": {str(i): i for i in range(201)}}, "at most 200 fields"),
        ({"train": {"images": 1}}, "settings.train.description is missing"),
        ({"train": {"images": -1, "description": ""}}, "0 <= images"),
    ],
)
def test_wrong_settings_are_refused_by_field(refused, make, changes, words, tmp_path):
    file = make.run(tmp_path / "a", []) / "recipe.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    message = refused(file.parent)
    assert str(file) in message and words in message


def test_which_paths_are_refused(refused, make, finished, tmp_path, monkeypatch):
    a, b = (make.run(tmp_path / name, finished) for name in "ab")
    results = tmp_path / "results.json"
    results.write_text("{}")
    (tmp_path / "other").mkdir()
    assert "is not a run folder: it has no recipe.json" in refused(tmp_path / "other")
    assert f"{results} is no folder" in refused(a, results)
    assert f"{results} is no folder" in refused(results, results)
    assert "--output FILE" in refused(a, b)
    assert "--images goes with" in refused(a, "--images", tmp_path)
    assert "holds a part of a run" in refused(a, b, "--output", b / "log.ndjson")
    assert "named like a photo" in refused(a, "--output", tmp_path / "photo.jpg")
    assert "at most 30 runs" in refused(*[a] * 31)
    monkeypatch.setattr(run_log, "LARGEST_LOG", 100)
    assert f"{a / 'log.ndjson'} is larger than" in refused(a)


def test_the_page_of_one_run_is_in_its_folder(make, finished, tmp_path, capsys, monkeypatch):
    folder = make.run(tmp_path / "a", finished)
    monkeypatch.chdir(folder)
    for _ in range(2):  # the page may be replaced
        assert main(["report", "."]) == 0
        assert capsys.readouterr().out == "report.html\n"
    assert "<h2>a</h2>" in (folder / "report.html").read_text()


def test_the_page_of_a_long_run_is_small(report_runs, make, tmp_path):
    lines = [make.step(step, 1 + step % 2) for step in range(1, 30_001)]
    lines += [make.epoch(epoch, 100) for epoch in range(1, 3001)]
    begin = time.process_time()
    page = report_runs(make.run(tmp_path / "a", lines))
    assert time.process_time() - begin < 10 and len(page) < 100_000
    training = curves(page)[0][0][1]
    assert len(training) <= MOST_POINTS
    assert {round(loss, 2) for _, loss in training} == {1.5}  # the mean of 1 and 2
    assert "The last 200 of 3,000 epochs" in page


@given(st.integers(1, 2000))
def test_thinned_points_have_the_mean_of_all(count):
    points = [(float(i), float(i % 7)) for i in range(count)]
    few = thin(points)
    assert len(few) <= MOST_POINTS and (few == points or count > MOST_POINTS)
    if count % len(few) == 0:
        assert sum(y for _, y in few) / len(few) == pytest.approx(sum(y for _, y in points) / count)


@given(st.lists(st.tuples(st.floats(0, 1e12), st.floats(0, 9e38)), min_size=1), st.booleans())
def test_any_values_can_be_drawn(points, zero):
    chart = line_chart([Curve(0, points), Curve(1, [])], label="", zero=zero)
    ((_, drawn),) = re.findall(r'<path class="([^"]+)" d="M([^"]+)"/>', chart)
    for point in drawn.split("L"):
        x, y = map(float, point.split())
        assert -0.1 <= x <= 1000.1 and -0.1 <= y <= 180.1


@given(st.floats(1e-8, 1e-2))
def test_ticks_of_small_values_differ(rate):
    axis = ticks([0, rate], most=5, least=1e-9)
    assert 2 <= len(axis) <= 5 and axis[-1] >= rate * (1 - 1e-6)
    assert len({f"{tick:g}" for tick in axis}) == len(axis)
