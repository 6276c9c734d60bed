"""The CPU backend, made of operations that torch vectorizes.

``torch.var_mean``, and arithmetic that broadcasts (N, C) over positions, take up to ten times
as long as the operations used here, in one of the two layouts or in both.
:class:`snzoo.nn.backends.Backend` says what the functions do.
"""

from math import exp

import torch
from torch import Tensor

from snzoo.nn import _compat
from snzoo.nn.backends import cpu_fused
from snzoo.nn.backends._layout import add_relu_, over_positions, to_wide_dense
from snzoo.nn.functional import Config, LayerTensors, num_positions

# So few elements stay in a core's cache, and one call is faster than ten.
SMALL = 2**18
# A sum over more positions loses too much in float32, and is taken in parts.
LONG = 2**12

prepare = to_wide_dense


def supports(x: Tensor) -> bool:
    """Return False where call overhead dominates: single positions and tiny samples."""
    positions = num_positions(x)
    fast = positions > 1 and (x.is_contiguous() or x.shape[1] * positions >= 2048)
    return fast and _compat.HAS_CPU_OPERATIONS


def infer(
    x: Tensor,
    tensors: LayerTensors,
    config: Config,
    shortcut: Tensor | None = None,
    relu: bool = False,
    overwrite: bool = False,
) -> Tensor:
    """Run the compiled loops, or else operations of torch.

    These are two passes, and :func:`snzoo.nn.functional.mix` in half as many operations: those
    of (N, C) are tiny, and their cost is that of a call.
    """
    y = cpu_fused.infer(x, tensors, config, shortcut, relu, overwrite)
    if y is not None:
        return y
    dtype, x = x.dtype, prepare(x)
    tensors = tensors.flat(x.dtype)
    mixed_mean, mixed_var = _mixed_statistics(x, tensors, config)
    if x.is_contiguous():
        weight, bias = tensors.weight, tensors.bias
        if len(x) > 1:
            weight, bias = weight.expand_as(mixed_mean), bias.expand_as(mixed_mean)
        y = _normalize_rows(x, weight, bias, mixed_mean, mixed_var, config.eps)
    else:
        scale = mixed_var.add_(config.eps).rsqrt_().mul_(tensors.weight)
        y = affine(x, mixed_mean, scale, tensors.bias)
    y = y if y.dtype == dtype else y.to(dtype)
    return add_relu_(y, shortcut) if relu else y


def _mixed_statistics(x: Tensor, tensors: LayerTensors, config: Config) -> tuple[Tensor, Tensor]:
    """Return the mixed mean and variance (N, C). Statistics with a share of 0 are not computed."""
    n, channels = x.shape[:2]
    gates = tensors.mean_weight, tensors.var_weight
    running = tensors.running_mean, tensors.running_var
    mean_shares, var_shares = (_softmax(logits.tolist()) for logits in gates)
    if running[0] is not None and mean_shares[-1] == var_shares[-1] == 1:
        return running[0].repeat(n, 1), running[1].repeat(n, 1)  # type: ignore[union-attr]
    count = num_positions(x)
    mean, var = moments(x, config.variance_factor(count))
    mean_ln, var_ln = mean, var
    if mean_shares[config.instance] or var_shares[config.instance]:
        mean_ln = mean.sum(1, True).mul_(1 / channels)
        spread = mean - mean_ln
        var_ln = torch.addcmul(var, spread, spread).sum(1, True)
        var_ln.mul_(config.pooled_factor(channels * count) / channels)
    mixed_mean = _mix(mean_shares, mean, mean_ln, running[0], config)
    return mixed_mean, _mix(var_shares, var, var_ln, running[1], config)


def _mix(
    shares: list[float], own: Tensor, ln: Tensor, running: Tensor | None, config: Config
) -> Tensor:
    """Return IN, LN and, if ``running``, BN statistics mixed pair by pair, (N, C)."""
    of_in, of_ln = (shares[0] if config.instance else 0.0), shares[config.instance]
    if of_in == 1:
        return own
    mixed = ln
    if running is not None:
        if of_ln:
            mixed = torch.lerp(running, ln, of_ln / (of_ln + shares[-1]))
        else:
            mixed = running.repeat(len(own), 1)
    if of_in:
        mixed = torch.lerp(mixed, own, of_in)
    return mixed if mixed.shape == own.shape else mixed.expand_as(own).contiguous()


