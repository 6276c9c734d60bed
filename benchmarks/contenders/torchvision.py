"""torchvision's ImageFolder, evaluation transforms and DataLoader.

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

from contenders.common import count


def pixels(job: Job) -> Iterator[tuple[str, Tensor]]:
    dataset = _dataset(job, floats=False)
    for i, (path, _) in enumerate(dataset.samples):
        yield str(Path(path).relative_to(job.folder)), dataset[i][0]


def batches(job: Job) -> Iterator[Tensor]:
    for x, _ in DataLoader(_dataset(job), batch_size=job.batch_size, num_workers=job.workers or 0):
        yield x


def evaluate(job: Job, model: nn.Module, classes: tuple[str, ...]) -> tuple[int, int, int]:
    cuda = job.device.startswith("cuda")
    if cuda:
        torch.backends.cudnn.deterministic = True
    dataset = _dataset(job)
    # The class folders may be only a part of the network's classes.
    dataset.target_transform = partial(getitem, [classes.index(name) for name in dataset.classes])
    loader: Any = DataLoader(
        dataset, batch_size=job.batch_size, num_workers=job.workers or 0, pin_memory=cuda
    )
    return count(model, loader, job)


def _dataset(job: Job, *, floats: bool = True) -> Any:
    recipe = job.preprocessing.in_rgb()
    bilinear = transforms.InterpolationMode.BILINEAR
    steps = [
        transforms.Resize(recipe.resize, interpolation=bilinear),
        transforms.CenterCrop(recipe.crop),
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize(recipe.mean, recipe.std),
    ]
    return ImageFolder(job.folder, transforms.Compose(steps if floats else steps[:3]))
