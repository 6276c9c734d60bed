"""Compute the pixels of the reference transform, to the last bit.

The reference opens a photo with Pillow, converts it to RGB without EXIF rotation, resizes the
shorter side (bilinear, antialiased), crops the center, and normalizes. Some published networks have
other rules of resizing, see :class:`~snzoo.preprocessing.Preprocessing`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from snzoo.data import legacy_resize, loops, resample
from snzoo.data.decode import Photo, Pixels, decode
from snzoo.data.loops import Floats
from snzoo.data.resample import Window
from snzoo.errors import ArgumentError, DataError, printable
from snzoo.preprocessing import Preprocessing, Resampling

LARGEST = 1 << 28  # pixels of a resized image; resizing it takes 0.8 GB
MOST_TAPS = 16  # the CPU resizes images with more taps; they shrink by a factor of more than 7


class Geometry(NamedTuple):
    """The size to resize to (width, height), and the box of the crop in it."""

    resized: tuple[int, int]
    box: tuple[int, int, int, int]  # left, top, right, bottom


def geometry(
    size: tuple[int, int], *, resize: int, crop: int, resampling: Resampling = "pillow-bilinear"
) -> Geometry:
    """Return the geometry that resizes the shorter side to ``resize`` and crops the center.

    Args:
        size: the width and height of the image in pixels.
        resize: the length of the shorter side after resizing, in pixels.
        crop: the side of the square crop, in pixels.
        resampling: the rule, which rounds the sizes and the offset of the crop.

    Raises:
        DataError: the image is so narrow that resizing it would fill the memory, or its shorter
            side is truncated to less than the crop.
    """
    width, height = size
    short, long = sorted(size)
    short, long = legacy_resize.fit_sides(short, long, resize, resampling)
    if short * long > LARGEST:
        raise DataError(f"{width}x{height} pixels would grow to {short}x{long}; crop it first")
    if short < crop:
        raise DataError(
            f"{resampling} makes {short}x{long} of {width}x{height} pixels, too small for the crop "
            f"of {crop}; choose a resize above {resize}"
        )
    resized = (long, short) if width > height else (short, long)
    left, top = (legacy_resize.find_offset(side - crop, resampling) for side in resized)
    return Geometry(resized, (left, top, left + crop, top + crop))


def resize_and_crop(image: Image.Image, *, resize: int, crop: int) -> Image.Image:
    """Resize and crop an image with Pillow to the result of :func:`geometry`.

    Raises:
        DataError: see :func:`geometry`.
    """
    return resize_with_pillow(image, geometry(image.size, resize=resize, crop=crop))


def load_pixels(
    photo: Photo,
    preprocessing: Preprocessing,
    *,
    name: str | None = None,
    upright: bool = False,
    approximate: bool = False,
    compiled: bool = False,
) -> Pixels | Floats:
    """Return the resized and cropped pixels, RGB (crop, crop, 3), not yet normalized.

    White is 255. The dtype is that of :func:`pixel_dtype`.

    Args:
        photo: the content of an image file, a path, a PIL image, or a uint8 array (H, W, 3).
        preprocessing: the size to resize to, the size of the crop and the rule.
        name: the name of the photo in errors (default: its path, or "an image").
        upright: turn the photo according to its EXIF orientation. Evaluations do not turn photos.
        approximate: decode JPEG at a reduced size, see :func:`~snzoo.data.decode.decode`.
        compiled: resize with loops that LLVM compiles in a tenth of a second. They are faster than
            Pillow and compute the same bits. There are none for the other rules.

    Raises:
        DataError: see :func:`~snzoo.data.decode.decode` and :func:`geometry`.
    """
    image, fit = _decode_and_fit(photo, preprocessing, name, upright, approximate)
    if preprocessing.resampling != "pillow-bilinear":
        return legacy_resize.resize_and_crop(np.asarray(image), *fit, preprocessing.resampling)
    if not (compiled and resample.is_exact(None)):
        return np.asarray(resize_with_pillow(image, fit))
    pixels = np.asarray(image)
    out = np.empty((preprocessing.crop, preprocessing.crop, 3), np.uint8)
    resample.resize_and_crop(pixels, resample.plan(size_of(pixels), *fit), out)
    return out


def pixel_dtype(preprocessing: Preprocessing) -> type[np.uint8 | np.float32]:
    """Return the dtype of resized pixels: uint8, or float32 for the rules that do not round."""
    return np.uint8 if preprocessing.resampling == "pillow-bilinear" else np.float32


def load_window(
    photo: Photo,
    preprocessing: Preprocessing,
    *,
    name: str | None = None,
    upright: bool = False,
    approximate: bool = False,
) -> Window:
    """Return the window that :func:`~snzoo.data.resample.resize_windows` resizes and crops.

    The result is that of :func:`load_pixels`, which has the same arguments and errors. The caller
    must check that the device computes it exactly, see :func:`~snzoo.data.resample.is_exact`.

    Raises:
        ArgumentError: the rule is not Pillow's.
    """
    if preprocessing.resampling != "pillow-bilinear":
        raise ArgumentError(f"no window computes {preprocessing.resampling}; use load_pixels")
    image, fit = _decode_and_fit(photo, preprocessing, name, upright, approximate)
    pixels = np.asarray(image)
    plan = resample.plan(size_of(pixels), *fit)
    if plan.down_first or max(t.weights.shape[1] for t in (plan.across, plan.down)) > MOST_TAPS:
        return resample.whole(np.asarray(resize_with_pillow(image, fit)))
    return resample.cut(pixels, plan)


def normalize(
    pixels: Tensor,
    preprocessing: Preprocessing,
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Convert pixels to the input of a network, float32 (N, 3, H, W) on the same device.

    Args:
        pixels: RGB (N, 3, H, W), uint8, or float32 where white is 255.
        preprocessing: the channel order, scale, mean and std of the network.
        memory_format: the memory format of the result.
    """
    if preprocessing.channel_order == "BGR":
        pixels = pixels.flip(1)
    if pixels.device.type == "cpu":
        x = _allocate(pixels.shape, memory_format)
        _normalize_on_cpu(pixels, preprocessing, x)
        return x
    x = torch.empty_like(pixels, dtype=torch.float32, memory_format=memory_format)
    white, mean, std = _constants(preprocessing, x.device)
    return x.copy_(pixels).div_(white).sub_(mean).div_(std)


