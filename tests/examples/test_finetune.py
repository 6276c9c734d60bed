"""examples/finetune.py in a process of its own, on generated photos of two colors."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import snzoo
from snzoo.spec import ModelSpec

SCRIPT = Path(__file__).parents[2] / "examples" / "finetune.py"


def test_the_example_is_short():
    assert len(SCRIPT.read_text().splitlines()) < 80


def make_photos(folder, counts):
    for split, count in counts.items():
        for channel, name in ((0, "apple"), (2, "plum")):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([len(split), channel, i])
                pixels = rng.integers(0, 120, (60, 70, 3), dtype=np.uint8)
                pixels[:, :, channel] += 120
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")


def run(folder, *options):
    command = [sys.executable, SCRIPT, "data", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder)


@pytest.mark.slow
def test_fewer_photos_than_a_batch_are_an_error(tmp_path):
    make_photos(tmp_path / "data", {"train": 5, "val": 1})
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr == "10 photos are fewer than --batch-size: make it smaller\n"
    assert not (tmp_path / "finetuned.safetensors").exists()


@pytest.mark.slow
def test_it_learns_and_the_checkpoint_describes_itself(tmp_path):
    make_photos(tmp_path / "data", {"train": 12, "validation": 4})
    done = run(tmp_path, "--pretrained", "--epochs", "5", "--batch-size", "6")
    assert done.returncode == 0, done.stderr
    assert "epoch 5: validation 8/8" in done.stdout
    best = tmp_path / "finetuned.safetensors"
    assert ModelSpec.find(weights=best).classes == ("apple", "plum")
    predictions = snzoo.predict(snzoo.create_model(best), tmp_path / "data" / "validation" / "plum")
    assert [p.names[0] for p in predictions] == ["plum"] * 4
