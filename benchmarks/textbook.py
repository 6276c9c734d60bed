"""The textbook operator: Switchable Normalization as its equations read.

The equations are those of Luo et al., ICLR 2019, section 2, in plain autograd operations. snzoo's
operator is measured against this operator, so it is not tuned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from snzoo.nn import SwitchNorm2d


class TextbookSwitchNorm2d(nn.Module):
    """SN over (N, C, H, W), with the parameters and buffers of :class:`snzoo.nn.SwitchNorm2d`.

    As usual for unbiased variances, the variance over a single position is NaN.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.9,
        using_moving_average: bool = True,
        using_bn: bool = True,
    ) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.using_moving_average = using_moving_average
        self.using_bn = using_bn
        self.weight = nn.Parameter(torch.ones(1, num_features, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, num_features, 1, 1))
        kinds = 3 if using_bn else 2
        self.mean_weight = nn.Parameter(torch.ones(kinds))
        self.var_weight = nn.Parameter(torch.ones(kinds))
        if using_bn:
            self.register_buffer("running_mean", torch.zeros(1, num_features, 1))
            self.register_buffer("running_var", torch.zeros(1, num_features, 1))

    def forward(self, x: Tensor) -> Tensor:
        mean_in = x.mean((2, 3), keepdim=True)
        var_in = x.var((2, 3), keepdim=True)
        square = var_in + mean_in**2
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = square.mean(1, keepdim=True) - mean_ln**2
        mean_share = self.mean_weight.softmax(0)
        var_share = self.var_weight.softmax(0)
        mean = mean_share[0] * mean_in + mean_share[1] * mean_ln
        var = var_share[0] * var_in + var_share[1] * var_ln
        if self.using_bn:
            mean_bn, var_bn = self._batch_statistics(mean_in, square)
            mean = mean + mean_share[2] * mean_bn
            var = var + var_share[2] * var_bn
        x = (x - mean) / (var + self.eps).sqrt()
        return x * self.weight + self.bias

    def _batch_statistics(self, mean_in: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
        if not self.training:
            return self.running_mean.unsqueeze(-1), self.running_var.unsqueeze(-1)
        mean_bn = mean_in.mean(0, keepdim=True)
        var_bn = square.mean(0, keepdim=True) - mean_bn**2
        mean, var = mean_bn.detach().squeeze(-1), var_bn.detach().squeeze(-1)
        if self.using_moving_average:  # momentum is the share of the old value
            self.running_mean.mul_(self.momentum).add_((1 - self.momentum) * mean)
            self.running_var.mul_(self.momentum).add_((1 - self.momentum) * var)
        else:
            self.running_mean.add_(mean)
            self.running_var.add_(mean**2 + var)
        return mean_bn, var_bn


def convert(model: nn.Module, make: Callable[..., nn.Module] = TextbookSwitchNorm2d) -> nn.Module:
    """Return a copy of ``model`` with each SwitchNorm2d replaced by a layer of ``make``.

    The new layers have the state of the old ones. ``make`` takes the arguments of
    :class:`TextbookSwitchNorm2d`. ``model`` may be a single layer.
    """
    if isinstance(model, SwitchNorm2d):
        return _converted(model, make)
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, SwitchNorm2d):
                setattr(parent, name, _converted(child, make))
    return model


def _converted(layer: SwitchNorm2d, make: Callable[..., nn.Module]) -> nn.Module:
    options = ("eps", "momentum", "using_moving_average", "using_bn")
    made = make(layer.num_features, **{name: getattr(layer, name) for name in options})
    made.to(layer.weight).load_state_dict(layer.state_dict())
    return made.train(layer.training)
