"""Switchable Normalization in plain tensor operations: the formula, and its (N, C) part.

The passes over whole activations that are faster (:mod:`snzoo.nn.cpu`,
:mod:`snzoo.nn.kernels`) share the small part and are tested against the whole. Compilers,
exporters and functional transforms are given this form. The same passes in plain operations,
:mod:`snzoo.nn.plain`, are for what only the gradient in closed form can do.

LN and BN statistics follow from those of IN, so an activation is reduced once. Statistics
are (N, C) here, (N, 1) of LN and (1, C) of BN.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from snzoo.nn import processes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Parameters(NamedTuple):
    """What a layer holds: scale, shift and running statistics of C values, gates of the kinds."""

    weight: Tensor
    bias: Tensor
    mean_weight: Tensor
    var_weight: Tensor
    running_mean: Tensor | None = None  # None too where the input's batch gives the statistics
    running_var: Tensor | None = None

    def flat(self, dtype: torch.dtype | None = None) -> "Parameters":
        """(C,) and (kinds,), in ``dtype`` if it is given."""
        weight, bias, mean_weight, var_weight, running_mean, running_var = self
        return Parameters(
            _flat(weight, dtype),
            _flat(bias, dtype),
            _flat(mean_weight, dtype),
            _flat(var_weight, dtype),
            None if running_mean is None else _flat(running_mean, dtype),
            None if running_var is None else _flat(running_var, dtype),
        )


def _flat(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    values = values if values.ndim == 1 else values.reshape(-1)
    return values if dtype in (None, values.dtype) else values.to(dtype)


class Recipe(NamedTuple):
    """Which statistics are mixed.

    ``instance``: those of IN too (2d, 3d), whose variances are unbiased; otherwise (1d)
    the pooled variances are. ``batch``: those of the input's batch, as in training.
    ``group``: the processes whose samples are of that batch too.
    """

    instance: bool
    batch: bool
    eps: float
    group: "ProcessGroup | None" = None

    def variance_factor(self, positions: int) -> float:
        """From the biased IN variance to the one that counts; a single value has variance 0."""
        return positions / (positions - 1) if self.instance and positions > 1 else 1.0

    def pooled_factor(self, count: int) -> float:
        """The same, of ``count`` values pooled."""
        return count / (count - 1) if not self.instance and count > 1 else 1.0


class Statistics(NamedTuple):
    """Mean and variance of one kind, (N, C), (N, 1) or (1, C), and how they were had."""

    mean: Tensor
    var: Tensor
    dim: int | None = None  # that IN's were pooled over; None: IN's own, or running ones
    factor: float = 1.0  # of Recipe.pooled_factor
    of_input: bool = True  # false: running ones
    peers: processes.Peers | None = None  # over whose samples it was pooled too

    def averages(self, of_mean: Tensor, of_var: Tensor) -> tuple[Tensor, Tensor]:
        """Two tensors (N, C) averaged over what was pooled."""
        assert self.dim is not None
        if self.peers is not None:
            return self.peers.averages(of_mean, of_var)
        return of_mean.mean(self.dim, keepdim=True), of_var.mean(self.dim, keepdim=True)


class Mixture(NamedTuple):
    """Mixed mean and variance (N, C), and all kinds, in the order of the gates."""

    mean: Tensor
    var: Tensor
    kinds: list[Statistics]

    @property
    def batch(self) -> tuple[Tensor, Tensor] | None:
        """BN statistics (C,) of the input, where they are among the kinds, and it has samples."""
        last = self.kinds[-1]
        if last.dim != 0:
            return None
        nowhere = last.peers is not None and self.mean.shape[0] == 0 and last.peers.samples == 0
        return None if nowhere else (last.mean[0], last.var[0])


def switch_norm(x: Tensor, parameters: Parameters, recipe: Recipe) -> tuple[Tensor, Mixture]:
    """``x`` (N, C, *positions) normalized, in its dtype; the statistics in float32 at least."""
    # Half precision overflows and cancels in squared sums.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    parameters = parameters.flat(wide.dtype)
    positions = tuple(range(2, x.ndim))
    count = x.shape[2:].numel()
    correction = 1 if recipe.instance and count > 1 else 0
    if positions:
        var_in, mean_in = torch.var_mean(wide, positions, correction=correction)
    else:  # (N, C) is (N, C, 1)
        var_in, mean_in = torch.zeros_like(wide), wide
    mixture = mix(mean_in, var_in, parameters, recipe, count)
    shape, channels = (*mean_in.shape, *(1,) * len(positions)), (1, -1, *(1,) * len(positions))
    scale = parameters.weight * torch.rsqrt(mixture.var + recipe.eps)
    centered = wide - mixture.mean.view(shape)
    y = torch.addcmul(parameters.bias.view(channels), centered, scale.view(shape))
    return y.to(x.dtype), mixture


def mix(mean: Tensor, var: Tensor, parameters: Parameters, recipe: Recipe, count: int) -> Mixture:
    """IN statistics (N, C) over ``count`` positions → what the layer normalizes with."""
    n, c = mean.shape
    kinds = [Statistics(mean, var)] if recipe.instance else []
    kinds.append(_pool(mean, var, 1, recipe.pooled_factor(c * count)))
    if recipe.batch:
        kinds.append(_pool_batch(mean, var, recipe, count))
    elif parameters.running_mean is not None and parameters.running_var is not None:
        running = parameters.running_mean[None], parameters.running_var[None]
        kinds.append(Statistics(*running, of_input=False))
    mixed_mean = _weighted(parameters.mean_weight, [kind.mean for kind in kinds])
    mixed_var = _weighted(parameters.var_weight, [kind.var for kind in kinds])
    return Mixture(mixed_mean.expand(n, c), mixed_var.expand(n, c), kinds)


def _weighted(gate: Tensor, statistics: list[Tensor]) -> Tensor:
    shares = gate.softmax(0)
    mixed = shares[0] * statistics[0]
    for share, statistic in zip(shares[1:], statistics[1:], strict=True):
        mixed = mixed + share * statistic
    return mixed


def _pool(mean: Tensor, var: Tensor, dim: int, factor: float) -> Statistics:
    """LN (dim 1) or BN (dim 0) statistics from those of IN.

    The law of total variance, ``E[var] + Var[mean]``, equals the published
    ``E[var + mean²] − E[mean]²`` but cannot cancel to a negative number.
    """
    if mean.shape[0] == 0:  # no samples, where other processes have some; var_mean would warn
        return Statistics(mean[:, :1], var[:, :1], dim, factor)
    spread, pooled = torch.var_mean(mean, dim, correction=0, keepdim=True)
    return Statistics(pooled, factor * (var.mean(dim, keepdim=True) + spread), dim, factor)


def _pool_batch(mean: Tensor, var: Tensor, recipe: Recipe, count: int) -> Statistics:
    if recipe.group is None:
        return _pool(mean, var, 0, recipe.pooled_factor(mean.shape[0] * count))
    pooled, pooled_var, peers = processes.pool(mean, var, count, recipe.group)
    # To read a number is to wait for a GPU: only the 1d layer needs it.
    factor = 1.0 if recipe.instance else recipe.pooled_factor(int(peers.values))
    return Statistics(pooled, factor * pooled_var, 0, factor, peers=peers)


def mix_backward(
    grad_mean: Tensor, grad_var: Tensor, mixture: Mixture, mean: Tensor, parameters: Parameters
) -> tuple[Tensor, Tensor]:
    """The gradient of :func:`mix`: from those of the mixed to those of the IN statistics, (N, C).

    ``mean`` is that of IN. With M = E[m] and V = f·(E[v] + E[(m − M)²]) over the pooled
    dimension, dM/dm = 1/n, dV/dm = 2f·(m − M)/n and dV/dv = f/n.
    """
    mean_shares = parameters.mean_weight.softmax(0)
    var_shares = parameters.var_weight.softmax(0)
    to_mean, to_var = torch.zeros_like(mean), torch.zeros_like(mean)
    for i, kind in enumerate(mixture.kinds):
        by_mean, by_var = mean_shares[i] * grad_mean, var_shares[i] * kind.factor * grad_var
        if kind.dim is not None:
            by_mean, by_var = kind.averages(by_mean, by_var)
            by_mean = by_mean + 2 * (mean - kind.mean) * by_var
        if kind.of_input:
            to_mean += by_mean
            to_var += by_var
    return to_mean, to_var


def gate_gradients(
    grad_mean: Tensor, grad_var: Tensor, mixture: Mixture, parameters: Parameters
) -> tuple[Tensor, Tensor]:
    """Those of ``mean_weight`` and ``var_weight``, from those of the mixed statistics."""
    by_mean = torch.stack([(grad_mean * kind.mean).sum() for kind in mixture.kinds])
    by_var = torch.stack([(grad_var * kind.var).sum() for kind in mixture.kinds])
    return (
        _softmax_backward(parameters.mean_weight.softmax(0), by_mean),
        _softmax_backward(parameters.var_weight.softmax(0), by_var),
    )


def _softmax_backward(shares: Tensor, grad: Tensor) -> Tensor:
    return shares * (grad - (shares * grad).sum())
