"""Read photos into batches of pixels, with threads that read ahead of the network.

The number of a batch alone determines its photos. A run that is split, interrupted or resumed
therefore computes the same batches, and the network rounds in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from snzoo.data import loops
from snzoo.data.pixels import load_pixels, load_window, pixel_dtype
from snzoo.data.read_ahead import read_ahead
from snzoo.data.resample import Window, is_exact, resize_windows
from snzoo.data.sources import Photos
from snzoo.errors import SnzooError
from snzoo.preprocessing import Preprocessing, Resampling

WORTH_COMPILING = 200  # images; for fewer, compiling takes longer than it saves


@dataclass(frozen=True)
class Batch:
    """A batch of photos.

    Attributes:
        indices: the indices of the photos that were decoded.
        pixels: the pixels of these photos (n, 3, H, W), see
            :func:`~snzoo.data.pixels.load_pixels`. They are overwritten when the second batch after
            this one is requested.
        errors: maps the index of each photo that was not decoded to the reason.
    """

    indices: list[int]
    pixels: Tensor
    errors: dict[int, SnzooError]


def resizer(
    images: int,
    resize_on: torch.device | None,
    resampling: Resampling = "pillow-bilinear",
) -> str:
    """Return the name of the fastest exact resizer: ``torch``, ``llvmlite`` or ``pillow``.

    All three compute the same bits. Rules other than Pillow's have one resizer, ``numpy``, which
    runs in the CPU threads.

    Args:
        images: the number of images to resize.
        resize_on: the device that resizes; None for the CPU threads.
        resampling: the rule.
    """
    if resampling != "pillow-bilinear":
        return "numpy"
    if resize_on:
        return "torch" if is_exact(resize_on) else "pillow"
    worthwhile = loops.HAS_LLVMLITE and images >= WORTH_COMPILING
    return "llvmlite" if worthwhile and is_exact(None) else "pillow"


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
    expected: int | None = None,
    resize_on: torch.device | None = None,
    upright: bool = False,
    approximate: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of ``photos`` in order, while threads read the next batches.

    Processes are not needed, because the decoders and the resizers release the GIL.

    Args:
        photos: :class:`~snzoo.data.samples.Samples`, :class:`~snzoo.data.sources.PhotoList`, or
            anything with their ``__len__``, ``read`` and ``locate``.
        preprocessing: the size to resize to, the size of the crop and the rule.
        batch_size: the number of photos per batch; the last batch may be smaller.
        workers: the number of threads.
        numbers: the numbers of the batches to read (default: all). Batch n begins with photo
            n · batch_size.
        expected: the number of photos that the run has read after this call, if ``photos`` is a
            part of them (default: the number of ``photos``). Many photos are worth compiling.
        resize_on: the device that resizes and holds the pixels (default: the threads resize on the
            CPU).
        upright: turn photos according to their EXIF orientation. Evaluations do not turn photos.
        approximate: decode JPEG at a reduced size, see :func:`~snzoo.data.decode.decode`.
    """
    if numbers is None:
        numbers = range(count_batches(len(photos), batch_size))
    batch_size = max(1, min(batch_size, len(photos)))
    starts = (number * batch_size for number in numbers)
    groups = (range(start, min(start + batch_size, len(photos))) for start in starts)
    # May compile the loops, which the threads then use.
    how = resizer(expected or len(photos), resize_on, preprocessing.resampling)
    device = resize_on if how == "torch" else None
    options = {"upright": upright, "approximate": approximate}

    def read(index: int, out: NDArray[Any]) -> Window | None:
        photo, name = photos.read(index), photos.locate(index)
        if device:
            return load_window(photo, preprocessing, name=name, **options)
        compiled = how == "llvmlite"
        out[...] = load_pixels(photo, preprocessing, name=name, compiled=compiled, **options)
        return None

    side = 0 if device else preprocessing.crop  # the results hold the pixels for a device
    dtype = pixel_dtype(preprocessing)
    for group in read_ahead(groups, read, size=batch_size, side=side, workers=workers, dtype=dtype):
        pixels = torch.from_numpy(group.pixels)
        windows = [result for result in group.results if result]
        if device and windows:
            pixels = resize_windows(windows, device)
        yield Batch(group.indices, pixels.permute(0, 3, 1, 2).to(resize_on), group.errors)
