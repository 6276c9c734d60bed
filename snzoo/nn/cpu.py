"""Passes over whole activations on the CPU, from the operations that torch vectorizes.

``x`` is (N, C, *positions), contiguous or channels last, float32 or float64. ``torch.var_mean``,
and arithmetic that broadcasts (N, C) over positions, take up to ten times as long as what
stands here, in one of the two layouts or in both.
"""

from math import exp, inf

import torch
from torch import Tensor

from snzoo.nn.reference import Parameters, Recipe

# Elements: so few stay in a core's cache, and one call is faster than ten.
SMALL = 2**18
# Positions: sums of more of them in float32 lose too much, and are taken in parts.
LONG = 2**12


def serves(x: Tensor) -> bool:
    """False for single positions and for tiny samples: what stands here would be all calls."""
    positions = x.shape[2:].numel()
    return positions > 1 and (x.is_contiguous() or x.shape[1] * positions >= 2048)


def infer(x: Tensor, parameters: Parameters, recipe: Recipe) -> Tensor:
    """The layer in evaluation mode.

    Beside the two passes, :func:`snzoo.nn.reference.mix` in half as many operations: they are
    tiny, and what they cost is being called.
    """
    parameters = parameters.flat(x.dtype)
    n, channels = x.shape[:2]
    count = x.shape[2:].numel()
    mean, var = moments(x, recipe.variance_factor(count))
    mean_ln = mean.sum(1, True).mul_(1 / channels)
    spread = mean - mean_ln
    var_ln = torch.addcmul(var, spread, spread).sum(1, True)
    var_ln.mul_(recipe.pooled_factor(channels * count) / channels)
    mixed_mean = _mix(parameters.mean_weight, mean, mean_ln, parameters.running_mean, recipe)
    mixed_var = _mix(parameters.var_weight, var, var_ln, parameters.running_var, recipe)
    if x.is_contiguous():
        weight, bias = parameters.weight, parameters.bias
        if n > 1:
            weight, bias = weight.expand(n, channels), bias.expand(n, channels)
        return _normalize_rows(x, weight, bias, mixed_mean, mixed_var, recipe.eps)
    scale = mixed_var.add_(recipe.eps).rsqrt_().mul_(parameters.weight)
    return affine(x, mixed_mean, scale, parameters.bias)


def _mix(gate: Tensor, own: Tensor, ln: Tensor, running: Tensor | None, recipe: Recipe) -> Tensor:
    """A statistic of IN, LN and, if ``running``, BN, mixed pair by pair: (N, C)."""
    gates = gate.tolist()
    mixed = ln if running is None else torch.lerp(running, ln, _softmax(gates[-2:])[0])
    if recipe.instance:
        mixed = torch.lerp(mixed, own, _softmax(gates)[0])
    return mixed if mixed.shape == own.shape else mixed.expand_as(own).contiguous()


def _softmax(gates: list[float]) -> list[float]:
    largest = max(gates)
    if largest == -inf:  # of a pair, neither of which is mixed in
        return [1 / len(gates)] * len(gates)
    exponentials = [exp(gate - largest) for gate in gates]
    return [value / sum(exponentials) for value in exponentials]


