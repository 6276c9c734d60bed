"""`snzoo predict` on many photos: files, kills, several processes, lists, and exit statuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import snzoo
from snzoo.cli import main
from snzoo.data.sources import Files
from snzoo.inference import bulk, read_predictions
from snzoo.serve import load_classifiers

DEMO = Path(snzoo.__file__).parent / "demo" / "photos"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "snzoo"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of a small network."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "small"
    model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=3)
    snzoo.save_pretrained(model, folder, classes=("a", "b", "c"))
    return str(folder)


def start(*arguments, launcher=("-m", "snzoo"), **options):
    command = [sys.executable, *launcher, "predict", *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options)


def finish(process, status=0):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    return output, errors


def predict(*arguments):
    return main(["predict", *map(str, arguments)])


@pytest.fixture
def threads(monkeypatch):
    """As many in each process as in this one: they round as many sums."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_run_that_was_killed_is_resumed_to_the_same_bytes(
    tmp_path, small, threads, capsys, suffix
):
    def command(name):
        return [DEMO, "--model", small, "--batch-size", 1, "--output", tmp_path / f"{name}{suffix}"]

    process = start(*command("x"))
    folder = tmp_path / f"x{suffix}.partial"
    deadline = time.monotonic() + 120
    while not list(folder.glob("0*")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("0*")}
    assert len(kept) < 3 and not (tmp_path / f"x{suffix}").exists()
    assert predict(*command("x")) == 1 and "--resume" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in folder.glob("0*")} == kept
    assert predict(*command("x"), "--resume") == 0
    assert capsys.readouterr().out == f"149 images: {tmp_path / f'x{suffix}'}\n"
    assert predict(*command("whole")) == 0
    whole = tmp_path / f"whole{suffix}"
    assert (tmp_path / f"x{suffix}").read_bytes() == whole.read_bytes()
    assert len({row["image"] for row in read_predictions(whole)}) == 149
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"whole{suffix}", f"x{suffix}"]


