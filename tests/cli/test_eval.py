"""``snzoo eval`` as processes: one, several, killed, resumed, held to what is published."""

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import torch

import snzoo
from snzoo.cli import main
from snzoo.cli.main import build_parser
from snzoo.data.imagenet import real_labels
from snzoo.evaluation import EvaluationConfig
from snzoo.evaluation.records import unfinished_runs
from snzoo.evaluation.results import parse_results

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "snzoo" / "demo" / "photos"
CLOTHING = ["--model", "resnet18v1_sn_clothing", "--imagenet", str(PHOTOS)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SNZOO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A manifest with the demo network under three names; returns its models, to be edited."""
    document = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))
    demo = document["models"]["resnet18v1_sn_clothing"]
    for name in ("first_sn", "second_sn"):
        document["models"][name] = json.loads(json.dumps(demo))
    path = tmp_path / "manifest.json"

    def save():
        path.write_text(json.dumps(document))

    save()
    monkeypatch.setenv("SNZOO_MANIFEST", str(path))
    yield document["models"], save


def start(*arguments, launcher=("-m", "snzoo")):
    command = [sys.executable, *launcher, "eval", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes)


def finish(process, status=0):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == status, errors
    return output, errors


def results(path):
    """The document, held against what snzoo report takes."""
    document = json.loads(path.read_text(encoding="utf-8"))
    parse_results(document)
    return document


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The document of one process that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SNZOO_HOME", str(folder / "home"))
        path = folder / "results.json"
        assert main(["eval", *CLOTHING, "--batch-size", "4", "--json", str(path)]) == 0
    return results(path)


TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "snzoo"]


@pytest.fixture
def threads(monkeypatch):
    """As many in each process as in one alone: they round as many sums."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))


@pytest.mark.slow
def test_two_processes_count_what_one_does(tmp_path, whole, threads):
    output = tmp_path / "results.json"
    process = start(*CLOTHING, "--batch-size", 4, "--json", output, launcher=TORCHRUN)
    printed, _ = finish(process)
    document = results(output)
    assert document["run"]["processes"] == 2 and printed.count("top-1") == 1
    assert document["models"] == whole["models"]
    assert document["data"]["images"] == whole["data"]["images"] == 149  # odd: no even halves


def test_processes_that_cannot_be_joined_are_one_line(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # and no other word of torchrun
    _, errors = finish(start(*CLOTHING), 1)
    assert errors.startswith("snzoo: can't join the other processes: ")
    assert errors.count("\n") == 1


def recorded_lines(home):
    return sum(path.read_text().count("\n") for path in home.rglob("*.ndjson"))


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_stopped_is_resumed_to_identical_figures(tmp_path, home, whole, how):
    output = tmp_path / "results.json"
    command = [*CLOTHING, "--batch-size", 4, "--json", output]
    for _ in range(3):
        process = start(*command)
        deadline = time.monotonic() + 120
        while recorded_lines(home) < 5:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(how)
        if process.wait(120):
            break
        output.unlink()  # on a busy machine, a run may end before the signal arrives
    _, errors = finish(process, -9 if how == signal.SIGKILL else 130)
    if how == signal.SIGINT:
        assert errors.startswith("snzoo: interrupted after ") and errors.count("\n") == 1
        assert "of 149 images; the same command with --resume goes on from there" in errors
    assert not output.exists() and unfinished_runs() == 1
    finish(start(*command, "--resume"))
    document = results(output)
    assert document["run"]["resumed"] and document["models"] == whole["models"]
    assert unfinished_runs() == 0


def test_records_of_runs_that_never_ended_are_listed_and_pruned(home, capsys):
    (home / "runs" / "0123").mkdir(parents=True)
    (home / "runs" / "0123" / "x.ndjson").write_text("{}\n")
    assert main(["cache"]) == 0 and "records of 1 unfinished" in capsys.readouterr().out
    assert main(["cache", "prune"]) == 0 and "1 unfinished" in capsys.readouterr().out
    assert not (home / "runs").exists()


@pytest.mark.slow
def test_what_two_processes_began_one_ends(tmp_path, home, whole, threads):
    output = tmp_path / "results.json"
    command = [*CLOTHING, "--batch-size", 4, "--json", output]
    process = start(*command, launcher=TORCHRUN)
    deadline = time.monotonic() + 120
    while recorded_lines(home) < 6:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode != 0 and not output.exists()
    _, errors = finish(start(*command, "--resume"))
    document = results(output)
    assert errors == "" and document["run"]["resumed"] and document["models"] == whole["models"]


@pytest.mark.slow
def test_an_error_in_one_of_two_processes_ends_both(tmp_path, threads):
    shutil.copytree(PHOTOS, tmp_path / "photos")
    (tmp_path / "photos" / "t-shirt" / "zzz.jpg").write_text("no image")  # of the second
    where = ["--imagenet", tmp_path / "photos"]
    process = start(*CLOTHING[:2], *where, launcher=TORCHRUN)
    output, errors = process.communicate(timeout=120)
    assert process.returncode != 0 and output == "" and "zzz.jpg: not an image" in errors


@pytest.mark.slow
def test_forgetting_to_resume_loses_no_record(tmp_path, home, whole):
    output = tmp_path / "results.json"
    command = [*CLOTHING, "--batch-size", 4, "--json", output]
    for least in (8, 9):  # of both together
        process = start(*command)
        while recorded_lines(home) < least:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.communicate()
    assert recorded_lines(home) >= 9
    finish(start(*command, "--resume"))
    assert results(output)["models"] == whole["models"]


@pytest.mark.slow
def test_only_the_same_images_are_resumed_and_repaired_ones_are_read(tmp_path, home, whole):
    for name in ("one", "two"):
        shutil.copytree(PHOTOS, tmp_path / name)
    last = tmp_path / "one" / "t-shirt" / "zzz.jpg"
    last.write_text("no image")
    command = [*CLOTHING[:2], "--batch-size", 4, "--imagenet"]
    _, errors = finish(start(*command, tmp_path / "one"), 1)
    assert "zzz.jpg" in errors and recorded_lines(home) > 30
    last.unlink()
    output = tmp_path / "results.json"
    for name in ("two", "one"):  # other files, and other images
        _, errors = finish(start(*command, tmp_path / name, "--resume", "--json", output))
        assert "begins anew" in errors
        assert results(output)["models"] == whole["models"]


@pytest.mark.slow
def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, home, whole):
    home.write_text("a file")
    output = tmp_path / "results.json"
    finish(start(*CLOTHING, "--batch-size", 4, "--json", output))
    assert results(output)["models"] == whole["models"]


def test_wildcards_evaluate_every_network_in_one_pass(tmp_path, zoo, whole, capsys):
    output, predictions = tmp_path / "results.json", tmp_path / "predictions.csv"
    arguments = ["--data", str(PHOTOS), "--batch-size", "4", "--json", str(output)]
    arguments += ["--predictions", str(predictions)]
    assert main(["eval", "--model", "*_sn", "resnet18v1_sn_clothing", *arguments]) == 0
    models = results(output)["models"]
    names = ["resnet18v1_sn_clothing", "first_sn", "second_sn"]
    assert [model["name"] for model in models] == names
    for model in models:
        assert model | {"name": ""} == whole["models"][0] | {"name": ""}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("3 models on 149 images in 10 class folders")
    assert [line.split()[0] for line in lines[2:5]] == names
    assert all(f"{models[0]['top1']['percent']:.2f}" in line for line in lines[2:5])
    assert len(predictions.read_text().splitlines()) == 1 + 3 * 149


def test_every_option_of_the_config_is_on_the_command_line():
    parsed = vars(build_parser().parse_args(["eval"]))
    fields = {field.name: field.default for field in dataclasses.fields(EvaluationConfig)}
    assert fields.keys() <= parsed.keys()
    given = {name: parsed[name] for name in fields if parsed[name] is not None}
    assert EvaluationConfig(**given) == EvaluationConfig()  # the config alone has defaults
    for option in ("--data", "--imagenet"):
        assert build_parser().parse_args(["eval", option, "x"]).data == Path("x")


def test_accuracy_among_the_classes_present(tmp_path, capsys):
    for name in ("hat", "shoes"):
        shutil.copytree(PHOTOS / name, tmp_path / "two" / name)
    output = tmp_path / "results.json"
    where = ["--data", str(tmp_path / "two"), "--json", str(output)]
    assert main(["eval", *CLOTHING[:2], *where, "--classes", "present"]) == 0
    present = results(output)["models"][0]["present"]
    assert present["classes"] == 2 and present["top5"]["percent"] == 100
    assert (
        f"among the 2 classes present: top-1 {present['top1']['correct']}/"
        in capsys.readouterr().out
    )


def test_check_passes_where_figures_are_the_published_ones(capsys):
    assert main(["eval", "--check"]) == 0
    assert capsys.readouterr().out.count("agrees") == 2


@pytest.mark.parametrize(
    "change, tolerance, words",
    [
        ({"top1": 89.80}, None, ["top-1 is 89.93 %, published 89.80 %", "more than 0.05 points"]),
        ({"top1": 89.80}, "0.2", None),
        ({"top5": 99.9, "images": 372}, None, ["top-5", "lies outside [95.24, 99.63]"]),
    ],
)
def test_check_fails_outside_the_tolerance(zoo, capsys, change, tolerance, words):
    models, save = zoo
    bundled = models["resnet18v1_sn_clothing"]["published"]
    models["resnet18v1_sn_clothing"]["published"] = [
        result | change for result in bundled if result["images"] == 149
    ]
    save()
    arguments = ["--tolerance", tolerance] if tolerance else []
    assert main(["eval", "--check", *arguments]) == (1 if words else 0)
    errors = capsys.readouterr().err
    assert errors == "" if words is None else all(word in errors for word in words)
    assert words is None or errors.startswith("snzoo: check failed: resnet18v1_sn_clothing: ")


def test_a_check_needs_published_figures_and_all_images(tmp_path, zoo, capsys):
    models, save = zoo
    models["first_sn"]["published"] = []
    save()
    assert main(["eval", "--check", "--model", "first_sn", "--data", str(PHOTOS)]) == 1
    assert "no published figures of first_sn to check against" in capsys.readouterr().err
    shutil.copytree(PHOTOS / "hat", tmp_path / "photos" / "hat")
    (tmp_path / "photos" / "hat" / "broken.jpg").write_text("no image")
    where = ["--data", str(tmp_path / "photos"), "--on-error", "skip"]
    assert main(["eval", *CLOTHING[:2], *where, "--check"]) == 1
    assert "check failed: 1 images were left out" in capsys.readouterr().err


def test_figures_are_those_of_the_weights_of_the_zoo_only(tmp_path, capsys):
    model = snzoo.create_model(CLOTHING[1], pretrained=True)
    torch.save(model.state_dict(), tmp_path / "other.pth")
    arguments = [*CLOTHING, "--weights", str(tmp_path / "other.pth")]
    assert main(["eval", *arguments, "--json", str(tmp_path / "results.json")]) == 0
    (model,) = results(tmp_path / "results.json")["models"]
    assert model["top1"]["published"] is None and model["top1"]["correct"] == 134
    assert main(["eval", *arguments, "--check"]) == 1
    assert "no published figures of resnet18v1_sn_clothing" in capsys.readouterr().err


def test_approximate_pixels_are_labeled(tmp_path, capsys):
    output = tmp_path / "results.json"
    assert main(["eval", *CLOTHING, "--decode", "fast", "--json", str(output)]) == 0
    assert "approximate pixels (--decode fast)" in capsys.readouterr().out
    document = results(output)
    assert document["pixels"]["exact"] is False
    assert document["models"][0]["top1"]["agrees"] is None  # nothing to compare with


def test_the_document_says_how_it_was_made(whole):
    versions, pixels = whole["versions"], whole["pixels"]
    assert {"snzoo", "python", "torch", "pillow", "simplejpeg"} <= set(versions)
    assert pixels["exact"] and pixels["decoder"] == f"simplejpeg {versions['simplejpeg']}"
    assert pixels["resize"] == f"pillow {versions['pillow']}"
    changing = {"seconds": 0, "images_per_second": 0, "workers": 0, "threads": 0}
    assert whole["run"] | changing == {
        "device": "cpu",
        "precision": "fp32",
        "batch_size": 4,
        "compile": False,
        "channels_last": False,
        "threads": 0,
        "processes": 1,
        "workers": 0,
        "seconds": 0,
        "images_per_second": 0,
        "resumed": False,
    }
    (model,) = whole["models"]
    assert sum(row["images"] for row in model["per_class"]) == model["images"] == 149
    for key in ("top1", "top5"):
        assert sum(row[key] for row in model["per_class"]) == model[key]["correct"]
    wrong = sum(row["count"] for row in model["confused"])
    assert wrong == 149 - model["top1"]["correct"]
    assert 0 < model["calibration_error"] < 0.2
    pair = model["confused"][0]
    assert all((PHOTOS / name).is_file() for name in pair["examples"])


def test_validation_photos_in_a_tar_are_held_to_both_kinds_of_labels(tmp_path, capsys):
    model = snzoo.create_model("resnet18v1_sn")
    model.fc.bias.data[970] = 1000  # the answer to everything, and right of number 2 alone
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    photo = next((PHOTOS / "hat").iterdir())
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in range(1, 7):
            tar.add(photo, f"ILSVRC2012_val_{number:08}.JPEG")
    output = tmp_path / "results.json"
    arguments = ["--model", "resnet18v1_sn", "--weights", str(tmp_path / "weights.pth")]
    arguments += ["--imagenet", str(tmp_path), "--labels", "real", "--json", str(output)]
    assert main(["eval", *arguments]) == 0
    (model,) = results(output)["models"]
    assert (model["top1"]["correct"], model["images"]) == (1, 6)
    sets = real_labels()[:6]
    expected = sum(970 in labels for labels in sets), sum(map(bool, sets))
    assert (model["real"]["correct"], model["real"]["images"]) == expected and expected[0] > 0
    assert "ReaL top-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--predictions", "x.txt"], ["x.txt", ".csv, .ndjson, .parquet"]),
        (["--predictions", "none/x.csv"], ["none/x.csv", "folder that you may write"]),
        (["--labels", "real"], ["not named like a photo of the validation set"]),
        (["--precision", "tf32", "--device", "cpu"], ["tf32 needs a CUDA device"]),
        (["--weights", "a.pth", "--model", "a", "b"], ["a.pth", "one model"]),
        (["--decode", "fast", "--check"], ["--decode fast", "--check"]),
        (["--json", "x.csv", "--predictions", "./x.csv"], ["both name x.csv"]),
        (["--weights", "x.pth", "--imagenet", ".", "--json", "x.pth"], ["can't read x.pth"]),
        ([*CLOTHING[:2], "--imagenet", "l.txt", "--json", "l.txt"], ["l.txt", "an input"]),
        ([*CLOTHING, "--json", "photo.jpg"], ["photo.jpg", "an input"]),
    ],
)
def test_what_cannot_be_done_is_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert main(["eval", *arguments]) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1 and all(word in errors for word in words), errors
