"""Read groups of photos in order, with threads that read the next groups."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from snzoo.errors import DataError, DownloadError, SnzooError

R = TypeVar("R")


@dataclass(frozen=True)
class Group(Generic[R]):
    """A group of photos.

    Attributes:
        indices: the indices of the photos that were read.
        results: the result of each of these photos.
        pixels: the pixels of these photos (n, side, side, 3). They are overwritten when the second
            group after this one is requested.
        errors: maps the index of each photo that was not read to the reason.
    """

    indices: list[int]
    results: list[R]
    pixels: NDArray[Any]
    errors: dict[int, SnzooError]


def read_ahead(
    groups: Iterable[Sequence[int]],
    read: Callable[[int, NDArray[Any]], R],
    *,
    size: int,
    side: int,
    workers: int,
    dtype: type[np.uint8 | np.float32] = np.uint8,
) -> Iterator[Group[R]]:
    """Yield the groups in order, while threads read the next groups.

    Processes are not needed, because the decoders and the resizers release the GIL.

    Args:
        groups: the indices of the photos of each group.
        read: reads the photo of an index, writes its pixels into an array (side, side, 3), and
            returns a result. Errors of the photo are collected.
        size: the number of photos of the largest group.
        side: the side of the square pixels of a photo.
        workers: the number of threads.
        dtype: the dtype of the pixels.
    """
    size = max(1, size)  # groups may be empty
    ahead = 1 - (-workers // size)  # enough for all workers
    buffers: deque[NDArray[Any]] = deque()

    def try_to_read(index: int, out: NDArray[Any]) -> R | SnzooError:
        try:
            return read(index, out)
        except (DataError, DownloadError) as error:
            return error

    def start(indices: Sequence[int]) -> _Pending[R]:
        # Two of the groups that were yielded keep their buffers.
        in_use = len(buffers) == ahead + 2
        buffer = buffers.popleft() if in_use else np.empty((size, side, side, 3), dtype)
        buffers.append(buffer)
        outs = buffer[: len(indices)]
        tasks = [pool.submit(try_to_read, i, out) for i, out in zip(indices, outs, strict=True)]
        return _Pending(indices, tasks, outs)

    with ThreadPoolExecutor(workers, thread_name_prefix="snzoo-decode") as pool:
        try:
            started = map(start, groups)
            pending = deque(islice(started, ahead))
            while pending:
                pending.extend(islice(started, 1))
                yield pending.popleft().collect()
        finally:
            pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class _Pending(Generic[R]):
    """A group that threads are reading, into ``pixels``."""

    indices: Sequence[int]
    tasks: list[Future[R | SnzooError]]
    pixels: NDArray[Any]

    def collect(self) -> Group[R]:
        """Wait for the threads and return the group."""
        wait(self.tasks)  # once, not for each photo, which would wake this thread each time
        good, results, errors = [], [], {}
        for place, (index, task) in enumerate(zip(self.indices, self.tasks, strict=True)):
            result = task.result()
            if isinstance(result, SnzooError):
                errors[index] = result
            else:
                good.append(place)
                results.append(result)
        pixels = self.pixels[good] if errors else self.pixels
        return Group([self.indices[place] for place in good], results, pixels, errors)
