"""Passes over whole activations on the CPU, from the operations that torch vectorises.

``x`` is (N, C, P), contiguous or channels last (its transpose is contiguous), float32 or
float64. ``torch.var_mean``, and arithmetic that broadcasts (N, C) over P, take up to ten times
as long as what stands here, in one of the two layouts or in both.
"""

from math import exp

import torch
from torch import Tensor

from snzoo.nn.reference import Parameters, Recipe


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over P, (N, C) each."""
    n, c, positions = x.shape
    if x.is_contiguous():
        # Group norm with a group a channel; of its results, the moments are what is wanted.
        _, mean, rstd = torch.native_group_norm(x, None, None, n, c, positions, c, 0.0)
        return mean, rstd.pow_(-2)
    # Batch norm's reduction is fast where the channels are last; a sample is a batch of its own.
    pairs = [torch.batch_norm_update_stats(sample, None, None, 0.0) for sample in torch.split(x, 1)]
    means, variances = zip(*pairs, strict=True)
    return torch.stack(means), torch.stack(variances)


def coefficients(
    mean: Tensor, var: Tensor, parameters: Parameters, recipe: Recipe, count: int
) -> tuple[Tensor, Tensor]:
    """Mixed mean, and scale, (N, C), in evaluation mode, from the biased IN statistics.

    :func:`snzoo.nn.reference.mix` in half as many operations: they are tiny, and what they
    cost is being called.
    """
    channels = mean.shape[1]
    mean_shares, var_shares = _softmax(parameters.mean_weight), _softmax(parameters.var_weight)
    if (factor := recipe.variance_factor(count)) != 1:
        var.mul_(factor)
    mean_ln = mean.sum(1, True).mul_(1 / channels)
    spread = mean - mean_ln
    var_ln = torch.addcmul(var, spread, spread).sum(1, True)
    local = int(recipe.instance)
    mixed_mean = mean_ln.mul_(mean_shares[local])
    pooled = recipe.pooled_factor(channels * count) / channels
    mixed_var = var_ln.mul_(var_shares[local] * pooled).add_(recipe.eps)
    if parameters.running_mean is not None and parameters.running_var is not None:
        mixed_mean = torch.add(mixed_mean, parameters.running_mean, alpha=mean_shares[-1])
        mixed_var = torch.add(mixed_var, parameters.running_var, alpha=var_shares[-1])
    if recipe.instance:
        mixed_mean = torch.add(mixed_mean, mean, alpha=mean_shares[0])
        mixed_var = torch.add(mixed_var, var, alpha=var_shares[0])
    # The LN terms alone are (N, 1), and so are all of them where no other kind is mixed in.
    return mixed_mean.expand_as(mean), mixed_var.rsqrt().mul(parameters.weight)


def _softmax(gate: Tensor) -> list[float]:
    values = gate.tolist()
    largest = max(values)
    exponentials = [exp(value - largest) for value in values]
    total = sum(exponentials)
    return [value / total for value in exponentials]


def affine(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``(x − mean) · scale + bias [+ shortcut]``, then ReLU if asked for.

    ``mean`` and ``scale`` are (N, C), ``bias`` (C,) or (N, C).
    """
    y = _scale_and_shift(x, scale, torch.addcmul(bias, mean, scale, value=-1))
    if shortcut is not None:
        y.add_(shortcut)
    return y.relu_() if relu else y


def _scale_and_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    if not x.is_contiguous():
        return torch.addcmul(shift[:, :, None], x, scale[:, :, None])
    # Batch norm in evaluation mode, each row a channel, with mean 0 and variance 1.
    zeros, ones = torch.zeros_like(scale).view(-1), torch.ones_like(scale).view(-1)
    y = torch.batch_norm(
        _rows(x), scale.view(-1), shift.view(-1), zeros, ones, False, 0.0, 0.0, False
    )
    return y.view_as(x)


def gradient_sums(grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """``Σ grad`` and ``Σ grad · (x − mean)`` over P, (N, C) each."""
    if x.is_contiguous():
        total, centred = _batch_norm_sums(_rows(grad), _rows(x), mean.flatten())
        return total.view_as(mean), centred.view_as(mean)
    samples = zip(torch.split(grad, 1), torch.split(x, 1), mean, strict=True)
    totals, centreds = zip(*(_batch_norm_sums(*sample) for sample in samples), strict=True)
    return torch.stack(totals), torch.stack(centreds)


def _batch_norm_sums(grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Batch norm's gradients of bias and weight, for an inverse deviation of 1."""
    _, centred, total = torch.ops.aten.native_batch_norm_backward(
        grad, x, None, None, None, mean, torch.ones_like(mean), True, 0.0, [False, True, True]
    )
    return total, centred


def input_gradient(
    grad: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> Tensor:
    """``a · grad + b · (x − mean) + c``, with (N, C) coefficients."""
    return affine(x, mean, b, c).addcmul_(grad, a[:, :, None])


def _rows(x: Tensor) -> Tensor:
    n, c, positions = x.shape
    return x.view(1, n * c, positions)