def _allocate(shape: Sequence[int], memory_format: torch.memory_format) -> Tensor:
    """Return memory for the input of a network, aligned to 64 bytes, as PyTorch's own memory is.

    NumPy allocates it, because NumPy asks the system for huge pages. Small pages would take longer
    to get than pixels take to convert.
    """
    n, channels, height, width = shape
    count = n * channels * height * width
    memory = np.empty(count + 16, np.float32)
    start = -memory.ctypes.data % 64 // memory.itemsize
    x = torch.from_numpy(memory[start : start + count])
    if memory_format == torch.channels_last:
        return x.view(n, height, width, channels).permute(0, 3, 1, 2)
    return x.view(n, channels, height, width)


@lru_cache(maxsize=32)
def _constants(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, ...]:
    """Return the value of white, the mean and the std as tensors on the device.

    White is a tensor because PyTorch on a GPU replaces the division by a Python number with a
    multiplication by its rounded inverse.
    """
    values = (255 / preprocessing.scale,), preprocessing.mean, preprocessing.std
    return tuple(torch.tensor(v, dtype=torch.float32, device=device).view(-1, 1, 1) for v in values)


def _normalize_on_cpu(pixels: Tensor, preprocessing: Preprocessing, x: Tensor) -> None:
    """Normalize ``pixels`` into ``x`` with one thread, one channel at a time.

    A channel fits into the cache. PyTorch's operations would use several threads, which wait for
    one another at each step while the cores are busy decoding.
    """
    mean, std = (np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    white = np.float32(255 / preprocessing.scale)
    if loops.are_loaded() and pixels.dtype == torch.uint8:
        levels = np.arange(256, dtype=np.float32)
        table = (levels / white - mean[:, None]) / std[:, None]
        loops.load().look_up(pixels.numpy(), table, x.numpy())
        return
    for image, values in zip(pixels.numpy(), x.numpy(), strict=True):
        for c in range(3):
            np.divide(image[c], white, out=values[c], dtype=np.float32)
            values[c] -= mean[c]
            values[c] /= std[c]


def _decode_and_fit(
    photo: Photo, preprocessing: Preprocessing, name: str | None, upright: bool, approximate: bool
) -> tuple[Image.Image | Pixels, Geometry]:
    if name is None:
        name = os.fspath(photo) if isinstance(photo, (str, os.PathLike)) else "an image"
    shrink_to = preprocessing.resize if approximate else None
    image = decode(photo, name=name, shrink_to=shrink_to, upright=upright)
    sizes = {"resize": preprocessing.resize, "crop": preprocessing.crop}
    return image, fit_center(image, **sizes, name=name, resampling=preprocessing.resampling)


def fit_center(
    image: Image.Image | Pixels,
    *,
    resize: int,
    crop: int,
    name: str | None,
    resampling: Resampling = "pillow-bilinear",
) -> Geometry:
    """Return the :func:`geometry` of a decoded photo. An error names the photo."""
    try:
        return geometry(size_of(image), resize=resize, crop=crop, resampling=resampling)
    except DataError as error:
        raise DataError(printable(f"can't use {name or 'an image'}: {error}")) from None


def size_of(image: Image.Image | Pixels) -> tuple[int, int]:
    """Return the width and height of a decoded photo in pixels."""
    if isinstance(image, Image.Image):
        return image.size
    height, width, _ = image.shape
    return width, height


def resize_with_pillow(image: Image.Image | Pixels, fit: Geometry) -> Image.Image:
    """Resize and crop a decoded photo with Pillow."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if fit.resized != image.size:
        image = image.resize(fit.resized, Image.Resampling.BILINEAR)
    return image.crop(fit.box)
