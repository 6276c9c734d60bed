"""The benchmark of few images a step: real runs on made photos, and its arithmetic."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snzoo.errors import SnzooError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "small_batches.py"
FEW = ["--images", "4", "2", "--norms", "SN", "--width", "8", "--crop", "32"]


@pytest.fixture
def data(tmp_path):
    """Photos of two colors: 8 for training, 4 for validation and 6 for the test."""
    for split, count in {"train": 4, "validation": 2, "test": 3}.items():
        for channel, name in enumerate(["apple", "lime"]):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 120, (40, 40, 3), dtype=np.uint8)
                pixels[:, :, channel] += 120
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "data"


def run(data, folder, *arguments):
    output = folder / "result.json"
    command = [SCRIPT, data, "--runs", folder / "runs", "--output", output, *FEW, *arguments]
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, env=os.environ
    )
    return done, json.loads(output.read_text()) if output.exists() else None


@pytest.mark.slow
def test_runs_are_trained_once_and_the_test_photos_are_evaluated_once(data, tmp_path):
    options = ["--epochs", "1", "--seeds", "1", "--jobs", "2"]
    done, document = run(data, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    cells = [(row["norm"], row["images"], len(row["runs"])) for row in document["summary"]]
    assert cells == [("SN", 4, 1), ("SN", 2, 1)]
    assert all(
        row["test_images"] == 6 and row["end"] == "finished" for row in document["measurements"]
    )
    assert {options["data"] for options in document["options"].values()} == {"data"}
    lr = {document["options"][f"scratch-sn-{images}-0"]["lr"] for images in (4, 2)}
    assert lr == {0.05 / 8, 0.05 / 16}
    assert "| SN | " in done.stdout and "SN" in (tmp_path / "result.svg").read_text()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*")}
    (tmp_path / "runs" / "scratch-sn-2-0" / "test.json").write_text('{"test": 3, "test_images": 6}')
    again = run(data, tmp_path, *options)[1]
    assert again["measurements"][-1]["test"] == 3
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*")}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed == {"test.json"}
    done, _ = run(data, tmp_path, *options, "--epochs", "2")
    assert done.returncode == 1 and "began with epochs 1, not 2; name another" in done.stderr


def test_a_run_that_diverges_ends_there(data, tmp_path):
    from small_batches import find_end, train

    options = {"data": str(data), "model": "resnet18v1_bn", "width": 8, "recipe": "finetune"}
    options |= {"crop": 32, "resize": 36, "batch_size": 4, "lr": 1e30, "epochs": 3}
    train(tmp_path / "run", options)
    assert find_end(tmp_path / "run") == "diverged"
    reason = json.loads((tmp_path / "run" / "diverged.json").read_text())["reason"]
    assert "step" in reason
    train(tmp_path / "run", options)  # is not tried again


def test_changed_options_are_refused_once_a_run_has_begun(tmp_path):
    from small_batches import check_options, options_file

    folder = tmp_path / "scratch-bn-2-0"
    options_file(folder).write_text('{"lr": 0.1, "epochs": 3}')
    check_options(folder, {"lr": 0.2, "epochs": 3})  # it failed before its first step
    folder.mkdir()
    check_options(folder, {"lr": 0.1, "epochs": 3})
    for options in ({"lr": 0.2, "epochs": 3}, {"lr": 0.1}, {"lr": 0.1, "epochs": 3, "seed": 1}):
        with pytest.raises(SnzooError, match="scratch-bn-2-0 began with"):
            check_options(folder, options)


@pytest.mark.parametrize("mistake", ["photos", "runs", "msra"])
def test_missing_files_are_found_before_the_training(data, tmp_path, mistake):
    more = ["--msra", tmp_path / "missing.pth"] if mistake == "msra" else []
    if mistake == "photos":
        (data / "test").rename(data / "other")
    if mistake == "runs":
        (tmp_path / "runs").touch()
    done, document = run(data, tmp_path, *more)
    names = {
        "photos": "data/test is not a folder",
        "runs": "runs: ",
        "msra": "missing.pth is not a",
    }
    assert done.returncode == 1 and document is None and names[mistake] in done.stderr
    assert done.stderr.count("\n") == 1 and not any(tmp_path.glob("runs/*"))


@pytest.mark.slow
def test_no_run_is_begun_after_an_interruption(data, tmp_path):
    arguments = [*FEW, "--epochs", "500", "--seeds", "1", "--jobs", "1"]
    command = [sys.executable, SCRIPT, data, "--runs", tmp_path / "runs", *arguments]
    process = subprocess.Popen(
        [*map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job may ignore it
    )
    try:
        log = tmp_path / "runs" / "scratch-sn-4-0" / "log.ndjson"
        for _ in range(1200):
            if log.exists() and '"epoch"' in log.read_text():
                break
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        _, err = process.communicate(timeout=120)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1 and "the same command continues" in err
    assert '"finished"' not in log.read_text()
    assert not (tmp_path / "runs" / "scratch-sn-2-0").exists()


def row(norm, seed, test, **more):
    fields = {"experiment": "scratch", "norm": norm, "images": 2, "seed": seed, "test": test}
    return fields | {"test_images": 10, "end": "finished", "gates": None} | more


def test_means_intervals_and_differences():
    from small_batches_summary import describe, markdown, summarize

    assert describe([1.0, 2.0, 3.0]) == {"mean": 2.0, "half_interval": 2.48}  # 4.303 / √3
    assert describe([5.0]) == {"mean": 5.0, "half_interval": None}
    gates = [{"mean": {"IN": s, "LN": 1 - s}, "var": {"IN": s, "LN": 1 - s}} for s in (0.2, 0.4)]
    rows = [row("BN", 0, 5), row("BN", 1, 6), row("SN", 1, 8, gates=gates[0])]
    rows += [row("SN", 0, 6, gates=gates[1]), row("GN", 0, 0, test_images=None, end="diverged")]
    bn, sn, gn = summarize(rows)
    assert (bn["mean"], bn["runs"], bn["to_bn"]) == (55, [50, 60], None)
    assert (sn["mean"], sn["to_bn"]["mean"]) == (70, 15)  # 80 - 60 and 60 - 50
    assert sn["gates"]["mean"] == {"IN": 0.3, "LN": 0.7}
    assert (gn["mean"], gn["half_interval"], gn["diverged"]) == (0, None, 1)
    settings = dict.fromkeys(("width", "crop", "epochs", "seeds", "msra_crop", "msra_epochs"), 1)
    document = {"title": "T", "date": "2026-01-01", "versions": {}, "settings": settings}
    machine = {"cpu": "x", "cores": 1, "memory_gib": 1}
    text = markdown(document | {"machine": machine, "summary": [bn, sn, gn]})
    assert "| BN | 55.00 ± 63.53 |" in text and "| SN minus BN | 15.00 ± 63.53 |" in text
    assert "| GN | 0.00 (1 diverged) |" in text and "| SN, 2 | IN 0.30, LN 0.70 |" in text


def test_the_page_has_the_committed_figures():
    from small_batches_summary import accuracy_table, finetuning_table, markdown, summarize

    results = SCRIPT.parent / "results" / "small-batches-2core-cpu.json"
    document = json.loads(results.read_text())
    assert document["summary"] == summarize(document["measurements"])
    assert results.with_suffix(".md").read_text() == markdown(document)
    parts = {}
    for row in document["summary"]:
        parts.setdefault(row["experiment"], []).append(row)
    page = (SCRIPT.parents[1] / "docs" / "small-batches.md").read_text()
    assert "\n".join(accuracy_table(parts["scratch"])) in page
    assert "\n".join(finetuning_table(parts["finetuning"])) in page
