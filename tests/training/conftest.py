"""Small data sets, of photos in two colors and of people, and a recipe that suits the first."""

import numpy as np
import pytest
from PIL import Image

import snzoo

SMALL = {"epochs": 2, "batch_size": 8, "crop": 32, "resize": 36, "lr": 0.05, "drop_last": False}


@pytest.fixture(scope="session")
def colors(tmp_path_factory):
    """22 + 7 photos: reddish ones are apples, bluish ones are plums."""
    root = tmp_path_factory.mktemp("colors")
    for split, counts in (("train", (12, 10)), ("validation", (4, 3))):
        for channel, name, count in ((0, "apple", counts[0]), (2, "plum", counts[1])):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([len(split), channel, i])
                pixels = rng.integers(0, 120, (44, 50 + i % 3, 3), dtype=np.uint8)
                pixels[:, :, channel] += 120
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def people(tmp_path_factory):
    """Three people with four photos each to train with, and two with three to validate with."""
    root = tmp_path_factory.mktemp("people")
    for split, count, photos in (("train", 3, 4), ("val", 2, 3)):
        for person in range(count):
            folder = root / split / f"{split}{person}"
            folder.mkdir(parents=True)
            face = np.random.default_rng([len(split), person]).integers(60, 200, (8, 8, 3))
            for i in range(photos):
                noise = np.random.default_rng(i).integers(-40, 40, (112, 112, 3))
                pixels = np.kron(face, np.ones((14, 14, 1), int)) + noise
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture
def train(colors, tmp_path):
    """Train a tiny network on the colors; options replace the defaults."""

    def run(output="run", *, data=colors, **options):
        options = {"model": "resnet18v1_sn", "width": 8, "device": "cpu", **SMALL} | options
        return snzoo.train(data, output=tmp_path / output, workers=2, **options)

    return run
