"""The rules of TensorFlow 1 and Torch7, against TensorFlow's results and scalar computations."""

import io
import math
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import snzoo
from snzoo.data import batches
from snzoo.data.batches import read_batches
from snzoo.data.decode import load_image
from snzoo.data.legacy_resize import resize_and_crop
from snzoo.data.pixels import geometry, load_pixels, load_window, normalize, pixel_dtype
from snzoo.data.sources import PhotoList
from snzoo.errors import ArgumentError, DataError

# Written by TensorFlow 2.21 in graph mode from random uint8 images:
# output{i} = tf.compat.v1.image.resize_bilinear(input{i}[None], size, align_corners=False)[0].
# "sides" (n, 2) are random shorter and longer sides, and "resized" (n, 2) are, in float32 tensors,
# tf.cast(side * (tf.cast(256, tf.float32) / shorter), tf.int32).
RECORDED = np.load(Path(__file__).parent / "tf1_resize.npz")
RULES = ("tf1-bilinear", "torch7-bicubic")
TO_255 = (227, 230, 235, 237, 242)  # float32 makes shorter · (256 / shorter) less than 256
SLIM = snzoo.get_info("resnet50v1_bn_tf").preprocessing
TORCH7 = snzoo.get_info("resnet50v1_bn_fbtorch").preprocessing
SIZES = [
    ((7, 5), (12, 9)),
    ((10, 13), (4, 6)),
    ((1, 6), (3, 11)),
    ((6, 8), (6, 8)),
    ((2, 9), (1, 4)),
]


def random_image(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def resize(pixels, resized, rule, box=None):
    return resize_and_crop(pixels, resized, box or (0, 0, *resized), rule)


def to_float32(value):
    """Round to float32 without NumPy."""
    return struct.unpack("f", struct.pack("f", value))[0]


def cubic_at(values, position):
    """The cubic with the slopes (p2 − p0) / 2 and (p3 − p1) / 2 at p1 and p2, in Hermite's form."""
    if len(values) == 1:
        return values[0]
    i = min(int(position), len(values) - 2)
    t, line = position - i, [2 * values[0] - values[1], *values, 2 * values[-1] - values[-2]]
    p0, p1, p2, p3 = line[i : i + 4]  # the line begins one pixel earlier
    start, end = (p2 - p0) / 2, (p3 - p1) / 2
    return (
        (2 * t**3 - 3 * t**2 + 1) * p1
        + (t**3 - 2 * t**2 + t) * start
        + (3 * t**2 - 2 * t**3) * p2
        + (t**3 - t**2) * end
    )


def resize_line(values, resized):
    step = Fraction(len(values) - 1, max(resized - 1, 1))
    ends = [step * i for i in range(resized - 1)] + [Fraction(len(values) - 1)]
    return [cubic_at(values, position) for position in ends]


def resize_cubically(pixels, resized):
    """Torch7's rule in exact arithmetic, one line after another."""
    rows = [
        [resize_line([Fraction(int(v)) for v in row[:, c]], resized[0]) for c in range(3)]
        for row in pixels
    ]
    out = np.empty((resized[1], resized[0], 3))
    for x in range(resized[0]):
        for c in range(3):
            out[:, x, c] = resize_line([row[c][x] for row in rows], resized[1])
    return out


@pytest.mark.parametrize("i", range(5))
def test_bilinear_gives_the_bits_of_tensorflow(i):
    pixels, expected = RECORDED[f"input{i}"], RECORDED[f"output{i}"]
    height, width, _ = expected.shape
    found = resize(pixels, (width, height), "tf1-bilinear")
    assert found.dtype == expected.dtype == np.float32 and np.array_equal(found, expected)


def test_the_sizes_are_those_of_tensorflow():
    found = [
        geometry((short, long), resize=256, crop=224, resampling="tf1-bilinear").resized
        for short, long in RECORDED["sides"].tolist()
    ]
    assert np.array_equal(found, RECORDED["resized"])
    assert sum(short == 255 for short, _ in found) > 20


@pytest.mark.parametrize("size, resized", [*SIZES, ((50, 37), (34, 25)), ((20, 15), (64, 48))])
def test_bilinear_is_a_grid_sample_at_unshifted_positions(size, resized):
    pixels = random_image(*size)
    scales = [(n, old / n) for old, n in zip(size, resized, strict=True)]
    positions = [torch.arange(n, dtype=torch.float64) * scale for n, scale in scales]
    x, y = (2 * p / max(old - 1, 1) - 1 for p, old in zip(positions, size, strict=True))
    grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], 2)[None]
    image = torch.from_numpy(pixels).double().permute(2, 0, 1)[None]
    expected = F.grid_sample(image, grid, "bilinear", "border", align_corners=True)
    found = resize(pixels, resized, "tf1-bilinear")
    np.testing.assert_allclose(found, expected[0].permute(1, 2, 0), atol=1e-3, rtol=0)


