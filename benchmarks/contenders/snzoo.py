"""snzoo's reader and evaluation, at snzoo's defaults if the job has no values."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from harness import cores
from jobs import Job
from torch import Tensor, nn

from snzoo.data.batches import Batch, read_batches
from snzoo.data.pixels import normalize
from snzoo.data.samples import Samples, find_samples
from snzoo.evaluation.measure import measure
from snzoo.inference import Network


def pixels(job: Job) -> Iterator[tuple[str, Tensor]]:
    samples = _samples(job)
    # As in an evaluation, a GPU resizes the photos.
    resize_on = torch.device(job.device) if job.device.startswith("cuda") else None
    for batch in _read(job, batch_size=32, resize_on=resize_on):
        for index, image in zip(batch.indices, batch.pixels, strict=True):
            yield samples.names[index], image.cpu()


def batches(job: Job) -> Iterator[Tensor]:
    for batch in _read(job, batch_size=job.batch_size or 32):
        yield normalize(batch.pixels, job.preprocessing)


def evaluate(job: Job, model: nn.Module, classes: tuple[str, ...]) -> tuple[int, int, int]:
    network = Network(model, job.preprocessing, device=job.device)
    samples = find_samples(job.folder, classes)
    result = measure([network], samples, batch_size=job.batch_size, workers=job.workers)
    return len(result.images()), result.top1().correct, result.top5().correct


def _samples(job: Job) -> Samples:
    return find_samples(job.folder, tuple(sorted(os.listdir(job.folder))))


def _read(job: Job, *, batch_size: int, resize_on: torch.device | None = None) -> Iterator[Batch]:
    samples = _samples(job)
    for batch in read_batches(
        samples, job.preprocessing, batch_size=batch_size, workers=cores(), resize_on=resize_on
    ):
        for error in batch.errors.values():
            raise error
        yield batch
