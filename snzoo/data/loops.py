"""Compile the loops of ``kernels`` on first use, if llvmlite is installed (extra ``[fast]``)."""

from __future__ import annotations

import importlib.util
from ctypes import CFUNCTYPE, c_ssize_t, c_void_p
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

HAS_LLVMLITE = importlib.util.find_spec("llvmlite") is not None
BITS = 22  # fractional bits of the integer weights, as in Pillow
HALF = 1 << (BITS - 1)

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


def _prototype(arguments: str) -> Any:
    """Return the type of a function with pointers, ``p``, and sizes, ``n``, as arguments."""
    kinds = {"p": c_void_p, "n": c_ssize_t}
    return CFUNCTYPE(None, *(kinds[letter] for letter in arguments))


class Loops:
    """The compiled loops, see :mod:`snzoo.data.kernels`. They release the GIL.

    The arrays are contiguous, except for those of :meth:`look_up` and the rows of ``pixels`` in
    :meth:`down`. The taps are those of :class:`~snzoo.data.resample.Taps`.
    """

    def __init__(self, processor: str | None = None, features: str | None = None) -> None:
        """Compile the loops.

        Args:
            processor, features: see :func:`snzoo.llvm.compile_functions`.
        """
        from snzoo.data.kernels import build
        from snzoo.llvm import compile_functions, get_features

        sets = (get_features() if features is None else features).split(",")
        module = build(16 if "+avx512bw" in sets else 8 if "+avx2" in sets else 4)
        names = "across", "down", "look_up"
        across, down, look_up = compile_functions(module, names, processor, features)
        self._across = _prototype("pnppnppnn")(across)
        self._down = _prototype("pnppnppnn")(down)
        self._look_up = _prototype("pnnnnppnnnnnnn")(look_up)

    def across(self, pixels: Bytes, first: Ints, weights: Ints, out: Bytes) -> None:
        """Resize rows, (H, W, 3) → (H, w, 3), by weighted sums of neighbors."""
        self._resize(self._across, pixels, first, weights, out, out.shape[1])

    def down(self, pixels: Bytes, first: Ints, weights: Ints, out: Bytes) -> None:
        """Resize columns, (H, W, 3) → (h, W, 3), by weighted sums of rows."""
        self._resize(self._down, pixels, first, weights, out, 3 * out.shape[1])

    def _resize(
        self, function: Any, pixels: Bytes, first: Ints, weights: Ints, out: Bytes, length: int
    ) -> None:
        halves = np.empty_like(weights)  # for the function to write
        at, *taps, to = (a.ctypes.data for a in (pixels, first, weights, halves, out))
        taps.insert(2, weights.shape[1])
        function(at, pixels.strides[0], *taps, to, len(out), length)

    def look_up(self, pixels: Bytes, table: Floats, out: Floats) -> None:
        """Convert pixels (N, 3, H, W) to float32: p in channel c becomes ``table[c, p]``."""
        count, _, height, width = out.shape
        strides = (stride // out.itemsize for stride in out.strides)
        at, table_at, to = (array.ctypes.data for array in (pixels, table, out))
        self._look_up(at, *pixels.strides, table_at, to, *strides, count, height, width)


@cache
def load() -> Loops:
    """Compile the loops for this processor, which takes a tenth of a second."""
    return Loops()


def are_loaded() -> bool:
    """Return whether :func:`load` was called before, so that calling it again takes no time."""
    return load.cache_info().currsize > 0
