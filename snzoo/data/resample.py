"""Compute the same bits as Pillow's bilinear resize, for the pixels of the crop only.

Pillow resizes 8-bit images in two passes: across (along the rows) and then down (along the
columns). It uses 22-bit integer weights and rounds to 8 bits after each pass. From version 13 on,
it starts with the pass down if that is much less work.

This module has two implementations: compiled loops (extra ``[fast]``), for one image on
the CPU, and tensor operations, for a batch on a GPU. :func:`is_exact` compares an implementation
with the installed Pillow before it is used.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from snzoo.data import loops
from snzoo.data.decode import Pixels
from snzoo.data.loops import BITS, HALF, Ints
from snzoo.errors import first_line

MOST_ROWS = 1 << 15  # rows that a GPU resizes at a time, which takes about half a gigabyte
DOWN_FIRST = int(PIL.__version__.partition(".")[0]) >= 13
BILINEAR = Image.Resampling.BILINEAR
# Sizes (width, height) before and after a resize that is compared with Pillow. The image becomes
# smaller or larger. Two pairs lie on either side of the limit for the order of the passes.
CHECKED = (
    ((500, 375), (341, 256)),  # has enough pixels to reveal weights that are rounded differently
    ((20, 31), (37, 50)),
    ((40, 200), (33, 185)),
    ((40, 200), (33, 186)),
    ((40, 200), (33, 90)),
    ((40, 200), (50, 190)),
)
logger = logging.getLogger("snzoo")


class Taps(NamedTuple):
    """The weights of one pass.

    Output pixel i is the sum over k of ``weights[i, k]`` times input pixel ``first[i] + k``.
    """

    first: Ints  # (n,), ascending; descending in a mirrored pass
    weights: Ints  # (n, K); K is a multiple of 4, because the loops take four at a time

    @property
    def span(self) -> slice:
        """The range of input pixels that the taps read. Pixels beyond the end have weight zero."""
        low, high = sorted((int(self.first[0]), int(self.first[-1])))
        return slice(low, high + self.weights.shape[1])

    def shifted(self) -> Taps:
        """Return the same taps for an input that was cut to the span."""
        return self.moved(-self.span.start)

    def moved(self, offset: int) -> Taps:
        """Return the same taps for an input that begins ``offset`` pixels earlier."""
        return self._replace(first=self.first + np.int32(offset)) if offset else self

    def mirrored(self) -> Taps:
        """Return the taps whose output is that of these taps in reverse."""
        return Taps(self.first[::-1].copy(), self.weights[::-1].copy())


class Plan(NamedTuple):
    """The taps that resize and crop images of one size, and the order of the passes."""

    across: Taps
    down: Taps
    down_first: bool


@lru_cache(maxsize=2048)  # about 10 MB; random crops have many lengths
def taps(length: int, resized: int, start: int, stop: int) -> Taps:
    """Return the taps of output pixels ``start`` to ``stop`` of one side.

    The floating-point operations have the same order as in Pillow, because the rounded weights
    depend on it.

    Args:
        length: the length of the side in pixels.
        resized: the length of the side after resizing, in pixels.
        start: the first output pixel.
        stop: the end of the output pixels, exclusive.
    """
    if length == resized:
        return identity(start, stop)
    scale = length / resized
    support = max(scale, 1.0)
    center = (np.arange(start, stop) + 0.5) * scale
    low = np.maximum((center - support + 0.5).astype(np.int32), 0)
    high = np.minimum((center + support + 0.5).astype(np.int32), length)
    size = -(-int((high - low).max()) // 4) * 4  # rounded up to a multiple of 4
    first = np.minimum(low, max(length - size, 0)).astype(np.int32)
    pixel = first[:, None] + np.arange(size)
    distance = np.abs((pixel - center[:, None] + 0.5) * (1.0 / support))
    inside = (low[:, None] <= pixel) & (pixel < high[:, None])
    weights = np.maximum(1.0 - distance, 0.0) * inside
    weights /= weights.cumsum(1)[:, -1:]  # summed from left to right
    return Taps(first, (0.5 + weights * (1 << BITS)).astype(np.int32))


def identity(start: int, stop: int) -> Taps:
    """Return taps that keep pixels ``start`` to ``stop``, for a side that is not resized."""
    weights = np.zeros((stop - start, 4), np.int32)
    weights[:, 0] = 1 << BITS
    return Taps(np.arange(start, stop, dtype=np.int32), weights)


def plan(size: tuple[int, int], resized: tuple[int, int], box: tuple[int, int, int, int]) -> Plan:
    """Return the plan that resizes an image and crops it.

    Args:
        size: the width and height of the image in pixels.
        resized: the width and height after resizing, in pixels.
        box: the left, top, right and bottom of the crop, as in ``PIL.Image.crop``.
    """
    left, top, right, bottom = box
    fewer_columns, fewer_rows = size[0] - resized[0], size[1] - resized[1]
    return Plan(
        taps(size[0], resized[0], left, right),
        taps(size[1], resized[1], top, bottom),
        DOWN_FIRST and fewer_rows > max(0, 2 * fewer_columns),
    )


def resize_and_crop(pixels: Pixels, plan: Plan, out: Pixels) -> None:
    """Resize and crop an image (H, W, 3) into ``out`` (h, w, 3) with the compiled loops."""
    compiled, (x, y), (height, width, _) = loops.load(), (plan.across, plan.down), out.shape
    pixels = np.ascontiguousarray(_pad_to(pixels, y.span.stop, x.span.stop))
    if plan.down_first:
        part = pixels[y.span, x.span]
        between = np.empty((height, part.shape[1], 3), np.uint8)
        compiled.down(part, *y.shifted(), between)
        compiled.across(between, *x.shifted(), out)
    else:
        part = pixels[y.span]
        between = np.empty((part.shape[0], width, 3), np.uint8)
        compiled.across(part, *x, between)
        compiled.down(between, *y.shifted(), out)


def _pad_to(pixels: Pixels, rows: int, columns: int) -> Pixels:
    """Pad a small image with zeros to at least the given size, which the taps read."""
    missing = max(0, rows - pixels.shape[0]), max(0, columns - pixels.shape[1])
    if not any(missing):
        return pixels
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)))


@cache
def is_exact(device: torch.device | None) -> bool:
    """Return whether an implementation computes the pixels of the installed Pillow.

    It is compared on small test images. If the pixels differ, or if it cannot run, this function
    logs one warning, and callers must use Pillow.

    Args:
        device: the device of the tensor operations; None for the loops on the CPU.
    """
    rng, reason = np.random.default_rng(0), None
    try:
        for size, resized in CHECKED:
            image = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            box = (2, 1, resized[0] - 1, resized[1] - 2)
            expected = np.asarray(Image.fromarray(image).resize(resized, BILINEAR).crop(box))
            how = plan(size, resized, box)
            out = np.empty_like(expected)
            if device is None:
                resize_and_crop(image, how, out)
            elif not how.down_first:  # Pillow resizes images whose plan is down first
                out = resize_windows([cut(image, how)], device)[0].cpu().numpy()
            else:
                continue
            if not np.array_equal(out, expected):
                reason = f"its pixels differ from those of Pillow {PIL.__version__}"
    except Exception as error:  # e.g. LLVM does not know the processor
        reason = first_line(error)
    if reason:
        name = f"the tensor resampler on {device}" if device else "the compiled resampler"
        logger.warning("%s is not used: %s; Pillow resizes instead, which is slower", name, reason)
    return reason is None


@dataclass(frozen=True)
class Window:
    """The part of an image that the crop depends on, and its taps. The pass across comes first."""

    pixels: Pixels  # (rows, columns, 3), contiguous
    across: Taps
    down: Taps


def cut(pixels: Pixels, plan: Plan) -> Window:
    """Return the window of an image. The pass across must come first in its plan."""
    part = np.ascontiguousarray(pixels[plan.down.span, plan.across.span])
    return Window(part, plan.across.shifted(), plan.down.shifted())


def whole(pixels: Pixels) -> Window:
    """Return the window that keeps all pixels, for an image that is already resized and cropped."""
    return Window(pixels, identity(0, pixels.shape[1]), identity(0, pixels.shape[0]))


def resize_windows(windows: Sequence[Window], device: torch.device) -> Tensor:
    """Resize and crop windows to uint8 (n, h, w, 3) on ``device``."""
    groups: list[list[Window]] = []
    rows = MOST_ROWS
    for window in windows:
        rows += len(window.pixels)
        if rows > MOST_ROWS:
            groups, rows = [*groups, []], len(window.pixels)
        groups[-1].append(window)
    return torch.cat([_resize_group(group, device) for group in groups])


def _resize_group(windows: Sequence[Window], device: torch.device) -> Tensor:
    """Resize and crop windows with two passes over all of them at once."""
    data = torch.empty(
        sum(w.pixels.size for w in windows), dtype=torch.uint8, pin_memory=device.type == "cuda"
    )
    np.concatenate([w.pixels.ravel() for w in windows], out=data.numpy())
    table = data.to(device, non_blocking=True).view(-1, 3)
    rows = [w.pixels.shape[0] for w in windows]
    lengths = np.repeat([w.pixels.shape[1] for w in windows], rows)
    image = _copy_to(device, np.repeat(np.arange(len(windows)), rows))
    starts = _copy_to(device, lengths.cumsum() - lengths)
    first, weights = _stack([w.across for w in windows], device)
    between = _weighted_sum(table, starts[:, None] + first[image], weights, image)
    starts = _copy_to(device, np.cumsum(rows) - rows)
    first, weights = _stack([w.down for w in windows], device)
    return _weighted_sum(between, starts[:, None] + first, weights, slice(None))


def _stack(all_taps: Sequence[Taps], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ``first``, int64 (n, m), and ``weights``, int32 (n, m, K) padded to the largest K."""
    first = np.stack([taps.first for taps in all_taps]).astype(np.int64)
    size = max(taps.weights.shape[1] for taps in all_taps)
    weights = np.zeros((*first.shape, size), np.int32)
    for i, taps in enumerate(all_taps):
        weights[i, :, : taps.weights.shape[1]] = taps.weights
    return _copy_to(device, first), _copy_to(device, weights)


def _copy_to(device: torch.device, array: NDArray[Any]) -> Tensor:
    """Copy an array to the device. A copy to a GPU is asynchronous, from pinned memory."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _weighted_sum(table: Tensor, first: Tensor, weights: Tensor, image: Tensor | slice) -> Tensor:
    """Return the rounded weighted sums of K consecutive rows of ``table``, as uint8.

    Args:
        table: the pixels.
        first: the first of the K rows for each sum.
        weights: the integer weights (n, m, K) of n images.
        image: the index in ``weights`` of the image of each row of ``first``.
    """
    total = torch.full(
        (*first.shape, *table.shape[1:]), HALF, dtype=torch.int32, device=table.device
    )
    shape = (*first.shape, *[1] * (table.dim() - 1))
    for k in range(weights.shape[-1]):
        index = (first + k).clamp_(max=len(table) - 1)  # beyond the end the weights are zero
        total += weights[:, :, k][image].reshape(shape) * table[index]
    return (total >> BITS).to(torch.uint8)
