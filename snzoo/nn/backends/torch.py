"""The passes in plain tensor operations, on any device and for no samples too.

Only :class:`SyncSwitchNorm <snzoo.nn.SyncSwitchNorm2d>` needs them, where no other backend
serves an input: its gradient over several processes has a closed form only.
:class:`snzoo.nn.backends.Passes` says what the functions do.
"""

import torch
from torch import Tensor

from snzoo.nn.backends._layout import over_positions, to_wide_dense
from snzoo.nn.functional import (
    Config,
    LayerTensors,
    Mixture,
    gate_gradients,
    mix,
    mix_backward,
    num_positions,
)

prepare = to_wide_dense


def moments(x: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    if x.ndim == 2:
        return x, torch.zeros_like(x)
    var, mean = torch.var_mean(_rows(x), 2, correction=0)
    return mean, var * factor


def affine(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    centered = x - over_positions(mean, x)
    return centered * over_positions(scale, x) + over_positions(bias.expand_as(mean), x)


def gradient_sums(grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    grad = _rows(grad)
    return grad.sum(2), (grad * (_rows(x) - mean[..., None])).sum(2)


def input_gradient(
    grad: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> Tensor:
    a, b, c, mean = (over_positions(values, x) for values in (a, b, c, mean))
    return a * grad + b * (x - mean) + c


def coefficients(
    mean: Tensor, var: Tensor, tensors: LayerTensors, config: Config, positions: int
) -> tuple[Mixture, Tensor]:
    mixture = mix(mean, var, tensors, config, positions)
    return mixture, tensors.weight * torch.rsqrt(mixture.var + config.eps)


def gradient_coefficients(
    total: Tensor,
    centered: Tensor,
    mixture: Mixture,
    mean: Tensor,
    tensors: LayerTensors,
    config: Config,
    positions: int,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    rstd = torch.rsqrt(mixture.var + config.eps)
    scale = tensors.weight * rstd
    mixed = -scale * total, -0.5 * scale * rstd**2 * centered
    to_mean, to_var = mix_backward(*mixed, mixture, mean, tensors, config)
    b = to_var * (2 * config.variance_factor(positions) / positions)
    gates = gate_gradients(*mixed, mixture, tensors, config)
    grads = (rstd * centered).sum(0), total.sum(0), *gates
    return (scale, b, to_mean / positions), grads


def _rows(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:2], num_positions(x))
