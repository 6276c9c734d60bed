"""Time work in this process, in rounds, on the CPU or CUDA."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import torch
from harness import rotate

Work = Callable[[], object]
LEAST = 0.05  # the least seconds of a measurement; short work is repeated


def measure(works: Mapping[str, Work], rounds: int, device: str) -> dict[str, Any]:
    """Measure each work once per round, in turns. Each round begins with another work.

    Returns:
        ``repeats``: how often each work runs in one measurement, by name. ``seconds``: the time of
        one run, by name and round.
    """
    repeats = {name: _repeats(work, device) for name, work in works.items()}
    found: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds):
        for name in rotate([*works], number):
            found[name].append(seconds(works[name], repeats[name], device))
    return {"repeats": repeats, "seconds": found}


def seconds(work: Work, repeats: int, device: str) -> float:
    """Return the seconds of one run. On CUDA, the time lasts until the last kernel has ended."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - start) / repeats
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    first.record()
    for _ in range(repeats):
        work()
    last.record()
    torch.cuda.synchronize()
    milliseconds: float = first.elapsed_time(last)
    return milliseconds / 1000 / repeats


def _repeats(work: Work, device: str) -> int:
    """Return how many runs take ``LEAST`` seconds, after a warm-up run."""
    work()
    return max(1, ceil(LEAST / seconds(work, 1, device)))
