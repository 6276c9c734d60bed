"""The bytes of tensors that are kept for the backward pass, and the most at one time."""

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
    """Return the bytes that the graph of ``forward`` holds for the backward pass.

    These are the bytes that ``forward`` allocated and that remain after the output is deleted,
    including tensors that a function stores by itself. The input ``x`` counts too if it was saved.
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
    """Return the most bytes that ``work`` allocates at one time."""
    return _allocated(work, device)[0]


def _allocated(work: Work, device: str) -> tuple[int, int]:
    """Return the most bytes at one time, and the bytes that the result of ``work`` holds.

    Only PyTorch's allocator is observed. Memory that a library allocates elsewhere does not count.
    """
    work()  # allocations that happen only once do not count
    if device == "cpu":
        return _allocated_on_cpu(work)
    gc.collect()  # older tensors must not be freed during the measurement
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    result = work()
    torch.cuda.synchronize()
    peak, after = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    del result
    return peak - before, after - before


def _allocated_on_cpu(work: Work) -> tuple[int, int]:
    os.environ.setdefault(
        "KINETO_LOG_LEVEL", "99"
    )  # otherwise the profiler warns that CUDA is missing
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
        else:  # older tensors have no address here and do not count
            total -= live.pop(address, 0)
    return peak, total
