"""The processes of a run: a single one, or those that torchrun started on any machines."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from snzoo.errors import DeviceError, first_line


@dataclass(frozen=True)
class Processes:
    """The ``rank`` of this process among ``count``, and its ``local_rank`` on its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def share(self, items: Sequence[int]) -> Sequence[int]:
        """Return this process's part of ``items``, see :func:`split_evenly`."""
        return split_evenly(items, self.count)[self.rank]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in the order of their ranks, in each process."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return the value of the first process in each process."""
        if self.count == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def add(self, values: Sequence[float]) -> list[float]:
        """Return the sums of the values over all processes."""
        if self.count == 1:
            return list(values)
        # Groups of this module have gloo for tensors on the CPU; a group of the user may not.
        where = "cpu" if "cpu" in str(distributed.get_backend_config()) else "cuda"
        total = torch.tensor(values, dtype=torch.float64, device=where)
        distributed.all_reduce(total)
        sums: list[float] = total.tolist()
        return sums


def split_evenly(items: Sequence[int], parts: int) -> list[Sequence[int]]:
    """Return ``items`` in contiguous parts whose sizes differ by at most 1."""
    bounds = [len(items) * i // parts for i in range(parts + 1)]
    return [items[start:stop] for start, stop in itertools.pairwise(bounds)]


def local_device(name: str | None) -> str | None:
    """Return this process's GPU if ``name`` is ``cuda``, or None and a GPU is available."""
    if name in (None, "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


def is_one_of_several() -> bool:
    """Return whether torchrun started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def join(device: str, *, timeout: timedelta = timedelta(days=7)) -> Iterator[Processes]:
    """Join the processes that torchrun started, over gloo on CPUs and NCCL on GPUs.

    Args:
        device: the device of this process.
        timeout: the longest time that a process waits for the others. At the end of an
            evaluation, the fastest process waits for the slowest, which may take long.

    A process group that exists already is used and is not destroyed.

    Raises:
        DeviceError: the other processes cannot be reached.
    """
    exists = distributed.is_available() and distributed.is_initialized()
    if not exists and not is_one_of_several():
        yield Processes()
        return
    on_gpu = device.startswith("cuda")
    try:
        if on_gpu and not exists:
            torch.cuda.set_device(device)
        if not exists:
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            distributed.init_process_group(backend, timeout=timeout)
    except (AttributeError, RuntimeError, ValueError) as error:
        raise DeviceError(f"can't join the other processes: {first_line(error)}") from None
    try:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        yield Processes(distributed.get_rank(), distributed.get_world_size(), local_rank)
    finally:
        if not exists:
            distributed.destroy_process_group()