def _softmax(logits: list[float]) -> list[float]:
    largest = max(logits)
    exponentials = [exp(logit - largest) for logit in logits]
    return [value / sum(exponentials) for value in exponentials]


def moments(x: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    n, c = x.shape[:2]
    if x.is_contiguous():
        mean, var = _row_moments(x.view(n * c, -1))
        return mean.view(n, c), var.mul_(factor).view(n, c)
    mean = x.flatten(2).mean(2)
    variances = [_variance(*sample) for sample in zip(_samples(x), mean, strict=True)]
    var = variances[0].view(1, c) if n == 1 else torch.stack(variances)
    return mean, var.mul_(factor)


def _variance(sample: Tensor, mean: Tensor) -> Tensor:
    """Return the per-channel variance (C,) of one sample, via batch norm's reduction.

    That reduction is fast where the channels are last. Its own mean is a running sum in
    float32, good enough to take distances from.
    """
    parts = _parts(sample)
    pairs = [_compat.batch_norm_update_stats(part, None, None, 0.0) for part in parts]
    if len(pairs) == 1:
        var: Tensor = pairs[0][1]
        return var
    means, variances = (torch.stack(statistics) for statistics in zip(*pairs, strict=True))
    shares = means.new_tensor([part.shape[3] for part in parts])[:, None] / sample.shape[3]
    return (shares * (variances + (means - mean).square_())).sum(0)


def _row_moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``E[x]`` and ``E[x²] − E[x]²`` of each row, the two sums that torch does fastest.

    Where the difference would lose more than 4 bits, the variance is computed from the
    distances to the mean.
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
    """Return the mean and the variance of each row, via group norm with a group per row."""
    n, count = rows.shape
    _, mean, rstd = _compat.native_group_norm(rows[None], None, None, 1, n, count, n, 0.0)
    return mean.view(-1), rstd.view(-1).pow(-2)


def affine(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    shift = torch.addcmul(bias, mean, scale, value=-1)
    if not x.is_contiguous():
        shift, scale = over_positions(shift, x), over_positions(scale, x)
        return torch.addcmul(shift, x, scale, out=torch.empty_like(x))
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    return _normalize_rows(x, scale, shift, zeros, ones, 0.0)


def _normalize_rows(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float
) -> Tensor:
    """Run batch norm in evaluation mode, with a row for a channel."""
    weight, bias, mean, var = (t.reshape(-1) for t in (weight, bias, mean, var))
    rows = x if len(x) == 1 and x.ndim > 2 else _rows(x)
    y = torch.batch_norm(rows, weight, bias, mean, var, False, 0.0, eps, False)
    if rows is x:
        return y
    # No view as far as autograd knows: a ReLU may write over it.
    result: Tensor = _compat.unsafe_view(y, x.shape)
    return result


def gradient_sums(grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    mean = mean.contiguous()  # batch norm does not look at its strides
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
    """Return batch norm's gradients of bias and weight for an inverse deviation of 1."""
    _, centered, total = _compat.native_batch_norm_backward(
        grad, x, None, None, None, mean, torch.ones_like(mean), True, 0.0, [False, True, True]
    )
    return total, centered


def input_gradient(
    grad: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> Tensor:
    # affine takes (N, C) for the bias too.
    return affine(x, mean, b, c).addcmul_(grad, over_positions(a, x))


def _rows(x: Tensor) -> Tensor:
    return x.view(1, x.shape[0] * x.shape[1], -1)


def _samples(x: Tensor) -> tuple[Tensor, ...]:
    """Return each sample as (1, C, 1, P): torch sees channels last in ranks 4 and 5 only."""
    x = x.flatten(2).unsqueeze(2)
    return (x,) if len(x) == 1 else torch.split(x, 1)


def _parts(sample: Tensor) -> tuple[Tensor, ...]:
    return (sample,) if sample.shape[3] <= LONG else torch.split(sample, LONG, 3)
