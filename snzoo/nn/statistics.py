"""The running statistics of trained networks, as averages over training batches."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from snzoo.nn.switchnorm import SwitchNorm


def update_bn_statistics(model: nn.Module, loader: Iterable[Any], batches: int = 200) -> int:
    """Set the running statistics of SN layers to their averages over training batches.

    The batch average of the paper: after training, with the parameters frozen,
    ``running_mean`` is the mean over batches of the batch means, ``running_var`` that of
    ``mean² + var`` less the square of the former, summed in float64. A layer that runs several
    times in a batch is averaged over its runs, one that never runs keeps its statistics.

    The layers updated are those with ``using_bn`` that ``model.train()`` puts in training mode:
    frozen stages are left alone. Other buffers, those of ``nn.BatchNorm2d`` too, are in the end
    what they were; :func:`torch.optim.swa_utils.update_bn` is for these, where none is frozen.
    Training flags are kept, and on any exception the old statistics. With SyncSwitchNorm, all
    processes must call it, with as many batches each, and come to the same averages.

    Args:
        model: on a CPU or a CUDA device; its first parameter's is where the images go.
        loader: batches of training images (N, C, H, W), or tuples or lists that start with one.
        batches: how many to use, at most; the paper's 200 by default.

    Returns:
        The number of batches used.

    Raises:
        ValueError: ``batches`` is below 1, the loader is empty or gives something else, no
            layer is to be updated, or statistics are not finite.
    """
    if batches < 1:
        raise ValueError(f"batches must be at least 1, got {batches}")
    used = 0
    with torch.no_grad(), _restored(model):
        averages = _observe(model.train())
        if not averages:
            raise ValueError(
                "no SwitchNorm layer with using_bn is in training mode after model.train(): "
                "there are no batch statistics to update"
            )
        device = next(model.parameters()).device
        for batch in islice(loader, batches):
            model(_images(batch).to(device))
            used += 1
        if not used:
            raise ValueError("the loader gave no batch: give it at least one of training images")
        if not all(average.is_finite() for average in averages):
            raise ValueError("batch statistics are not finite; are the images and the weights?")
    for average in averages:
        average.store()
    return used


class _Average:
    """Takes a layer's batch statistics in the place of its running ones."""

    def __init__(self, layer: SwitchNorm) -> None:
        self.layer = layer
        self.calls = 0
        self.sums: Tensor | float = 0.0  # (2, C): of the means, and of mean² + var

    def add(self, mean: Tensor, var: Tensor) -> None:
        mean, var = mean.double(), var.double()
        self.sums = self.sums + torch.stack([mean, mean**2 + var])
        self.calls += 1

    def is_finite(self) -> bool:
        return isinstance(self.sums, float) or bool(self.sums.isfinite().all())

    def store(self) -> None:
        running_mean, running_var = self.layer.running_mean, self.layer.running_var
        if isinstance(self.sums, float) or running_mean is None or running_var is None:
            return
        mean, square = self.sums / self.calls
        running_mean.copy_(mean.view_as(running_mean))
        running_var.copy_((square - mean**2).clamp_min(0).view_as(running_var))


def _observe(model: nn.Module) -> list[_Average]:
    """Averages of the layers in training mode, whose running statistics stay from now on."""
    averages = []
    for layer in model.modules():
        if isinstance(layer, SwitchNorm) and layer.using_bn and layer.training:
            averages.append(_Average(layer))
            layer.update_running_statistics = averages[-1].add  # type: ignore[method-assign]
    return averages


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """In the end, training flags and buffers are as before, and no layer is observed."""
    training = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, flag in training:
            module.training = flag
            if isinstance(module, SwitchNorm):
                vars(module).pop("update_running_statistics", None)
        for buffer, value in buffers:
            buffer.copy_(value)


def _images(batch: Any) -> Tensor:
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, Tensor):
        raise ValueError(
            f"expected a tensor of images, or a tuple that starts with one, from the loader, "
            f"got {type(batch).__name__}"
        )
    return first
