"""The layers of Switchable Normalization."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from snzoo.nn._compat import is_jit_tracing
from snzoo.nn.backends import cpu_fused
from snzoo.nn.function import normalize
from snzoo.nn.functional import Config, LayerTensors


class SwitchNorm(nn.Module):
    """The base of the three layers; :class:`SwitchNorm2d` describes the arguments."""

    input_ranks: tuple[int, ...]
    input_format: str
    parameter_rank: int
    buffer_rank = 3
    instance = True  # IN statistics are mixed in

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.9,
        using_moving_average: bool = True,
        using_bn: bool = True,
        last_gamma: bool = False,
        *,
        track_running_stats: bool = True,
        bias_correction: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, got {num_features}")
        if using_moving_average and not 0 <= momentum <= 1:
            raise ValueError(
                "momentum is the share of the running statistics that a step keeps: 0 to 1, got "
                f"{momentum}"
            )
        if bias_correction and not (using_moving_average and 0 <= momentum < 1):
            raise ValueError(
                "bias_correction is for moving averages: it needs using_moving_average=True and "
                f"a momentum of at least 0 and below 1, got {using_moving_average} and {momentum}"
            )
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.using_moving_average = using_moving_average
        self.using_bn = using_bn
        self.last_gamma = last_gamma
        self.track_running_stats = track_running_stats
        self.bias_correction = bias_correction
        shape = (1, num_features) + (1,) * (self.parameter_rank - 2)
        num_gates = 1 + self.instance + using_bn
        empty = partial(torch.empty, device=device, dtype=dtype)
        self.weight = nn.Parameter(empty(shape))
        self.bias = nn.Parameter(empty(shape))
        self.mean_weight = nn.Parameter(empty(num_gates))
        self.var_weight = nn.Parameter(empty(num_gates))
        tracked = using_bn and track_running_stats
        running_shape = (1, num_features) + (1,) * (self.buffer_rank - 2)
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, empty(running_shape) if tracked else None)
        counter = empty((), dtype=torch.long) if tracked and bias_correction else None
        self.register_buffer("num_batches_tracked", counter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set equal shares, and running means and variances of 0, as published."""
        nn.init.constant_(self.weight, 0.0 if self.last_gamma else 1.0)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.mean_weight)
        nn.init.ones_(self.var_weight)
        for buffer in (self.running_mean, self.running_var, self.num_batches_tracked):
            if buffer is not None:
                nn.init.zeros_(buffer)

    def extra_repr(self) -> str:
        text = (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"using_moving_average={self.using_moving_average}, using_bn={self.using_bn}"
        )
        text += "" if self.track_running_stats else ", track_running_stats=False"
        return text + (", bias_correction=True" if self.bias_correction else "")

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy) and (path := x.tracer.path_of_module(self)):
            # torch.fx: one node that calls this layer, as for the layers of torch.nn.
            return x.tracer.create_proxy("call_module", path, (x,), {})
        return self._normalize(x, *self.tensors_and_config())

    def forward_relu(
        self, x: Tensor, shortcut: Tensor | None = None, *, overwrite: bool = False
    ) -> Tensor:
        """Return ``relu(forward(x) [+ shortcut])``; not for ``x`` that a compiler traces.

        With ``overwrite`` it may be written over ``x``, where no gradient is needed.
        """
        tensors, config = self.tensors_and_config()
        if x.ndim in self.input_ranks and not (self.training or torch.is_grad_enabled()):
            y = cpu_fused.infer(x, tensors, config, shortcut, True, overwrite)
            if y is not None:
                return y
        return self._normalize(x, tensors, config, shortcut, True, overwrite)

    def _normalize(
        self,
        x: Tensor,
        tensors: LayerTensors,
        config: Config,
        shortcut: Tensor | None = None,
        relu: bool = False,
        overwrite: bool = False,
    ) -> Tensor:
        self._check_input(x)
        y, batch = normalize(x, tensors, config, shortcut, relu, overwrite)
        if batch is not None and self.training and self.track_running_stats:
            self.update_running_statistics(*batch)
        return y

    def tensors_and_config(self) -> tuple[LayerTensors, Config]:
        """Return the arguments of :func:`snzoo.nn.functional.switch_norm` after the input."""
        own, buffers = self._parameters, self._buffers  # attributes of a module are slow to find
        try:
            found = own["weight"], own["bias"], own["mean_weight"], own["var_weight"]
            running = buffers["running_mean"], buffers["running_var"]
        except KeyError:  # a parametrization, or a buffer that was made a parameter
            found = self.weight, self.bias, self.mean_weight, self.var_weight
            running = self.running_mean, self.running_var
        batch = self.using_bn and (self.training or running[0] is None)
        running = (None, None) if batch else running
        tensors = LayerTensors(*found, *running)  # type: ignore[arg-type]
        return tensors, Config(self.instance, batch, self.eps)

    def shares(self) -> tuple[Tensor, Tensor]:
        """Return the shares of the statistics in the mean and in the variance, float64, detached.

        Their order is that of the gates.
        """
        mean, var = self.mean_weight.detach().double(), self.var_weight.detach().double()
        return mean.softmax(0), var.softmax(0)

    def _check_input(self, x: Tensor) -> None:
        # In torch.jit.trace a size is a tensor, and a comparison would fix it.
        right_rank = x.ndim in self.input_ranks
        if not right_rank or not (is_jit_tracing() or x.shape[1] == self.num_features):
            raise ValueError(
                f"{type(self).__name__} expects {self.input_format} with C = "
                f"{self.num_features}, got shape {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise ValueError(f"{type(self).__name__} expects floating-point input, got {x.dtype}")

    @torch.no_grad()
    def update_running_statistics(self, mean: Tensor, var: Tensor) -> None:
        """Update the running statistics with those of a batch, (C,), as a training step does."""
        if self.running_mean is None or self.running_var is None:
            return
        mean, var = mean.view_as(self.running_mean), var.view_as(self.running_var)
        if not self.using_moving_average:
            self.running_mean.add_(mean)
            self.running_var.add_(mean**2 + var)
            return
        # momentum is the share that is kept: the opposite of torch's BatchNorm.
        share: float | Tensor = 1 - self.momentum
        if self.num_batches_tracked is not None:
            # This share gives what Adam's division by 1 - momentum^t gives.
            self.num_batches_tracked.add_(1)
            share = share / (1 - self.momentum ** self.num_batches_tracked.to(mean.dtype))
        _move_average(self.running_mean, mean, share)
        _move_average(self.running_var, var, share)


def _move_average(running: Tensor, batch: Tensor, share: float | Tensor) -> None:
    """Write ``(1 - share) * running + share * batch`` over ``running``.

    A share of a batch's variance fits float16 where the variance itself may not.
    """
    wide = torch.promote_types(running.dtype, batch.dtype)
    share = share.to(wide) if isinstance(share, Tensor) else share
    if wide == running.dtype:
        running.lerp_(batch.to(wide), share)
    else:
        running.copy_(torch.lerp(running.to(wide), batch.to(wide), share))


class SwitchNorm1d(SwitchNorm):
    """Switchable Normalization of (N, C) or (N, C, L): a learned mixture of LN and BN.

    As :class:`SwitchNorm2d`, but without IN. LN is over C and L for each sample, BN over N and
    L for each channel, both with the unbiased variance. The variance of a single value is 0.
    (N, C, 1) and (N, C) give the same result.

    ``momentum`` is 0.997 by default. The running statistics start at 0, so evaluation mode is
    right only after some 1,500 training steps: evaluate earlier after
    :func:`update_bn_statistics`, or train with ``bias_correction=True``.

    Shapes:
        - Input and output: (N, C) or (N, C, L).
        - ``weight``, ``bias``, ``running_mean``, ``running_var``: (1, C).
        - ``mean_weight``, ``var_weight``: (2,) in the order [LN, BN], or (1,) without BN.

    Raises:
        ValueError: from ``forward``, for an input of another rank, channel count or dtype.
    """

    input_ranks = (2, 3)
    input_format = "(N, C) or (N, C, L)"
    parameter_rank = buffer_rank = 2
    instance = False

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.997, *args: Any, **more: Any
    ) -> None:
        super().__init__(num_features, eps, momentum, *args, **more)


