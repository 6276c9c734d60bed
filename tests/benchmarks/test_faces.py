"""The benchmark of face networks: a real run on few faces."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faces.py"


@pytest.mark.slow
def test_networks_are_trained_once_and_evaluated_on_people_of_the_test(tmp_path):
    draw = [SCRIPT.with_name("generated_faces.py"), tmp_path / "real", "--people", "8"]
    draw += ["--photos", "6", "--seed", "3"]
    subprocess.run([sys.executable, *map(str, draw)], check=True)
    output = tmp_path / "faces.json"
    command = [SCRIPT, "--runs", tmp_path / "runs", "--people", "8", "--epochs", "1"]
    command += ["--real", tmp_path / "real", "--output", output]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text())
    rows = document["measurements"]
    assert [(row["set"], row["norm"], row["trained"]) for row in rows] == [
        (name, norm, trained)
        for name in ("generated", "real")
        for norm in ("SN", "BN")
        for trained in (True, False)
    ]
    assert [row["verification"]["genuine"] for row in rows] == [8 * 15] * 8
    assert str(tmp_path) not in output.read_text()
    page = output.with_suffix(".md").read_text()
    assert "equal error rate, %" in page and page in done.stdout
    best = tmp_path / "runs" / "sn" / "best.safetensors"
    before = best.stat().st_mtime_ns
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    assert done.returncode == 0 and best.stat().st_mtime_ns == before
    assert json.loads(output.read_text())["measurements"] == rows
