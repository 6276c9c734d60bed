"""torchvision's ImageFolder, evaluation transforms and DataLoader, as its reference script
for classification sets them up: pinned memory and deterministic cuDNN on CUDA."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from operator import getitem
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from contenders.common import count
from snzoo.manifest import Preprocessing


def pixels(
    folder: str, preprocessing: Preprocessing, *, device: str
) -> Iterator[tuple[str, Tensor]]:
    dataset = ImageFolder(folder, transforms.Compose(_to_pixels(preprocessing)))
    for i, (path, _) in enumerate(dataset.samples):
        yield str(Path(path).relative_to(folder)), dataset[i][0]


def batches(
    folder: str, preprocessing: Preprocessing, *, workers: int, batch_size: int
) -> Iterator[Tensor]:
    dataset = _dataset(folder, preprocessing)
    for x, _ in DataLoader(dataset, batch_size=batch_size, num_workers=workers):
        yield x


def evaluate(
    folder: str,
    model: nn.Module,
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
    *,
    workers: int,
    batch_size: int,
    device: str,
) -> tuple[int, int, int]:
    cuda = device.startswith("cuda")
    if cuda:
        torch.backends.cudnn.deterministic = True
    dataset = _dataset(folder, preprocessing)
    # Class folders may be a part of the network's classes.
    dataset.target_transform = partial(getitem, [classes.index(name) for name in dataset.classes])
    loader: Any = DataLoader(dataset, batch_size=batch_size, num_workers=workers, pin_memory=cuda)
    return count(model, loader, preprocessing, device=device)


def _dataset(folder: str, preprocessing: Preprocessing) -> Any:
    recipe = preprocessing.in_rgb()
    floats = [
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize(recipe.mean, recipe.std),
    ]
    return ImageFolder(folder, transforms.Compose(_to_pixels(preprocessing) + floats))


def _to_pixels(preprocessing: Preprocessing) -> list[Any]:
    bilinear = transforms.InterpolationMode.BILINEAR
    return [
        transforms.Resize(preprocessing.resize, interpolation=bilinear),
        transforms.CenterCrop(preprocessing.crop),
        transforms.PILToTensor(),
    ]
