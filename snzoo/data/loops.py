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


class Loops:
    """The compiled loops, see :mod:`snzoo.data.kernels`. They release the GIL.

    The arrays are contiguous, except for those of :meth:`look_up` and the rows of ``pixels`` in
    :meth:`down`. The taps are those of :class:`~snzoo.data.resample.Taps`.
    """

    def __init__(self, processor: str, features: str) -> None:
        """Compile the loops.

        Args:
            processor: LLVM's name of the processor.
            features: LLVM's names of the processor's instruction sets, as in ``"+avx2,-avx512f"``.
        """
        from llvmlite import binding

        from snzoo.data.kernels import build

        binding.initialize_native_target()
        binding.initialize_native_asmprinter()
        sets = features.split(",")
        kernels = build(16 if "+avx512bw" in sets else 8 if "+avx2" in sets else 4)
        target = binding.Target.from_default_triple()
        machine = target.create_target_machine(processor, features, opt=3, jit=True)
        kernels.triple, kernels.data_layout = target.triple, str(machine.target_data)
        module = binding.parse_assembly(str(kernels))
        self._engine = binding.create_mcjit_compiler(module, machine)  # owns the machine code
        self._engine.finalize_object()
        self._across = self._function("across", "pnppnppnn")
        self._down = self._function("down", "pnppnppnn")
        self._look_up = self._function("look_up", "pnnnnppnnnnnnn")

    def _function(self, name: str, arguments: str) -> Any:
        kinds = {"p": c_void_p, "n": c_ssize_t}
        prototype = CFUNCTYPE(None, *(kinds[letter] for letter in arguments))
        return prototype(self._engine.get_function_address(name))

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
    from llvmlite import binding

    return Loops(binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())


def are_loaded() -> bool:
    """Return whether :func:`load` was called before, so that calling it again takes no time."""
    return load.cache_info().currsize > 0
