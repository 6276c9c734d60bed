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


@pytest.mark.slow
def test_it_learns_and_the_checkpoint_describes_itself(tmp_path):
    for split, count in (("train", 12), ("validation", 4)):
        for channel, name in ((0, "apple"), (2, "plum")):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([len(split), channel, i])
                pixels = rng.integers(0, 120, (60, 70, 3), dtype=np.uint8)
                pixels[:, :, channel] += 120
                Image.fromarray(pixels).save(folder / f"{i}.png")
    options = ["--pretrained", "--epochs", "5", "--batch-size", "6"]
    command = [sys.executable, SCRIPT, "data", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "epoch 5: validation 8/8" in done.stdout
    best = tmp_path / "finetuned.safetensors"
    assert ModelSpec.find(weights=best).classes == ("apple", "plum")
    predictions = snzoo.predict(snzoo.create_model(best), tmp_path / "data" / "validation" / "plum")
    assert [p.names[0] for p in predictions] == ["plum"] * 4
