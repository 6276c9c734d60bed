"""Loops over pixels that numba compiles (extra ``[fast]``)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

HAS_NUMBA = importlib.util.find_spec("numba") is not None
BITS = 22  # fractional bits of the integer weights, as in Pillow
HALF = 1 << (BITS - 1)

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


class Loops(NamedTuple):
    """The compiled loops: ``_across``, ``_down`` and ``_look_up``. They release the GIL."""

    across: Any
    down: Any
    look_up: Any


@cache
def load() -> Loops:
    """Compile the loops, or load them from ``__pycache__``."""
    import numba

    def compiled(function: Callable[..., None]) -> Any:
        try:
            return numba.njit(nogil=True, cache=True)(function)
        except RuntimeError:  # there is no folder for numba's cache
            return numba.njit(nogil=True)(function)

    return Loops(compiled(_across), compiled(_down), compiled(_look_up))


def are_loaded() -> bool:
    """Return whether :func:`load` was called before, so that calling it again takes no time."""
    return load.cache_info().currsize > 0


def _across(pixels: Bytes, first: Ints, weights: Ints, out: Bytes) -> None:
    """Resize rows, (H, W, 3) → (H, w, 3), by weighted sums of neighbors, four at a time."""
    width = out.shape[1]
    total = np.empty(3 * width, np.int32)
    for y in range(out.shape[0]):
        row = pixels[y].reshape(-1)
        total[:] = HALF
        for k in range(0, weights.shape[1], 4):
            for x in range(width):
                at, w = 3 * (first[x] + k), weights[x]
                w0, w1, w2, w3 = w[k], w[k + 1], w[k + 2], w[k + 3]
                for c in range(3):
                    total[3 * x + c] += (
                        w0 * np.int32(row[at + c])
                        + w1 * np.int32(row[at + c + 3])
                        + w2 * np.int32(row[at + c + 6])
                        + w3 * np.int32(row[at + c + 9])
                    )
        for x in range(width):
            for c in range(3):
                out[y, x, c] = total[3 * x + c] >> BITS


def _down(pixels: Bytes, first: Ints, weights: Ints, out: Bytes) -> None:
    """Resize columns, (H, W, 3) → (h, W, 3), by weighted sums of rows, four at a time."""
    size = 3 * out.shape[1]
    total = np.empty(size, np.int32)
    for y in range(out.shape[0]):
        row = out[y].reshape(-1)
        total[:] = HALF
        for k in range(0, weights.shape[1], 4):
            at, w = first[y] + k, weights[y]
            w0, w1, w2, w3 = w[k], w[k + 1], w[k + 2], w[k + 3]
            p0, p1 = pixels[at].reshape(-1), pixels[at + 1].reshape(-1)
            p2, p3 = pixels[at + 2].reshape(-1), pixels[at + 3].reshape(-1)
            for i in range(size):
                total[i] += (
                    w0 * np.int32(p0[i])
                    + w1 * np.int32(p1[i])
                    + w2 * np.int32(p2[i])
                    + w3 * np.int32(p3[i])
                )
        for i in range(size):
            row[i] = total[i] >> BITS


def _look_up(pixels: Bytes, table: Floats, out: Floats) -> None:
    """Convert pixels (3, H, W) to float32: value p in channel c becomes ``table[c, p]``."""
    for c in range(3):
        for y in range(pixels.shape[1]):
            for x in range(pixels.shape[2]):
                out[c, y, x] = table[c, pixels[c, y, x]]
