"""A layer in evaluation mode on the CPU in one call of compiled loops (extra ``[fast]``)."""

import importlib.util
import logging
from functools import cache
from math import gcd, prod
from struct import Struct
from threading import Lock

import torch
from torch import Tensor

from snzoo.nn.backends.openmp import TeamFunction, find_openmp
from snzoo.nn.functional import Config, LayerTensors

HAS_LLVM = importlib.util.find_spec("llvmlite") is not None
DTYPES = torch.float32, torch.bfloat16
# Fewer values than this are one thread's work, as for the operations of torch.
GRAIN = 1 << 15
TILE = 32  # positions, see cpu_kernels
ARGUMENT = Struct("16q3d")  # the fields of cpu_kernels

_compiling = Lock()


def has_kernel(x: Tensor) -> bool:
    """Return whether :func:`infer` takes ``x``."""
    return (
        HAS_LLVM
        and x.dtype in DTYPES
        and (x.is_contiguous() or _has_channels_last(x))
        and _load_kernel(x.dtype, torch.float32, False) is not None
    )


def _has_channels_last(x: Tensor) -> bool:
    if x.ndim == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def infer(
    x: Tensor,
    tensors: LayerTensors,
    config: Config,
    shortcut: Tensor | None,
    relu: bool,
    overwrite: bool,
) -> Tensor:
    """Return the layer's output, see :class:`snzoo.nn.backends.Backend`."""
    samples, channels, *sides = x.shape
    positions = prod(sides)
    threads = torch.get_num_threads() if x.numel() >= GRAIN else 1
    channels_last = not x.is_contiguous()
    parts = 1
    if channels_last:  # as many units as all threads have an equal share of
        parts = min(threads // gcd(samples, threads), max(1, positions // TILE))
    out = x if overwrite else torch.empty_like(x)
    if shortcut is not None and shortcut.stride() != x.stride():
        shortcut = torch.empty_like(x).copy_(shortcut)
    tensors = _in_one_dtype(tensors)
    # Per unit, 2C doubles of sums; per thread, 2C doubles and 3C floats.
    scratch = torch.empty((2 * samples * parts + 4 * threads) * channels, dtype=torch.float64)
    argument = ARGUMENT.pack(
        *[0 if t is None else t.data_ptr() for t in (x, out, shortcut, *tensors, scratch)],
        samples,
        channels,
        positions,
        parts,
        config.instance,
        relu,
        config.eps,
        config.variance_factor(positions),
        config.pooled_factor(channels * positions),
    )
    kernel = _load_kernel(x.dtype, tensors.weight.dtype, channels_last)
    assert kernel is not None
    kernel(argument, threads)
    return out


def _in_one_dtype(tensors: LayerTensors) -> LayerTensors:
    """Return the tensors contiguous and in one of ``DTYPES``."""
    dtype = tensors.weight.dtype
    dtype = dtype if dtype in DTYPES else torch.float32
    for t in tensors:
        if t is not None and (t.dtype is not dtype or not t.is_contiguous()):
            wide = [None if t is None else t.float().contiguous() for t in tensors]
            return LayerTensors(*wide)  # type: ignore[arg-type]
    return tensors


@cache
def _load_kernel(
    values: torch.dtype, parameters: torch.dtype, channels_last: bool
) -> TeamFunction | None:
    """Compile the loops, in some 0.1 s; return None, with a warning, where this is impossible."""
    openmp = find_openmp()
    if openmp is None:
        return None
    with _compiling:
        try:
            from snzoo import llvm
            from snzoo.nn.backends.cpu_kernels import ChannelsLast, Contiguous

            kinds = {torch.float32: llvm.FLOAT, torch.bfloat16: llvm.INT16}
            layout = ChannelsLast if channels_last else Contiguous
            module = layout(kinds[values], kinds[parameters], openmp.addresses).module
            (address,) = llvm.compile_functions(module, ["run"])
        except Exception as error:  # what another version of llvmlite or a processor may raise
            logging.getLogger("snzoo").warning(
                "SwitchNorm uses the operations of PyTorch, which are slower: llvmlite can't "
                "compile its loops (%s)",
                next(iter(str(error).splitlines()), type(error).__name__),
            )
            return None
    return TeamFunction(address, openmp)
