"""Augment training photos, with the pixels of torchvision's transforms to the last bit.

A photo is cropped at random and resized, flipped, and its colors are changed, as by torchvision's
``Compose([RandomResizedCrop, RandomHorizontalFlip, ColorJitter])`` for a PIL image. Each photo of
each epoch has its own random generator. Its pixels therefore do not depend on the number of
threads or processes, on the order of the photos, or on an interruption.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torch import Generator, Tensor

from snzoo.data import resample
from snzoo.data.decode import Photo, Pixels, decode
from snzoo.data.pixels import Geometry, fit_center, resize_with_pillow, size_of
from snzoo.preprocessing import Preprocessing

ATTEMPTS = 10  # to draw a box that lies inside the photo; then the box is in the center
# The colors of ImageNet's pixels (RGB, white = 1): the standard deviations along the three
# principal axes, and the axes as rows. The published training code has the axes in the columns of
# its matrix, in reverse order, and reads the rows.
DEVIATIONS = np.array([0.2175, 0.0188, 0.0045])
AXES = {
    "published": np.array(
        [[0.4009, 0.7192, -0.5675], [-0.8140, -0.0045, -0.5808], [0.4203, -0.6948, -0.5836]]
    ),
    "corrected": np.array(
        [[-0.5675, -0.5808, -0.5836], [0.7192, -0.0045, -0.6948], [0.4009, -0.8140, 0.4203]]
    ),
}

Box = tuple[int, int, int, int]  # left, top, right, bottom
Noise = NDArray[np.float32]  # (3,), RGB, white = 1


@dataclass(frozen=True)
class Augmentation:
    """How training photos are augmented.

    Attributes:
        crop: the side of the square result, in pixels.
        resize: the length of the shorter side before the center is cropped, in pixels.
        scale: the smallest and the largest share of the photo's area in a random crop.
        ratio: the smallest and the largest ratio of width to height of a random crop.
        flip: the probability of a horizontal flip.
        color_jitter: the largest changes of brightness, contrast and saturation, as in
            torchvision's ``ColorJitter``.
        lighting: the color noise, see :func:`draw_lighting`.
        lighting_std: the standard deviation of the noise along an axis, over that of the pixels.
        whole: resize the photo, and crop its ``center`` or a ``random`` part of that size, instead
            of a random part of random size.
        upright: turn photos according to their EXIF orientation.
    """

    crop: int
    resize: int
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    color_jitter: tuple[float, float, float]
    lighting: Literal["none", "published", "corrected"]
    lighting_std: float
    whole: Literal["center", "random"] | None = None
    upright: bool = False


def image_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed of the random generator of one photo in one epoch.

    Args:
        seed: the seed of the training run.
        epoch: the number of the epoch, from 0.
        index: the index of the photo in the training set.
    """
    digest = hashlib.blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def augment(
    photo: Photo,
    augmentation: Augmentation,
    generator: Generator,
    *,
    name: str | None = None,
    compiled: bool = False,
) -> tuple[Pixels, Noise]:
    """Return the augmented pixels, uint8 RGB (crop, crop, 3), and the color noise to add to them.

    Args:
        photo: the content of an image file, a path, a PIL image, or a uint8 array (H, W, 3).
        augmentation: how to augment it.
        generator: the random generator, which :func:`image_seed` seeds. The draws are, in order,
            those of ``RandomResizedCrop`` (of a whole photo, none or those of ``RandomCrop``),
            ``RandomHorizontalFlip``, ``ColorJitter`` (none if it changes nothing), and the lighting
            (none without it).
        name: the name of the photo in errors (default: its path, or "an image").
        compiled: resize with compiled loops, if they compute the bits of the installed Pillow.

    Raises:
        DataError: see :func:`~snzoo.data.decode.decode` and :func:`~snzoo.data.pixels.geometry`.
    """
    image = decode(photo, name=name, upright=augmentation.upright)
    side = augmentation.crop
    if augmentation.whole:
        box = (0, 0, *size_of(image))
        fit = fit_center(image, resize=augmentation.resize, crop=side, name=name)
        if augmentation.whole == "random":
            fit = _draw_place(fit.resized, side, generator)
    else:
        box = draw_box(size_of(image), augmentation.scale, augmentation.ratio, generator)
        fit = Geometry((side, side), (0, 0, side, side))
    flip = bool(torch.rand(1, generator=generator) < augmentation.flip)
    resize = _resize_with_loops if compiled and resample.is_exact(None) else _resize_with_pillow
    pixels = resize(image, box, fit, flip)
    if any(augmentation.color_jitter):
        pixels = _jitter(pixels, augmentation.color_jitter, generator)
    return pixels, draw_lighting(augmentation, generator)


