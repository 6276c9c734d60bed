"""The benchmark and the soak of the server: their arithmetic, and both as real processes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_a_ratio_is_of_one_round():
    from serving import compare

    rates = {("snzoo serve", 1): 30.0, ("peer", 1): 10.0, ("snzoo serve", 2): 40.0, ("peer", 2): 40}
    about = {"model": "m", "clients": 16, "p50_ms": 1.0, "p99_ms": 2.0, "peak_mib": 3.0}
    rows = [
        about | {"contender": name, "round": number, "requests_per_s": rate}
        for (name, number), rate in rates.items()
    ]
    ours, peer = compare(rows)
    assert ours["speed of snzoo"] == {"median": 1.0, "least": 1.0, "most": 1.0}
    assert peer["speed of snzoo"] == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert peer["requests_per_s"] == {"median": 25.0, "least": 10.0, "most": 40.0}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk, which sends the requests, is absent")
def test_servers_give_the_same_answers_and_are_measured(tmp_path):
    output = tmp_path / "result.json"
    options = ["--model", "resnet18v1_sn_clothing", "--seconds", "1", "--rounds", "1"]
    command = [sys.executable, FOLDER / "serving.py", *options, "--output", output]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(output.read_text())["measurements"]
    assert [row["contender"] for row in rows][:2] == ["snzoo serve", "plain FastAPI"]
    assert all(row["requests"] > 0 and row["errors"] == 0 for row in rows)


@pytest.mark.slow
def test_no_answer_is_lost_or_another_photos():
    from soak import SHARES, run

    outcomes, wrong, memory = run(300)
    assert wrong == []
    assert sum(outcomes.values()) == 300 and outcomes.keys() == SHARES.keys()
    assert all(outcomes.values())
    assert len(memory) == 3
