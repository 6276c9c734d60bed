"""The benchmarks as real processes on a few made photos, and their arithmetic on made rows."""

import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snzoo.errors import SnzooError

FOLDER = Path(__file__).parents[2] / "benchmarks"
WNIDS = ["n01440764", "n01443537", "n01484850"]
SHORT = ["--images", "7", "--rounds", "1", "--workers", "1", "--batch-size", "4"]


@pytest.fixture
def photos(tmp_path):
    """Six made photos of three classes, and a file that is none."""
    for i in range(6):
        path = tmp_path / "photos" / WNIDS[i // 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (260 + 20 * i, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "photos" / WNIDS[0] / "notes.txt").write_text("no photo")
    return tmp_path / "photos"


def run(script, *arguments, path=""):
    command = [sys.executable, FOLDER / script, *arguments]
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )


@pytest.mark.slow
def test_the_input_pipelines_are_measured_and_an_absent_peer_is_named(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "timm.py").write_text("raise ModuleNotFoundError('there is no timm')")
    output = tmp_path / "result.json"
    done = run("loaders.py", photos, *SHORT, "--output", output, path=tmp_path / "empty")
    assert done.returncode == 0, done.stderr
    assert "timm is absent and left out: there is no timm" in done.stdout
    assert done.stdout == output.with_suffix(".md").read_text()

    result = json.loads(output.read_text())
    assert result["absent"] == {"timm": "there is no timm"}
    assert result["pixels"] == {"photos": 6, "agree": {"snzoo": 6}}
    rows = result["measurements"]
    assert [row["contender"] for row in rows] == ["snzoo", "torchvision", "decode"]
    for row in rows:
        assert row["images"] == 7 and row["seconds"] > 0 and row["warm_up_seconds"] > 0
    assert {row["contender"] for row in result["memory"]} == {"snzoo", "torchvision"}
    assert all(50 < row["peak_mib"] < 20_000 for row in result["memory"])
    assert str(tmp_path) not in output.read_text() + done.stdout


@pytest.mark.slow
def test_the_input_pipelines_of_training_are_measured(photos, tmp_path):
    output = tmp_path / "result.json"
    done = run("training_loaders.py", photos, *SHORT, "--images", "8", "--output", output)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert result["pixels"] == {"photos": 8, "agree": {"snzoo": 8}}
    rows = {row["contender"]: row for row in result["measurements"]}
    assert set(rows) == {"snzoo", "timm", "torchvision", "decode"} - set(result["absent"])
    assert all(row["images"] == 8 for row in rows.values())


@pytest.mark.slow
def test_steps_of_training_are_measured(photos, tmp_path):
    for split in ("train", "validation"):
        shutil.copytree(photos, tmp_path / "data" / split)
    sizes = ["--steps", "2", "--batch-size", "1", "--crop", "32", "--width", "8", "--rounds", "1"]
    output = tmp_path / "result.json"
    done = run("training_steps.py", tmp_path / "data", *sizes, "--output", output)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert {row["contender"] for row in result["measurements"]} == {"snzoo", "plain"}
    assert "\n| snzoo to plain | " in done.stdout


@pytest.mark.slow
def test_whole_evaluations_count_the_same(photos, tmp_path):
    output = tmp_path / "result.json"
    arguments = ["--model", "resnet18v1_bn", "--device", "cpu", "--output", output]
    done = run("evaluation.py", photos, *SHORT, *arguments)
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    peers = {"torchvision"} | ({"timm"} if find_spec("timm") else set())
    assert set(result["absent"]) == {"timm", "torchvision"} - peers
    assert set(result["counts"]) == {"snzoo"} | peers
    assert len({str(counts) for counts in result["counts"].values()}) == 1
    assert [counts[0][0] for counts in result["counts"].values()] == [7] * (1 + len(peers))
    assert "resnet18v1_bn (random weights) on cpu" in done.stdout


@pytest.mark.slow
def test_both_commands_are_measured(photos):
    for wnid, name in zip(WNIDS, ("hat", "shoes", "dress"), strict=True):
        (photos / wnid).rename(photos / name)
    done = run("prediction.py", photos, "--images", "7", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert "\n| speed of predict --output | " in done.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["loaders.py", "missing"], "missing is no folder of class folders"),
        (["loaders.py", "photos", "--output", "result.txt"], "can't write result.txt"),
        (["loaders.py", "photos", "--rounds", "0"], "'0' is not a whole number above 0"),
        (
            ["training_loaders.py", "photos", "--images", "48"],
            "48 is no multiple of",
        ),
        (["evaluation.py", "photos", "--model", "resnet18"], "no model named 'resnet18'"),
        (["prediction.py", "missing"], "missing is no folder of class folders"),
    ],
)
def test_mistakes_are_one_line_before_the_work(photos, monkeypatch, arguments, message):
    monkeypatch.chdir(photos.parent)
    done = run(*arguments)
    assert done.returncode and message in done.stderr and "Traceback" not in done.stderr


def row(number, contender, workers, rate):
    columns = {"round": number, "contender": contender, "workers": workers, "batch_size": 32}
    return columns | {"images_per_second": rate}


