"""snzoo's reader and evaluation, at snzoo's defaults if the job has no values."""

from __future__ import annotations

import os
from collections.abc import Iterator

import torch
from harness import cores
from jobs import Job
from torch import Tensor, nn

from contenders.common import EPOCH, FLIP, RATIO, SCALE, SEED
from snzoo.data.augment import Augmentation
from snzoo.data.batches import Batch, read_batches
from snzoo.data.pixels import normalize
from snzoo.data.samples import Samples, find_samples
from snzoo.data.training_batches import TrainingBatch, read_training_batches, shuffle
from snzoo.evaluation.measure import measure
from snzoo.inference import Network


def pixels(job: Job) -> Iterator[tuple[str, Tensor]]:
    samples = _find_samples(job)
    for batch in _read(samples, job):
        for index, image in zip(batch.indices, batch.pixels, strict=True):
            yield samples.names[index], image.cpu()


def batches(job: Job) -> Iterator[Tensor]:
    for batch in _read(_find_samples(job), job):
        yield normalize(batch.pixels, job.preprocessing)


def evaluate(job: Job, model: nn.Module, classes: tuple[str, ...]) -> tuple[int, int, int]:
    network = Network(model, job.preprocessing, device=job.device)
    samples = find_samples(job.folder, classes)
    result = measure([network], samples, batch_size=job.batch_size, workers=job.workers)
    return len(result.images()), result.top1().correct, result.top5().correct


def _find_samples(job: Job) -> Samples:
    return find_samples(job.folder, tuple(sorted(os.listdir(job.folder))))


def _read(samples: Samples, job: Job) -> Iterator[Batch | TrainingBatch]:
    found: Iterator[Batch | TrainingBatch]
    recipe, size = job.preprocessing, job.batch_size or 32
    if job.training:
        how = Augmentation(recipe.crop, recipe.resize, SCALE, RATIO, FLIP, (0, 0, 0), "none", 0)
        order = shuffle(len(samples), seed=SEED, epoch=EPOCH).tolist()
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        found = read_training_batches(samples, how, groups, seed=SEED, epoch=EPOCH, workers=cores())
    else:  # as in an evaluation, a GPU resizes the photos
        resize_on = torch.device(job.device) if job.device.startswith("cuda") else None
        found = read_batches(samples, recipe, batch_size=size, workers=cores(), resize_on=resize_on)
    for batch in found:
        for error in batch.errors.values():
            raise error
        yield batch
