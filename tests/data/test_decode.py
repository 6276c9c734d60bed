"""Decoded images against Pillow's, whatever the file, and files that are no proper image."""

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from snzoo.data import decode as module
from snzoo.data.decode import decode, load_image
from snzoo.errors import DataError, UnexpectedArgumentError


def photo(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(image, form="JPEG", **options):
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


JPEGS = [
    encoded(photo(57, 43)),
    encoded(photo(64, 48), quality=30, subsampling="4:2:2", restart_marker_rows=1),
    encoded(photo(33, 70), progressive=True, subsampling="4:4:4"),
    encoded(photo(40, 40), keep_rgb=True),
    encoded(photo(50, 31).convert("L"), optimize=True),
    encoded(photo(48, 36).convert("CMYK")),
]


def damaged(content, chance):
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 5])):
        place, size = chance.randrange(len(content)), chance.randrange(1, 20)
        match chance.randrange(5):
            case 0 | 1:
                content[place] = chance.randrange(256)
            case 2:
                content[chance.randrange(min(600, len(content)))] = chance.randrange(256)
            case 3:
                content[place:place] = chance.randbytes(size)
            case 4:
                del content[place : place + size if chance.random() < 0.5 else None]
        content = content or bytearray(b"x")
    return bytes(content)


def outcome(function, content):
    try:
        return np.asarray(function(content))
    except DataError:
        return None


def test_simplejpeg_decodes_what_pillow_does_to_the_same_bits():
    for content in JPEGS:
        assert np.array_equal(decode(content), load_image(content))
    assert isinstance(decode(JPEGS[0]), np.ndarray)  # so it was not Pillow


def test_damaged_jpegs_are_refused_or_decoded_exactly_as_pillow_does():
    chance, decoded, refused = random.Random(0), 0, 0
    for _ in range(1500):
        content = damaged(chance.choice(JPEGS), chance)
        expected, ours = outcome(load_image, content), outcome(decode, content)
        if expected is None or ours is None:
            assert expected is None and ours is None
            refused += 1
        else:
            assert np.array_equal(expected, ours)
            decoded += 1
    assert decoded > 300 and refused > 300


def test_without_simplejpeg_pillow_decodes(monkeypatch):
    monkeypatch.setattr(module, "HAS_SIMPLEJPEG", False)
    assert isinstance(decode(JPEGS[0]), Image.Image)
    assert module.decoder().startswith("pillow ")


@pytest.mark.parametrize("with_simplejpeg", [True, False])
def test_shrinking_keeps_both_sides_at_least_as_long(monkeypatch, with_simplejpeg):
    monkeypatch.setattr(module, "HAS_SIMPLEJPEG", with_simplejpeg)
    shapes = [np.asarray(decode(encoded(photo(800, 640)), shrink_to=n)).shape for n in (256, 900)]
    assert 256 <= shapes[0][0] < 640 and shapes[1] == (640, 800, 3)
    assert np.asarray(decode(encoded(photo(800, 640), "PNG"), shrink_to=256)).shape[0] == 640


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA", "LA", "1", "YCbCr"])
def test_other_modes_are_converted_as_pillow_does(mode):
    image = photo(300, 260).convert(mode)
    content = encoded(image, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    assert np.array_equal(decode(content), Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(10))
def test_photos_are_turned_upright_only_on_request(tmp_path, orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photo(30, 26), form, exif=exif)
    (tmp_path / "x").write_bytes(content)
    image = Image.open(io.BytesIO(content))
    upright = np.asarray(ImageOps.exif_transpose(image))
    for same in (content, tmp_path / "x", str(tmp_path / "x"), image):
        assert np.array_equal(decode(same), image)
        assert np.array_equal(decode(same, upright=True), upright)
    assert np.array_equal(decode(upright, upright=True), upright)


def test_damaged_exif_data_leaves_a_photo_as_it_is():
    content = encoded(photo(30, 26), exif=b"Exif\0\0" + b"XX\0\7" * 9)
    assert np.asarray(decode(content, upright=True)).shape == (26, 30, 3)


@pytest.mark.parametrize(
    "value, message",
    [
        (np.zeros((3, 9, 9), np.uint8), r"got uint8 \(3, 9, 9\)"),
        (np.zeros((9, 9, 3), np.float32), "got float32"),
        (np.zeros((0, 9, 3), np.uint8), r"got uint8 \(0, 9, 3\)"),
        (Image.new("F", (9, 9)), "pixels of mode F, not 8 bits"),
    ],
)
def test_photos_of_other_shapes_and_modes_are_refused(value, message):
    with pytest.raises(DataError, match=f"can't read .*{message}"):
        decode(value)


def test_a_photo_of_another_type_is_refused():
    with pytest.raises(UnexpectedArgumentError, match=r"a photo is a path, .*, got Tensor"):
        decode(torch.zeros(9, 9, 3))


SIXTEEN_BITS = Image.fromarray(np.arange(65536, dtype=np.uint16).reshape(256, 256))


@pytest.mark.parametrize(
    "content, message",
    [
        (encoded(SIXTEEN_BITS, "PNG"), "mode I;16, not 8 bits"),
        (encoded(photo(300, 300))[:5000], "truncated"),
        (b"no image", "not an image"),
        (b"", "the file is empty"),
        (
            encoded(Image.new("1", (20_000, 20_000)), "PNG"),
            "more than 178,956,970 pixels, which may be a decompression bomb; make it smaller",
        ),
        (encoded(Image.new("L", (16_000, 16_000))), "decompression bomb"),
    ],
    ids=["16 bits", "truncated", "text", "empty", "bomb", "JPEG bomb"],
)
def test_what_is_no_proper_image_is_named_with_the_reason(content, message):
    with pytest.raises(DataError, match=message) as caught:
        decode(content, name="folder/\n.JPEG")
    assert str(caught.value).startswith(r"can't read folder/\n.JPEG: ")
