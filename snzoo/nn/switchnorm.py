"""Switchable Normalization: each layer learns how to mix IN, LN and BN statistics.

With k ranging over instance, layer and batch norm::

    mean = sum_k softmax(mean_weight)[k] * mean_k
    var  = sum_k softmax(var_weight)[k]  * var_k
    y    = (x - mean) / sqrt(var + eps) * weight + bias

The two softmaxes are over scalars that all channels and positions share.
"""

import torch
from torch import Tensor, nn

from snzoo.nn.function import fuses, normalize, normalize_add_relu
from snzoo.nn.reference import Parameters, Recipe


class SwitchNorm(nn.Module):
    """What the three ranks share; no layer by itself."""

    input_ranks: tuple[int, ...]
    input_format: str
    parameter_rank: int
    buffer_rank: int
    instance: bool  # IN is one of the kinds

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
        kinds = 1 + self.instance + using_bn
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
        parameters, recipe = self.parameters_and_recipe()
        if x.numel() == 0 and recipe.group is None:
            # No statistics, and none that may reach the running ones. The gates' gradients are
            # 0 rather than none, which DistributedDataParallel would wait for.
            weight, bias, mean_weight, var_weight, *_ = parameters.flat(x.dtype)
            shape = 1, -1, *(1,) * (x.ndim - 2)
            nothing = 0 * (mean_weight.sum() + var_weight.sum())
            return x * weight.view(shape) + (bias + nothing).view(shape)
        y, batch = normalize(x, parameters, recipe)
        if batch is not None:
            self.update_running_statistics(*batch)
        return y

    def forward_add_relu(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor | None:
        """ReLU of the output [+ ``shortcut``], where a single pass gives it; None elsewhere.

        ``shortcut`` has the shape, dtype and device of ``x``.
        """
        if not fuses(x) or x.numel() == 0:
            return None
        self._check_input(x)
        return normalize_add_relu(x, *self.parameters_and_recipe(), shortcut)

    def parameters_and_recipe(self) -> tuple[Parameters, Recipe]:
        """What :func:`snzoo.nn.reference.switch_norm` is given beside the input."""
        batch = self.using_bn and self.training
        running = (None, None) if batch else (self.running_mean, self.running_var)
        parameters = Parameters(self.weight, self.bias, self.mean_weight, self.var_weight, *running)
        return parameters, Recipe(self.instance, batch, self.eps)

    def _check_input(self, x: Tensor) -> None:
        if x.ndim not in self.input_ranks or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} expects {self.input_format} with C = "
                f"{self.num_features}, got shape {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise ValueError(f"{type(self).__name__} expects floating-point input, got {x.dtype}")

    @torch.no_grad()
    def update_running_statistics(self, mean: Tensor, var: Tensor) -> None:
        """Take in the statistics (C,) of a batch, as a forward pass in training does."""
        assert self.running_mean is not None and self.running_var is not None
        mean, var = mean.view_as(self.running_mean), var.view_as(self.running_var)
        if self.using_moving_average:
            # momentum is the share that is kept: the opposite of torch's BatchNorm.
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), 1 - self.momentum)
            self.running_var.lerp_(var.to(self.running_var.dtype), 1 - self.momentum)
        else:
            self.running_mean.add_(mean)
            self.running_var.add_(mean**2 + var)


class _SpatialSwitchNorm(SwitchNorm):
    """SN over (N, C, *positions), gates in the order [IN, LN, BN] or [IN, LN]."""

    instance = True
    buffer_rank = 3


class SwitchNorm1d(SwitchNorm):
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
    instance = False

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
