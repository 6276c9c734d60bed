"""Read augmented training photos into batches, in random order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from snzoo.data.augment import Augmentation, Noise, augment, image_seed
from snzoo.data.batches import resizer
from snzoo.data.decode import Pixels
from snzoo.data.read_ahead import read_ahead
from snzoo.data.sources import Photos
from snzoo.errors import SnzooError


@dataclass(frozen=True)
class TrainingBatch:
    """A batch of augmented photos.

    Attributes:
        indices: the indices of the photos that were decoded.
        pixels: the pixels of these photos, uint8 (n, 3, H, W). They are overwritten when the second
            batch after this one is requested.
        noise: the color noise of these photos, float32 RGB (n, 3), white = 1; see
            :func:`~snzoo.data.augment.apply_noise`.
        errors: maps the index of each photo that was not decoded to the reason.
    """

    indices: list[int]
    pixels: Tensor
    noise: Tensor
    errors: dict[int, SnzooError]


def shuffle(count: int, *, seed: int, epoch: int) -> Tensor:
    """Return the order of the photos in an epoch, a permutation of ``range(count)`` (int64)."""
    generator = Generator().manual_seed(image_seed(seed, epoch, -1))  # no photo has this index
    return torch.randperm(count, generator=generator)


def read_training_batches(
    photos: Photos,
    augmentation: Augmentation,
    groups: Sequence[Sequence[int]],
    *,
    seed: int,
    epoch: int,
    workers: int,
) -> Iterator[TrainingBatch]:
    """Yield one batch for each group, in order, while threads read the next batches.

    The pixels of a photo depend on the seed, the epoch and its index only.

    Args:
        photos: :class:`~snzoo.data.samples.Samples`, or anything with their ``__len__``, ``read``
            and ``locate``.
        augmentation: how to augment the photos.
        groups: the indices of the photos of each batch.
        seed: the seed of the training run.
        epoch: the number of the epoch, from 0.
        workers: the number of threads.
    """
    # May compile the loops, which the threads then use.
    compiled = resizer(sum(map(len, groups)), None) == "llvmlite"

    def read(index: int, out: Pixels) -> Noise:
        generator = Generator().manual_seed(image_seed(seed, epoch, index))
        photo, name = photos.read(index), photos.locate(index)
        out[...], noise = augment(photo, augmentation, generator, name=name, compiled=compiled)
        return noise

    size = max(map(len, groups), default=1)
    for group in read_ahead(groups, read, size=size, side=augmentation.crop, workers=workers):
        noise = np.array(group.results, np.float32).reshape(-1, 3)
        pixels = torch.from_numpy(group.pixels).permute(0, 3, 1, 2)
        yield TrainingBatch(group.indices, pixels, torch.from_numpy(noise), group.errors)
