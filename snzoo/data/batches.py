"""Images → batches of pixels, decoded by threads while the network works on the last batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from snzoo.data.pixels import load_pixels
from snzoo.errors import DataError
from snzoo.manifest import Preprocessing


@dataclass(frozen=True)
class Batch:
    """``pixels`` uint8 (n, 3, H, W) of the images at ``indices``; ``errors`` of the others."""

    indices: list[int]
    pixels: Tensor
    errors: list[DataError]


def read_batches(
    paths: Sequence[Path], preprocessing: Preprocessing, *, batch_size: int, workers: int
) -> Iterator[Batch]:
    """Batches in the order of ``paths``, at most two of them ahead of the consumer.

    Pillow releases the GIL while it decodes and resizes, so threads do for processes.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="snzoo-decode") as pool:
        try:
            tasks = (
                (i, pool.submit(_try_load, path, preprocessing)) for i, path in enumerate(paths)
            )
            waiting = deque(islice(tasks, 3 * batch_size))
            while waiting:
                batch = [waiting.popleft() for _ in range(min(batch_size, len(waiting)))]
                yield _collate(batch)
                waiting.extend(islice(tasks, len(batch)))
        finally:
            pool.shutdown(cancel_futures=True)


def _try_load(path: Path, preprocessing: Preprocessing) -> Tensor | DataError:
    try:
        return load_pixels(path, preprocessing)
    except DataError as error:
        return error


def _collate(batch: list[tuple[int, Future[Tensor | DataError]]]) -> Batch:
    indices, pixels, errors = [], [], []
    for index, task in batch:
        result = task.result()
        if isinstance(result, DataError):
            errors.append(result)
        else:
            indices.append(index)
            pixels.append(result)
    return Batch(indices, torch.stack(pixels) if pixels else torch.empty(0), errors)