@pytest.mark.slow
def test_two_processes_write_what_one_does(tmp_path, small, threads):
    broken = tmp_path / "broken.jpg"
    broken.write_text("no image")
    command = [DEMO, broken, "--model", small, "--batch-size", 1, "--on-error", "skip", "--output"]
    assert predict(*command, tmp_path / "one.csv") == 0
    printed, errors = finish(start(*command, tmp_path / "two.csv", launcher=TORCHRUN))
    assert printed.count("\n") == 1 and errors.count("broken.jpg") == 1
    assert (tmp_path / "two.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    assert not (tmp_path / "two.csv.partial").exists()


@pytest.mark.parametrize("output", [[], ["--output", "-"]])
def test_several_processes_need_a_file(small, monkeypatch, capsys, output):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert predict(DEMO, "--model", small, *output) == 1
    assert "torchrun needs a file to write: --output FILE" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(tmp_path, small, monkeypatch, capsys):
    read, output = Files.read, tmp_path / "x.csv"

    def interrupt(self, index):
        if "pants" in self.locate(index):
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(Files, "read", interrupt)
    command = [DEMO / "hat", DEMO / "pants", "--model", small, "--output", output]
    assert predict(*command) == 130
    error = capsys.readouterr().err
    assert error.startswith("snzoo: interrupted; the rows of 0 photos are kept, ")
    assert "--resume" in error
    monkeypatch.setattr(Files, "read", read)
    assert predict(*command, "--resume") == 0 and len(read_predictions(output)) == 22
    assert predict(*command, "--resume") == 0
    assert capsys.readouterr().err == f"snzoo: {output} is complete; remove it to begin anew\n"


@pytest.mark.slow
def test_a_list_on_stdin_is_the_same_as_its_photos(tmp_path, small):
    names = [str(path.relative_to(DEMO)) for path in sorted((DEMO / "hat").iterdir())]
    options = ["--model", small, "--output", "-"]
    process = start("-", *options, stdin=subprocess.PIPE, cwd=DEMO)
    process.stdin.write("\n\n".join(names))
    process.stdin.close()
    process.stdin = None
    rows = [json.loads(line) for line in finish(process)[0].splitlines()]
    assert predict(DEMO / "hat", "--model", small, "--output", tmp_path / "x.ndjson") == 0
    expected = read_predictions(tmp_path / "x.ndjson")
    assert [row.pop("image") for row in rows] == names
    assert [os.path.relpath(row.pop("image"), DEMO) for row in expected] == names
    assert rows == expected


@pytest.mark.parametrize("how, status", [([], 1), (["--on-error", "skip"], 0)])
@pytest.mark.parametrize("to", ["file", "stdout", "text"])
def test_broken_photos_are_reported_and_have_rows(tmp_path, small, photos, capsys, how, status, to):
    (photos / "04.jpg").write_text("no image")
    output = {"file": ["--output", tmp_path / "x.ndjson"], "stdout": ["--output", "-"], "text": []}
    assert predict(photos, "--model", small, *output[to], *how) == status
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "04.jpg" in err
    if to == "text":
        assert out.count(".jpg") == 11
        return
    if to == "file":
        assert out == f"12 images, 1 of which could not be read: {tmp_path / 'x.ndjson'}\n"
        out = (tmp_path / "x.ndjson").read_text()
    rows = [json.loads(line) for line in out.splitlines()]
    assert [bool(row["error"]) for row in rows] == [i == 4 for i in range(12)]


def test_a_broken_photo_may_stop_the_run(tmp_path, small, photos, capsys):
    (photos / "04.jpg").write_text("no image")
    output = tmp_path / "x.csv"
    command = [photos, "--model", small, "--output", output]
    assert predict(*command, "--on-error", "fail") == 1 and not output.exists()
    assert capsys.readouterr().err.count("\n") == 1
    assert predict(*command, "--on-error", "skip", "--resume") == 0
    assert len(read_predictions(output)) == 12


def test_several_models_are_named(tmp_path, small, photos, capsys):
    model = snzoo.create_model("resnet18v1_bn", width=4, num_classes=2)
    snzoo.save_pretrained(model, tmp_path / "other", classes=("d", "e"))
    photo = photos / "00.jpg"
    command = [photo, "--topk", 1, "--model", small, "--model", tmp_path / "other"]
    assert predict(*command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == [f"small: {photo}", f"other: {photo}"] and len(lines) == 4
    assert predict(*command, "--json", "--embeddings") == 0
    documents = json.loads(capsys.readouterr().out)
    assert [d["model"] for d in documents] == ["small", "other"]
    assert [*load_classifiers([small, str(tmp_path / "other")])] == ["small", "other"]
    assert [len(d["embedding"]) for d in documents] == [64, 32]


@pytest.mark.parametrize(
    "options, words",
    [
        (["--resume"], "--resume needs a file to write"),
        (["--embeddings"], "add --output FILE or --json"),
        (["--output", "x.csv", "--embeddings"], "not .csv"),
        (["--model", "resnet18v1_sn_clothing", "--weights", "x.pth"], "name one model"),
        (["--model", "resnet18v1_sn_clothing"] * 2, "two models are called resnet18v1_sn_clothing"),
    ],
)
def test_options_that_do_not_go_together_are_refused(small, photos, capsys, options, words):
    assert predict(photos, "--model", small, *options) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize("to", [["--output", "x.csv"], ["--output", "-"], []])
def test_inputs_that_cannot_be_read_are_not_skipped(
    tmp_path, small, photos, monkeypatch, capsys, to
):
    monkeypatch.chdir(tmp_path)
    (photos / "04.jpg").write_text("no image")
    options = ["--model", small, *to, "--on-error", "skip"]
    assert predict(photos, "none.jpg", *options) == 0
    assert predict("none", photos, "none.tar", "none.jpg", *options) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "snzoo: 2 inputs could not be read: none, none.tar"


def test_a_resumed_run_knows_the_inputs_that_could_not_be_read(
    tmp_path, small, photos, monkeypatch, capsys
):
    command = ["none", photos, "--model", small, "--output", tmp_path / "x.csv"]
    monkeypatch.setattr(bulk, "join_rows", lambda *_, **__: 1 / 0)
    assert predict(*command, "--on-error", "skip") == 1
    monkeypatch.undo()
    capsys.readouterr()
    assert predict(*command, "--on-error", "skip", "--resume") == 1
    assert capsys.readouterr().err == "snzoo: 1 input could not be read: none\n"


def test_one_image_is_no_images(tmp_path, small, photos, capsys):
    assert predict(photos / "00.jpg", "--model", small, "--output", tmp_path / "x.csv") == 0
    assert capsys.readouterr().out == f"1 image: {tmp_path / 'x.csv'}\n"


def test_weights_that_are_none_are_not_said_to_lack_a_model(photos, capsys):
    assert predict(photos, "--weights", photos / "00.jpg") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "00.jpg: it is not a weights file" in error