ROWS = [
    row(1, "ours", None, 300.0),
    row(1, "peer", 2, 100.0),
    row(1, "peer", 4, 150.0),
    row(2, "peer", 4, 100.0),
    row(2, "ours", None, 400.0),
    row(2, "peer", 2, 500.0),
    row(3, "peer", 2, 90.0),
    row(3, "peer", 4, 200.0),
    row(3, "ours", None, 200.0),
]
MEMORY = [row(0, "ours", None, 0) | {"peak_mib": 600}, row(0, "peer", 4, 0) | {"peak_mib": 800}]


def test_a_ratio_is_of_one_round_and_against_the_best_median():
    from pipelines import compare, summarize

    found = compare(ROWS, MEMORY, "ours", "peer")
    assert found["theirs"] == "peer (4 workers, batch 32)"  # 150; the one with 500 has 100
    assert found["ratios"] == [2.0, 4.0, 1.0]
    assert (found["median"], found["least"], found["most"]) == (2.0, 1.0, 4.0)
    assert found["memory_ratio"] == 0.75
    rows = {(r["contender"], r["workers"]): r for r in summarize(ROWS, MEMORY)}
    assert rows["peer", 4] == {
        "contender": "peer",
        "workers": 4,
        "batch_size": 32,
        "median": 150.0,
        "least": 100.0,
        "most": 200.0,
        "peak_mib": 800,
    }
    assert rows["peer", 2]["peak_mib"] is None


def test_every_round_begins_with_another_one():
    from harness import rotate

    assert [rotate("abc", number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_photos_are_spread_or_repeated():
    from photos import choose

    assert choose("abcdef", 3) == ["a", "c", "e"]
    assert choose("abc", 7) == list("abcabca")


def test_other_pixels_than_the_references_stop_the_benchmark():
    from pipelines import check_images, check_pixels

    check_pixels({"photos": 6, "agree": {"snzoo": 6, "timm": 0}})
    with pytest.raises(SnzooError, match="5 of 6 photos"):
        check_pixels({"photos": 6, "agree": {"snzoo": 5, "timm": 6}})
    with pytest.raises(SnzooError, match="timm gave 6 of 7"):
        check_images([{"contender": "timm", "images": 6}], 7)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_is_that_of_all_processes_and_shared_pages_count_once():
    from processes import session_mib

    code = (
        "import os, time; shared = bytearray(os.urandom(1)) * (64 << 20); os.fork(); "
        "own = bytearray(os.urandom(1)) * (32 << 20); print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout.readline() and process.stdout.readline()
        time.sleep(0.1)
        assert 128 <= session_mib(process.pid) < 160
    finally:
        os.killpg(process.pid, 9)
        process.wait()


SPIN = [sys.executable, "-c", "import time; end = time.time() + 1.5\nwhile time.time() < end: 1"]


def test_the_heading_names_the_processor_and_its_instructions(tmp_path, capsys):
    from harness import heading, run_benchmark

    output = tmp_path / "result.json"
    assert not run_benchmark(lambda: {"title": "T"}, lambda d: "\n".join(heading(d)), output)
    machine = json.loads(output.read_text())["machine"]
    assert machine["instructions"] == torch.backends.cpu.get_cpu_capability()
    title, _, about = capsys.readouterr().out.splitlines()
    assert title == "# T"
    assert f", {machine['cpu']} with {machine['instructions']}, {machine['cores']} core" in about

    del machine["instructions"]  # as in older documents
    document = json.loads(output.read_text()) | {"machine": machine}
    assert f", {machine['cpu']}, {machine['cores']} core" in heading(document)[2]


def test_measured_processes_do_not_share_memory_with_a_large_parent():
    code = (
        "import sys, loaders, training_loaders, evaluation; from harness import run_benchmark\n"
        "run_benchmark(lambda: {'torch': 'torch' in sys.modules}, lambda d: str(d['torch']), None)"
    )
    command, path = [sys.executable, "-c", code], os.pathsep.join([str(FOLDER), *sys.path])
    done = subprocess.run(command, stdout=-1, text=True, env=os.environ | {"PYTHONPATH": path})
    assert done.stdout == "False"


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc")
def test_other_work_on_the_machine_is_seen():
    from harness import cores_elsewhere

    subprocess.run(["sh", "-c", '"$@" &', "sh", *SPIN], check=True)  # no child of this process
    _, elsewhere = cores_elsewhere(lambda: time.sleep(1))
    assert elsewhere > 0.2


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs Linux's /proc")
def test_the_measured_work_is_no_other_work():
    from harness import cores_elsewhere

    def spin():
        for process in [subprocess.Popen(SPIN) for _ in range(os.cpu_count())]:
            process.wait()

    before, start = sum(os.times()[:4]), time.perf_counter()
    _, elsewhere = cores_elsewhere(spin)
    own = (sum(os.times()[:4]) - before) / (time.perf_counter() - start)
    assert own > 0.1 and elsewhere + own < os.cpu_count() + 0.3


@pytest.mark.slow
def test_locked_networks_are_measured_before_and_after_they_are_simplified():
    small = ["--depth", "18", "--size", "64", "--rounds", "1", "--batch-size", "1"]
    done = run("locked.py", *small)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| BN, batch 1 | ") == 1 and "| LN, batch 1 | " in done.stdout
