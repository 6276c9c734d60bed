"""Pixels against torchvision's transforms, and files that are no proper image."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

import snzoo
from snzoo.data.pixels import load_pixels, load_window, normalize, resize_and_crop
from snzoo.data.resample import resize_windows
from snzoo.errors import DataError

RGB = snzoo.get_info("resnet50v1_sn").preprocessing
BGR = snzoo.get_info("resnet50v1_bn_msra").preprocessing
SHARED = Path(__file__).parents[3] / "shared"
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def photo(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def reference(image):
    return transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(image)


def encoded(image, form="PNG", **options):
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def assert_every_way_gives_the_reference(contents):
    """By Pillow, by compiled loops, and by tensor operations on the whole batch."""
    expected = [np.asarray(reference(Image.open(io.BytesIO(c)).convert("RGB"))) for c in contents]
    for content, pixels in zip(contents, expected, strict=True):
        assert np.array_equal(load_pixels(content, RGB), pixels)
        assert np.array_equal(load_pixels(content, RGB, compiled=True), pixels)
    windows = [load_window(content, RGB) for content in contents]
    for device in DEVICES:
        pixels = resize_windows(windows, torch.device(device)).cpu().numpy()
        assert np.array_equal(pixels, np.stack(expected))


sides = st.one_of(st.integers(1, 900), st.sampled_from([1, 2, 224, 255, 256, 257, 448, 512]))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=4))
def test_images_of_any_size_give_the_pixels_of_torchvision(sizes):
    # tall, wide, tiny, exactly 256, upscaled; at 1 to 20 they would only be slow
    sizes = [(w, min(max(h, w // 20 + 1), 20 * w)) for w, h in sizes]
    images = [photo(*size, seed=i) for i, size in enumerate(sizes)]
    assert_every_way_gives_the_reference([encoded(image) for image in images])
    for image in images:
        assert resize_and_crop(image, resize=256, crop=224).tobytes() == reference(image).tobytes()


@pytest.mark.parametrize(
    "size", [(256, 256), (256, 300), (257, 256), (5, 3), (333, 500), (90, 800), (2600, 2100)]
)
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_files_give_the_pixels_of_the_reference(size, form):
    assert_every_way_gives_the_reference([encoded(photo(*size), form)])


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared with real photos is absent")
def test_real_photos_give_the_pixels_of_the_reference():
    paths = sorted((SHARED / "data" / "imagenet_sample").glob("*/*"))
    assert len(paths) == 250
    for first in range(0, 250, 25):
        assert_every_way_gives_the_reference([p.read_bytes() for p in paths[first : first + 25]])


@pytest.mark.parametrize("resize, crop", [(256, 224), (235, 224), (64, 64), (100, 33)])
def test_other_sizes_of_the_crop_are_as_exact(resize, crop):
    preprocessing = RGB.replace(resize=resize, crop=crop)
    image = photo(300, 400)
    whole = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(crop)])
    window = load_window(encoded(image), preprocessing)
    for pixels in (
        load_pixels(encoded(image), preprocessing),
        load_pixels(encoded(image), preprocessing, compiled=True),
        resize_windows([window], torch.device("cpu"))[0].numpy(),
    ):
        assert np.array_equal(pixels, np.asarray(whole(image)))


def test_approximate_pixels_are_near_the_exact_ones_and_not_the_same():
    image = photo(12, 9).resize((1200, 900), Image.Resampling.BICUBIC)
    content = encoded(image, "JPEG")
    exact = load_pixels(content, RGB).astype(int)
    for compiled in (False, True):
        near = load_pixels(content, RGB, approximate=True, compiled=compiled)
        assert 0 < np.abs(near - exact).mean() < 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalization_is_torchvisions(memory_format, device):
    images = [photo(224, 224, seed) for seed in range(3)]
    to_input = transforms.Compose([transforms.ToTensor(), transforms.Normalize(RGB.mean, RGB.std)])
    pixels = torch.stack([transforms.PILToTensor()(image) for image in images])
    x = normalize(pixels.to(device), RGB, memory_format=memory_format)
    assert torch.equal(x.cpu(), torch.stack([to_input(image) for image in images]))
    assert x.is_contiguous(memory_format=memory_format)


def test_bgr_takes_the_mean_off_reversed_channels():
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = torch.tensor([30 - 103.939, 20 - 116.779, 10 - 123.68])
    assert torch.equal(normalize(pixels, BGR).flatten(), expected)


def test_an_image_that_would_fill_the_memory_is_refused():
    # resized, 1 x 60,000 pixels would be 256 wide and 15 million high
    content = encoded(Image.new("L", (1, 60_000)))
    for load in (load_pixels, load_window):
        with pytest.raises(DataError, match=r"can't use x.png: 1x60000 .* grow to 256x15360000"):
            load(content, RGB, name="x.png")
