"""The processes of one evaluation: alone, or started by torchrun, here or on several machines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from snzoo.errors import SnzooError


@dataclass(frozen=True)
class Processes:
    """This process's ``rank`` among ``count``, and its ``local_rank`` on its machine."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    def share(self, items: Sequence[int]) -> Sequence[int]:
        """This process's part: as many as the others' or one more, without repetition."""
        start, stop = (len(items) * r // self.count for r in (self.rank, self.rank + 1))
        return items[start:stop]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in all of them, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values


def local_cores() -> int:
    """This process's part of the machine's cores."""
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux: those that taskset leaves
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def local_device(name: str | None) -> str | None:
    """``cuda``, or the default where there is one, → the GPU of this process."""
    if name in (None, "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        return f"cuda:{os.environ['LOCAL_RANK']}"
    return name


@contextmanager
def join(device: str) -> Iterator[Processes]:
    """All processes that torchrun started, over gloo on the CPU and NCCL on GPUs.

    Raises:
        SnzooError: they can't be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    on_gpu = device.startswith("cuda")
    try:
        if on_gpu:
            torch.cuda.set_device(device)
        # At the end the fastest waits for the slowest, for however long that takes.
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(days=7))
    except (AttributeError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise SnzooError(f"can't join the other processes: {reason}") from None
    try:
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        yield Processes(distributed.get_rank(), distributed.get_world_size(), local_rank)
    finally:
        distributed.destroy_process_group()
