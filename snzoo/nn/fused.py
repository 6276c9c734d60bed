"""What follows a norm in a residual network: the addition of the shortcut, and the ReLU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snzoo.nn._compat import count_function_modes, has_hooks, is_traced
from snzoo.nn.backends._layout import add_relu_
from snzoo.nn.switchnorm import SwitchNorm


class Folded(nn.Module):
    """What is left of a norm that was folded into the convolution before it: it does nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x


# The gradients of these norms, and of the convolution before a folded one, do not need their
# output, so it may be overwritten. BatchNorm1d and BatchNorm3d have the forward of BatchNorm2d.
_OVERWRITABLE = (
    nn.BatchNorm2d.forward,
    nn.SyncBatchNorm.forward,
    nn.GroupNorm.forward,
    Folded.forward,
)


def norm_relu(
    norm: nn.Module,
    x: Tensor,
    shortcut: Tensor | None = None,
    relu: nn.Module | None = None,
    *,
    overwrite: bool = False,
) -> Tensor:
    """Return ``relu(norm(x) [+ shortcut])`` for any modules ``norm`` and ``relu``.

    The addition and the ReLU write over the output of a SwitchNorm, batch norm or group norm;
    a SwitchNorm in evaluation mode does all in one pass on a GPU, and on a CPU with llvmlite.
    Both modules are called separately if one of them has hooks or another type, or if a compiler,
    an exporter or a transform traces the operations.

    Args:
        norm: the normalization layer.
        x: (N, C, *positions).
        shortcut: added to the norm's output.
        relu: the activation; by default a ReLU without a module.
        overwrite: nothing else holds ``x``, and a result that needs no gradient may be written
            over it. See :func:`keeps_no_output`.
    """
    norm_forward = type(norm).forward
    if (
        is_traced(x)
        or has_hooks(norm)
        or not (norm_forward is SwitchNorm.forward or norm_forward in _OVERWRITABLE)
        or not (relu is None or (type(relu) is nn.ReLU and not has_hooks(relu)))
    ):
        y = norm(x)
        y = y if shortcut is None else y + shortcut
        return F.relu(y) if relu is None else relu(y)
    if isinstance(norm, SwitchNorm):
        return norm.forward_relu(x, shortcut, overwrite=overwrite)
    return add_relu_(norm(x), shortcut)


def keeps_no_output(module: nn.Module) -> bool:
    """Return whether only the caller of a convolution holds its output."""
    if torch.compiler.is_compiling():  # it may not know the functions below
        return False
    plain = type(module) is nn.Conv2d and not has_hooks(module)
    return plain and not count_function_modes()
