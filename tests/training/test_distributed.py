"""Runs over two processes on the CPU, compared with one process on the whole batch."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

OPTIONS = shlex.split(
    "--width 8 --device cpu --epochs 2 --batch-size 8 --crop 32 --resize 36 --lr "
    "0.05 --workers 1 --no-drop-last"
)
TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run"),
    *("--standalone", "--nproc-per-node", "2", "-m", "snzoo"),
]


def command(data, output, *more, processes=2):
    start = TORCHRUN if processes == 2 else [sys.executable, "-m", "snzoo"]
    return [*start, "train", str(data), "--output", str(output), *OPTIONS, *more]


def run(*arguments, **options):
    done = subprocess.run(command(*arguments, **options), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def load(output):
    return torch.load(output / "last.pt", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--images-per-gpu", "4"], ["--ema-decay", "0.9"]])
def test_two_processes_with_synchronized_sn_are_one(colors, tmp_path, more):
    options = ["--model", "resnet18v1_sn", "--precision", "fp64", *more]
    run(colors, tmp_path / "two", *options, "--sync-norm")
    if more[:1] == ["--images-per-gpu"]:  # 2 x 4 images at a time are the 8 of one process
        options = options[:4]
    run(colors, tmp_path / "one", *options, "--sync-norm", processes=1)
    one, two = (load(tmp_path / name) for name in ("one", "two"))
    for part in ("model", "average"):
        for name, value in (one[part] or {}).items():
            torch.testing.assert_close(two[part][name], value, rtol=0, atol=1e-10, msg=name)
    logs = [
        [
            line["validation"]
            for line in map(json.loads, (tmp_path / name / "log.ndjson").read_text().splitlines())
            if line["event"] == "epoch"
        ]
        for name in ("one", "two")
    ]
    counts = [[(v["images"], v["top1"], v["top5"]) for v in log] for log in logs]
    assert counts[0] == counts[1] and counts[0][0][0] == 7
    assert json.loads((tmp_path / "two" / "recipe.json").read_text())["processes"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet18v1_sn", "resnet18v1_bn"])
def test_running_statistics_are_averaged_before_they_are_saved(colors, tmp_path, model):
    run(colors, tmp_path / "run", "--model", model)
    state = load(tmp_path / "run")
    first, second = state["buffers"]
    for name in first:
        assert torch.equal(first[name], second[name]), name
    saved = load_file(tmp_path / "run" / "best.safetensors")
    for name, value in first.items():
        if name.endswith(("mean", "var")) and state["position"]["best_epoch"] == 2:
            assert torch.equal(saved[name], value), name


@pytest.mark.slow
def test_two_killed_processes_end_with_the_same_bits(colors, tmp_path):
    more = ["--model", "resnet18v1_sn", "--save-minutes", "0", "--drop-rate", "0.5"]
    more += ["--epochs", "8"]
    run(colors, tmp_path / "whole", *more)
    output = tmp_path / "run"
    process = subprocess.Popen(command(colors, output, *more), stderr=subprocess.PIPE)
    end = time.monotonic() + 120
    while not (output / "last.pt").exists() or load(output)["position"]["step"] < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    # torchrun's workers have sessions of their own.
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [process.pid, *map(int, workers)]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert load(output)["position"]["step"] < 24
    buffers = load(output)["buffers"]
    assert not torch.equal(buffers[0]["sn1.running_mean"], buffers[1]["sn1.running_mean"])
    run(colors, output, *more, "--resume")
    one, other = load(output), load(tmp_path / "whole")
    for name, value in other["model"].items():
        assert torch.equal(one["model"][name], value), name