def moments(x: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean, and biased variance times ``factor``, over positions, (N, C) each."""
    n, c = x.shape[:2]
    if x.is_contiguous():
        mean, var = _row_moments(x.view(n * c, -1))
        return mean.view(n, c), var.mul_(factor).view(n, c)
    mean = x.flatten(2).mean(2)
    variances = [_variance(*sample) for sample in zip(_samples(x), mean, strict=True)]
    var = variances[0].view(1, c) if n == 1 else torch.stack(variances)
    return mean, var.mul_(factor)


def _variance(sample: Tensor, mean: Tensor) -> Tensor:
    """Of one sample, (C,), by batch norm's reduction: it is fast where the channels are last.

    Its own mean is a running sum in float32, good enough to take distances from.
    """
    parts = _parts(sample)
    pairs = [torch.batch_norm_update_stats(part, None, None, 0.0) for part in parts]
    if len(pairs) == 1:
        return pairs[0][1]
    means, variances = (torch.stack(statistics) for statistics in zip(*pairs, strict=True))
    shares = means.new_tensor([part.shape[3] for part in parts])[:, None] / sample.shape[3]
    return (shares * (variances + (means - mean).square_())).sum(0)


def _row_moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """``E[x]`` and ``E[x²] − E[x]²``: the two sums are what torch does fastest.

    Where the difference would lose more than 4 bits, the variance is taken of distances.
    """
    if rows.numel() < SMALL or rows.shape[1] > 4 * LONG:
        return _distance_moments(rows)
    share = 1 / rows.shape[1]
    mean = rows.sum(1).mul_(share)
    norm = torch.linalg.vector_norm(rows, dim=1)
    var = torch.addcmul(norm.square_().mul_(share), mean, mean, value=-1)
    far = torch.addcmul(var, mean, mean, value=-1 / 16) < 0
    if far.any().item():
        which = far.nonzero().view(-1)
        var.index_copy_(0, which, _distance_moments(rows.index_select(0, which))[1])
    return mean, var


def _distance_moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Group norm with a group a row; of its results, the moments are what is wanted."""
    n, count = rows.shape
    _, mean, rstd = torch.native_group_norm(rows[None], None, None, 1, n, count, n, 0.0)
    return mean.view(-1), rstd.view(-1).pow(-2)


def affine(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """``(x − mean) · scale + bias``; ``mean`` and ``scale`` (N, C), ``bias`` (C,) or (N, C)."""
    shift = torch.addcmul(bias, mean, scale, value=-1)
    if not x.is_contiguous():
        return torch.addcmul(_over(shift, x), x, _over(scale, x), out=torch.empty_like(x))
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    return _normalize_rows(x, scale, shift, zeros, ones, 0.0)


def _normalize_rows(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """Batch norm in evaluation mode, with a row for a channel."""
    weight, bias, mean, var = (t.reshape(-1) for t in (weight, bias, mean, var))
    rows = x if len(x) == 1 and x.ndim > 2 else _rows(x)
    y = torch.batch_norm(rows, weight, bias, mean, var, False, 0.0, eps, False)
    if rows is x:
        return y
    # No view as far as autograd knows: a ReLU may write over it.
    result: Tensor = torch.ops.aten._unsafe_view(y, x.shape)
    return result


def gradient_sums(grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """``Σ grad`` and ``Σ grad · (x − mean)`` over positions, (N, C) each."""
    mean = mean.contiguous()  # its strides would not be looked at
    if x.is_contiguous():
        total, centered = _batch_norm_sums(_rows(grad), _rows(x), mean.view(-1))
        return total.view_as(mean), centered.view_as(mean)
    samples = zip(_samples(grad), _samples(x), mean, strict=True)
    sums = [_sample_sums(*sample) for sample in samples]
    totals, centereds = zip(*sums, strict=True)
    return torch.stack(totals), torch.stack(centereds)


def _sample_sums(grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    sums = [_batch_norm_sums(*part, mean) for part in zip(_parts(grad), _parts(x), strict=True)]
    totals, centereds = zip(*sums, strict=True)
    return sum(totals[1:], totals[0]), sum(centereds[1:], centereds[0])


def _batch_norm_sums(grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Batch norm's gradients of bias and weight, for an inverse deviation of 1."""
    _, centered, total = torch.ops.aten.native_batch_norm_backward(
        grad, x, None, None, None, mean, torch.ones_like(mean), True, 0.0, [False, True, True]
    )
    return total, centered


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
    """(1, C, 1, P) each: only a tensor of rank 4 or 5 is seen to have its channels last."""
    x = x.flatten(2).unsqueeze(2)
    return (x,) if len(x) == 1 else torch.split(x, 1)


def _parts(sample: Tensor) -> tuple[Tensor, ...]:
    return (sample,) if sample.shape[3] <= LONG else torch.split(sample, LONG, 3)
