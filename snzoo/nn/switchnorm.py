"""Switchable Normalization: each layer learns how to mix IN, LN and BN statistics.

With k ranging over instance, layer and batch norm::

    mean = sum_k softmax(mean_weight)[k] * mean_k
    var  = sum_k softmax(var_weight)[k]  * var_k
    y    = (x - mean) / sqrt(var + eps) * weight + bias

The two softmaxes are over scalars that all channels and positions share. LN and
BN statistics follow from the IN statistics, so ``x`` is reduced once.
"""

from abc import ABC, abstractmethod
from math import prod

import torch
from torch import Tensor, nn

Statistics = list[tuple[Tensor, Tensor]]


class _SwitchNorm(nn.Module, ABC):
    """What the three ranks share: parameters, buffers, mixing and the affine map."""

    input_ranks: tuple[int, ...]
    input_format: str
    parameter_rank: int
    buffer_rank: int
    local_statistics: int  # how many kinds of statistics do not look across the batch

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.9,
        using_moving_average: bool = True,
        using_bn: bool = True,
        last_gamma: bool = False,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.using_moving_average = using_moving_average
        self.using_bn = using_bn
        self.last_gamma = last_gamma
        shape = (1, num_features) + (1,) * (self.parameter_rank - 2)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape))
        kinds = self.local_statistics + using_bn
        self.mean_weight = nn.Parameter(torch.empty(kinds))
        self.var_weight = nn.Parameter(torch.empty(kinds))
        running_shape = (1, num_features) + (1,) * (self.buffer_rank - 2)
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, torch.empty(running_shape) if using_bn else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as an even mix; running statistics, the variance too, start at 0 as published."""
        nn.init.constant_(self.weight, 0.0 if self.last_gamma else 1.0)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.mean_weight)
        nn.init.ones_(self.var_weight)
        if self.running_mean is not None and self.running_var is not None:
            nn.init.zeros_(self.running_mean)
            nn.init.zeros_(self.running_var)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"using_moving_average={self.using_moving_average}, using_bn={self.using_bn}"
        )

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        if x.numel() == 0:  # no statistics, and none that may reach the running ones
            return x * self._per_channel(self.weight, x) + self._per_channel(self.bias, x)
        # Half precision overflows and cancels in squared sums: reduce in float32 at least.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        means, variances = zip(*self._statistics(wide), strict=True)
        mean = _mix(self.mean_weight, means)
        var = _mix(self.var_weight, variances)
        scale = self._per_channel(self.weight, wide) * torch.rsqrt(var + self.eps)
        y = torch.addcmul(self._per_channel(self.bias, wide), wide - mean, scale)
        return y.to(x.dtype)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim not in self.input_ranks or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} expects {self.input_format} with C = "
                f"{self.num_features}, got shape {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise ValueError(f"{type(self).__name__} expects floating-point input, got {x.dtype}")

    @abstractmethod
    def _statistics(self, x: Tensor) -> Statistics:
        """(mean, variance) of each kind, in the order of the gates, broadcastable to ``x``."""

    def _per_channel(self, values: Tensor, x: Tensor) -> Tensor:
        return values.to(x.dtype).reshape(1, -1, *(1,) * (x.ndim - 2))

    def _running_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None and self.running_var is not None
        return self._per_channel(self.running_mean, x), self._per_channel(self.running_var, x)

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        mean, var = mean.view_as(self.running_mean), var.view_as(self.running_var)
        if self.using_moving_average:
            # momentum is the share that is kept: the opposite of torch's BatchNorm.
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), 1 - self.momentum)
            self.running_var.lerp_(var.to(self.running_var.dtype), 1 - self.momentum)
        else:
            self.running_mean.add_(mean)
            self.running_var.add_(mean**2 + var)


class _SpatialSwitchNorm(_SwitchNorm):
    """SN over (N, C, *positions), gates in the order [IN, LN, BN] or [IN, LN]."""

    local_statistics = 2
    buffer_rank = 3

    def _statistics(self, x: Tensor) -> Statistics:
        positions = tuple(range(2, x.ndim))
        var_in, mean_in = _var_mean(x, positions)
        statistics = [(mean_in, var_in), _pool(mean_in, var_in, dim=1)]
        if self.using_bn and self.training:
            mean_bn, var_bn = _pool(mean_in, var_in, dim=0)
            self._update_running_statistics(mean_bn, var_bn)
            statistics.append((mean_bn, var_bn))
        elif self.using_bn:
            statistics.append(self._running_statistics(x))
        return statistics


class SwitchNorm1d(_SwitchNorm):
    """Switchable Normalization of (N, C) or (N, C, L), gates in the order [LN, BN] or [LN].

    LN is over C and L for each sample, BN over N and L for each channel, both with
    the unbiased variance; (N, C, 1) and (N, C) give the same result. A variance over
    a single value is 0.

    Args:
        num_features: C.
        eps: added to the mixed variance.
        momentum: share of the running statistics that is kept at each step
            (the opposite of torch's convention).
        using_moving_average: if false, the running statistics are sums over batches,
            see :class:`SwitchNorm2d`.
        using_bn: mix in batch statistics.
        last_gamma: start ``weight`` at 0 rather than 1.

    Shapes: ``weight``, ``bias``, ``running_mean``, ``running_var`` (1, C);
    ``mean_weight``, ``var_weight`` (2,), or (1,) without BN.

    Raises:
        ValueError: from ``forward``, on an input of another rank or channel count.
    """

    input_ranks = (2, 3)
    input_format = "(N, C) or (N, C, L)"
    parameter_rank = buffer_rank = 2
    local_statistics = 1

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.997,
        using_moving_average: bool = True,
        using_bn: bool = True,
        last_gamma: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, using_moving_average, using_bn, last_gamma)

    def _statistics(self, x: Tensor) -> Statistics:
        positions = tuple(range(2, x.ndim))
        var_ln, mean_ln = _var_mean(x, (1, *positions))
        statistics = [(mean_ln, var_ln)]
        if self.using_bn and self.training:
            var_bn, mean_bn = _var_mean(x, (0, *positions))
            self._update_running_statistics(mean_bn, var_bn)
            statistics.append((mean_bn, var_bn))
        elif self.using_bn:
            statistics.append(self._running_statistics(x))
        return statistics


class SwitchNorm2d(_SpatialSwitchNorm):
    """Switchable Normalization of (N, C, H, W), gates in the order [IN, LN, BN] or [IN, LN].

    IN variances are unbiased. Over a single position (1×1 maps) the IN variance is
    taken as 0, where the published operator gives NaN. Under half precision the
    statistics and the affine map are computed in float32.

    Args:
        num_features: C.
        eps: added to the mixed variance.
        momentum: share of the running statistics that is kept at each step
            (the opposite of torch's convention).
        using_moving_average: if false, each training step adds ``mean`` to
            ``running_mean`` and ``mean² + var`` to ``running_var``; divide both by
            the number of batches, then subtract ``running_mean²`` from
            ``running_var``, to get the batch average of the paper.
        using_bn: mix in batch statistics; if false there are no running statistics.
        last_gamma: start ``weight`` at 0 rather than 1.

    Shapes: ``weight``, ``bias`` (1, C, 1, 1); ``mean_weight``, ``var_weight`` (3,), or
    (2,) without BN; ``running_mean``, ``running_var`` (1, C, 1), both starting at 0.

    Raises:
        ValueError: from ``forward``, on an input of another rank or channel count.
    """

    input_ranks = (4,)
    input_format = "(N, C, H, W)"
    parameter_rank = 4


class SwitchNorm3d(_SpatialSwitchNorm):
    """Switchable Normalization of (N, C, D, H, W): as :class:`SwitchNorm2d`, over D·H·W positions.

    The default momentum is 0.997; ``weight`` and ``bias`` are (1, C, 1, 1, 1).
    """

    input_ranks = (5,)
    input_format = "(N, C, D, H, W)"
    parameter_rank = 5

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.997,
        using_moving_average: bool = True,
        using_bn: bool = True,
        last_gamma: bool = False,
    ) -> None:
        super().__init__(num_features, eps, momentum, using_moving_average, using_bn, last_gamma)


def _var_mean(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Unbiased variance and mean; a single value has variance 0 rather than 0 / 0."""
    count = prod([x.shape[dim] for dim in dims])
    return torch.var_mean(x, dims, correction=1 if count > 1 else 0, keepdim=True)


def _pool(mean_in: Tensor, var_in: Tensor, *, dim: int) -> tuple[Tensor, Tensor]:
    """LN (dim 1) or BN (dim 0) statistics from those of IN.

    The law of total variance, ``E[var] + Var[mean]``, equals the published
    ``E[var + mean²] − E[mean]²`` but cannot cancel to a negative number.
    """
    spread, mean = torch.var_mean(mean_in, dim, correction=0, keepdim=True)
    return mean, var_in.mean(dim, keepdim=True) + spread


def _mix(gate: Tensor, statistics: tuple[Tensor, ...]) -> Tensor:
    shares = gate.to(statistics[0].dtype).softmax(0)
    mixed = shares[0] * statistics[0]
    for share, statistic in zip(shares[1:], statistics[1:], strict=True):
        mixed = mixed + share * statistic
    return mixed
