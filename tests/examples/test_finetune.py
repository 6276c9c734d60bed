"""examples/finetune.py as a real process, on made photos of two colors."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import snzoo
from snzoo.cli import main
from snzoo.spec import ModelSpec

SCRIPT = Path(__file__).parents[2] / "examples" / "finetune.py"
SMALL = ["--width", "8", "--crop", "48", "--batch-size", "8", "--workers", "0"]


@pytest.fixture
def data(tmp_path):
    """24 + 8 photos: reddish ones are apples, bluish ones are plums."""
    for split, count in (("train", 12), ("validation", 4)):
        for channel, name in ((0, "apple"), (2, "plum")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([len(split), channel, i])
                pixels = rng.integers(0, 120, (60, 70, 3), dtype=np.uint8)
                pixels[:, :, channel] += 120
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "data"


def finetune(data, *arguments):
    command = [sys.executable, SCRIPT, data, "--model", "resnet18v1_sn", *SMALL, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=data.parent)


def test_it_learns_and_its_checkpoint_knows_what_it_is(data, tmp_path, capsys):
    done = finetune(data, "--epochs", 6, "--lr", 0.05, "--output", "out/best.safetensors")
    assert done.returncode == 0, done.stderr
    losses = [float(value) for value in re.findall(r"loss (\d\.\d+)", done.stdout)]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert "best: 8/8" in done.stdout

    best = tmp_path / "out" / "best.safetensors"
    assert [path.name for path in best.parent.iterdir()] == ["best.safetensors"]
    with safe_open(best, "pt") as file:
        description = json.loads(file.metadata()["snzoo"])
    assert description["classes"] == ["apple", "plum"]
    assert description["preprocessing"]["crop"] == 48 and "--epochs 6" in description["command"]

    # A second generation: the first one's width, classes and preprocessing are still known.
    command = [sys.executable, SCRIPT, data, "--model", "resnet18v1_sn", "--weights", best]
    command += ["--epochs", "1", "--workers", "0", "--output", "second.safetensors"]
    subprocess.run(list(map(str, command)), cwd=data.parent, check=True)
    second = ModelSpec.find(weights=tmp_path / "second.safetensors")
    assert second.arguments == {"width": 8} and second.preprocessing.crop == 48
    # The zoo name that was typed has another width; what counts is what the file says.
    command[command.index("resnet18v1_sn")] = "resnet18v1_sn_clothing"
    subprocess.run(list(map(str, command)), cwd=data.parent, check=True)
    assert ModelSpec.find(weights=tmp_path / "second.safetensors").name == "resnet18v1_sn"
    snzoo.create_model("resnet18v1_sn", weights=tmp_path / "second.safetensors")

    arguments = ["--model", "resnet18v1_sn", "--weights", str(best)]
    assert main(["eval", *arguments, "--imagenet", str(data / "validation")]) == 0
    assert "8/8" in capsys.readouterr().out
    assert main(["predict", *arguments, str(data / "validation" / "plum" / "0.png")]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[0] == "plum"
    assert main(["predict", "--weights", str(best), str(data / "validation" / "plum")]) == 0
    capsys.readouterr()
    assert (
        main(["eval", "--model", "resnet34v1_sn", "--weights", str(best), "--imagenet", "."]) == 1
    )
    assert "was made from resnet18v1_sn" in capsys.readouterr().err


def test_frozen_stages_stay_as_they_were(data, tmp_path):
    start = snzoo.create_model("resnet18v1_sn", width=8)
    for name, buffer in start.named_buffers():
        buffer.fill_(1.0 if name.endswith("var") else 0.1)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    done = finetune(data, "--weights", "start.pth", "--freeze", 1, "--epochs", 1)
    assert done.returncode == 0, done.stderr
    after = load_file(tmp_path / "finetuned.safetensors")
    for key, value in start.state_dict().items():
        if key.startswith(("conv1", "sn1", "layer1")):
            assert torch.equal(value, after[key]), key
    assert not torch.equal(start.layer2[0].conv1.weight, after["layer2.0.conv1.weight"])
    assert not torch.equal(start.layer2[0].sn1.running_mean, after["layer2.0.sn1.running_mean"])


@pytest.mark.slow
def test_half_stores_large_weights_in_half_the_bytes_and_loads(data, tmp_path):
    assert finetune(data, "--epochs", 1, "--output", "full.safetensors").returncode == 0
    assert finetune(data, "--epochs", 1, "--half", "--output", "half.safetensors").returncode == 0
    full, half = (tmp_path / f"{name}.safetensors" for name in ("full", "half"))
    assert half.stat().st_size < 0.75 * full.stat().st_size
    model = snzoo.create_model("resnet18v1_sn", weights=half)
    assert model.fc.out_features == 2 and model.conv1.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "resnet19"], "did you mean"),
        (["--freeze", "6"], "freeze takes 0 (the stem) to 4 stages, got 6"),
        (["--output", "data"], "--output data: name a file"),
        (["--min-scale", "2"], "--min-scale: must be a number from 0 to 1, got '2'"),
        (["--lr", "nan"], "--lr: must be a number from 0 to inf, got 'nan'"),
        (["--crop", "0"], "--crop: must be a whole number from 1, got '0'"),
        (["--lr", "1e30", "--epochs", "3"], "lower --lr"),
        (["--lr", "1e30", "--epochs", "1", "--batch-size", "24"], "lower --lr"),
        (["--weights", "none.pth"], "none.pth"),
        (["--pretrained"], "no published weights"),
        (["--device", "toaster"], "device 'toaster' can't be used"),
    ],
)
def test_mistakes_are_one_line(data, arguments, message):
    done = finetune(data, *arguments)
    assert done.returncode in (1, 2) and message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (data.parent / "finetuned.safetensors").exists()


def test_a_broken_photo_is_one_line_from_a_reading_process_too(data):
    broken = data / "train" / "plum" / "broken.png"
    broken.write_text("no image")
    done = finetune(data, "--workers", 2, "--epochs", 1)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and str(broken) in done.stderr


def test_splits_that_do_not_fit_are_refused(data):
    (data / "validation" / "plum").rename(data / "validation" / "prune")
    assert "differ in their class folders: plum, prune" in finetune(data).stderr
    (data / "validation").rename(data / "other")
    assert "has no folder validation or val" in finetune(data).stderr
