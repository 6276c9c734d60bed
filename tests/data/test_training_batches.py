"""Training batches: the same pixels however they are read, and photos that can't be read."""

import threading

import numpy as np
import pytest
import torch

from snzoo.data import batches
from snzoo.data.augment import Augmentation, augment, image_seed
from snzoo.data.sources import PhotoList
from snzoo.data.training_batches import read_training_batches, shuffle

HOW = Augmentation(
    64, 72, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, (0.3, 0.3, 0.3), "published", 0.1, upright=True
)
DAMAGED = 4


@pytest.fixture(scope="module")
def photos():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (60 + 20 * i, 90, 3), dtype=np.uint8) for i in range(11)]
    return PhotoList([b"no image" if i == DAMAGED else image for i, image in enumerate(images)])


def read(photos, groups, *, workers=2, seed=3, epoch=1):
    """Photos by index, and the indices of the errors."""
    found, errors = {}, []
    for batch, group in zip(
        read_training_batches(photos, HOW, groups, seed=seed, epoch=epoch, workers=workers),
        groups,
        strict=True,
    ):
        assert batch.indices == [i for i in group if i != DAMAGED]
        assert batch.pixels.dtype == torch.uint8 and batch.noise.dtype == torch.float32
        assert batch.pixels.shape == (len(batch.indices), 3, 64, 64)
        assert batch.noise.shape == (len(batch.indices), 3)
        for i, pixels, noise in zip(batch.indices, batch.pixels, batch.noise, strict=True):
            found[i] = pixels.clone(), noise.clone()
        errors += batch.errors
    return found, errors


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("size", [1, 3, 11])
def test_pixels_depend_on_seed_epoch_and_index_only(photos, workers, size, compiled, monkeypatch):
    monkeypatch.setattr(batches, "WORTH_COMPILING", 0 if compiled else 1000)
    order = shuffle(11, seed=3, epoch=1).tolist()
    groups = [order[i : i + size] for i in range(0, 11, size)]
    found, errors = read(photos, groups, workers=workers)
    assert errors == [DAMAGED] and len(found) == 10
    for i, (pixels, noise) in found.items():
        generator = torch.Generator().manual_seed(image_seed(3, 1, i))
        expected, expected_noise = augment(photos.read(i), HOW, generator)
        assert np.array_equal(pixels.permute(1, 2, 0), expected)
        assert np.array_equal(noise, expected_noise)


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 2}])
def test_another_seed_or_epoch_gives_other_pixels(photos, change):
    before, after = read(photos, [[0, 1, 2]])[0], read(photos, [[0, 1, 2]], **change)[0]
    assert not any(torch.equal(before[i][0], after[i][0]) for i in range(3))
    assert not any(torch.equal(before[i][1], after[i][1]) for i in range(3))


def test_a_photo_may_be_repeated_and_an_epoch_may_be_empty(photos):
    batches = read_training_batches(photos, HOW, [[1, 4, 1, 4]], seed=0, epoch=0, workers=3)
    (batch,) = batches
    assert batch.indices == [1, 1] and list(batch.errors) == [4]
    assert torch.equal(batch.pixels[0], batch.pixels[1])
    assert list(read_training_batches(photos, HOW, [], seed=0, epoch=0, workers=3)) == []


def test_pixels_stay_until_the_second_batch_after_theirs_is_requested(photos):
    groups, before = [[i, i + 1] for i in range(5, 10)], None
    for batch in read_training_batches(photos, HOW, groups, seed=0, epoch=0, workers=4):
        for held, pixels in filter(None, (before,)):
            assert torch.equal(held.pixels, pixels)
        before = batch, batch.pixels.clone()


def test_leaving_early_stops_the_threads(photos):
    for _ in read_training_batches(photos, HOW, [[1], [2], [3]], seed=0, epoch=0, workers=3):
        break
    assert not [t for t in threading.enumerate() if t.name.startswith("snzoo-decode")]


def test_orders_are_permutations_that_depend_on_seed_and_epoch():
    orders = [shuffle(1000, seed=s, epoch=e) for s, e in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    assert all(order.dtype == torch.int64 for order in orders)
    assert all(torch.equal(order.sort().values, torch.arange(1000)) for order in orders)
    assert torch.equal(orders[0], orders[3])
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
