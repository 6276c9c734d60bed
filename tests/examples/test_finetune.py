"""examples/finetune.py in a process of its own, on generated photos of two colors."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import snzoo
from snzoo.cli import main
from snzoo.spec import ModelSpec

SCRIPT = Path(__file__).parents[2] / "examples" / "finetune.py"
SMALL = ["--width", "8", "--crop", "48", "--batch-size", "8", "--workers", "0"]
APPLE_DOUBLE = b"\0\5\26\7\0\2\0\0Mac OS X        "


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


def finetune(data, *arguments, sizes=SMALL):
    command = [sys.executable, SCRIPT, data, "--model", "resnet18v1_sn", *sizes, *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=data.parent)


@pytest.mark.slow
def test_it_learns_and_the_checkpoint_describes_itself(data, tmp_path, capsys):
    # What macOS leaves beside a photo is not one, and a user's own file is not touched.
    (data / "train" / "plum" / "._0.png").write_bytes(APPLE_DOUBLE)
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "best.safetensors.partial"
    mine.write_text("mine")
    done = finetune(data, "--epochs", 6, "--lr", 0.05, "--output", "out/best.safetensors")
    assert done.returncode == 0, done.stderr
    losses = [float(value) for value in re.findall(r"loss (\d\.\d+)", done.stdout)]
    assert len(losses) == 6 and losses[-1] < losses[0]
    assert "best: 8/8" in done.stdout

    best = tmp_path / "out" / "best.safetensors"
    assert set(best.parent.iterdir()) == {best, mine} and mine.read_text() == "mine"
    spec = ModelSpec.find(weights=best)
    assert spec.classes == ("apple", "plum") and spec.arguments == {"width": 8}
    assert (spec.preprocessing.resize, spec.preprocessing.crop) == (55, 48)
    predictions = snzoo.predict(snzoo.create_model(best), data / "validation" / "plum")
    assert [p.names[0] for p in predictions] == ["plum"] * 4
    assert main(["eval", "--weights", str(best), "--imagenet", str(data / "validation")]) == 0
    assert "8/8" in capsys.readouterr().out

    # In a second run, the width, the classes and the preprocessing of the first are still known.
    arguments = ["--weights", best, "--epochs", 1, "--workers", 0, "--output", "second.safetensors"]
    done = finetune(data, *arguments, sizes=())
    assert done.returncode == 0, done.stderr
    second = ModelSpec.find(weights=tmp_path / "second.safetensors")
    assert second.arguments == {"width": 8} and second.preprocessing == spec.preprocessing


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
    for key in ("layer2.0.conv1.weight", "layer2.0.sn1.running_mean"):
        assert not torch.equal(start.state_dict()[key], after[key])


@pytest.mark.slow
def test_half_stores_large_weights_in_half_the_bytes(data, tmp_path):
    for name in ("full", "half"):
        options = ["--half"] * (name == "half")
        done = finetune(data, "--epochs", 1, "--output", f"{name}.safetensors", *options)
        assert done.returncode == 0, done.stderr
    full, half = (tmp_path / f"{name}.safetensors" for name in ("full", "half"))
    assert half.stat().st_size < 0.75 * full.stat().st_size
    assert snzoo.create_model(half).conv1.weight.dtype == torch.float32


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "resnet19"], "did you mean"),
        (["--freeze", "6"], "freeze takes 0 (the stem) to 4 stages, got 6"),
        (["--output", "data"], "--output data: name a .safetensors file"),
        (["--output", "data/train/x.safetensors/y.safetensors"], "x.safetensors"),
        (["--lr", "nan"], "lr must be"),
        (["--crop", "0"], "crop 0 must be"),
        (["--lr", "1e30", "--epochs", "3"], "lower --lr"),
        (["--lr", "1e30", "--epochs", "1", "--batch-size", "24"], "lower --lr"),
        (["--weights", "none.pth"], "none.pth"),
        (["--pretrained"], "no published weights"),
        (["--device", "toaster"], "device 'toaster' can't be used"),
    ],
)
def test_mistakes_are_one_line(data, arguments, message):
    (data / "train" / "x.safetensors").write_text("a file")
    done = finetune(data, *arguments)
    assert done.returncode in (1, 2) and message in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1
    assert not (data.parent / "finetuned.safetensors").exists()


@pytest.mark.slow
def test_photos_are_checked_before_the_training(data):
    broken = data / "train" / "plum" / "broken.png"
    broken.write_text("no image")
    done = finetune(data, "--workers", 2, "--epochs", 1)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and str(broken) in done.stderr
    assert done.stdout == ""
    broken.unlink()
    (data / "validation" / "plum").rename(data / "validation" / "prune")
    assert "differ in their classes: plum, prune" in finetune(data).stderr
    (data / "validation").rename(data / "other")
    assert "has no folder validation" in finetune(data).stderr
