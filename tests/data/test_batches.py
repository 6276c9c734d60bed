"""Batches: their numbers, their pixels, and the images that can't be read."""

import numpy as np
import pytest
import torch
from PIL import Image

import snzoo
from snzoo.data import batches as module
from snzoo.data import resample
from snzoo.data.batches import read_batches
from snzoo.data.pixels import load_pixels
from snzoo.data.resample import is_exact
from snzoo.data.samples import find_samples
from snzoo.data.sources import PhotoList
from snzoo.errors import DownloadError

RGB = snzoo.get_info("resnet50v1_sn").preprocessing
DEVICES = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()


@pytest.fixture
def samples(tmp_path):
    """Eleven photos of several sizes, of which number 4 is none."""
    for i in range(11):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (200 + 40 * i, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i:02}.png")
    (tmp_path / "04.png").write_text("no image")
    (tmp_path / "list.txt").write_text("".join(f"{i:02}.png {i}\n" for i in range(11)))
    return find_samples(tmp_path / "list.txt")


def expected(samples, index):
    return torch.tensor(load_pixels(samples.read(index), RGB)).permute(2, 0, 1)


@pytest.mark.parametrize("resize_on", [None, *DEVICES], ids=str)
@pytest.mark.parametrize(
    "batch_size, workers", [(1, 1), (1, 5), (3, 2), (5, 3), (64, 2), (10**18, 10**9)]
)
def test_batches_hold_the_pixels_in_order(samples, batch_size, workers, resize_on):
    seen = []
    for batch in read_batches(
        samples, RGB, batch_size=batch_size, workers=workers, resize_on=resize_on
    ):
        assert [*batch.indices, *batch.errors] and len(batch.pixels) == len(batch.indices)
        for index, pixels in zip(batch.indices, batch.pixels, strict=True):
            assert index // batch_size == len(seen) // batch_size
            assert torch.equal(pixels.cpu(), expected(samples, index))
        for error in batch.errors.values():
            assert "04.png" in str(error)
        seen += sorted([*batch.indices, *batch.errors])
    assert seen == list(range(11))


def test_a_batch_is_the_same_whichever_others_are_asked_for(samples):
    batches = list(read_batches(samples, RGB, batch_size=3, workers=2, numbers=[3, 1]))
    assert [(b.indices, list(b.errors)) for b in batches] == [([9, 10], []), ([3, 5], [4])]


def test_pixels_stay_until_the_second_batch_after_theirs_is_asked_for(samples):
    before = None
    for batch in read_batches(samples, RGB, batch_size=2, workers=4):
        for held in filter(None, (before, batch)):
            for index, pixels in zip(held.indices, held.pixels, strict=True):
                assert torch.equal(pixels, expected(samples, index))
        before = batch


@pytest.fixture
def unchecked():
    """Forgets which resamplers were compared with Pillow, before and after a test."""
    is_exact.cache_clear()
    yield
    is_exact.cache_clear()


def wrong_rounding(monkeypatch):
    def taps(*sides):
        first, weights = exact(*sides)
        return resample.Taps(first, weights - (weights > 0))

    exact = resample.taps
    monkeypatch.setattr(resample, "taps", taps)


def another_order(monkeypatch):
    monkeypatch.setattr(resample, "DOWN_FIRST", not resample.DOWN_FIRST)


def broken(monkeypatch):
    monkeypatch.setattr(resample.loops, "load", lambda: 1 / 0)
    monkeypatch.setattr(resample, "_resize_group", lambda *_: 1 / 0)


@pytest.mark.parametrize("harm", [None, wrong_rounding, another_order, broken])
@pytest.mark.parametrize("resize_on", [None, *DEVICES], ids=str)
def test_a_resampler_that_differs_from_pillow_is_not_used(
    samples, unchecked, monkeypatch, caplog, harm, resize_on
):
    if harm is another_order and resize_on and not resample.DOWN_FIRST:
        pytest.skip("photos whose columns come first are resized by Pillow, whatever its order")
    monkeypatch.setattr(module, "WORTH_COMPILING", 5)
    used = "torch" if resize_on else "llvmlite"
    if harm:
        harm(monkeypatch)
        used = "pillow"
    for batch in read_batches(samples, RGB, batch_size=4, workers=2, resize_on=resize_on):
        for index, pixels in zip(batch.indices, batch.pixels, strict=True):
            assert torch.equal(pixels.cpu(), expected(samples, index))
    assert module.resizer(len(samples), resize_on) == used
    assert [r.name for r in caplog.records] == ["snzoo"] * bool(harm)
    assert all("is not used" in r.getMessage() for r in caplog.records)


def test_few_images_are_resized_by_pillow(monkeypatch):
    assert module.resizer(10, None) == "pillow"
    monkeypatch.setattr(module.loops, "HAS_LLVMLITE", False)
    assert module.resizer(1_000_000, None) == "pillow"


def test_photos_in_any_form_make_one_batch(samples, tmp_path):
    path = tmp_path / "03.png"
    image = Image.open(path)
    exif = Image.Exif()
    exif[0x0112] = 3
    image.rotate(180).save(tmp_path / "turned.png", exif=exif)
    photos = [path, str(path), path.read_bytes(), image, np.asarray(image)]
    photos += [tmp_path / "turned.png", tmp_path / "04.png", "ftp://x/y.png"]
    (batch,) = read_batches(PhotoList(photos), RGB, batch_size=99, workers=2, upright=True)
    assert batch.indices == list(range(6)) and list(batch.errors) == [6, 7]
    assert all(torch.equal(pixels, expected(samples, 3)) for pixels in batch.pixels)
    assert f"can't read {tmp_path}/04.png: not an image" in str(batch.errors[6])
    assert isinstance(batch.errors[7], DownloadError)
    assert list(read_batches(PhotoList([]), RGB, batch_size=4, workers=2)) == []


def test_leaving_early_stops_the_threads(samples):
    import threading

    for _ in read_batches(samples, RGB, batch_size=1, workers=3):
        break
    assert not [t for t in threading.enumerate() if t.name.startswith("snzoo-decode")]
