"""Resize and crop photos by the rules of TensorFlow 1 and Torch7, in float32.

:class:`~snzoo.preprocessing.Preprocessing` defines the rules. As in the original code, images are
resized first across (along the rows) and then down (along the columns). The bilinear rule gives
TensorFlow's bits. The bicubic rule sums weighted pixels, where Torch7 evaluates the same polynomial
in another order, so that it may differ by rounding.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from snzoo.data.decode import Pixels
from snzoo.data.loops import Floats
from snzoo.preprocessing import Resampling


def fit_sides(short: int, long: int, resize: int, resampling: Resampling) -> tuple[int, int]:
    """Return the lengths of the shorter and of the longer side after resizing, in pixels.

    Args:
        short: the length of the shorter side in pixels.
        long: the length of the longer side in pixels.
        resize: the length that the shorter side should have, in pixels.
        resampling: the rule, which truncates the lengths.
    """
    if resampling == "tf1-bilinear":
        scale = np.float32(resize) / np.float32(short)
        return int(np.float32(short) * scale), int(np.float32(long) * scale)
    if resampling == "torch7-bicubic":
        return resize, int(long / short * resize)
    return resize, int(resize * long / short)


def find_offset(excess: int, resampling: Resampling) -> int:
    """Return the offset of a center crop on a side that is ``excess`` pixels longer."""
    if resampling == "tf1-bilinear":
        return excess // 2
    if resampling == "torch7-bicubic":
        return -(-excess // 2)
    return round(excess / 2)  # halves are rounded to even


def resize_and_crop(
    pixels: Pixels,
    resized: tuple[int, int],
    box: tuple[int, int, int, int],
    resampling: Resampling,
) -> Floats:
    """Return the resized and cropped pixels, float32 (h, w, 3), where white is 255.

    Args:
        pixels: the image, uint8 (H, W, 3).
        resized: the width and height after resizing, in pixels.
        box: the left, top, right and bottom of the crop, as in ``PIL.Image.crop``.
        resampling: ``"tf1-bilinear"`` or ``"torch7-bicubic"``.
    """
    interpolate = _interpolate_linearly if resampling == "tf1-bilinear" else _interpolate_cubically
    left, top, right, bottom = box
    columns = interpolate(pixels, 1, resized[0], left, right)
    return interpolate(columns, 0, resized[1], top, bottom)


def _interpolate_linearly(
    values: Pixels | Floats, axis: int, resized: int, start: int, stop: int
) -> Floats:
    """Resize one axis to ``resized``, as TensorFlow 1 does; return its ``start`` to ``stop``."""
    length = values.shape[axis]
    position = np.arange(start, stop, dtype=np.float32)
    position *= np.float32(length) / np.float32(resized)
    first = position.astype(np.intp)
    p0 = _take(values, first, axis)
    p1 = _take(values, np.minimum(first + 1, length - 1), axis)
    return p0 + (p1 - p0) * _align(position - first, axis)


def _interpolate_cubically(
    values: Pixels | Floats, axis: int, resized: int, start: int, stop: int
) -> Floats:
    """Resize one axis to ``resized``, as Torch7 does; return its ``start`` to ``stop``."""
    length = values.shape[axis]
    position = np.arange(start, stop, dtype=np.float32)
    position *= np.float32(length - 1) / np.float32(max(resized - 1, 1))
    position[resized - 1 - start :] = length - 1  # exactly, where it was rounded
    first = np.clip(position.astype(np.intp), 0, max(length - 2, 0))
    weights = _cubic_weights(position - first, at_start=first == 0, at_end=first + 2 >= length)
    p0, p1, p2, p3 = (
        _take(values, np.clip(first + k - 1, 0, length - 1), axis) * _align(weights[k], axis)
        for k in range(4)
    )
    total: Floats = p0 + p1 + p2 + p3
    return total


def _cubic_weights(
    x: NDArray[np.floating], *, at_start: NDArray[np.bool_], at_end: NDArray[np.bool_]
) -> NDArray[np.floating]:
    """Return the weights (4, n) of Catmull-Rom's cubic through four pixels p0 to p3.

    Args:
        x: the positions (n,) between p1 at 0 and p2 at 1.
        at_start: where p0 lies before the border. It is extrapolated to 2·p1 − p2.
        at_end: where p3 lies beyond the border. It is extrapolated to 2·p2 − p1.
    """
    w0 = x * (x * (2 - x) - 1) / 2
    w1 = (x * x * (3 * x - 5) + 2) / 2
    w2 = x * (x * (4 - 3 * x) + 1) / 2
    w3 = x * x * (x - 1) / 2
    w1, w2 = w1 + 2 * w0 * at_start - w3 * at_end, w2 + 2 * w3 * at_end - w0 * at_start
    return np.stack([w0 * ~at_start, w1, w2, w3 * ~at_end])


def _take(values: Pixels | Floats, indices: NDArray[np.intp], axis: int) -> Floats:
    return values.take(indices, axis).astype(np.float32, copy=False)


def _align(weights: NDArray[np.floating] | NDArray[np.bool_], axis: int) -> Floats:
    """Return one number per line along ``axis`` as float32 that broadcasts over an image."""
    return weights.astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
