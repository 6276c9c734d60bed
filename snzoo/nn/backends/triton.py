"""The GPU backend: launches of the kernels in :mod:`snzoo.nn.backends.triton_kernels`.

``x`` is of any floating dtype. ``grad`` and ``shortcut`` have its shape and any layout. All
arithmetic is wide. Each pass reads its large tensors once and writes its result once.
:class:`snzoo.nn.backends.Backend` says what the functions do.
"""

import math
from typing import Any, NamedTuple

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor

from snzoo.nn.backends import triton_kernels as kernels
from snzoo.nn.backends import triton_mix as mix
from snzoo.nn.backends import triton_mix_backward as mix_backward
from snzoo.nn.backends._layout import lay_out_like, to_dense
from snzoo.nn.functional import Config, LayerTensors, Mixture, Statistics, num_positions

# Elements of a tile: 16 for each of the 128 threads of four warps. These are two 16-byte loads
# in half precision and four in float32, and leave registers for two running sums of each.
TILE = 2048
# Channels of a tile of a channels-last tensor: 128 bytes side by side, a cache line, or more.
LINE = 64
# An H100's 132 multiprocessors hold so many programs at a time. A reduction with fewer is split
# over the positions, into parts of at least PART tiles, because merging them costs a launch.
PROGRAMS = 1024
PART = 4

prepare = to_dense


def infer(
    x: Tensor,
    tensors: LayerTensors,
    config: Config,
    shortcut: Tensor | None = None,
    relu: bool = False,
    overwrite: bool = False,
) -> Tensor:
    """Normalize, add and rectify in three launches."""
    x, tensors = prepare(x), _in_rows(tensors.flat(), x.shape[1], config)
    positions = num_positions(x)
    mean, var = moments(x, config.variance_factor(positions))
    mixed, scale = torch.empty_like(mean), torch.empty_like(mean)
    running = tensors.running_mean, tensors.running_var
    _mix_rows(mean, var, tensors, config, positions, running, mixed, scale)
    return affine(x, mixed, scale, tensors.bias, shortcut, relu, overwrite)


