"""timm's loader, as its validate.py sets it up: prefetcher, no pinned memory, TF32 and
cuDNN's benchmark mode on CUDA. Resized bilinearly, so that the pixels are those of the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader
from torch import Tensor, nn

from contenders.common import count
from snzoo.manifest import Preprocessing


def pixels(
    folder: str, preprocessing: Preprocessing, *, device: str
) -> Iterator[tuple[str, Tensor]]:
    dataset = _loader(folder, preprocessing, workers=0, batch_size=1).dataset
    for i in range(len(dataset)):
        yield dataset.filename(i), dataset[i][0]


def batches(
    folder: str, preprocessing: Preprocessing, *, workers: int, batch_size: int
) -> Iterator[Tensor]:
    for x, _ in _loader(folder, preprocessing, workers=workers, batch_size=batch_size):
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
    if device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    # Class folders may be a part of the network's classes.
    class_map = {name: i for i, name in enumerate(classes)}
    loader = _loader(
        folder,
        preprocessing,
        workers=workers,
        batch_size=batch_size,
        class_map=class_map,
        device=device,
    )
    return count(model, loader, preprocessing, device=device)


def _loader(
    folder: str,
    preprocessing: Preprocessing,
    *,
    workers: int,
    batch_size: int,
    class_map: dict[str, int] | None = None,
    device: str = "cpu",
) -> Any:
    recipe = preprocessing.in_rgb()
    dataset: Any = create_dataset(
        name="",
        root=folder,
        split="validation",
        class_map=class_map,  # type: ignore[arg-type]
        input_img_mode="RGB",
    )
    return create_loader(
        dataset,
        input_size=(3, preprocessing.crop, preprocessing.crop),
        batch_size=batch_size,
        use_prefetcher=True,
        interpolation="bilinear",
        mean=recipe.mean,
        std=recipe.std,
        num_workers=workers,
        crop_pct=preprocessing.crop / preprocessing.resize,
        crop_mode="center",
        pin_memory=False,
        device=torch.device(device),
    )
