"""Passes over whole activations on a GPU: launches of the kernels in :mod:`snzoo.nn.kernels`.

``x`` is (N, C, *positions) of any floating type, contiguous or channels last. ``grad`` and
``shortcut`` have its shape and any layout; results of its shape have its type and layout.
*Wide* is float32, or float64 for float64 ``x``: the type of all (N, C) tensors, and of all
arithmetic. Each pass reads its large tensors once and writes its result once.
"""

import math
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor

from snzoo.nn import kernels
from snzoo.nn.reference import Parameters, Recipe

# Elements of a tile: 16 for each of the 128 threads of four warps. These are two 16-byte loads
# in half precision and four in float32, and leave registers for two running sums of each.
TILE = 2048
# Channels of a tile that is channels last: 128 bytes side by side, a cache line, or more.
LINE = 64
# Reductions with fewer programs than this, what an H100's 132 multiprocessors hold at a time,
# are split over the positions, into parts of no fewer tiles than this: merging costs a launch.
PROGRAMS = 1024
PART = 4


def infer(
    x: Tensor,
    parameters: Parameters,
    recipe: Recipe,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """The layer in evaluation mode, in three launches, and what follows it."""
    parameters = parameters.flat()
    positions = x.shape[2:].numel()
    mean, var = moments(x, recipe.variance_factor(positions))
    mean, scale = coefficients(mean, var, parameters, recipe, positions)
    return affine(x, mean, scale, parameters.bias, shortcut, relu)


def moments(x: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """(N, C) mean, and biased variance times ``factor``, over the positions.

    Accurate where |mean| ≫ std too.
    """
    n, c, p = _sizes(x)
    plan = _plan(x, split=True)
    means, variances = _wide(x, n, plan.parts, c), _wide(x, n, plan.parts, c)
    whole = plan.parts == 1
    _cover(
        *(kernels.moments, plan, x, means, variances),
        tiles=plan.tiles,
        factor=factor if whole else 1.0,
    )
    if whole:
        return means[:, 0], variances[:, 0]
    mean, var = _wide(x, n, c), _wide(x, n, c)
    parts = triton.next_power_of_2(plan.parts)
    r = min(triton.next_power_of_2(c), max(TILE // parts, 1))
    blocks = triton.cdiv(c, r)
    scalars = (c, p, blocks, plan.parts, plan.tiles * plan.layout.b, factor, r, parts)
    _launch(kernels.merge, n * blocks, _warps(r * parts), means, variances, mean, var, *scalars)
    return mean, var


def coefficients(
    mean: Tensor, var: Tensor, parameters: Parameters, recipe: Recipe, positions: int
) -> tuple[Tensor, Tensor]:
    """(N, C) mixed mean of evaluation mode, and ``weight / sqrt(mixed variance + eps)``.

    ``mean`` and ``var`` are those of IN; ``parameters`` may be of any floating type.
    """
    n, c = mean.shape
    mean, var = mean.contiguous(), var.contiguous()
    mixed, scale = torch.empty_like(mean), torch.empty_like(mean)
    weight, _, mean_weight, var_weight, *running = parameters
    pointers = (mean, var, weight, mean_weight, var_weight, *running, mixed, scale)
    b = min(triton.next_power_of_2(c), TILE)
    factor = recipe.pooled_factor(c * positions)
    scalars = (c, triton.cdiv(c, b), recipe.eps, factor, int(recipe.instance))
    _launch(kernels.coefficients, n, _warps(b), *pointers, *scalars, len(mean_weight), b)
    return mixed, scale


def affine(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """``(x - mean) * scale + bias``, where asked for with ``+ shortcut`` and then ReLU.

    ``mean`` and ``scale`` are (N, C), ``bias`` is (C,) and of any floating type.
    """
    y = torch.empty_like(x)
    shortcut = None if shortcut is None else _laid_out_like(x, shortcut)
    rows = (mean.contiguous(), scale.contiguous(), bias.contiguous())
    _cover(kernels.affine, _plan(x, split=False), x, *rows, shortcut, y, RELU=relu)
    return y


def gradient_sums(grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """(N, C) sums over the positions of ``grad`` and of ``grad * (x - mean)``."""
    plan = _plan(x, split=True)
    n, c, _ = _sizes(x)
    sum_g, sum_gx = _wide(x, n, plan.parts, c), _wide(x, n, plan.parts, c)
    pointers = (x, _laid_out_like(x, grad), mean.contiguous(), sum_g, sum_gx)
    _cover(kernels.gradient_sums, plan, *pointers, tiles=plan.tiles)
    if plan.parts == 1:
        return sum_g[:, 0], sum_gx[:, 0]
    return sum_g.sum(1), sum_gx.sum(1)


def input_gradient(
    grad: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> Tensor:
    """``a * grad + b * (x - mean) + c``, the coefficients (N, C) like ``mean``."""
    dx = torch.empty_like(x)
    rows = (row.contiguous() for row in (mean, a, b, c))
    _cover(kernels.input_gradient, _plan(x, split=False), x, _laid_out_like(x, grad), *rows, dx)
    return dx


class _Layout(NamedTuple):
    channels_last: bool
    vector: int  # so many elements along the unit stride start together and end together
    r: int
    b: int


class _Plan(NamedTuple):
    """Each sample has ``blocks`` (of channels) × ``parts`` programs, of ``tiles`` tiles each."""

    blocks: int
    parts: int
    tiles: int
    layout: _Layout


def _plan(x: Tensor, *, split: bool) -> _Plan:
    """One tile a program; or, to reduce, only as many programs as the whole device needs."""
    n, c, p = _sizes(x)
    channels_last = _is_channels_last(x)
    positions, channels = triton.next_power_of_2(p), triton.next_power_of_2(c)
    b = min(positions, TILE // min(channels, LINE) if channels_last else TILE)
    r = min(channels, TILE // b)
    blocks, tiles = triton.cdiv(c, r), triton.cdiv(p, b)
    parts = max(min(PROGRAMS // (n * blocks), tiles // PART), 1) if split else tiles
    each = triton.cdiv(tiles, parts)
    vector = math.gcd(c if channels_last else p, 16)
    return _Plan(blocks, triton.cdiv(tiles, each), each, _Layout(channels_last, vector, r, b))


def _cover(kernel: Any, plan: _Plan, x: Tensor, *pointers: Tensor | None, **more: float) -> None:
    n, c, p = _sizes(x)
    blocks, parts, _, layout = plan
    # An element loaded alone needs an address and a mask of its own: fewer of them a thread.
    warps = _warps(layout.r * layout.b, each=16 if layout.vector >= 8 else 8)
    rest = (*pointers, c, p, blocks, parts, layout)
    _launch(kernel, n * blocks * parts, warps, x, *rest, **more)


def _warps(elements: int, *, each: int = 8) -> int:
    return min(max(elements // (32 * each), 1), 8)


def _launch(kernel: Any, programs: int, warps: int, x: Any, *rest: Any, **more: float) -> None:
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernel[(programs,)](x, *rest, **more, num_warps=warps)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2:].numel()


def _is_channels_last(x: Tensor) -> bool:
    if x.movedim(1, -1).is_contiguous():  # like all of a single position
        return True
    assert x.is_contiguous(), f"neither of the two layouts: strides {x.stride()}"
    return False


def _laid_out_like(x: Tensor, t: Tensor) -> Tensor:
    if t.shape != x.shape:
        raise ValueError(f"expected the shape of x, {tuple(x.shape)}, got {tuple(t.shape)}")
    if t.stride() == x.stride():
        return t
    return torch.empty_like(x, dtype=t.dtype).copy_(t)


def _wide(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))
