"""A layer on the CPU in one call of compiled loops, and its gradients in another one.

The extra ``[fast]`` has the compiler. Little Python is run here, because the loops take some 20 µs
for the small maps of a network.
"""

import ctypes
import importlib.util
import logging
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from struct import Struct
from typing import Literal

import torch
from torch import Tensor, nn

from snzoo.nn._compat import is_traced
from snzoo.nn.backends._layout import lay_out_like, to_dense
from snzoo.nn.backends.openmp import find_openmp
from snzoo.nn.functional import Config, LayerTensors

HAS_LLVM = importlib.util.find_spec("llvmlite") is not None
DTYPES = torch.float32, torch.bfloat16
PLAIN = Tensor, nn.Parameter  # a subclass may have no memory of its own
# Fewer values than this are one thread's work, as for the operations of torch.
GRAIN = 1 << 15
Task = Literal["Inference", "Forward", "Backward"]
Run = Callable[..., int]  # of the fields of cpu_kernels


def infer(
    x: Tensor,
    tensors: LayerTensors,
    config: Config,
    shortcut: Tensor | None,
    relu: bool,
    overwrite: bool,
) -> Tensor | None:
    """Return the layer's output, see :class:`snzoo.nn.backends.Backend`.

    None if there are no loops for these arguments.

    Raises:
        MemoryError: there is no memory for the statistics.
    """
    dtype = tensors.weight.dtype
    kernel = None if config.batch else _find_kernel("Inference", x, dtype)
    parameters = kernel and _addresses(tensors, x.shape[1], config, dtype)
    if kernel is None or parameters is None:
        return None
    out = x if overwrite else torch.empty_like(x)
    if shortcut is not None:
        if shortcut.shape != x.shape or shortcut.dtype != x.dtype or not _is_in_memory(shortcut):
            return None
        shortcut = lay_out_like(x, shortcut)
    added = 0 if shortcut is None else shortcut.data_ptr()
    _run(kernel, x, (x.data_ptr(), out.data_ptr(), added, *parameters), config, relu)
    return out


def forward(
    x: Tensor, tensors: LayerTensors, config: Config
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]] | None:
    """Return the output, what :func:`backward` needs, and with ``config.batch`` BN statistics.

    None if there are no loops for these arguments.

    Raises:
        MemoryError: there is no memory for the statistics.
    """
    samples, channels = x.shape[:2]
    kernel = _find_kernel("Forward", x, torch.float32)
    if kernel is None:
        return None
    tensors, parameters = _make_readable(tensors, channels, config)
    if parameters is None:
        return None
    out = torch.empty_like(x)
    # The layout is that of cpu_training. Defaults of torch for new tensors are the user's.
    kept = x.new_empty(2 * (samples * channels + samples + channels), dtype=torch.float64)
    batch = tuple(x.new_empty(channels, dtype=torch.float32) for _ in range(2 * config.batch))
    to = [t.data_ptr() for t in batch] or [0, 0]
    fields = x.data_ptr(), out.data_ptr(), *parameters, kept.data_ptr(), *to
    _run(kernel, x, fields, config)
    return out, kept, batch


def backward(
    grad: Tensor, x: Tensor, kept: Tensor, tensors: LayerTensors, config: Config, needs_x: bool
) -> tuple[Tensor | None, list[Tensor]] | None:
    """Return the gradient of ``x``, if it is needed, and those of the parameters, float32.

    None if there are no loops for these arguments, as for gradients that a compiler traces.

    Args:
        grad: the gradient of the output.
        x, tensors, config: the arguments of :func:`forward`.
        kept: what it returned.
        needs_x: whether the gradient of ``x`` is needed.

    Raises:
        MemoryError: there is no memory for the sums.
    """
    if is_traced(grad):
        return None
    x = to_dense(x if x.dtype in DTYPES else x.float())  # hooks may have changed what is saved
    if grad.dtype != x.dtype or grad.stride() != x.stride() or not _is_in_memory(grad):
        grad = torch.empty_like(x).copy_(grad)
    kernel = _find_kernel("Backward", x, torch.float32)
    tensors, parameters = _make_readable(tensors, x.shape[1], config)
    if kernel is None or parameters is None:
        return None
    to_x = torch.empty_like(x) if needs_x else None
    grads = [torch.empty_like(t) for t in tensors[:4] if t is not None]
    out = 0 if to_x is None else to_x.data_ptr()
    fields = x.data_ptr(), out, grad.data_ptr(), *parameters, kept.data_ptr()
    _run(kernel, x, (*fields, *(t.data_ptr() for t in grads)), config)
    return to_x, grads


