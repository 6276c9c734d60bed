"""Passes over whole activations on the CPU, from the operations that torch vectorises.

``x`` is (N, C, *positions), contiguous or channels last, float32 or float64. ``torch.var_mean``,
and arithmetic that broadcasts (N, C) over positions, take up to ten times as long as what
stands here, in one of the two layouts or in both.
"""

from math import exp

import torch
from torch import Tensor

from snzoo.nn.reference import Parameters, Recipe


def infer(x: Tensor, parameters: Parameters, recipe: Recipe) -> Tensor:
    """The layer in evaluation mode.

    Beside the two passes, :func:`snzoo.nn.reference.mix` in half as many operations: they are
    tiny, and what they cost is being called.
    """
    n, channels = x.shape[:2]
    positions = x.shape[2:].numel()
    mean, var = _biased_moments(x)
    factor = recipe.variance_factor(positions)
    pooled = recipe.pooled_factor(channels * positions) * factor / channels
    mean_shares, var_shares = _softmax(parameters.mean_weight), _softmax(parameters.var_weight)
    local = int(recipe.instance)
    mixed_mean = mean.sum(1, True)
    spread = torch.sub(mean, mixed_mean, alpha=1 / channels)
    mixed_var = torch.addcmul(var, spread, spread, value=1 / factor).sum(1, True)
    mixed_mean.mul_(mean_shares[local] / channels)
    mixed_var.mul_(var_shares[local] * pooled)
    if parameters.running_mean is not None and parameters.running_var is not None:
        mixed_mean = torch.add(mixed_mean, parameters.running_mean, alpha=mean_shares[-1])
        mixed_var = torch.add(mixed_var, parameters.running_var, alpha=var_shares[-1])
    if recipe.instance:
        mixed_mean = torch.add(mixed_mean, mean, alpha=mean_shares[0])
        mixed_var = torch.add(mixed_var, var, alpha=var_shares[0] * factor)
    if x.is_contiguous():
        weight, bias = parameters.weight, parameters.bias
        if n > 1:
            weight, bias = weight.repeat(n), bias.repeat(n)
        rows = (weight, bias, mixed_mean.expand_as(mean), mixed_var.expand_as(mean))
        return _normalise_rows(x, *rows, recipe.eps)
    scale = mixed_var.add_(recipe.eps).rsqrt_().mul(parameters.weight)
    return affine(x, mixed_mean, scale, parameters.bias)


def _softmax(gate: Tensor) -> list[float]:
    values = gate.tolist()
    largest = max(values)
    exponentials = [exp(value - largest) for value in values]
    total = sum(exponentials)
    return [value / total for value in exponentials]


def moments(x: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean, and biased variance times ``factor``, over positions, (N, C) each."""
    mean, var = _biased_moments(x)
    return mean, var.mul_(factor)


def _biased_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    n, c = x.shape[:2]
    if x.is_contiguous():
        # Group norm with a group a channel; of its results, the moments are what is wanted.
        count = x.shape[2:].numel()
        _, mean, rstd = torch.native_group_norm(x, None, None, n, c, count, c, 0.0)
        return mean, rstd.pow_(-2)
    # Batch norm's reduction is fast where the channels are last; a sample is a batch of its own.
    pairs = [torch.batch_norm_update_stats(sample, None, None, 0.0) for sample in _samples(x)]
    if n == 1:
        return pairs[0][0].view(1, c), pairs[0][1].view(1, c)
    means, variances = zip(*pairs, strict=True)
    return torch.stack(means), torch.stack(variances)


def affine(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """``(x − mean) · scale + bias``; ``mean`` and ``scale`` (N, C), ``bias`` (C,) or (N, C)."""
    shift = torch.addcmul(bias, mean, scale, value=-1)
    if not x.is_contiguous():
        return torch.addcmul(_over(shift, x), x, _over(scale, x), out=torch.empty_like(x))
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    return _normalise_rows(x, scale, shift, zeros, ones, 0.0)


def _normalise_rows(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """Batch norm in evaluation mode, with a row for a channel."""
    weight, bias, mean, var = (t.reshape(-1) for t in (weight, bias, mean, var))
    y = torch.batch_norm(_rows(x), weight, bias, mean, var, False, 0.0, eps, False)
    # No view as far as autograd knows: a ReLU may write over it.
    result: Tensor = torch.ops.aten._unsafe_view(y, x.shape)
    return result


def gradient_sums(grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """``Σ grad`` and ``Σ grad · (x − mean)`` over positions, (N, C) each."""
    mean = mean.contiguous()  # its strides would not be looked at
    if x.is_contiguous():
        total, centred = _batch_norm_sums(_rows(grad), _rows(x), mean.view(-1))
        return total.view_as(mean), centred.view_as(mean)
    samples = zip(_samples(grad), _samples(x), mean, strict=True)
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
    return affine(x, mean, b, c).addcmul_(grad, _over(a, x))


def _over(values: Tensor, x: Tensor) -> Tensor:
    return values.view(*values.shape, *(1,) * (x.ndim - 2))


def _rows(x: Tensor) -> Tensor:
    return x.view(1, x.shape[0] * x.shape[1], -1)


def _samples(x: Tensor) -> tuple[Tensor, ...]:
    """Each of a batch of 1."""
    if x.ndim == 3:  # only a tensor of rank 4 or 5 is seen to have its channels last
        x = x.unsqueeze(2)
    return (x,) if len(x) == 1 else torch.split(x, 1)
