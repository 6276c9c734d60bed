"""Sparse Switchable Normalization (Shao et al., CVPR 2019, arXiv 1903.03793)."""

from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from snzoo.nn.functional import Config, LayerTensors, sparsestmax
from snzoo.nn.switchnorm import SwitchNorm2d


class SparseSwitchNorm2d(SwitchNorm2d):
    r"""Switchable Normalization of (N, C, H, W) whose shares become one-hot during training.

    As :class:`SwitchNorm2d` with IN, LN and BN, but the shares are
    ``sparsestmax(mean_weight, radius)`` and ``sparsestmax(var_weight, radius)`` instead of a
    softmax, see :func:`snzoo.nn.functional.sparsestmax`. Increase the radius from 0 to 1 during
    training, see :func:`set_radius`.

    In training mode, shares that are one-hot are locked, unless ``track_running_stats`` is False:
    ``mean_fixed`` or ``var_fixed`` becomes 1, and the gates become the shares. Locked gates have a
    gradient of zero, so that a step with momentum may still move them; the next forward pass in
    training mode moves them back.

    Args:
        num_features: C.
        eps: added to the mixed variance.
        momentum: see :class:`SwitchNorm2d` (default: 0.997, as published).
        options: ``using_moving_average``, ``last_gamma``, ``track_running_stats``,
            ``bias_correction``, ``device`` and ``dtype``, as for :class:`SwitchNorm2d`.

    Shapes:
        - Those of :class:`SwitchNorm2d`, whose state-dict keys come first.
        - ``mean_fixed``, ``var_fixed``: (1,), int64.
        - ``radius``: (1,).

    Raises:
        ValueError: as :class:`SwitchNorm2d`.
        TypeError: ``using_bn`` is given; there are always three shares.
    """

    mean_fixed: Tensor
    var_fixed: Tensor
    radius: Tensor

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.997, **options: Any
    ) -> None:
        super().__init__(num_features, eps, momentum, using_bn=True, **options)
        for name in ("mean_fixed", "var_fixed"):
            self.register_buffer(name, self.weight.new_zeros(1, dtype=torch.long))
        self.register_buffer("radius", self.weight.new_zeros(1))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for name in ("mean_fixed", "var_fixed", "radius"):
            if name in self._buffers:  # not yet in __init__
                nn.init.zeros_(self.get_buffer(name))

    def tensors_and_config(self) -> tuple[LayerTensors, Config]:
        (weight, bias, _, _, *running), config = super().tensors_and_config()
        mean, var = self._sparse_shares().unbind()
        # Dynamo of torch 2.6 can't trace _replace.
        tensors = LayerTensors(weight, bias, mean, var, *running)
        return tensors, Config(config.instance, config.batch, config.eps, shares=True)

    def shares(self) -> tuple[Tensor, Tensor]:
        mean, var = self._sparse_shares().detach().double().unbind()
        return mean, var

    def _sparse_shares(self) -> Tensor:
        """Return the shares in the mean and in the variance, (2, 3)."""
        gates = torch.stack([self.mean_weight, self.var_weight])
        gates = gates.to(torch.promote_types(gates.dtype, torch.float32))
        fixed = torch.stack([self.mean_fixed, self.var_fixed]) > 0  # (2, 1)
        return sparse_shares(gates, fixed, self.radius)

    @torch.no_grad()
    def update_running_statistics(self, mean: Tensor, var: Tensor) -> None:
        """Update the running statistics, lock shares that are one-hot, and restore locked gates."""
        super().update_running_statistics(mean, var)
        shares = self._sparse_shares()
        # There is no branch on values, for which a GPU would have to be waited for.
        locked = shares.amax(1) - shares.amin(1) >= 1
        for i, (gates, fixed) in enumerate(
            ((self.mean_weight, self.mean_fixed), (self.var_weight, self.var_fixed))
        ):
            fixed.logical_or_(locked[i])
            # The backward pass has its own copy of the gates.
            gates.data.copy_(torch.where(locked[i], shares[i], gates))


def sparse_shares(gates: Tensor, fixed: Tensor, radius: Tensor | float) -> Tensor:
    """Return the shares of gates (..., K): one-hot where ``fixed`` (..., 1), else SparsestMax.

    The largest gate has the share 1, the first of equal ones.
    """
    largest = gates.detach().argmax(-1, keepdim=True)
    one_hot = torch.zeros_like(gates).scatter(-1, largest, 1.0)
    return torch.where(fixed, one_hot, sparsestmax(gates, radius))


def set_radius(model: nn.Module, radius: float) -> None:
    """Set the radius of all :class:`SparseSwitchNorm2d` layers of ``model``.

    The published training calls it before each step with ``step / steps``: 0 to 1. From
    √(2/3) = 0.8165 on, all shares are one-hot.

    Raises:
        ValueError: ``radius`` is not a number from 0 to 1, or ``model`` has no such layer.
    """
    if not (isinstance(radius, Real) and 0 <= radius <= 1):
        raise ValueError(f"radius must be a number from 0 to 1, got {radius!r}")
    layers = [layer for layer in model.modules() if isinstance(layer, SparseSwitchNorm2d)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no SparseSwitchNorm2d to set the radius of")
    for layer in layers:
        layer.radius.fill_(radius)
