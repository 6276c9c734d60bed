"""Augmented pixels against torchvision's transforms, and the color noise against its formula."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision import transforms

import snzoo
from snzoo.data.augment import (
    AXES,
    Augmentation,
    apply_noise,
    augment,
    draw_lighting,
    image_seed,
)
from snzoo.data.pixels import normalize
from snzoo.errors import DataError

SHARED = Path(__file__).parents[3] / "shared"
RGB = snzoo.get_info("resnet50v1_sn").preprocessing
BGR = snzoo.get_info("resnet50v1_bn_msra").preprocessing
PLAIN = Augmentation(224, 256, (0.08, 1.0), (3 / 4, 4 / 3), 0.5, (0.0, 0.0, 0.0), "none", 0.1)


def photo(width, height, seed=0, mode="RGB"):
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, channels)[: 2 + (channels > 1)]
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8), mode)


def encoded(image, form="PNG", **options):
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def reference(content, how, seed):
    image = Image.open(io.BytesIO(content)).convert("RGB")
    if how.upright:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB")
    crop = transforms.RandomResizedCrop(how.crop, how.scale, how.ratio)
    if how.whole:
        kind = transforms.CenterCrop if how.whole == "center" else transforms.RandomCrop
        crop = transforms.Compose([transforms.Resize(how.resize), kind(how.crop)])
    steps = [crop, transforms.RandomHorizontalFlip(how.flip)]
    if any(how.color_jitter):
        steps.append(transforms.ColorJitter(*how.color_jitter))
    torch.manual_seed(seed)
    return np.asarray(transforms.Compose(steps)(image))


def assert_equal_to_the_reference(content, how, *key):
    seed = image_seed(*key)
    with torch.random.fork_rng(devices=[]):
        expected = reference(content, how, seed)
    for compiled in (False, True):
        generator = torch.Generator().manual_seed(seed)
        pixels, _ = augment(content, how, generator, compiled=compiled)
        assert np.array_equal(pixels, expected)


sides = st.one_of(st.integers(1, 700), st.sampled_from([1, 2, 3, 4, 224, 256, 448]))
shares = st.sampled_from([(0.08, 1.0), (0.35, 1.0), (1.0, 1.0), (1e-6, 1e-3), (0.5, 0.5)])
ratios = st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (0.1, 10.0), (1.9, 2.0)])
wholes = st.sampled_from([None, "center", "random"])
jitters = st.sampled_from([(0.0, 0.0, 0.0), (0.3, 0.3, 0.3), (0.0, 2.0, 0.0), (0.4, 0.0, 0.1)])


@settings(max_examples=30, deadline=None)
@given(sides, sides, shares, ratios, jitters, st.sampled_from([0.0, 0.5, 1.0]), wholes)
def test_images_of_any_size_give_the_pixels_of_torchvision(
    width, height, scale, ratio, jitter, flip, whole
):
    if whole:
        height = min(max(height, width // 20 + 1), 20 * width)  # else resizing is only slow
    how = replace(
        PLAIN, scale=scale, ratio=ratio, color_jitter=jitter, flip=flip, whole=whole, crop=96
    )
    content = encoded(photo(width, height))
    for index in range(3):
        assert_equal_to_the_reference(content, how, 7, 1, index)


@pytest.mark.parametrize("size", [(3000, 20), (20, 3000), (2000, 1500), (1, 1), (1, 600), (5, 3)])
def test_photos_that_no_random_box_fits_give_the_pixels_of_torchvision(size):
    content = encoded(photo(*size))
    for index in range(3):
        assert_equal_to_the_reference(content, PLAIN, 0, 0, index)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("upright", [False, True])
def test_jpeg_files_of_any_kind_give_the_pixels_of_torchvision(mode, orientation, upright):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    content = encoded(photo(300, 200, mode=mode), "JPEG", exif=exif)
    how = replace(PLAIN, upright=upright, color_jitter=(0.3, 0.3, 0.3), crop=100)
    for index in range(2):
        assert_equal_to_the_reference(content, how, 3, 2, index)


def test_an_orientation_in_xmp_turns_a_photo():
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta tiff:Orientation="6"/>'
    segment = b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp
    content = encoded(photo(300, 200), "JPEG")
    content = content[:2] + segment + content[2:]
    pixels, _ = augment(content, replace(PLAIN, upright=True), torch.Generator().manual_seed(0))
    turned = Image.open(io.BytesIO(content)).transpose(Image.Transpose.ROTATE_270)
    expected, _ = augment(turned, PLAIN, torch.Generator().manual_seed(0))
    assert np.array_equal(pixels, expected)


@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared with real photos is absent")
def test_real_photos_give_the_pixels_of_torchvision():
    paths = sorted((SHARED / "data" / "imagenet_sample").glob("*/*"))[::5]
    assert len(paths) == 50
    for index, path in enumerate(paths):
        assert_equal_to_the_reference(path.read_bytes(), PLAIN, 0, 5, index)


@pytest.mark.parametrize("whole", [None, "center", "random"])
def test_a_photo_that_cannot_be_used_is_named(whole):
    how, generator = replace(PLAIN, whole=whole), torch.Generator()
    with pytest.raises(DataError, match=r"can't read x.png: not an image"):
        augment(b"no image", how, generator, name="x.png")
    if whole:
        with pytest.raises(DataError, match=r"can't use x.png: 1x60000 .* grow to 256x"):
            augment(encoded(Image.new("L", (1, 60_000))), how, generator, name="x.png")


def test_seeds_differ_for_each_seed_epoch_and_index():
    seeds = {image_seed(s, e, i) for s in range(-1, 12) for e in range(12) for i in range(-1, 12)}
    assert len(seeds) == 13 * 12 * 13
    torch.Generator().manual_seed(max(seeds))
    assert image_seed(0, 1, 2) == image_seed(0, 1, 2)  # and in any process:
    assert image_seed(0, 0, 0) == 7765807450571155106


# Computed from the formula: standard deviations of R, G, B; correlations RG, RB, GB
STATISTICS = {
    "published": ((0.00885, 0.01565, 0.01239), (0.98, -0.97, -0.995)),
    "corrected": ((0.0124, 0.0126, 0.0128), (0.993, 0.978, 0.994)),
}


@pytest.mark.parametrize("lighting", STATISTICS)
def test_lighting_has_the_known_deviations_and_correlations(lighting):
    how, generator = replace(PLAIN, lighting=lighting), torch.Generator().manual_seed(0)
    noise = np.stack([draw_lighting(how, generator) for _ in range(20_000)])
    assert noise.dtype == np.float32
    deviations, correlations = STATISTICS[lighting]
    assert noise.mean(0) == pytest.approx(0, abs=4e-4)
    assert noise.std(0) == pytest.approx(deviations, rel=0.02)
    assert np.corrcoef(noise.T)[[0, 0, 1], [1, 2, 2]] == pytest.approx(correlations, abs=0.006)


def test_published_lighting_is_that_of_the_published_code():
    values = torch.tensor([[0.2175, 0.0188, 0.0045]])
    vectors = torch.tensor(AXES["published"], dtype=torch.float32)
    torch.manual_seed(5)
    alpha = torch.normal(mean=torch.zeros_like(values)) * 0.1
    expected = torch.mm(alpha * values, vectors)[0].numpy()
    how = replace(PLAIN, lighting="published")
    noise = draw_lighting(how, torch.Generator().manual_seed(5))
    assert noise == pytest.approx(expected, rel=1e-5)


def test_lighting_is_drawn_last():
    generator, same = torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    pixels, noise = augment(photo(300, 200), replace(PLAIN, lighting="corrected"), generator)
    plain, nothing = augment(photo(300, 200), PLAIN, same)
    assert np.array_equal(pixels, plain) and noise.any() and not nothing.any()
    assert np.array_equal(noise, draw_lighting(replace(PLAIN, lighting="corrected"), same))


@pytest.mark.parametrize("preprocessing", [RGB, BGR], ids=["RGB", "BGR"])
def test_noise_is_in_units_of_white(preprocessing):
    noise = torch.tensor([[0.1, -0.2, 0.02], [0.0, 0.0, 0.0]])
    pixels = torch.randint(60, 200, (2, 3, 5, 4), dtype=torch.uint8)
    changed = pixels + (255 * noise)[:, :, None, None]  # not rounded
    x = apply_noise(normalize(pixels, preprocessing), noise, preprocessing)
    channels = slice(None) if preprocessing.channel_order == "RGB" else [2, 1, 0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    expected = (changed[:, channels] * (preprocessing.scale / 255) - mean) / std
    assert torch.allclose(x, expected, atol=1e-4)
