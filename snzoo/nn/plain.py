"""The passes over whole activations in plain tensor operations, on any device.

They serve :class:`snzoo.nn.function._SwitchNormFunction` where neither :mod:`snzoo.nn.cpu` nor
:mod:`snzoo.nn.gpu` does, on no samples too. ``x`` is (N, C, *positions), (N, C) is one position;
statistics and coefficients are (N, C).
"""

import torch
from torch import Tensor


def moments(x: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean, and biased variance times ``factor``, over positions."""
    if x.ndim == 2:
        return x, torch.zeros_like(x)
    var, mean = torch.var_mean(_rows(x), 2, correction=0)
    return mean, var * factor


def affine(x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """``(x − mean) · scale + bias``; ``bias`` is (C,)."""
    return (x - _over(mean, x)) * _over(scale, x) + _over(bias.expand_as(mean), x)


def gradient_sums(grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """``Σ grad`` and ``Σ grad · (x − mean)`` over positions."""
    grad = _rows(grad)
    return grad.sum(2), (grad * (_rows(x) - mean[..., None])).sum(2)


def input_gradient(
    grad: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> Tensor:
    """``a · grad + b · (x − mean) + c``."""
    return _over(a, x) * grad + _over(b, x) * (x - _over(mean, x)) + _over(c, x)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:2], x.shape[2:].numel())


def _over(values: Tensor, x: Tensor) -> Tensor:
    return values.view(*values.shape, *(1,) * (x.ndim - 2))
