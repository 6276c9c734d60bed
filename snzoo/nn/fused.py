"""What follows a norm in a residual network: the addition of the shortcut, and the ReLU."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.modules.batchnorm import _BatchNorm

from snzoo.nn.function import observed
from snzoo.nn.switchnorm import SwitchNorm

# Norms whose output is new memory, which their gradient does not need.
_KNOWN = (SwitchNorm.forward, _BatchNorm.forward, nn.SyncBatchNorm.forward, nn.GroupNorm.forward)


def norm_relu(norm: nn.Module, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
    """``relu(norm(x))``, or ``relu(norm(x) + shortcut)``, for any ``norm``.

    Where ``norm`` is a SwitchNorm in evaluation mode and nothing needs a gradient, it is one
    pass over memory on a GPU. Else the addition and the ReLU write over what the norm
    returned, unless it has hooks, which may have kept it, or is of an unknown kind, or a
    compiler, an exporter or a transform looks on.
    """
    if type(norm).forward not in _KNOWN or _is_watched(norm) or observed(x):
        y = norm(x)
        return F.relu(y if shortcut is None else y + shortcut)
    if isinstance(norm, SwitchNorm) and (shortcut is None or _alike(x, shortcut)):
        fused = norm.forward_add_relu(x, shortcut)
        if fused is not None:
            return fused
    y = norm(x)
    if shortcut is not None:
        y = y.add_(shortcut) if _alike(y, shortcut) else y + shortcut
    return F.relu_(y)


def _alike(y: Tensor, shortcut: Tensor) -> bool:
    return (y.shape, y.dtype, y.device) == (shortcut.shape, shortcut.dtype, shortcut.device)


def _is_watched(module: nn.Module) -> bool:
    return bool(
        "forward" in vars(module)
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or torch_module._global_forward_hooks
        or torch_module._global_forward_pre_hooks
        or torch_module._global_backward_hooks
        or torch_module._global_backward_pre_hooks
    )
