"""The benchmark of cold starts as real processes on smaller networks, and its arithmetic."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from snzoo.errors import SnzooError

FOLDER = Path(__file__).parents[2] / "benchmarks"


def run(*arguments):
    command = [sys.executable, FOLDER / "cold_start.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


@pytest.mark.slow
def test_both_start_from_their_caches(tmp_path):
    output = tmp_path / "result.json"
    small = ["--model", "resnet50v1_sn_8x4", "--peer", "resnet18", "--rounds", "1"]
    done = run(*small, "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout == output.with_suffix(".md").read_text()
    assert "| snzoo, `resnet50v1_sn_8x4`, s |" in done.stdout

    result = json.loads(output.read_text())
    assert [row["contender"] for row in result["measurements"]] == ["snzoo", "torchvision"]
    for row in result["measurements"]:
        assert min(row["imports"], row["model"], row["read"]) > 0
        assert row["seconds"] == pytest.approx(row["imports"] + row["model"], abs=1e-4)
    assert result["versions"]["safetensors"]
    assert "/tmp" not in done.stdout + output.read_text()


def test_a_ratio_is_of_one_round():
    from cold_start import PARTS, compare

    seconds = {("ours", 1): 1.0, ("theirs", 1): 4.0, ("theirs", 2): 20.0, ("ours", 2): 2.0}
    seconds |= {("ours", 3): 3.0, ("theirs", 3): 6.0}
    rows = [
        {"contender": name, "round": number} | dict.fromkeys(PARTS, value)
        for (name, number), value in seconds.items()
    ]
    found = compare(rows, "ours", "theirs")["seconds"]
    assert found["ours"] == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert found["theirs"] == {"median": 6.0, "least": 4.0, "most": 20.0}
    assert found["ratio"] == {"median": 0.25, "least": 0.1, "most": 0.5}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--output", "result.txt"], "can't write result.txt"),
        (["--peer", "resnet102"], "torchvision: Unknown model resnet102"),
        (["--peer", "resnet18", "--model", "resnet51"], "no model named 'resnet51'"),
    ],
)
def test_mistakes_are_one_line_before_the_work(arguments, message):
    from cold_start import main

    assert message in str(main(arguments))


@pytest.mark.parametrize(
    "model, message",
    [
        ("resnet50v1_sn_8x4", "resnet50v1_sn_8x4 is missing"),
        ("resnet18v1_sn_clothing", "snzoo did not load the weights in its cache"),
    ],
)
def test_other_weights_than_those_of_the_cache_are_not_timed(tmp_path, model, message):
    from cold_start import OURS, Contender, start

    environment = {"SNZOO_HOME": str(tmp_path), "SNZOO_OFFLINE": "1"}
    with pytest.raises(SnzooError, match=message):
        start(Contender("snzoo", model, OURS, environment, 0.0))
