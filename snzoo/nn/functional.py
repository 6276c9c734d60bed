"""Switchable Normalization in plain tensor operations: the formula, and its (N, C) part.

Compilers, exporters and functional transforms are given this form, and the backends of
:mod:`snzoo.nn.backends` are tested against it. They share the (N, C) part: LN and BN statistics
follow from those of IN, so an activation is reduced once. Here IN statistics are (N, C), LN
statistics (N, 1) and BN statistics (1, C).
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from snzoo.nn import _group
from snzoo.nn._sparsestmax import sparsestmax

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Config", "LayerTensors", "sparsestmax", "switch_norm"]

# The logit of a share of 0: exp(-1e4) is 0 in every dtype, and float16 holds -1e4.
NEVER = -1e4


class LayerTensors(NamedTuple):
    """A layer's parameters and buffers: C values each, and a logit or a share per statistic."""

    weight: Tensor
    bias: Tensor
    mean_weight: Tensor
    var_weight: Tensor
    running_mean: Tensor | None = None  # None if the statistics of the batch are used
    running_var: Tensor | None = None

    def flat(self, dtype: torch.dtype | None = None) -> "LayerTensors":
        """Return them as 1-dimensional tensors, in ``dtype`` if it is given."""
        weight, bias, mean_weight, var_weight, running_mean, running_var = self
        return LayerTensors(
            _flat(weight, dtype),
            _flat(bias, dtype),
            _flat(mean_weight, dtype),
            _flat(var_weight, dtype),
            None if running_mean is None else _flat(running_mean, dtype),
            None if running_var is None else _flat(running_var, dtype),
        )

    def sizes(self, channels: int, config: "Config") -> tuple[int, ...]:
        """Return the numbers of values that the tensors of a layer of ``channels`` have."""
        gates = config.instance + 1 + (config.batch or self.running_mean is not None)
        return channels, channels, gates, gates, channels, channels


