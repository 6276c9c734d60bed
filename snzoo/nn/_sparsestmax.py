"""SparsestMax (Shao et al., CVPR 2019, arXiv 1903.03793)."""

from numbers import Real

import torch
from torch import Tensor

from snzoo.nn._compat import is_traced

# Values that differ by less count as equal: of their direction from the center, rounding is a part.
NOISE = 4 * torch.finfo(torch.float32).eps


def sparsestmax(v: Tensor, radius: Tensor | float) -> Tensor:
    """Return shares that are at least ``radius`` from the center of the simplex, if they can be.

    They are the Euclidean projection of ``v`` onto the simplex (sparsemax, Martins & Astudillo
    2016), pushed away from the center of the face it lies in until its distance is ``radius``.
    Shares that would become negative are 0, and the others are pushed on in the smaller face.
    With a radius of 0 it is sparsemax; with three values, the result is one-hot from
    √(2/3) = 0.8165 on.

    Equal values have no direction to be pushed to: their shares stay equal, and their gradient is
    that of sparsemax. Values count as equal if they differ by about 5e-7 or less.

    Args:
        v: (..., K), float32 or float64.
        radius: a number, or a tensor that broadcasts to (..., 1): one of shape (N, 1) has a radius
            for each row of (N, K).

    Returns:
        The shares (..., K). Those of each row are not negative. Their sum is 1, in float64 only up
        to 1e-8 divided by the distance of the projection from the center, as in the published code.

    Raises:
        ValueError: ``v`` is not a floating-point tensor with values along its last dimension, or
            ``radius`` is neither a tensor nor a number of at least 0.

    >>> sparsestmax(torch.tensor([1.1, 0.95, 0.9]), 0.6)
    tensor([0.8109, 0.1891, 0.0000])
    """
    if not (
        isinstance(v, Tensor)
        and v.is_floating_point()
        and v.ndim
        and (is_traced(v) or v.shape[-1])  # a traced size is a tensor
    ):
        got = f"{tuple(v.shape)} of {v.dtype}" if isinstance(v, Tensor) else type(v).__name__
        raise ValueError(f"v must be a floating-point tensor (..., K), got {got}")
    if not (isinstance(radius, Tensor) or (isinstance(radius, Real) and radius >= 0)):
        raise ValueError(f"radius must be a tensor or a number from 0, got {radius!r}")
    shares = _sparsemax(v)
    center = _center(shares)
    rho = radius.to(v.dtype) if isinstance(radius, Tensor) else v.new_tensor(radius)
    rho = rho.expand_as(v[..., :1])
    for _ in range(v.shape[-1] - 1):  # each push leaves a smaller face
        pushed, is_pushed = _push(shares, center, rho)
        outside = is_pushed & (pushed < 0).any(-1, keepdim=True)
        projected = torch.where(outside, _sparsemax(pushed), pushed)
        # The circle in the smaller face is a section of the circle here.
        smaller = torch.where(outside, _center(projected), center)
        squared = rho.square().float() - (smaller - center).square().sum(-1, keepdim=True)
        rho = torch.where(outside, squared.clamp(min=0).to(v.dtype).sqrt(), 0.0)  # 0: it is done
        shares, center = torch.where(is_pushed, projected, shares), smaller
    return shares.clamp(0, 1)


def _sparsemax(v: Tensor) -> Tensor:
    """Return the Euclidean projection of the rows of ``v`` onto the simplex. NaN stays NaN."""
    v = v - v.detach().amax(-1, keepdim=True)  # the same projection, with less rounding
    ordered = v.detach().sort(-1, descending=True).values
    counts = torch.arange(1, v.shape[-1] + 1, dtype=v.dtype, device=v.device)
    size = (counts * ordered > ordered.cumsum(-1) - 1).sum(-1, keepdim=True).clamp(min=1)
    # Of equal values, all or none are in the support.
    support = v >= ordered.gather(-1, size - 1)
    threshold = (torch.where(support, v, 0).sum(-1, keepdim=True) - 1) / size
    return torch.where(support | v.isnan(), v - threshold, 0)


def _center(shares: Tensor) -> Tensor:
    """Return the center of the face that the shares lie in, a constant for the gradient.

    It is float32, as in the published code, whose results in float64 depend on it.
    """
    support = (shares > 0).float()
    return support / support.sum(-1, keepdim=True)


def _push(shares: Tensor, center: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shares moved to the distance ``rho`` from the center, and which rows moved."""
    offset = shares - center
    if shares.dtype == torch.float32:
        # Back to the plane of shares whose sum is 1: a small offset is magnified, and rounding too.
        offset = offset - center * offset.sum(-1, keepdim=True)
    squared = offset.square().sum(-1, keepdim=True)
    is_pushed = (squared < rho.square()) & (squared > NOISE**2)
    distance = torch.where(is_pushed, squared, 1).sqrt()
    return torch.where(is_pushed, rho * offset / distance + center, shares), is_pushed