def draw_box(
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: Generator,
) -> Box:
    """Draw the box of a random crop, as ``RandomResizedCrop.get_params`` does.

    Args:
        size: the width and height of the photo in pixels.
        scale: the smallest and the largest share of the area.
        ratio: the smallest and the largest ratio of width to height.
        generator: the random generator.
    """
    width, height = size
    value = torch.empty(1)
    for _ in range(ATTEMPTS):
        area = width * height * value.uniform_(*scale, generator=generator).item()
        value.uniform_(*_logarithms(ratio), generator=generator)
        aspect = value.exp_().item()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(height - h + 1, (1,), generator=generator))
            left = int(torch.randint(width - w + 1, (1,), generator=generator))
            return left, top, left + w, top + h
    narrowest, widest = min(ratio), max(ratio)
    w, h = width, height
    if width / height < narrowest:
        h = max(1, round(width / narrowest))
    elif width / height > widest:
        w = max(1, round(height * widest))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _draw_place(resized: tuple[int, int], side: int, generator: Generator) -> Geometry:
    """Draw the place of a crop in a resized photo, as ``RandomCrop.get_params`` does."""
    width, height = resized
    left, top = 0, 0
    if (width, height) != (side, side):
        top = int(torch.randint(height - side + 1, (1,), generator=generator))
        left = int(torch.randint(width - side + 1, (1,), generator=generator))
    return Geometry(resized, (left, top, left + side, top + side))


@lru_cache(maxsize=32)
def _logarithms(ratio: tuple[float, float]) -> tuple[float, ...]:
    return tuple(torch.tensor(ratio).log().tolist())  # rounded to float32, as in torchvision


def _resize_with_pillow(image: Image.Image | Pixels, box: Box, fit: Geometry, flip: bool) -> Pixels:
    """Cut a box from a photo, resize it to a geometry and flip it."""
    if isinstance(image, np.ndarray):
        left, top, right, bottom = box
        image = Image.fromarray(image[top:bottom, left:right])
    else:
        image = image.crop(box)
    image = resize_with_pillow(image, fit)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image)


def _resize_with_loops(image: Image.Image | Pixels, box: Box, fit: Geometry, flip: bool) -> Pixels:
    """Compute :func:`_resize_with_pillow` with compiled loops, which read the box in place."""
    left, top, right, bottom = box
    across, down, down_first = resample.plan((right - left, bottom - top), *fit)
    across = across.moved(left)
    plan = resample.Plan(across.mirrored() if flip else across, down.moved(top), down_first)
    x, y, end_x, end_y = fit.box
    out = np.empty((end_y - y, end_x - x, 3), np.uint8)
    resample.resize_and_crop(np.asarray(image), plan, out)
    return out


def _jitter(pixels: Pixels, most: tuple[float, float, float], generator: Generator) -> Pixels:
    """Change brightness, contrast and saturation in random order, as ``ColorJitter`` does."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    order = torch.randperm(4, generator=generator).tolist()  # 3 is the hue, which is kept
    factors = [
        torch.empty(1).uniform_(max(0.0, 1 - m), 1 + m, generator=generator).item() if m else None
        for m in most
    ]
    image = Image.fromarray(pixels)
    for i in order:
        if i < 3 and (factor := factors[i]) is not None:
            image = enhancers[i](image).enhance(factor)
    return np.asarray(image)


def draw_lighting(augmentation: Augmentation, generator: Generator) -> Noise:
    """Draw color noise along the principal axes of ImageNet's colors (Krizhevsky et al., 2012).

    The noise is the sum over the axes k of deviation[k] · α[k] · axis[k], where α is normal with
    the standard deviation ``lighting_std``.

    ``"corrected"`` noise changes mainly the brightness. ``"published"`` noise has the axes of the
    code that trained the published networks, where the matrix is transposed: it moves red and green
    against blue, and is needed to repeat that training. ``"none"`` is zero.
    """
    if augmentation.lighting == "none":
        return np.zeros(3, np.float32)
    alpha = augmentation.lighting_std * torch.randn(3, generator=generator).double().numpy()
    noise: Noise = (DEVIATIONS * alpha @ AXES[augmentation.lighting]).astype(np.float32)
    return noise


def apply_noise(x: Tensor, noise: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Add color noise to the input of a network, in place.

    Args:
        x: normalized photos, float (n, 3, H, W).
        noise: the noise of each photo, float32 RGB (n, 3), white = 1.
        preprocessing: the channel order, scale and std of the network.

    Returns:
        ``x``
    """
    if preprocessing.channel_order == "BGR":
        noise = noise.flip(1)
    step = preprocessing.scale / torch.tensor(preprocessing.std)
    return x.add_((noise * step).to(x)[:, :, None, None])
