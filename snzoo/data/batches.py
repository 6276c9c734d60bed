"""Images → batches of pixels, made by threads while the network works on the batch before.

The batches of a set of images are fixed by their numbers, so that they are the same, and
with them every rounding of the network, however a run is divided, interrupted or resumed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from snzoo.data import loops
from snzoo.data.decode import Pixels
from snzoo.data.pixels import load_pixels, load_window
from snzoo.data.resample import Window, resize_windows
from snzoo.data.samples import Samples
from snzoo.errors import DataError
from snzoo.manifest import Preprocessing

WORTH_COMPILING = 1000  # images; with fewer, the second of compiling is not regained


@dataclass(frozen=True)
class Batch:
    """``pixels`` uint8 (n, 3, H, W) of the images at ``indices``; ``errors`` of the others.

    The pixels are overwritten when the second batch after this one is asked for.
    """

    indices: list[int]
    pixels: Tensor
    errors: dict[int, DataError]


def resizer(images: int, resize_on: torch.device | None) -> str:
    """What resizes so many images: ``torch``, ``numba`` or ``pillow``, all to the same bits."""
    if resize_on:
        return "torch"
    return "numba" if loops.HAS_NUMBA and images >= WORTH_COMPILING else "pillow"


def count_batches(images: int, batch_size: int) -> int:
    return -(-images // batch_size)


def read_batches(
    samples: Samples,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int,
    numbers: Sequence[int] | None = None,
    resize_on: torch.device | None = None,
    approximate: bool = False,
) -> Iterator[Batch]:
    """Batches of ``samples``, in their order, a few of them ahead of the consumer.

    The decoders release the GIL, and so do the loops that resize: threads do for processes.

    Args:
        numbers: which batches (default: all); batch n has the images from n · batch_size on.
        resize_on: the device that resizes and holds the pixels (default: the threads do).
        approximate: see :func:`~snzoo.data.pixels.load_pixels`.
    """
    if numbers is None:
        numbers = range(count_batches(len(samples), batch_size))
    batch_size = min(batch_size, len(samples))
    ahead = min(1 - (-workers // batch_size), len(numbers))  # enough for all workers
    compiled = resizer(len(samples), resize_on) == "numba"
    if compiled:
        loops.load()  # once, before the threads need them
    side = preprocessing.crop
    buffers = None if resize_on else np.empty((ahead + 2, batch_size, side, side, 3), np.uint8)

    def read(index: int, out: Pixels | None) -> Window | DataError | None:
        try:
            content, name = samples.read(index), samples.locate(index)
            if out is None:
                return load_window(content, preprocessing, name=name, approximate=approximate)
            out[...] = load_pixels(
                content, preprocessing, name=name, approximate=approximate, compiled=compiled
            )
        except DataError as error:
            return error
        return None

    def start(step: int, number: int) -> _Waiting:
        buffer = None if buffers is None else buffers[step % len(buffers)]
        first = number * batch_size
        indices = range(first, min(first + batch_size, len(samples)))
        outs = [None] * len(indices) if buffer is None else list(buffer[: len(indices)])
        tasks = [pool.submit(read, i, out) for i, out in zip(indices, outs, strict=True)]
        return _Waiting(indices, tasks, buffer)

    with ThreadPoolExecutor(workers, thread_name_prefix="snzoo-decode") as pool:
        try:
            started = (start(step, number) for step, number in enumerate(numbers))
            waiting = deque(islice(started, ahead))
            while waiting:
                waiting.extend(islice(started, 1))
                yield _collect(waiting.popleft(), resize_on)
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Waiting:
    """A batch that threads are at work on; they write into ``buffer`` where there is one."""

    indices: range
    tasks: list[Future[Window | DataError | None]]
    buffer: Pixels | None


def _collect(batch: _Waiting, resize_on: torch.device | None) -> Batch:
    results = {i: task.result() for i, task in zip(batch.indices, batch.tasks, strict=True)}
    errors = {i: result for i, result in results.items() if isinstance(result, DataError)}
    good = [i for i in results if i not in errors]
    windows = [result for result in results.values() if isinstance(result, Window)]
    if batch.buffer is not None:
        pixels = torch.from_numpy(batch.buffer[: len(results)])
        if errors:
            pixels = pixels[[i - batch.indices[0] for i in good]]
    elif windows and resize_on:
        pixels = resize_windows(windows, resize_on)
    else:
        pixels = torch.empty((0, 1, 1, 3), dtype=torch.uint8)
    return Batch(good, pixels.permute(0, 3, 1, 2), errors)
