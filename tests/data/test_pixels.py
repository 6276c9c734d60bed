"""Pixels against torchvision's transforms, and files that are no proper image."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms

import snzoo
from snzoo.data.pixels import load_image, load_pixels, normalize, resize_and_crop
from snzoo.errors import DataError

RGB = snzoo.get_info("resnet50v1_sn").preprocessing
BGR = snzoo.get_info("resnet50v1_bn_msra").preprocessing
SHARED = Path(__file__).parents[3] / "shared"


def photo(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def reference(image):
    return transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(image)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(1, 900))
def test_resize_and_crop_are_torchvisions_at_any_size(width, height):
    if max(width, height) > 20 * min(width, height):
        width = height
    image = photo(width, height)
    ours = resize_and_crop(image, resize=256, crop=224)
    assert ours.size == (224, 224) and ours.tobytes() == reference(image).tobytes()


@pytest.mark.parametrize("size", [(256, 256), (256, 300), (257, 256), (5, 3), (333, 500)])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_files_give_the_pixels_of_the_reference(tmp_path, size, suffix):
    path = tmp_path / f"photo{suffix}"
    photo(*size).save(path)
    expected = transforms.PILToTensor()(reference(Image.open(path).convert("RGB")))
    assert torch.equal(load_pixels(path, RGB), expected)
    assert torch.equal(load_pixels(path.read_bytes(), RGB), expected)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared with real photos is absent")
def test_real_photos_give_the_pixels_of_the_reference():
    paths = sorted((SHARED / "data" / "imagenet_sample").glob("*/*"))[::5]
    assert len(paths) == 50
    for path in paths:
        expected = transforms.PILToTensor()(reference(Image.open(path).convert("RGB")))
        assert torch.equal(load_pixels(path, RGB), expected), path


def test_normalisation_is_torchvisions():
    image = photo(224, 224)
    pixels = transforms.PILToTensor()(image)
    expected = transforms.Compose([transforms.ToTensor(), transforms.Normalize(RGB.mean, RGB.std)])(
        image
    )
    assert torch.equal(normalize(pixels[None], RGB)[0], expected)


def test_bgr_takes_the_mean_off_reversed_channels():
    pixels = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = torch.tensor([30 - 103.939, 20 - 116.779, 10 - 123.68])
    assert torch.equal(normalize(pixels, BGR).flatten(), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1", "YCbCr"])
def test_other_modes_are_converted_as_pillow_does(tmp_path, mode):
    path = tmp_path / ("photo.jpg" if mode in ("CMYK", "YCbCr") else "photo.png")
    photo(300, 260).convert(mode).save(path)
    expected = transforms.PILToTensor()(reference(Image.open(path).convert("RGB")))
    assert torch.equal(load_pixels(path, RGB), expected)


def test_exif_rotation_is_not_applied(tmp_path):
    path, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    photo(300, 260).save(path, exif=exif)
    assert load_image(path).size == (300, 260)


def sixteen_bits(path):
    Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256)).save(path, "PNG")


def truncated(path):
    photo(300, 300).save(path, "JPEG")
    os.truncate(path, path.stat().st_size // 2)


def thread(path):
    Image.new("L", (1, 60_000)).save(path, "PNG")  # 256 pixels wide, it would be 15 million high


def bomb(path):
    Image.new("1", (20_000, 20_000)).save(path, "PNG")


@pytest.mark.parametrize(
    "make, message",
    [
        (sixteen_bits, "mode I;16, not 8 bits"),
        (truncated, "truncated"),
        (lambda path: path.write_text("no image"), "not an image"),
        (lambda path: path.write_bytes(b""), "not an image"),
        (lambda path: path.mkdir(), "not a regular file"),
        (lambda path: None, "No such file"),
        (os.mkfifo, "not a regular file"),
        (bomb, "decompression bomb"),
        (thread, "would grow to 256x15360000"),
    ],
    ids=["16 bits", "truncated", "text", "empty", "folder", "missing", "pipe", "bomb", "thread"],
)
def test_what_is_no_proper_image_is_named_with_the_reason(tmp_path, make, message):
    path = tmp_path / "photo.JPEG"
    make(path)
    with pytest.raises(DataError, match=message) as caught:
        load_pixels(path, RGB)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