class SwitchNorm2d(SwitchNorm):
    r"""Switchable Normalization of (N, C, H, W): a learned mixture of IN, LN and BN.

    Equation 3 of `Luo et al., ICLR 2019 <https://arxiv.org/abs/1806.10779>`_, with k over IN,
    LN and BN::

        mean = sum_k softmax(mean_weight)[k] * mean_k
        var  = sum_k softmax(var_weight)[k]  * var_k
        y    = (x - mean) / sqrt(var + eps) * weight + bias

    In evaluation mode the BN statistics are the running ones; IN and LN statistics are always
    the input's. The IN variance is unbiased, and 0 over a single position (1×1 maps), where
    the published operator gives NaN. For float16 and bfloat16 input, statistics and
    arithmetic are float32.

    Tools that freeze batch norm by its class (``nn.BatchNorm2d``) do not find this layer: use
    ``model.freeze`` of snzoo's networks, or ``layer.eval()`` after each ``model.train()``.

    Args:
        num_features: C.
        eps: added to the mixed variance.
        momentum: share of the running statistics that each training step keeps, as published:
            1 minus the momentum of ``nn.BatchNorm2d``.
        using_moving_average: if False, the running statistics are sums over batches, as
            published: each training step adds ``mean`` to ``running_mean`` and ``mean² + var``
            to ``running_var``. Divide both by the number of batches, then subtract
            ``running_mean²`` from ``running_var``; :func:`update_bn_statistics` does it all.
        using_bn: mix in BN; if False, there are no running statistics.
        last_gamma: start ``weight`` at 0 instead of 1.
        track_running_stats: if False, there are no running statistics, and BN statistics are
            the batch's in evaluation mode too, as for ``nn.BatchNorm2d``. If the
            attribute is set to False later, the running statistics no longer change.
        bias_correction: correct the moving averages for their start at 0, as Adam does:
            after t steps they are divided by ``1 - momentum^t``. It adds
            ``num_batches_tracked`` to the state dict.
        device, dtype: of the parameters and buffers, as for the layers of ``torch.nn``.

    Shapes:
        - Input and output: (N, C, H, W).
        - ``weight``, ``bias``: (1, C, 1, 1).
        - ``mean_weight``, ``var_weight``: (3,) in the order [IN, LN, BN], or (2,) without BN.
        - ``running_mean``, ``running_var``: (1, C, 1), starting at 0.

    Raises:
        ValueError: for ``num_features`` below 1, ``momentum`` outside 0 to 1, or
            ``bias_correction`` without moving averages; from ``forward``, for an input of another
            rank, channel count or dtype.
    """

    input_ranks = (4,)
    input_format = "(N, C, H, W)"
    parameter_rank = 4


class SwitchNorm3d(SwitchNorm):
    """Switchable Normalization of (N, C, D, H, W): a learned mixture of IN, LN and BN.

    As :class:`SwitchNorm2d`, over D·H·W positions. ``momentum`` is 0.997 by default, and
    evaluation mode is right only after some 1,500 training steps, see :class:`SwitchNorm1d`.

    Shapes:
        - Input and output: (N, C, D, H, W).
        - ``weight``, ``bias``: (1, C, 1, 1, 1).
        - ``mean_weight``, ``var_weight``, ``running_mean``, ``running_var``: as in 2d.

    Raises:
        ValueError: from ``forward``, for an input of another rank, channel count or dtype.
    """

    input_ranks = (5,)
    input_format = "(N, C, D, H, W)"
    parameter_rank = 5

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.997, *args: Any, **more: Any
    ) -> None:
        super().__init__(num_features, eps, momentum, *args, **more)