@pytest.mark.parametrize("size, resized", SIZES)
def test_bicubic_is_the_hermite_form_in_exact_arithmetic(size, resized):
    pixels = random_image(*size)
    found = resize(pixels, resized, "torch7-bicubic")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, resize_cubically(pixels, resized), atol=1e-3, rtol=0)


@pytest.mark.parametrize("resized", [(2, 3), (10, 9), (64, 48), (31, 17)])
def test_bicubic_keeps_ramps_up_to_the_borders(resized):
    x, y = np.arange(21), np.arange(16)
    ramp = np.stack([3 * x + 0 * y[:, None], 0 * x + 9 * y[:, None], 4 * x + 5 * y[:, None]], 2)
    found = resize(ramp.astype(np.uint8), resized, "torch7-bicubic")
    x, y = np.linspace(0, 20, resized[0]), np.linspace(0, 15, resized[1])
    expected = [3 * x + 0 * y[:, None], 0 * x + 9 * y[:, None], 4 * x + 5 * y[:, None]]
    np.testing.assert_allclose(found, np.stack(expected, 2), atol=1e-4, rtol=0)


def test_bicubic_is_not_clamped():
    pixels = np.zeros((4, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    found = resize(pixels, (40, 4), "torch7-bicubic")
    assert found.min() < -5 and found.max() > 260


@pytest.mark.parametrize("rule", RULES)
def test_a_crop_is_a_part_of_the_whole(rule):
    pixels = random_image(50, 40)
    whole = resize(pixels, (60, 48), rule)
    for left, top, right, bottom in [(10, 4, 42, 36), (12, 0, 60, 48), (0, 16, 48, 48)]:
        part = resize(pixels, (60, 48), rule, (left, top, right, bottom))
        assert np.array_equal(part, whole[top:bottom, left:right])


@pytest.mark.parametrize("short", [*TO_255, 256, 300, 375, 1])
@pytest.mark.parametrize("long", [500, 501, 403])
@pytest.mark.parametrize("wide", [True, False])
def test_sizes_and_offsets_follow_the_published_code(short, long, wide):
    size = (long, short) if wide else (short, long)
    scale = to_float32(256 / short)
    sides = [int(to_float32(side * scale)) for side in size]
    offsets = [math.floor((side - 224) / 2) for side in sides]
    found = geometry(size, resize=256, crop=224, resampling="tf1-bilinear")
    assert found == (tuple(sides), (*offsets, *(offset + 224 for offset in offsets)))
    assert (min(sides) == 255) == (short in TO_255)
    sides = [256 if side == short else math.floor(long / short * 256) for side in size]
    offsets = [math.ceil((side - 224) / 2) for side in sides]
    found = geometry(size, resize=256, crop=224, resampling="torch7-bicubic")
    assert found == (tuple(sides), (*offsets, *(offset + 224 for offset in offsets)))


@pytest.mark.parametrize("preprocessing", [SLIM, TORCH7], ids=RULES)
@pytest.mark.parametrize("size", [(235, 303), (400, 300), (256, 256)])
def test_the_whole_transform_in_plain_steps(preprocessing, size):
    pixels = random_image(*size)
    x = snzoo.create_transform(preprocessing)(pixels)
    if preprocessing is SLIM:
        scale = to_float32(256 / min(size))
        resized = tuple(int(to_float32(side * scale)) for side in size)
        left, top = ((side - 224) // 2 for side in resized)
        white, mean, std = 1, (123.68, 116.78, 103.94), (1, 1, 1)
    else:
        resized = tuple(math.floor(side / min(size) * 256) for side in size)
        left, top = (math.ceil((side - 224) / 2) for side in resized)
        white, mean, std = 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    whole = resize(pixels, resized, preprocessing.resampling)
    part = whole[top : top + 224, left : left + 224].astype(float)
    expected = (part / white - np.array(mean)) / np.array(std)
    assert x.dtype == torch.float32 and x.shape == (3, 224, 224)
    np.testing.assert_allclose(x.permute(1, 2, 0), expected, atol=3e-5, rtol=0)


def test_a_side_truncated_to_less_than_the_crop_is_refused():
    full = SLIM.replace(resize=256, crop=256)
    assert load_pixels(random_image(256, 300), full).shape == (256, 256, 3)
    with pytest.raises(DataError, match=r"can't use x.png: tf1-bilinear makes 255x\d+ of 235x300"):
        load_pixels(random_image(235, 300), full, name="x.png")
    pillow = full.replace(resampling="pillow-bilinear")
    assert load_pixels(random_image(235, 300), pillow).shape == (256, 256, 3)


@pytest.mark.parametrize("rule", RULES)
def test_an_image_that_would_fill_the_memory_is_refused(rule):
    with pytest.raises(DataError, match=r"1x60000 .* grow to 256x15360000"):
        load_pixels(np.zeros((60_000, 1, 3), np.uint8), SLIM.replace(resampling=rule))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_photos_are_decoded_as_for_pillows_rule(rule, mode, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = io.BytesIO()
    form = "JPEG" if mode in ("L", "CMYK") else "PNG"
    Image.fromarray(random_image(60, 40)).convert(mode).save(content, form, exif=exif)
    preprocessing = SLIM.replace(resize=48, crop=40, resampling=rule)
    for upright in (False, True):
        decoded = np.asarray(load_image(content.getvalue(), upright=upright))
        assert decoded.shape == ((60, 40, 3) if upright else (40, 60, 3))
        found = load_pixels(content.getvalue(), preprocessing, upright=upright)
        assert np.array_equal(found, load_pixels(decoded, preprocessing))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("resize_on", [None, "cpu", *["cuda"] * torch.cuda.is_available()])
def test_batches_hold_unrounded_pixels(rule, resize_on, monkeypatch):
    monkeypatch.setattr(batches, "WORTH_COMPILING", 1)
    photos = [random_image(60 + i, 50, seed=i) for i in range(5)]
    preprocessing = SLIM.replace(resize=48, crop=40, resampling=rule)
    device = resize_on and torch.device(resize_on)
    seen = 0
    for batch in read_batches(
        PhotoList(photos), preprocessing, batch_size=2, workers=2, resize_on=device
    ):
        assert batch.pixels.dtype == torch.float32
        x = normalize(batch.pixels, preprocessing).cpu()
        for i, pixels in zip(batch.indices, x, strict=True):
            expected = snzoo.create_transform(preprocessing)(photos[i])
            torch.testing.assert_close(pixels, expected, atol=2e-5, rtol=0)
            seen += 1
    assert seen == 5
    assert batches.resizer(10**6, device, rule) == "numpy"


def test_normalization_of_floats_is_that_of_bytes():
    pixels = torch.from_numpy(random_image(8, 9)).permute(2, 0, 1)[None]
    for preprocessing in (TORCH7, snzoo.get_info("resnet50v1_bn_msra").preprocessing):
        assert torch.equal(
            normalize(pixels.float(), preprocessing), normalize(pixels, preprocessing)
        )


def test_windows_are_for_pillows_rule():
    assert pixel_dtype(SLIM) == np.float32
    with pytest.raises(ArgumentError, match="no window computes tf1-bilinear"):
        load_window(random_image(300, 300), SLIM)
