"""Read photos into batches of pixels, with threads that read ahead of the network.

The number of a batch alone determines its photos. A run that is split, interrupted or resumed
therefore computes the same batches, and the network rounds in the same way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from snzoo.data import loops
from snzoo.data.decode import Pixels
from snzoo.data.pixels import load_pixels, load_window
from snzoo.data.resample import Window, is_exact, resize_windows
from snzoo.data.sources import Photos
from snzoo.errors import DataError, DownloadError, SnzooError
from snzoo.manifest import Preprocessing

WORTH_COMPILING = 1000  # images; for fewer, compiling takes longer than it saves


@dataclass(frozen=True)
class Batch:
    """A batch of photos.

    Attributes:
        indices: the indices of the photos that were decoded.
        pixels: the pixels of these photos, uint8 (n, 3, H, W). They are overwritten when the second
            batch after this one is requested.
        errors: maps the index of each photo that was not decoded to the reason.
    """

    indices: list[int]
    pixels: Tensor
    errors: dict[int, SnzooError]


def resizer(images: int, resize_on: torch.device | None) -> str:
    """Return the name of the fastest exact resizer: ``torch``, ``numba`` or ``pillow``.

    All three compute the same bits.

    Args:
        images: the number of images to resize.
        resize_on: the device that resizes; None for the CPU threads.
    """
    if resize_on:
        return "torch" if is_exact(resize_on) else "pillow"
    worthwhile = loops.HAS_NUMBA and images >= WORTH_COMPILING
    return "numba" if worthwhile and is_exact(None) else "pillow"


def count_batches(images: int, batch_size: int) -> int:
    """Return the number of batches, the last of which may be smaller."""
    return -(-images // batch_size)


def read_batches(
    photos: Photos,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    workers: int,
    numbers: Sequence[int] | None = None,
    resize_on: torch.device | None = None,
    upright: bool = False,
    approximate: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of ``photos`` in order, while threads read the next batches.

    Processes are not needed, because the decoders and the resizers release the GIL.

    Args:
        photos: :class:`~snzoo.data.samples.Samples`, :class:`~snzoo.data.sources.PhotoList`, or
            anything with their ``__len__``, ``read`` and ``locate``.
        preprocessing: the size to resize to and the size of the crop.
        batch_size: the number of photos per batch; the last batch may be smaller.
        workers: the number of threads.
        numbers: the numbers of the batches to read (default: all). Batch n begins with photo
            n · batch_size.
        resize_on: the device that resizes and holds the pixels (default: the threads resize on the
            CPU).
        upright: turn photos according to their EXIF orientation. Evaluations do not turn photos.
        approximate: decode JPEG at a reduced size, see :func:`~snzoo.data.decode.decode`.
    """
    if numbers is None:
        numbers = range(count_batches(len(photos), batch_size))
    batch_size = max(1, min(batch_size, len(photos)))
    ahead = min(1 - (-workers // batch_size), len(numbers))  # enough for all workers
    how = resizer(len(photos), resize_on)  # may compile the loops, which the threads then use
    device = resize_on if how == "torch" else None
    side = preprocessing.crop
    buffers = None if device else np.empty((ahead + 2, batch_size, side, side, 3), np.uint8)
    options = {"upright": upright, "approximate": approximate}

    def read(index: int, out: Pixels | None) -> Window | SnzooError | None:
        try:
            photo, name = photos.read(index), photos.locate(index)
            if out is None:
                return load_window(photo, preprocessing, name=name, **options)
            compiled = how == "numba"
            out[...] = load_pixels(photo, preprocessing, name=name, compiled=compiled, **options)
        except (DataError, DownloadError) as error:
            return error
        return None

    def start(step: int, number: int) -> _Pending:
        buffer = None if buffers is None else buffers[step % len(buffers)]
        first = number * batch_size
        indices = range(first, min(first + batch_size, len(photos)))
        outs = [None] * len(indices) if buffer is None else list(buffer[: len(indices)])
        tasks = [pool.submit(read, i, out) for i, out in zip(indices, outs, strict=True)]
        return _Pending(indices, tasks, buffer)

    with ThreadPoolExecutor(workers, thread_name_prefix="snzoo-decode") as pool:
        try:
            started = (start(step, number) for step, number in enumerate(numbers))
            pending = deque(islice(started, ahead))
            while pending:
                pending.extend(islice(started, 1))
                batch = _collect(pending.popleft(), device)
                yield replace(batch, pixels=batch.pixels.to(resize_on)) if resize_on else batch
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Pending:
    """A batch that threads are reading, into ``buffer`` if there is one."""

    indices: range
    tasks: list[Future[Window | SnzooError | None]]
    buffer: Pixels | None


def _collect(batch: _Pending, device: torch.device | None) -> Batch:
    results = {i: task.result() for i, task in zip(batch.indices, batch.tasks, strict=True)}
    errors = {i: result for i, result in results.items() if isinstance(result, SnzooError)}
    good = [i for i in results if i not in errors]
    windows = [result for result in results.values() if isinstance(result, Window)]
    if batch.buffer is not None:
        pixels = torch.from_numpy(batch.buffer[: len(results)])
        if errors:
            pixels = pixels[[i - batch.indices[0] for i in good]]
    elif windows and device:
        pixels = resize_windows(windows, device)
    else:
        pixels = torch.empty((0, 1, 1, 3), dtype=torch.uint8)
    return Batch(good, pixels.permute(0, 3, 1, 2), errors)
