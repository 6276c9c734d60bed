"""Pillow's bilinear resize in integers, for the pixels of the crop alone.

Pillow resizes 8-bit images in two passes, first along the rows and then along the
columns (from version 13 on, the other way about where that is much less work), with
22-bit integer weights and rounding to 8 bits after each. Here only the pixels of the crop
are computed, by two pieces of code that the tests hold to Pillow's: loops compiled by
numba for one image on the CPU (extra ``[fast]``), tensor operations for a batch on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from snzoo.data import loops
from snzoo.data.decode import Pixels
from snzoo.data.loops import BITS, HALF, Ints

MOST_ROWS = 1 << 15  # of windows at a time on a GPU, which take about half a gigabyte
DOWN_FIRST = int(PIL.__version__.partition(".")[0]) >= 13


class Taps(NamedTuple):
    """Output pixel i is the sum over k of ``weights[i, k]`` · input pixel ``first[i] + k``."""

    first: Ints  # (n,), ascending
    weights: Ints  # (n, K), K a multiple of 4: the loops take four at a time

    @property
    def span(self) -> slice:
        """The input pixels that are looked at (those beyond the end have weight zero)."""
        return slice(int(self.first[0]), int(self.first[-1]) + self.weights.shape[1])

    def shifted(self) -> Taps:
        """The same for an input that begins with the span."""
        return self._replace(first=self.first - self.first[0])


class Plan(NamedTuple):
    """How images of one size are resized and cropped."""

    across: Taps
    down: Taps
    down_first: bool


@lru_cache(maxsize=512)
def taps(length: int, resized: int, start: int, stop: int) -> Taps:
    """What makes the output pixels from ``start`` to ``stop`` of ``length`` → ``resized``.

    The order of the floating-point operations is Pillow's: the integers depend on it.
    """
    if length == resized:
        return identity(start, stop)
    scale = length / resized
    support = max(scale, 1.0)
    center = (np.arange(start, stop) + 0.5) * scale
    low = np.maximum((center - support + 0.5).astype(np.int32), 0)
    high = np.minimum((center + support + 0.5).astype(np.int32), length)
    size = _multiple_of_4(int((high - low).max()))
    first = np.minimum(low, max(length - size, 0)).astype(np.int32)
    pixel = first[:, None] + np.arange(size)
    distance = np.abs((pixel - center[:, None] + 0.5) * (1.0 / support))
    inside = (low[:, None] <= pixel) & (pixel < high[:, None])
    weights = np.maximum(1.0 - distance, 0.0) * inside
    weights /= weights.cumsum(1)[:, -1:]  # summed from left to right
    return Taps(first, (0.5 + weights * (1 << BITS)).astype(np.int32))


def identity(start: int, stop: int) -> Taps:
    """Every pixel as it is: Pillow leaves such a pass out."""
    weights = np.zeros((stop - start, 4), np.int32)
    weights[:, 0] = 1 << BITS
    return Taps(np.arange(start, stop, dtype=np.int32), weights)


def _multiple_of_4(number: int) -> int:
    return -(-number // 4) * 4


def plan(size: tuple[int, int], resized: tuple[int, int], box: tuple[int, int, int, int]) -> Plan:
    """``size`` → ``resized`` (width, height), of which ``box`` (left, top, right, bottom)."""
    left, top, right, bottom = box
    fewer_columns, fewer_rows = size[0] - resized[0], size[1] - resized[1]
    return Plan(
        taps(size[0], resized[0], left, right),
        taps(size[1], resized[1], top, bottom),
        DOWN_FIRST and fewer_rows > max(0, 2 * fewer_columns),
    )


def resize_and_crop(pixels: Pixels, plan: Plan, out: Pixels) -> None:
    """One image (H, W, 3) into ``out`` (h, w, 3), by loops that numba compiles on first use."""
    across, down, _ = loops.load()
    (x, y), (height, width, _) = (plan.across, plan.down), out.shape
    pixels = _reaching(pixels, y.span.stop, x.span.stop)
    if plan.down_first:
        part = np.ascontiguousarray(pixels[:, x.span])
        between = np.empty((height, part.shape[1], 3), np.uint8)
        down(part, *y, between)
        across(between, *x.shifted(), out)
    else:
        part = pixels[y.span]
        between = np.empty((part.shape[0], width, 3), np.uint8)
        across(part, *x, between)
        down(between, *y.shifted(), out)


def _reaching(pixels: Pixels, rows: int, columns: int) -> Pixels:
    """The image, with zeros where small ones end before the last of four taps."""
    missing = max(0, rows - pixels.shape[0]), max(0, columns - pixels.shape[1])
    if not any(missing):
        return pixels
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)))


@dataclass(frozen=True)
class Window:
    """The part of an image that its crop is made of, and how, across first."""

    pixels: Pixels  # (rows, columns, 3), contiguous
    across: Taps
    down: Taps


def cut(pixels: Pixels, plan: Plan) -> Window:
    """The window of an image whose plan goes across first."""
    part = np.ascontiguousarray(pixels[plan.down.span, plan.across.span])
    return Window(part, plan.across.shifted(), plan.down.shifted())


def whole(pixels: Pixels) -> Window:
    """The window of what is already resized and cropped."""
    return Window(pixels, identity(0, pixels.shape[1]), identity(0, pixels.shape[0]))


def resize_windows(windows: Sequence[Window], device: torch.device) -> Tensor:
    """Windows → uint8 (n, h, w, 3) on ``device``."""
    groups: list[list[Window]] = []
    rows = MOST_ROWS
    for window in windows:
        rows += len(window.pixels)
        if rows > MOST_ROWS:
            groups, rows = [*groups, []], len(window.pixels)
        groups[-1].append(window)
    return torch.cat([_resize_group(group, device) for group in groups])


def _resize_group(windows: Sequence[Window], device: torch.device) -> Tensor:
    """Both passes, over all windows at once."""
    data = torch.empty(
        sum(w.pixels.size for w in windows), dtype=torch.uint8, pin_memory=device.type == "cuda"
    )
    np.concatenate([w.pixels.ravel() for w in windows], out=data.numpy())
    table = data.to(device, non_blocking=True).view(-1, 3)
    rows = [w.pixels.shape[0] for w in windows]
    lengths = np.repeat([w.pixels.shape[1] for w in windows], rows)
    image = _on(device, np.repeat(np.arange(len(windows)), rows))
    starts = _on(device, lengths.cumsum() - lengths)
    first, weights = _stack([w.across for w in windows], device)
    between = _weighted_sum(table, starts[:, None] + first[image], weights, image)
    starts = _on(device, np.cumsum(rows) - rows)
    first, weights = _stack([w.down for w in windows], device)
    return _weighted_sum(between, starts[:, None] + first, weights, slice(None))


def _stack(all_taps: Sequence[Taps], device: torch.device) -> tuple[Tensor, Tensor]:
    """``first`` int64 (n, m) and ``weights`` int32 (n, m, K), zero-padded to the largest K."""
    first = np.stack([taps.first for taps in all_taps]).astype(np.int64)
    size = max(taps.weights.shape[1] for taps in all_taps)
    weights = np.zeros((*first.shape, size), np.int32)
    for i, taps in enumerate(all_taps):
        weights[i, :, : taps.weights.shape[1]] = taps.weights
    return _on(device, first), _on(device, weights)


def _on(device: torch.device, array: NDArray[Any]) -> Tensor:
    """The array on the device: on a GPU by pinned memory, so that Python need not wait."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _weighted_sum(table: Tensor, first: Tensor, weights: Tensor, image: Tensor | slice) -> Tensor:
    """uint8: for each of ``first`` the rounded sum of K rows of ``table`` from there on.

    Args:
        image: whose ``weights`` (n, m, K) each row of ``first`` takes.
    """
    total = torch.full(
        (*first.shape, *table.shape[1:]), HALF, dtype=torch.int32, device=table.device
    )
    shape = (*first.shape, *[1] * (table.dim() - 1))
    for k in range(weights.shape[-1]):
        index = (first + k).clamp_(max=len(table) - 1)  # beyond the end the weights are zero
        total += weights[:, :, k][image].reshape(shape) * table[index]
    return (total >> BITS).to(torch.uint8)