def _flat(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    values = values if values.ndim == 1 else values.reshape(-1)
    return values if dtype in (None, values.dtype) else values.to(dtype)


class Config(NamedTuple):
    """Which statistics a layer mixes.

    Attributes:
        instance: mix in IN statistics (2d, 3d), whose variance is unbiased. Otherwise (1d)
            the variances of LN and BN are unbiased.
        batch: compute BN statistics from the input's batch, as in training.
        eps: added to the mixed variance.
        group: processes whose samples belong to the batch too.
        shares: ``mean_weight`` and ``var_weight`` are shares, as of SparsestMax, not logits.
    """

    instance: bool
    batch: bool
    eps: float
    group: "ProcessGroup | None" = None
    shares: bool = False

    def variance_factor(self, positions: int) -> float:
        """Return unbiased / biased IN variance over ``positions``; 1 where IN isn't mixed."""
        return _unbiased(positions) if self.instance else 1.0

    def pooled_factor(self, count: int) -> float:
        """Return unbiased / biased LN or BN variance over ``count`` values; 1 with IN."""
        return 1.0 if self.instance else _unbiased(count)


def _unbiased(count: Any) -> Any:
    """Return ``count / (count - 1)``, and a finite value for a count of 1, whose variance is 0.

    There is no branch on ``count``, which is a ``SymInt`` in ``torch.export`` and a tensor in
    ``torch.jit.trace``.
    """
    if isinstance(count, int):
        return count / max(count - 1, 1)
    less = (count - 1).clamp(min=1) if isinstance(count, Tensor) else torch.sym_max(count - 1, 1)
    return count / less


def num_positions(x: Tensor) -> int:
    """Return the product of the sizes that follow N and C.

    ``x.shape[2:].numel()`` would make a constant of an exported graph's dynamic size.
    """
    return math.prod(x.shape[2:])


class Statistics(NamedTuple):
    """Mean and variance of IN, LN or BN, (N, C), (N, 1) or (1, C), and how they were computed."""

    mean: Tensor
    var: Tensor
    dim: int | None = None  # of the IN statistics that was pooled; None: IN or running ones
    factor: float = 1.0  # see Config.pooled_factor
    from_input: bool = True  # False: running statistics
    group: _group.GroupStatistics | None = None  # over whose samples they were pooled too

    def average(self, mean_terms: Tensor, var_terms: Tensor) -> tuple[Tensor, Tensor]:
        """Return two (N, C) tensors averaged over what was pooled."""
        assert self.dim is not None
        if self.group is not None:
            return self.group.average(mean_terms, var_terms)
        return mean_terms.mean(self.dim, keepdim=True), var_terms.mean(self.dim, keepdim=True)


class Mixture(NamedTuple):
    """Mixed mean and variance (N, C), and the statistics mixed, in the order of the logits."""

    mean: Tensor
    var: Tensor
    stats: list[Statistics]

    def batch_stats(self) -> tuple[Tensor, Tensor] | None:
        """Return the BN mean and variance (C,) of the input.

        None if they are not mixed in, or if there are no samples.
        """
        bn = self.stats[-1]
        if bn.dim != 0:
            return None
        empty = bn.group is not None and self.mean.shape[0] == 0 and bn.group.samples == 0
        return None if empty else (bn.mean[0], bn.var[0])


def switch_norm(x: Tensor, tensors: LayerTensors, config: Config) -> tuple[Tensor, Mixture]:
    """Return ``x`` (N, C, *positions) normalized, in its dtype, and the statistics.

    Statistics are float32, or float64 for float64 ``x``.
    """
    # Half precision overflows and cancels in squared sums.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    tensors = tensors.flat(wide.dtype)
    dims = tuple(range(2, x.ndim))
    count = num_positions(x)
    shape, channels = (*x.shape[:2], *(1,) * len(dims)), (1, -1, *(1,) * len(dims))
    for_inductor = x.is_cpu and torch.compiler.is_dynamo_compiling()
    if dims:
        var_mean = _var_mean_of_sums if for_inductor else torch.var_mean
        var_in, mean_in = var_mean(wide, dims, correction=0)
        var_in = var_in * config.variance_factor(count)
    else:  # (N, C) is (N, C, 1)
        var_in, mean_in = torch.zeros_like(wide), wide
    mixture = mix(mean_in, var_in, tensors, config, count)
    mean, scale = mixture.mean, tensors.weight * torch.rsqrt(mixture.var + config.eps)
    if for_inductor:  # it would compute the scale anew at each position, but stores what is stacked
        mean, scale = torch.stack((mean, scale)).unbind()
    centered = wide - mean.view(shape)
    y = torch.addcmul(tensors.bias.view(channels), centered, scale.view(shape))
    return y.to(x.dtype), mixture


def _var_mean_of_sums(
    x: Tensor, dims: tuple[int, ...], *, correction: int
) -> tuple[Tensor, Tensor]:
    """Return ``torch.var_mean`` without correction, which Inductor would update value by value.

    Long sums of values far from 0 are not exact, but those of distances are.
    """
    assert correction == 0
    mean = x.mean(dims)
    distance = x - mean.view(*mean.shape, *(1,) * len(dims))
    return distance.square().mean(dims), mean + distance.mean(dims)


def mix(mean: Tensor, var: Tensor, tensors: LayerTensors, config: Config, count: int) -> Mixture:
    """Return what the layer normalizes with, from (N, C) IN statistics over ``count`` positions.

    The sums of equation 3 of the paper, with LN and BN statistics as in equation 4.
    """
    n, c = mean.shape
    stats = [Statistics(mean, var)] if config.instance else []
    if config.group is not None and n == 0:  # var_mean would warn
        stats.append(Statistics(mean[:, :1], var[:, :1], 1))
    else:
        stats.append(_pool(mean, var, 1, config.pooled_factor(c * count)))
    if config.batch and config.group is not None:
        stats.append(_pool_group(mean, var, count, config, config.group))
    elif config.batch:
        stats.append(_pool(mean, var, 0, config.pooled_factor(n * count)))
    elif tensors.running_mean is not None and tensors.running_var is not None:
        running = tensors.running_mean[None], tensors.running_var[None]
        stats.append(Statistics(*running, from_input=False))
    mean_shares, var_shares = _shares(tensors, config)
    mixed_mean = _weighted_sum(mean_shares, [s.mean for s in stats])
    mixed_var = _weighted_sum(var_shares, [s.var for s in stats])
    return Mixture(mixed_mean.expand(n, c), mixed_var.expand(n, c), stats)


def _shares(tensors: LayerTensors, config: Config) -> tuple[Tensor, Tensor]:
    """Return the shares of the statistics in the mean and in the variance."""
    if config.shares:
        return tensors.mean_weight, tensors.var_weight
    return tensors.mean_weight.softmax(0), tensors.var_weight.softmax(0)


def to_logits(shares: Tensor) -> Tensor:
    """Return finite logits whose softmax is ``shares``, also for shares of 0."""
    return shares.log().clamp(min=NEVER)


def _weighted_sum(shares: Tensor, statistics: list[Tensor]) -> Tensor:
    # Inductor of torch 2.6 computes a wrong gradient of shares.unbind().
    mixed = shares[0] * statistics[0]
    for i, statistic in enumerate(statistics[1:], 1):
        mixed = mixed + shares[i] * statistic
    return mixed


def _pool(mean: Tensor, var: Tensor, dim: int, factor: float) -> Statistics:
    """Return LN (``dim`` 1) or BN (``dim`` 0) statistics from those of IN.

    The law of total variance, ``E[var] + Var[mean]``, equals the published
    ``E[var + mean²] − E[mean]²`` but cannot cancel to a negative number.
    """
    spread, pooled = torch.var_mean(mean, dim, correction=0, keepdim=True)
    return Statistics(pooled, factor * (var.mean(dim, keepdim=True) + spread), dim, factor)


def _pool_group(
    mean: Tensor, var: Tensor, count: int, config: Config, group: "ProcessGroup"
) -> Statistics:
    pooled, pooled_var, of_group = _group.pool(mean, var, count, group)
    # Reading the number of values waits for a GPU: only the 1d layer needs it.
    factor = 1.0 if config.instance else config.pooled_factor(int(of_group.values))
    return Statistics(pooled, factor * pooled_var, 0, factor, group=of_group)


def mix_backward(
    grad_mean: Tensor,
    grad_var: Tensor,
    mixture: Mixture,
    mean: Tensor,
    tensors: LayerTensors,
    config: Config,
) -> tuple[Tensor, Tensor]:
    """Return the gradients (N, C) of the IN statistics from those of the mixed ones.

    ``mean`` is that of IN. With M = E[m] and V = f·(E[v] + E[(m − M)²]) over the pooled
    dimension, dM/dm = 1/n, dV/dm = 2f·(m − M)/n and dV/dv = f/n.
    """
    mean_shares, var_shares = _shares(tensors, config)
    to_mean, to_var = torch.zeros_like(mean), torch.zeros_like(mean)
    for i, s in enumerate(mixture.stats):
        by_mean, by_var = mean_shares[i] * grad_mean, var_shares[i] * s.factor * grad_var
        if s.dim is not None:
            by_mean, by_var = s.average(by_mean, by_var)
            by_mean = by_mean + 2 * (mean - s.mean) * by_var
        if s.from_input:
            to_mean += by_mean
            to_var += by_var
    return to_mean, to_var


def gate_gradients(
    grad_mean: Tensor, grad_var: Tensor, mixture: Mixture, tensors: LayerTensors, config: Config
) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``mean_weight`` and ``var_weight`` from those of the mixture."""
    by_mean = torch.stack([(grad_mean * s.mean).sum() for s in mixture.stats])
    by_var = torch.stack([(grad_var * s.var).sum() for s in mixture.stats])
    if config.shares:
        return by_mean, by_var
    mean_shares, var_shares = _shares(tensors, config)
    return _softmax_backward(mean_shares, by_mean), _softmax_backward(var_shares, by_var)


def _softmax_backward(shares: Tensor, grad: Tensor) -> Tensor:
    return shares * (grad - (shares * grad).sum())
