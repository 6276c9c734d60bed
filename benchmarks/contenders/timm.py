"""timm's loader with the settings of its validate.py, and for training with crops and flips only.

The settings are the prefetcher, no pinned memory and, on CUDA, TF32 and cuDNN's benchmark mode.
Resizing is bilinear, so that the pixels are those of the other libraries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from jobs import Job
from timm.data.dataset_factory import create_dataset
from timm.data.loader import create_loader
from torch import Tensor, nn

from contenders.common import FLIP, RATIO, SCALE, count


def pixels(job: Job) -> Iterator[tuple[str, Tensor]]:
    if job.training:  # timm draws its crops with Python's generator, so they are others
        return
    dataset = _loader(replace(job, workers=1, batch_size=1, device="cpu")).dataset
    for i in range(len(dataset)):
        yield dataset.filename(i), dataset[i][0]


def batches(job: Job) -> Iterator[Tensor]:
    for x, _ in _loader(job):
        yield x


def evaluate(job: Job, model: nn.Module, classes: tuple[str, ...]) -> tuple[int, int, int]:
    if job.device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    # The class folders may be only a part of the network's classes.
    return count(model, _loader(job, {name: i for i, name in enumerate(classes)}), job)


def _loader(job: Job, class_map: Any = None) -> Any:
    given, recipe, training = job.preprocessing, job.preprocessing.in_rgb(), job.training
    dataset: Any = create_dataset(
        name="",
        root=job.folder,
        split="train" if training else "validation",
        is_training=training,
        class_map=class_map,
        input_img_mode="RGB",
    )
    how: dict[str, Any] = {"crop_pct": given.crop / given.resize, "crop_mode": "center"}
    if training:  # a jitter of 0 would draw numbers for nothing
        how = {"scale": SCALE, "ratio": RATIO, "hflip": FLIP, "color_jitter": None}
    return create_loader(
        dataset,
        input_size=(3, given.crop, given.crop),
        batch_size=min(job.batch_size or 1, len(dataset)),  # training leaves out a smaller batch
        is_training=training,
        use_prefetcher=True,
        interpolation="bilinear",
        mean=recipe.mean,
        std=recipe.std,
        num_workers=job.workers or 0,
        pin_memory=False,
        device=torch.device(job.device),
        **how,
    )
