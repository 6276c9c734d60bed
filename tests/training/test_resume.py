"""Runs that are killed, stopped or refused, in processes of their own."""

import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from snzoo.cli import main

pytestmark = pytest.mark.slow  # most runs are processes that import torch
OPTIONS = shlex.split(
    "--model resnet18v1_sn --width 8 --device cpu --epochs 3 --batch-size 4 --crop "
    "32 --resize 36 --lr 0.05 --drop-rate 0.5 --ema-decay 0.9 --workers 2 --save-minutes 0"
)


def command(data, output, *more):
    base = [sys.executable, "-m", "snzoo", "train", str(data), "--output", str(output)]
    return [*base, *OPTIONS, *more]


def run(*arguments, **options):
    return subprocess.run(command(*arguments), capture_output=True, text=True, **options)


def run_here(capsys, *arguments):
    """Return the status and the errors of a run that ends before its first step."""
    return main(command(*arguments)[3:]), capsys.readouterr().err


def position(output):
    return torch.load(output / "last.pt", weights_only=True)["position"]


@pytest.fixture(scope="module")
def whole(colors, tmp_path_factory):
    """A run that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole") / "run"
    done = run(colors, output)
    assert done.returncode == 0, done.stderr
    return output


def wait_for(condition, process, seconds=60):
    end = time.monotonic() + seconds
    while True:
        process.send_signal(signal.SIGSTOP)  # or the run might end while a file is read
        is_met = condition()
        process.send_signal(signal.SIGCONT)
        if is_met:
            return
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.01)


def check_same(run, whole):
    """The two runs ended with the same bits."""
    one, other = (torch.load(path / "last.pt", weights_only=True) for path in (run, whole))
    for part in ("model", "average"):
        assert one[part].keys() == other[part].keys()
        for name, value in other[part].items():
            assert torch.equal(one[part][name], value), name
    for key, group in other["optimizer"]["state"].items():
        momentum = one["optimizer"]["state"][key]["momentum_buffer"]
        assert torch.equal(momentum, group["momentum_buffer"])
    best, expected = (load_file(path / "best.safetensors") for path in (run, whole))
    assert all(torch.equal(best[name], value) for name, value in expected.items())
    figures = [
        [
            {key: line[key] for key in ("epoch", "train_loss", "train_top1", "validation", "best")}
            for line in map(json.loads, (path / "log.ndjson").read_text().splitlines())
            if line["event"] == "epoch"
        ]
        for path in (run, whole)
    ]
    assert figures[0] == figures[1] and len(figures[0]) == 3


@pytest.mark.parametrize("step", [2, 8])
def test_a_killed_run_ends_with_the_same_bits(colors, whole, tmp_path, step):
    """Five steps an epoch: the kills come within the first and the second epoch."""
    output = tmp_path / "run"
    process = subprocess.Popen(command(colors, output), stderr=subprocess.PIPE, text=True)
    last = output / "last.pt"
    wait_for(lambda: last.exists() and position(output)["step"] >= step, process)
    process.kill()
    process.wait()
    shutil.copytree(output, tmp_path / "before")
    assert position(output)["step"] < 15
    done = run(colors, output, "--resume")
    assert done.returncode == 0, done.stderr
    check_same(output, whole)
    log = (output / "log.ndjson").read_text().splitlines()
    assert any(json.loads(line)["event"] == "resumed" for line in log)


def test_a_partial_file_of_a_killed_run_is_removed(colors, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / ".snzoo-0123456789abcdef").write_bytes(b"half a state")
    assert run(colors, tmp_path / "run", "--resume").returncode == 0
    assert not list((tmp_path / "run").glob(".snzoo-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_first(colors, whole, tmp_path, number):
    output = tmp_path / "run"
    arguments = command(colors, output, "--save-minutes", "1000")
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    log = output / "log.ndjson"
    wait_for(lambda: log.exists() and "epoch" in log.read_text(), process)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130 and stderr.count("\n") == 1
    step = int(re.fullmatch(r"snzoo: stopped after step (\d+) of 15; .* --resume .*\n", stderr)[1])
    assert 0 < step < 15 and position(output)["step"] == step
    done = run(colors, output, "--resume")
    assert done.returncode == 0, done.stderr
    check_same(output, whole)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"event": "resumed", "step": step} in events


def test_resume_of_a_finished_run_changes_nothing(colors, whole):
    before = (whole / "best.safetensors").read_bytes()
    done = run(colors, whole, "--resume")
    assert done.returncode == 0 and "best: epoch" in done.stdout
    assert (whole / "best.safetensors").read_bytes() == before


def test_a_lost_network_is_written_again(colors, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    best = tmp_path / "run" / "best.safetensors"
    best.unlink()
    done = run(colors, tmp_path / "run", "--resume")
    assert done.returncode == 0 and "has no best.safetensors" in done.stderr
    saved, average = load_file(best), torch.load(whole / "last.pt", weights_only=True)["average"]
    assert all(torch.equal(saved[k], average[f"module.{k}"]) for k in saved)
    log = (tmp_path / "run" / "log.ndjson").read_text().splitlines()
    epochs = [line for line in map(json.loads, log) if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3] and epochs[-1]["train_loss"] > 0


@pytest.mark.parametrize(
    "more, message",
    [
        ([], "holds a run: continue it with --resume"),
        (["--resume", "--lr", "0.1"], "recipe.lr changed from 0.05 to 0.1"),
        (["--resume", "--seed", "1"], "seed changed from 0 to 1"),
        (["--resume", "--precision", "bf16"], "precision changed"),
        (["--resume", "--model", "resnet18v1_bn"], "model changed"),
        (["--resume", "--weights", "{whole}"], "starts from weights changed from False to True"),
    ],
)
@pytest.mark.filterwarnings("error")  # a process would show them
def test_another_run_is_not_continued(colors, whole, capsys, more, message):
    before = (whole / "last.pt").read_bytes()
    status, errors = run_here(capsys, colors, whole, *(w.format(whole=whole) for w in more))
    assert status == 1 and message in errors and errors.count("\n") == 1
    assert (whole / "last.pt").read_bytes() == before


def test_moved_photos_are_the_same_and_changed_ones_are_refused(colors, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(colors, data)
    output = tmp_path / "run"
    assert run(data, output, "--epochs", "1").returncode == 0
    data = data.rename(tmp_path / "moved")
    os.utime(data / "train" / "apple" / "0.png", (1, 1))
    assert run(data, output, "--epochs", "1", "--resume").returncode == 0
    photo = data / "train" / "apple" / "0.png"
    photo.write_bytes(photo.read_bytes() + b"more")
    done = run(data, output, "--epochs", "1", "--resume")
    assert done.returncode == 1 and "training photos changed" in done.stderr


class Code:
    """Pickled, it would run a command."""

    def __reduce__(self):
        return os.system, ("echo hacked > hacked",)


@pytest.mark.parametrize("content", [b"", b"no state", "tensor", "code", "position", "shapes"])
@pytest.mark.filterwarnings("error")
def test_a_damaged_state_is_one_line(colors, whole, tmp_path, capsys, content):
    shutil.copytree(whole, tmp_path / "run")
    last = tmp_path / "run" / "last.pt"
    if content == "tensor":
        torch.save(torch.zeros(3), last)
    elif content == "code":
        torch.save(Code(), last)
    elif content == "shapes":
        state = torch.load(last, weights_only=True)
        torch.save(state | {"model": {"fc.weight": torch.zeros(3, 3)}}, last)
    elif content == "position":
        state = torch.load(last, weights_only=True)
        torch.save(state | {"position": {"step": 1, "jump": 2}}, last)
    else:
        last.write_bytes(content)
    status, errors = run_here(capsys, colors, tmp_path / "run", "--resume")
    assert status == 1 and errors.count("\n") == 1
    assert "can't resume from" in errors and "weights_only" not in errors


def test_a_full_disk_loses_the_new_state_only(colors, tmp_path):
    """A limit on the size of files stands for a full disk."""
    output = tmp_path / "run"
    assert run(colors, output, "--epochs", "1").returncode == 0
    before = (output / "last.pt").read_bytes()
    state = torch.load(output / "last.pt", weights_only=True)
    state["position"] |= {"step": 0, "validated": 0, "best": -1}
    torch.save(state, output / "last.pt")
    early = (output / "last.pt").read_bytes()
    limit = len(before) // 2

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    done = run(colors, output, "--epochs", "1", "--resume", preexec_fn=limited)
    assert done.returncode == 1 and "can't write" in done.stderr, done.stderr
    assert (output / "last.pt").read_bytes() == early
    assert "the training goes on" in done.stderr
    assert not list(output.glob(".snzoo-*"))
