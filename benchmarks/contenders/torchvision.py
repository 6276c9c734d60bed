"""torchvision's ImageFolder, transforms and DataLoader.

The settings are those of its reference script for classification, with pinned memory and
deterministic cuDNN on CUDA.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from jobs import Job
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from contenders.common import EPOCH, FLIP, RATIO, SCALE, SEED, count
from snzoo.data.augment import image_seed

BILINEAR = transforms.InterpolationMode.BILINEAR


def pixels(job: Job) -> Iterator[tuple[str, Tensor]]:
    """Yield the pixels, in training for the random numbers of snzoo, which seeds as here."""
    dataset = _dataset(job, floats=False)
    for i, (path, _) in enumerate(dataset.samples):
        torch.manual_seed(image_seed(SEED, EPOCH, i))
        yield str(Path(path).relative_to(job.folder)), dataset[i][0]


def batches(job: Job) -> Iterator[Tensor]:
    for x, _ in _loader(_dataset(job), job, shuffle=job.training):
        yield x


def evaluate(job: Job, model: nn.Module, classes: tuple[str, ...]) -> tuple[int, int, int]:
    cuda = job.device.startswith("cuda")
    if cuda:
        torch.backends.cudnn.deterministic = True
    dataset = _dataset(job)
    # The class folders may be only a part of the network's classes.
    dataset.target_transform = partial(getitem, [classes.index(name) for name in dataset.classes])
    return count(model, _loader(dataset, job, pin_memory=cuda), job)


def _loader(dataset: Any, job: Job, **options: Any) -> Any:
    workers = job.workers or 0
    return DataLoader(dataset, batch_size=job.batch_size, num_workers=workers, **options)


def _dataset(job: Job, *, floats: bool = True) -> Any:
    recipe = job.preprocessing.in_rgb()
    if job.training:
        steps: list[Any] = [
            transforms.RandomResizedCrop(recipe.crop, SCALE, RATIO, interpolation=BILINEAR),
            transforms.RandomHorizontalFlip(FLIP),
        ]
    else:
        resize = transforms.Resize(recipe.resize, interpolation=BILINEAR)
        steps = [resize, transforms.CenterCrop(recipe.crop)]
    steps.append(transforms.PILToTensor())
    if floats:
        steps.append(transforms.ConvertImageDtype(torch.float))
        steps.append(transforms.Normalize(recipe.mean, recipe.std))
    return ImageFolder(job.folder, transforms.Compose(steps))
