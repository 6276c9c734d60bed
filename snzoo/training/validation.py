"""Measure a network in training: validation figures, and statistics over training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snzoo.data.augment import Augmentation
from snzoo.data.batches import count_batches, read_batches
from snzoo.data.pixels import normalize
from snzoo.data.training_batches import read_training_batches, shuffle
from snzoo.errors import NonFiniteError, SnzooError
from snzoo.inference.network import Network, default_batch_size, resize_device
from snzoo.nn import update_bn_statistics
from snzoo.processes import Processes
from snzoo.recipes import Recipe
from snzoo.training.plan import Plan


class Validation(NamedTuple):
    """Figures on the validation photos; ``top1`` and ``top5`` are counts of correct photos."""

    images: int
    top1: int
    top5: int
    loss: float

    def __str__(self) -> str:
        return f"{self.top1}/{self.images} ({100 * self.top1 / max(1, self.images):.2f} %)"


def validate(
    model: nn.Module,
    plan: Plan,
    device: torch.device,
    processes: Processes,
    *,
    workers: int,
    channels_last: bool,
    on_error: Callable[[str, SnzooError], None],
) -> Validation:
    """Return the figures of a network on all validation photos, each counted once.

    The network is left in evaluation mode.

    Args:
        on_error: Called with the name of a photo that cannot be read, and the error. The photo is
            left out if the function returns.

    Raises:
        NonFiniteError: the logits are not finite.
    """
    preprocessing = plan.spec.preprocessing
    network = Network(
        model, preprocessing, name=plan.name, device=device, channels_last=channels_last
    )
    size = default_batch_size(device)
    numbers = processes.share(range(count_batches(len(plan.validation), size)))
    labels = torch.tensor(plan.validation.labels)
    images = top1 = top5 = 0
    loss = 0.0
    for batch in read_batches(
        plan.validation,
        preprocessing,
        batch_size=size,
        workers=workers,
        numbers=numbers,
        resize_on=resize_device(device),
        upright=plan.recipe.upright,
    ):
        for index, error in batch.errors.items():
            on_error(plan.validation.locate(index), error)
        if not batch.indices:
            continue
        logits = network.predict_logits(batch.pixels).cpu()
        if not logits.isfinite().all():
            raise NonFiniteError("the logits are not finite in validation; try a smaller --lr")
        wanted = labels[batch.indices]
        ranked = logits.topk(min(5, logits.shape[1])).indices == wanted[:, None]
        images += len(wanted)
        top1 += int(ranked[:, 0].sum())
        top5 += int(ranked.sum())
        loss += float(F.cross_entropy(logits.double(), wanted, reduction="sum"))
    counts = processes.add([images, top1, top5, loss])
    images, top1, top5 = (int(count) for count in counts[:3])
    return Validation(images, top1, top5, counts[3] / max(1, images))


def set_batch_average(model: nn.Module, plan: Plan, epoch: int, *, workers: int) -> None:
    """Set the running statistics of SN to averages over training images with center crops.

    Every process uses the same images, so that all have the same statistics.

    Args:
        model: The network.
        plan: The plan, whose recipe has the number and the size of the batches.
        epoch: The epoch, which determines the choice of the images.
        workers: The number of threads that read photos.
    """
    recipe = plan.recipe
    size = recipe.statistics_batch_size
    order = shuffle(len(plan.train), seed=plan.seed + 1, epoch=epoch).tolist()
    batches = min(recipe.statistics_batches, count_batches(len(order), size))
    groups = [order[i * size : (i + 1) * size] for i in range(batches)]
    first = next(model.parameters())

    def images() -> Iterator[Tensor]:
        augmentation = make_augmentation(recipe, evaluation=True)
        for batch in read_training_batches(
            plan.train, augmentation, groups, seed=plan.seed, epoch=epoch, workers=workers
        ):
            pixels = batch.pixels.to(first.device)
            yield normalize(pixels, plan.spec.preprocessing).to(first.dtype)

    update_bn_statistics(model, images(), batches)


def make_augmentation(recipe: Recipe, *, epoch: int = 0, evaluation: bool = False) -> Augmentation:
    """Return what happens to training photos.

    Args:
        recipe: The recipe.
        epoch: The epoch, from 0; the last ones may have center crops.
        evaluation: Crop the center, and do nothing else.
    """
    assert recipe.crop is not None and recipe.resize is not None
    return Augmentation(
        crop=recipe.crop,
        resize=recipe.resize,
        scale=recipe.scale,
        ratio=recipe.ratio,
        flip=0.0 if evaluation else recipe.flip,
        color_jitter=(0.0, 0.0, 0.0) if evaluation else recipe.color_jitter,
        lighting="none" if evaluation else recipe.lighting,
        lighting_std=recipe.lighting_std,
        center=evaluation or epoch >= recipe.epochs - recipe.center_crop_epochs,
        upright=recipe.upright,
    )
