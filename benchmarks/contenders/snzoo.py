"""snzoo's reader and its ``evaluate``, at its own defaults where none are given."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from snzoo.data.batches import Batch, read_batches
from snzoo.data.pixels import normalize
from snzoo.data.samples import Samples, find_samples
from snzoo.evaluation.measure import measure
from snzoo.inference import Network
from snzoo.manifest import Preprocessing


def pixels(
    folder: str, preprocessing: Preprocessing, *, device: str
) -> Iterator[tuple[str, Tensor]]:
    samples = _samples(folder)
    # As in an evaluation: a GPU resizes for itself.
    resize_on = torch.device(device) if device.startswith("cuda") else None
    for batch in _read(samples, preprocessing, batch_size=32, resize_on=resize_on):
        for index, image in zip(batch.indices, batch.pixels, strict=True):
            yield samples.names[index], image.cpu()


def batches(
    folder: str, preprocessing: Preprocessing, *, workers: None, batch_size: int
) -> Iterator[Tensor]:
    for batch in _read(_samples(folder), preprocessing, batch_size=batch_size):
        yield normalize(batch.pixels, preprocessing)


def evaluate(
    folder: str,
    model: nn.Module,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    *,
    workers: int | None,
    batch_size: int | None,
    device: str,
) -> tuple[int, int, int]:
    result = measure(
        [Network(model, preprocessing, device=device)],
        find_samples(folder, classes),
        batch_size=batch_size,
        workers=workers,
    )
    return len(result.images()), result.top1().correct, result.top5().correct


def _samples(folder: str) -> Samples:
    return find_samples(folder, tuple(sorted(os.listdir(folder))))


def _read(
    samples: Samples,
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    resize_on: torch.device | None = None,
) -> Iterator[Batch]:
    for batch in read_batches(
        samples,
        preprocessing,
        batch_size=batch_size,
        workers=len(os.sched_getaffinity(0)),
        resize_on=resize_on,
    ):
        for error in batch.errors.values():
            raise error
        yield batch
