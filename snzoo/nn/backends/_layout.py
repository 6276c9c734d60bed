"""The forms of an activation that the backends share."""

import torch
import torch.nn.functional as F
from torch import Tensor


def to_dense(x: Tensor) -> Tensor:
    """Return ``x`` contiguous or channels last: itself, or a contiguous copy."""
    dense = x.is_contiguous() or x.movedim(1, -1).is_contiguous()
    return x if dense else x.contiguous()


def to_wide_dense(x: Tensor) -> Tensor:
    """Return ``x`` contiguous or channels last, in float32 at least."""
    return to_dense(x.float() if x.dtype in (torch.float16, torch.bfloat16) else x)


def over_positions(values: Tensor, x: Tensor) -> Tensor:
    """Return ``values`` (N, C) as (N, C, 1, ...), to broadcast over the positions of ``x``."""
    return values.view(*values.shape, *(1,) * (x.ndim - 2))


def are_alike(x: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same shape, dtype and device."""
    return (x.shape, x.dtype, x.device) == (other.shape, other.dtype, other.device)


def lay_out_like(x: Tensor, other: Tensor) -> Tensor:
    """Return ``other``, of the shape of ``x``, in the layout and the dtype of ``x``."""
    if other.shape != x.shape:
        raise ValueError(f"expected the shape of x, {tuple(x.shape)}, got {tuple(other.shape)}")
    if other.stride() == x.stride() and other.dtype == x.dtype:
        return other
    return torch.empty_like(x).copy_(other)


def add_relu_(y: Tensor, shortcut: Tensor | None) -> Tensor:
    """Return ``relu(y [+ shortcut])``, written over ``y`` where its dtype and shape allow it."""
    if shortcut is not None:
        y = y.add_(shortcut) if are_alike(y, shortcut) else y + shortcut
    return F.relu_(y)
