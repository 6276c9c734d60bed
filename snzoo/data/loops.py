"""Compile the loops of ``kernels`` on first use, if numba is installed (extra ``[fast]``)."""

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
    """The compiled loops, see :mod:`snzoo.data.kernels`. They release the GIL."""

    across: Any
    down: Any
    look_up: Any


@cache
def load() -> Loops:
    """Compile the loops, or load them from ``__pycache__``."""
    import numba

    from snzoo.data import kernels

    def compiled(function: Callable[..., None]) -> Any:
        try:
            return numba.njit(nogil=True, cache=True)(function)
        except RuntimeError:  # there is no folder for numba's cache
            return numba.njit(nogil=True)(function)

    return Loops(compiled(kernels.across), compiled(kernels.down), compiled(kernels.look_up))


def are_loaded() -> bool:
    """Return whether :func:`load` was called before, so that calling it again takes no time."""
    return load.cache_info().currsize > 0
