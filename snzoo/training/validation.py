"""Measure a network in training: validation figures, and statistics over training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snzoo.data.augment import Augmentation
from snzoo.data.batches import count_batches, read_batches
from snzoo.data.pixels import normalize
from snzoo.data.samples import Samples
from snzoo.data.training_batches import read_training_batches, shuffle
from snzoo.errors import DataError, NonFiniteError, SnzooError
from snzoo.inference.network import Network, default_batch_size, resize_device
from snzoo.nn import update_bn_statistics
from snzoo.nn.switchnorm import SwitchNorm
from snzoo.processes import Processes
from snzoo.recipes import Recipe
from snzoo.training.plan import Plan

OnError = Callable[[str, SnzooError], None]


class Validation(NamedTuple):
    """Figures on the validation photos; ``top1`` and ``top5`` are counts of correct photos."""

    images: int
    top1: int
    top5: int
    loss: float

    @property
    def correct(self) -> int:
        return self.top1

    @property
    def cases(self) -> int:
        return self.images

    def log(self) -> dict[str, Any]:
        """Return what an epoch's line of the log says of it."""
        return {"validation": self._asdict()}

    def __str__(self) -> str:
        return f"{self.top1}/{self.images} ({100 * self.top1 / self.images:.2f} %)"


def validate(
    model: nn.Module,
    plan: Plan,
    device: torch.device,
    processes: Processes,
    *,
    workers: int,
    channels_last: bool,
    on_error: OnError,
) -> Validation:
    """Return the figures of a network on all validation photos, each counted once.

    The network is left in evaluation mode.

    Args:
        on_error: Called with the name of a photo that cannot be read, and the error. The photo is
            left out if the function returns.

    Raises:
        NonFiniteError: the logits are not finite.
        DataError: no photo can be read.
    """
    assert isinstance(plan.validation, Samples)
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
            raise NonFiniteError(
                "the logits are not finite in validation; begin a new run with a smaller --lr"
            )
        wanted = labels[batch.indices]
        ranked = logits.topk(min(5, logits.shape[1])).indices == wanted[:, None]
        images += len(wanted)
        top1 += int(ranked[:, 0].sum())
        top5 += int(ranked.sum())
        loss += float(F.cross_entropy(logits.double(), wanted, reduction="sum"))
    counts = processes.add([images, top1, top5, loss])
    images, top1, top5 = (int(count) for count in counts[:3])
    if not images:
        raise DataError(f"no validation photo can be read: {plan.validation.description}")
    return Validation(images, top1, top5, counts[3] / images)


def set_batch_average(
    model: nn.Module,
    plan: Plan,
    processes: Processes,
    *,
    epoch: int,
    workers: int,
    on_error: OnError,
) -> None:
    """Set the running statistics of SN to averages over training images with center crops.

    The processes share the batches, and combine their averages.

    Args:
        epoch: The epoch, which determines the choice of the images.
        workers: The number of threads that read photos.
        on_error: See :func:`validate`.
    """
    recipe = plan.recipe
    size = recipe.statistics_batch_size
    order = shuffle(len(plan.train), seed=plan.seed + 1, epoch=epoch).tolist()
    batches = min(recipe.statistics_batches, count_batches(len(order), size))
    groups = [order[i * size : (i + 1) * size] for i in range(batches)]
    # Synchronized norms need as many batches in each process.
    each = batches // processes.count
    if each:
        groups = groups[processes.rank * each : (processes.rank + 1) * each]
    first = next(model.parameters())

    def images() -> Iterator[Tensor]:
        augmentation = make_augmentation(recipe, evaluation=True)
        for batch in read_training_batches(
            plan.train, augmentation, groups, seed=plan.seed, epoch=epoch, workers=workers
        ):
            for index, error in batch.errors.items():
                on_error(plan.train.locate(index), error)
            pixels = batch.pixels.to(first.device)
            yield normalize(pixels, plan.spec.preprocessing).to(first.dtype)

    update_bn_statistics(model, images(), len(groups))
    if each:
        combine_statistics(model, processes)


def combine_statistics(model: nn.Module, processes: Processes) -> None:
    """Replace SN's running statistics by those over the batches of all processes.

    The mean of squares, running_var + running_mean², is averaged, as within a process.
    """
    layers = [module for module in model.modules() if isinstance(module, SwitchNorm)]
    own = [
        (layer.running_mean.double().cpu(), layer.running_var.double().cpu())
        for layer in layers
        if layer.running_mean is not None and layer.running_var is not None
    ]
    tracking = [layer for layer in layers if layer.running_mean is not None]
    for layer, *each in zip(tracking, *processes.gather(own), strict=True):
        mean = torch.stack([mean for mean, _ in each]).mean(0)
        square = torch.stack([var + mean**2 for mean, var in each]).mean(0)
        assert layer.running_mean is not None and layer.running_var is not None
        layer.running_mean.copy_(mean)
        layer.running_var.copy_((square - mean**2).clamp_min(0))


def make_augmentation(recipe: Recipe, *, epoch: int = 0, evaluation: bool = False) -> Augmentation:
    """Return what happens to training photos.

    Args:
        recipe: The recipe.
        epoch: The epoch, from 0; the last ones may have center crops.
        evaluation: Crop the center, and do nothing else.
    """
    assert recipe.crop is not None and recipe.resize is not None
    whole: Literal["center", "random"] | None = None
    if evaluation or epoch >= recipe.epochs - recipe.center_crop_epochs:
        whole = "center"
    elif epoch >= recipe.epochs - recipe.random_crop_epochs:
        whole = "random"
    return Augmentation(
        crop=recipe.crop,
        resize=recipe.resize,
        scale=recipe.scale,
        ratio=recipe.ratio,
        flip=0.0 if evaluation else recipe.flip,
        color_jitter=(0.0, 0.0, 0.0) if evaluation else recipe.color_jitter,
        lighting="none" if evaluation else recipe.lighting,
        lighting_std=recipe.lighting_std,
        whole=whole,
        upright=recipe.upright,
    )
