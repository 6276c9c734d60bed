"""The application over networks in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from fastapi import FastAPI

from snzoo.inference.network import default_batch_size, local_cores
from snzoo.serve.app import create_app
from snzoo.serve.batching import MAX_WAIT, LocalEngine
from snzoo.serve.engine import load_classifiers
from snzoo.serve.limits import Limits
from snzoo.serve.metrics import Metrics
from snzoo.serve.photos import Decoder

# At once, on a CPU. Threads of one pass wait for each other at every layer, passes never do.
PASSES = 4


def count_passes(device: torch.device) -> int:
    """Return the number of forward passes that run at once on a device, and share its cores."""
    return min(local_cores(), PASSES) if device.type == "cpu" else 1


def create_local_app(
    models: Sequence[str] = (),
    *,
    device: torch.device,
    weights: str | os.PathLike[str] | None = None,
    max_batch: int | None = None,
    max_wait: float = MAX_WAIT,
    workers: int | None = None,
    limits: Limits,
    token: str | None = None,
    allow_urls: bool = False,
) -> FastAPI:
    """Return the application over networks in this process, once they are loaded and warm.

    Each of :func:`count_passes` forward passes uses ``torch.get_num_threads()`` threads.

    Args:
        models, weights: see :func:`~snzoo.serve.load_classifiers`.
        device: the device.
        max_batch: the largest number of photos in a forward pass (default: 16 on a CPU, else 128).
        max_wait: see :class:`~snzoo.serve.LocalEngine`.
        workers: the number of threads that decode (default: the number of cores).
        limits, token, allow_urls: see :func:`~snzoo.serve.create_app`.

    Raises:
        SnzooError: see :func:`~snzoo.serve.load_classifiers`.
    """
    metrics = Metrics()
    decoder = Decoder(workers=workers, limits=limits, metrics=metrics)
    engine = LocalEngine(
        load_classifiers(models, weights=weights, device=str(device)),
        metrics=metrics,
        max_batch=max_batch or default_batch_size(device),
        max_wait=max_wait,
        coming=lambda: decoder.pending,
        threads=count_passes(device),
    )
    decoder.warm_up({served.preprocessing for served in engine.models.values()})
    engine.warm_up()
    return create_app(
        engine,
        limits=limits,
        token=token,
        allow_urls=allow_urls,
        decoder=decoder,
        metrics=metrics,
    )