def moments(x: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """Compute the moments accurately, also where |mean| ≫ std."""
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
    scalars = (c, p, blocks, plan.parts, plan.tiles * plan.b, factor, r, parts)
    _launch(kernels.merge, n * blocks, _warps(r * parts), means, variances, mean, var, *scalars)
    return mean, var


def coefficients(
    mean: Tensor, var: Tensor, tensors: LayerTensors, config: Config, positions: int
) -> tuple[Mixture, Tensor]:
    """Mix in one launch, or in two if BN statistics are the batch's."""
    n, c = mean.shape
    tensors = _in_rows(tensors, c, config)
    mean, var = mean.contiguous(), var.contiguous()
    stats = [Statistics(mean, var)] if config.instance else []
    ln_mean, ln_var = mean.new_empty(n, 1), mean.new_empty(n, 1)
    stats.append(Statistics(ln_mean, ln_var, 1, config.pooled_factor(c * positions)))
    bn = tensors.running_mean, tensors.running_var
    if config.batch:
        bn_mean, bn_var = bn = mean.new_empty(1, c), mean.new_empty(1, c)
        factor = config.pooled_factor(n * positions)
        stats.append(Statistics(bn_mean, bn_var, 0, factor))
        blocks, tiles, r, b = _columns(n, c)
        scalars = (n, c, tiles, factor, r, b)
        _launch(mix.pool_columns, blocks, _warps(r * b), mean, var, *bn, *scalars)
    elif bn[0] is not None and bn[1] is not None:
        stats.append(Statistics(bn[0][None], bn[1][None], from_input=False))
    mixed, mixed_var, scale = (torch.empty_like(mean) for _ in range(3))
    kept = mixed_var, ln_mean, ln_var
    _mix_rows(mean, var, tensors, config, positions, bn, mixed, scale, *kept)
    return Mixture(mixed, mixed_var, stats), scale


def _in_rows(tensors: LayerTensors, channels: int, config: Config) -> LayerTensors:
    """Return the tensors as the kernels read them, contiguous.

    Raises:
        ValueError: one of them has another number of values than the layer needs.
    """
    sizes = tensors.sizes(channels, config)
    for name, t, size in zip(tensors._fields, tensors, sizes, strict=True):
        if t is not None and t.numel() != size:
            raise ValueError(f"{name} has {t.numel()} values; a layer of this input has {size}")
    return LayerTensors(*(None if t is None else t.contiguous() for t in tensors))  # type: ignore[arg-type]


def _mix_rows(
    mean: Tensor,
    var: Tensor,
    tensors: LayerTensors,
    config: Config,
    positions: int,
    bn: tuple[Tensor | None, Tensor | None],
    *results: Tensor,
) -> None:
    """Write the mixed mean and the scale, and if given the mixed variance and LN statistics.

    ``tensors`` may be of any floating dtype.
    """
    n, c = mean.shape
    pointers = (mean, var, tensors.weight, tensors.mean_weight, tensors.var_weight, *bn)
    rest = (None,) * (5 - len(results))
    b = min(triton.next_power_of_2(c), TILE)
    factor = config.pooled_factor(c * positions)
    flags = (config.instance, len(tensors.mean_weight), not config.shares)
    scalars = (c, triton.cdiv(c, b), config.eps, factor, *flags, b)
    _launch(mix.mix_rows, n, _warps(b), *pointers, *results, *rest, *scalars)


def _columns(n: int, c: int) -> tuple[int, int, int, int]:
    """Return programs, and tiles of each, their channels and their samples, to cover (N, C).

    32 bytes side by side load at once, and a cache line has 128.
    """
    r = min(triton.next_power_of_2(c), max(TILE // triton.next_power_of_2(n), 8), 32)
    b = min(triton.next_power_of_2(n), max(TILE // r, 1))
    return triton.cdiv(c, r), triton.cdiv(n, b), r, b


def affine(
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    bias: Tensor,
    shortcut: Tensor | None = None,
    relu: bool = False,
    overwrite: bool = False,
) -> Tensor:
    """Return ``(x - mean) * scale + bias``, with ``+ shortcut`` and then ReLU if asked for.

    ``mean`` and ``scale`` are (N, C), ``bias`` is (C,) and of any floating dtype. With
    ``overwrite`` the result is written over ``x``.
    """
    y = x if overwrite else torch.empty_like(x)
    shortcut = None if shortcut is None else lay_out_like(x, shortcut)
    rows = (mean.contiguous(), scale.contiguous(), bias.contiguous())
    _cover(kernels.affine, _plan(x, split=False), x, *rows, shortcut, y, RELU=relu)
    return y


def gradient_sums(grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    plan = _plan(x, split=True)
    n, c, _ = _sizes(x)
    sums = _wide(x, 2, n, plan.parts, c)
    pointers = (x, lay_out_like(x, grad), mean.contiguous(), sums[0], sums[1])
    _cover(kernels.gradient_sums, plan, *pointers, tiles=plan.tiles)
    total, centered = sums[:, :, 0] if plan.parts == 1 else sums.sum(2)
    return total, centered


def gradient_coefficients(
    total: Tensor,
    centered: Tensor,
    mixture: Mixture,
    mean: Tensor,
    tensors: LayerTensors,
    config: Config,
    positions: int,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
    """Compute them in two launches."""
    n, c = mean.shape
    ln, *bn = mixture.stats[int(config.instance) :]
    bn_mean, bn_var = bn[0][:2] if bn else (None, None)
    weight, bias, mean_gates, var_gates, *_ = _in_rows(tensors, c, config)
    grads = tuple(torch.empty_like(t) for t in (weight, bias, mean_gates, var_gates))
    own = (weight, *(values.contiguous() for values in (total, centered, mixture.var, mean)))
    flags = (config.instance, not config.shares)

    blocks, tiles, r, b = _columns(n, c)
    sums, parts = mean.new_empty(2, c), mean.new_empty(blocks, 2, 4)
    pointers: tuple[Tensor | None, ...] = (mixture.stats[0].var, ln.mean, ln.var, bn_mean, bn_var)
    pointers = (*own, *pointers, *grads[:2], sums, parts)
    scalars: tuple[float, ...] = (n, c, tiles, config.eps, *flags, r, b)
    _launch(mix_backward.reduce_columns, blocks, _warps(r * b), *pointers, *scalars)

    a_b_c, b = mean.new_empty(3, n, c), min(triton.next_power_of_2(c), TILE)
    pointers = (*own, ln.mean, bn_mean, mean_gates, var_gates, sums, parts, *grads[2:], a_b_c)
    factors = (1 / positions, 2 * config.variance_factor(positions) / positions)
    scalars = (n, c, triton.cdiv(c, b), blocks, config.eps, ln.factor, bn[0].factor if bn else 1)
    scalars = (*scalars, *factors, *flags, config.batch, len(mean_gates), b)
    _launch(mix_backward.spread_rows, n + 1, _warps(b), *pointers, *scalars)
    return (a_b_c[0], a_b_c[1], a_b_c[2]), grads


def input_gradient(
    grad: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor
) -> Tensor:
    dx = torch.empty_like(x)
    rows = (row.contiguous() for row in (mean, a, b, c))
    _cover(kernels.input_gradient, _plan(x, split=False), x, lay_out_like(x, grad), *rows, dx)
    return dx


class _Plan(NamedTuple):
    """Each sample has ``blocks`` (of channels) × ``parts`` programs of ``tiles`` tiles each."""

    blocks: int
    parts: int
    tiles: int
    channels_last: bool
    vector: int  # divides the number of elements along the unit stride, so they load together
    r: int  # channels of a tile
    b: int  # positions of a tile


def _plan(x: Tensor, *, split: bool) -> _Plan:
    """Give each program one tile; with ``split``, for a reduction, just fill the device."""
    n, c, p = _sizes(x)
    channels_last = _is_channels_last(x)
    positions, channels = triton.next_power_of_2(p), triton.next_power_of_2(c)
    b = min(positions, TILE // min(channels, LINE) if channels_last else TILE)
    r = min(channels, TILE // b)
    blocks, tiles = triton.cdiv(c, r), triton.cdiv(p, b)
    parts = max(min(PROGRAMS // (n * blocks), tiles // PART), 1) if split else tiles
    each = triton.cdiv(tiles, parts)
    vector = math.gcd(c if channels_last else p, 16)
    return _Plan(blocks, triton.cdiv(tiles, each), each, channels_last, vector, r, b)


def _cover(kernel: Any, plan: _Plan, x: Tensor, *pointers: Tensor | None, **more: float) -> None:
    n, c, p = _sizes(x)
    blocks, parts, _, channels_last, vector, r, b = plan
    # Elements loaded one by one need an address and a mask each: give a thread fewer of them.
    warps = _warps(r * b, each=16 if vector >= 8 else 8)
    rest = (*pointers, c, p, blocks, parts, channels_last, vector, r, b)
    _launch(kernel, n * blocks * parts, warps, x, *rest, **more)


def _warps(elements: int, *, each: int = 8) -> int:
    return min(max(elements // (32 * each), 1), 8)


def _launch(kernel: Any, programs: int, warps: int, x: Any, *rest: Any, **more: float) -> None:
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        kernel[(programs,)](x, *rest, **more, num_warps=warps)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], num_positions(x)


def _is_channels_last(x: Tensor) -> bool:
    if x.movedim(1, -1).is_contiguous():  # as is every tensor of a single position
        return True
    assert x.is_contiguous(), f"neither contiguous nor channels last: strides {x.stride()}"
    return False


def _wide(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.promote_types(x.dtype, torch.float32))