def _find_kernel(task: Task, x: Tensor, parameters: torch.dtype) -> Run | None:
    """Return the loops of a task for ``x``, or None if there are none."""
    is_contiguous = x.is_contiguous()
    if not (HAS_LLVM and x.dtype in DTYPES and _is_in_memory(x)):
        return None
    if not (is_contiguous or _has_channels_last(x)):
        return None
    return _load_kernel(task, x.dtype, parameters, not is_contiguous)


def _run(
    kernel: Run, x: Tensor, addresses: Sequence[int], config: Config, relu: bool = False
) -> None:
    samples, channels, *sides = x.shape
    failed = kernel(
        *addresses,
        samples,
        channels,
        prod(sides),
        torch.get_num_threads() if x.numel() >= GRAIN else 1,
        config.instance,
        config.batch,
        not config.shares,
        relu,
        config.eps,
    )
    if failed:
        raise MemoryError(f"no memory for the statistics of {samples} x {channels} channels")


def _has_channels_last(x: Tensor) -> bool:
    if x.ndim == 4:
        return x.is_contiguous(memory_format=torch.channels_last)
    return x.movedim(1, -1).is_contiguous()


def _is_in_memory(t: Tensor) -> bool:
    plain = type(t) in PLAIN and t.layout == torch.strided and t.is_cpu
    # Zeros that autograd makes have no memory, and neither have tensors without values.
    return plain and not t.is_neg() and t.data_ptr() != 0


def _addresses(
    tensors: LayerTensors, channels: int, config: Config, dtype: torch.dtype
) -> list[int] | None:
    """Return the addresses of the tensors; None if the loops can't read one of them."""
    found = []
    for t, size in zip(tensors, tensors.sizes(channels, config), strict=True):
        if t is None:
            found.append(0)
        elif _is_in_memory(t) and t.is_contiguous() and t.dtype is dtype and t.numel() == size:
            found.append(t.data_ptr())
        else:
            return None
    return found


def _make_readable(
    tensors: LayerTensors, channels: int, config: Config
) -> tuple[LayerTensors, list[int] | None]:
    """Return the tensors, or copies of them, and their addresses, float32 and contiguous.

    The addresses are None if there is one that is not in memory.
    """
    found = _addresses(tensors, channels, config, torch.float32)
    if found is None:
        contiguous = (t if t is None else t.contiguous() for t in tensors.flat(torch.float32))
        tensors = LayerTensors(*contiguous)  # type: ignore[arg-type]
        found = _addresses(tensors, channels, config, torch.float32)
    return tensors, found


@cache
def _load_kernel(
    task: Task, values: torch.dtype, parameters: torch.dtype, channels_last: bool
) -> Run | None:
    """Compile the loops, in some 0.1 s; return None, with a warning, where this is impossible."""
    openmp = find_openmp()
    if openmp is None or parameters not in DTYPES:
        return None
    try:
        from snzoo.llvm import FLOAT, INT16, compile_functions
        from snzoo.nn.backends.cpu_channels_last import ChannelsLast
        from snzoo.nn.backends.cpu_contiguous import Contiguous
        from snzoo.nn.backends.cpu_gradient import Backward
        from snzoo.nn.backends.cpu_inference import Inference
        from snzoo.nn.backends.cpu_kernels import NUMBERS, SIZES
        from snzoo.nn.backends.cpu_training import Forward

        of_task = {"Inference": Inference, "Forward": Forward, "Backward": Backward}[task]
        layout = ChannelsLast if channels_last else Contiguous
        kinds = {torch.float32: FLOAT, torch.bfloat16: INT16}
        kernel = type(task, (of_task, layout), {})(kinds[values], kinds[parameters], openmp)
        (address,) = compile_functions(kernel.module, ["run"])
    except Exception as error:  # what another version of llvmlite or a processor may raise
        logging.getLogger("snzoo").warning(
            "SwitchNorm uses the operations of PyTorch, which are slower: llvmlite can't "
            "compile its loops (%s)",
            next(iter(str(error).splitlines()), type(error).__name__),
        )
        return None
    pack = Struct(f"{len(of_task.ADDRESSES) + len(SIZES)}q{len(NUMBERS)}d").pack
    run = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)(address)  # without the GIL
    return lambda *fields: run(pack(*fields))
