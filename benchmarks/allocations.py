"""Bytes of tensors: what is kept for the backward pass, and the most at one time."""

from __future__ import annotations

import gc
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], object]


def kept_bytes(forward: Callable[[], Tensor], x: Tensor, device: str) -> int:
    """What the graph of ``forward`` holds for the backward pass, of its input ``x`` too.

    What it allocated and is still there when the output is gone (so that nothing that a
    function lays aside by itself is missed), and ``x`` where it was saved.
    """
    saved: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        saved.add(tensor.untyped_storage().data_ptr())
        return tensor

    def graph() -> object:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            return forward().grad_fn

    _, left = _allocated(graph, device)
    storage = x.untyped_storage()
    return left + (storage.nbytes() if storage.data_ptr() in saved else 0)


def peak_bytes(work: Work, device: str) -> int:
    """The most that ``work`` has allocated at one time, beyond what lay there before."""
    return _allocated(work, device)[0]


def _allocated(work: Work, device: str) -> tuple[int, int]:
    """The most at one time, and what the result of ``work`` holds.

    By torch's allocator: what a library takes elsewhere is not seen.
    """
    work()  # what is made only once is no part of it
    if device == "cpu":
        return _allocated_on_cpu(work)
    gc.collect()  # or older tensors go meanwhile, and are set against the new ones
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = work()
    torch.cuda.synchronize()
    peak, after = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    del result
    return peak - before, after - before


def _allocated_on_cpu(work: Work) -> tuple[int, int]:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler complains of no CUDA
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        result = work()
    del result
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    events = [event for event in events if event.get("name") == "[memory]"]
    live: dict[int, int] = {}
    total = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        address, size = event["args"]["Addr"], event["args"]["Bytes"]
        if size > 0:
            live[address] = size
            total += size
            peak = max(peak, total)
        else:  # of older tensors there is no address: they are no part of it
            total -= live.pop(address, 0)
    return peak, total
