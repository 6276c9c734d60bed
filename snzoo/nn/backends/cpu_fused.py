"""A layer in evaluation mode on the CPU in one call of compiled loops (extra ``[fast]``)."""

import ctypes
import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from math import prod
from struct import Struct

import torch
from torch import Tensor, nn

from snzoo.nn.backends.openmp import find_openmp
from snzoo.nn.functional import Config, LayerTensors

HAS_LLVM = importlib.util.find_spec("llvmlite") is not None
DTYPES = torch.float32, torch.bfloat16
PLAIN = Tensor, nn.Parameter  # a subclass may have no memory of its own
# Fewer values than this are one thread's work, as for the operations of torch.
GRAIN = 1 << 15
FIELDS = Struct("15qd")  # of cpu_kernels
Kernel = Callable[[bytes], int]


def infer(
    x: Tensor,
    tensors: LayerTensors,
    config: Config,
    shortcut: Tensor | None,
    relu: bool,
    overwrite: bool,
) -> Tensor | None:
    """Return the layer's output, see :class:`snzoo.nn.backends.Backend`.

    None if there are no loops for these arguments. Little Python is run here, because the loops
    take some 20 µs for the small maps of a network. ``x`` has at least one position.

    Raises:
        MemoryError: there is no memory for the statistics.
    """
    is_contiguous = x.is_contiguous()
    if not (HAS_LLVM and x.dtype in DTYPES and x.is_cpu) or config.batch or config.shares:
        return None
    if not (is_contiguous or _has_channels_last(x)) or x.is_neg():
        return None
    size = samples, channels, *sides = x.shape
    count, dtype = x.numel(), tensors.weight.dtype
    kernel = _load_kernel(x.dtype, dtype, not is_contiguous) if count else None
    parameters = _addresses(tensors, channels, config, dtype)
    if kernel is None or parameters is None:
        return None
    out = x if overwrite else torch.empty_like(x)
    if shortcut is not None:
        if shortcut.shape != size or shortcut.dtype != x.dtype or not _is_in_memory(shortcut):
            return None
        if shortcut.stride() != x.stride():
            shortcut = torch.empty_like(x).copy_(shortcut)
    fields = FIELDS.pack(
        x.data_ptr(),
        out.data_ptr(),
        0 if shortcut is None else shortcut.data_ptr(),
        *parameters,
        samples,
        channels,
        prod(sides),
        torch.get_num_threads() if count >= GRAIN else 1,
        config.instance,
        relu,
        config.eps,
    )
    if kernel(fields):
        raise MemoryError(f"no memory for the statistics of {samples} x {channels} channels")
    return out


def _has_channels_last(x: Tensor) -> bool:
    if x.ndim == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def _is_in_memory(t: Tensor) -> bool:
    plain = type(t) in PLAIN and t.layout == torch.strided
    return plain and t.is_cpu and not t.is_neg()


def _addresses(
    tensors: LayerTensors, channels: int, config: Config, dtype: torch.dtype
) -> list[int] | None:
    """Return the addresses of the tensors; None if the loops can't read one of them."""
    gates = config.instance + 1 + (tensors.running_mean is not None)
    found = []
    sizes = channels, channels, gates, gates, channels, channels
    for t, size in zip(tensors, sizes, strict=True):
        if t is None:
            found.append(0)
        elif _is_in_memory(t) and t.is_contiguous() and t.dtype is dtype and t.numel() == size:
            found.append(t.data_ptr())
        else:
            return None
    return found


@cache
def _load_kernel(
    values: torch.dtype, parameters: torch.dtype, channels_last: bool
) -> Kernel | None:
    """Compile the loops, in some 0.1 s; return None, with a warning, where this is impossible."""
    openmp = find_openmp()
    if openmp is None or parameters not in DTYPES:
        return None
    try:
        from snzoo.llvm import FLOAT, INT16, compile_functions
        from snzoo.nn.backends.cpu_layouts import ChannelsLast, Contiguous

        kinds = {torch.float32: FLOAT, torch.bfloat16: INT16}
        layout = ChannelsLast if channels_last else Contiguous
        module = layout(kinds[values], kinds[parameters], openmp).module
        (address,) = compile_functions(module, ["run"])
    except Exception as error:  # what another version of llvmlite or a processor may raise
        logging.getLogger("snzoo").warning(
            "SwitchNorm uses the operations of PyTorch, which are slower: llvmlite can't "
            "compile its loops (%s)",
            next(iter(str(error).splitlines()), type(error).__name__),
        )
        return None
    # The call does not hold the GIL.
    return ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)(address)
