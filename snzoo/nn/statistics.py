"""The running statistics of a network: averages over training batches, or none at all."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from snzoo.nn.switchnorm import SwitchNorm


def disable_running_stats_(model: nn.Module) -> nn.Module:
    """Remove the running statistics of the SN layers of ``model`` in place, and return it.

    They then work as with ``track_running_stats=False``: the shares of BN stay, and BN
    statistics are always the batch's. Training mode then changes no buffer, as
    ``torch.func.vmap`` over gradients requires. It is for SN what
    ``torch.func.replace_all_batch_norm_modules_`` is for batch norm.
    """
    for layer in model.modules():
        if isinstance(layer, SwitchNorm):
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
            layer.track_running_stats = False
    return model


def update_bn_statistics(model: nn.Module, loader: Iterable[Any], batches: int = 200) -> int:
    """Set the running statistics of SN layers to their averages over training batches.

    This is the paper's batch average, computed after training with all parameters frozen:
    ``running_mean = E[mean]`` and ``running_var = E[mean² + var] − E[mean]²`` over batches, in
    float64. A layer that runs several times per batch is averaged over its runs; one that never
    runs keeps its statistics.

    It updates the layers that track running statistics and that ``model.train()`` puts in
    training mode, so frozen stages are left alone. Other buffers, such as those of
    ``nn.BatchNorm2d``, and all training flags are restored at the end. For batch norm, use
    :func:`torch.optim.swa_utils.update_bn`. With SyncSwitchNorm, all processes must call it
    with the same number of batches.

    Args:
        model: on a CPU or a CUDA device; images are moved to the device of its parameters.
        loader: batches of training images (N, C, H, W), or tuples or lists that start with one.
        batches: the largest number of batches to use.

    Returns:
        The number of batches used.

    Raises:
        ValueError: ``batches`` is below 1, the loader is empty or yields something else, no
            layer is to be updated, or statistics are not finite in the layer's dtype. The old
            statistics stay then, as after any exception.
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
        results = [result for average in averages for result in average.compute()]
        if not all(bool(values.isfinite().all()) for _, values in results):
            raise ValueError(
                "batch statistics are not finite: check the images and the weights, and call "
                "model.float() first if they are float16, which ends at 65,504"
            )
    for buffer, values in results:
        buffer.copy_(values)
    return used


class _Average:
    """Receives a layer's batch statistics in place of its running ones."""

    def __init__(self, layer: SwitchNorm) -> None:
        self.layer = layer
        self.calls = 0
        self.sums: Tensor | float = 0.0  # (2, C): of mean, and of mean² + var

    def add(self, mean: Tensor, var: Tensor) -> None:
        mean, var = mean.double(), var.double()
        self.sums = self.sums + torch.stack([mean, mean**2 + var])
        self.calls += 1

    def compute(self) -> list[tuple[Tensor, Tensor]]:
        """Return the running statistics with their new values; none if the layer never ran."""
        running_mean, running_var = self.layer.running_mean, self.layer.running_var
        if isinstance(self.sums, float) or running_mean is None or running_var is None:
            return []
        mean, square = self.sums / self.calls
        # Rounding can make the variance of a constant channel negative, and evaluation NaN.
        var = (square - mean**2).clamp_min(0)
        return [
            (running_mean, mean.view_as(running_mean).to(running_mean.dtype)),
            (running_var, var.view_as(running_var).to(running_var.dtype)),
        ]


def _observe(model: nn.Module) -> list[_Average]:
    """Make the layers in training mode give their batch statistics to averages; return these."""
    averages = []
    for layer in model.modules():
        if isinstance(layer, SwitchNorm) and layer.running_mean is not None and layer.training:
            averages.append(_Average(layer))
            layer.update_running_statistics = averages[-1].add  # type: ignore[method-assign]
    return averages


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore training flags, buffers and observed layers at the end."""
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
