# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Triton kernels of Switchable Normalization; :mod:`snzoo.nn.gpu` says what they are given.

A program covers tiles of R channels × B positions of one sample; the layout of ``x``
decides only the shape of the tile and which of its axes has the unit stride.
"""

import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
from triton import language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]

# Sizes are not specialized on: a 1 would become a constant, without a tensor's methods, and each
# that 16 divides a compilation. What the loads need to know of divisibility is layout.vector.
_SIZES = ["C", "P", "blocks", "parts", "tiles", "span"]


@triton.jit
def _place(blocks, parts, R: tl.constexpr):
    """This program's sample, first channel and part of the positions."""
    block, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    # In 64 bits, and with them every offset: N·C·P may be over 2³¹.
    return (block // blocks).to(tl.int64), block % blocks * R, part.to(tl.int64)


@triton.jit
def _rows(n, c, C, R: tl.constexpr):
    """Offsets into (N, C) of the R channels from c on, and which there are."""
    c += tl.arange(0, R)
    return n * C + c, c < C


@triton.jit
def _tile(n, c, p, C, P, B: tl.constexpr, LAYOUT: tl.constexpr):
    """Offsets of the R × B elements from channel c and position p on, and which there are."""
    c += tl.arange(0, LAYOUT.r)[:, None]
    p += tl.arange(0, B)[None, :]
    # Rounding down changes nothing, but tells the compiler how many elements go together.
    if LAYOUT.channels_last:
        C = C // LAYOUT.vector * LAYOUT.vector
        offsets = (n * P + p) * C + c
    else:
        P = P // LAYOUT.vector * LAYOUT.vector
        offsets = (n * C + c) * P + p
    return offsets, (c < C) & (p < P)


@triton.jit
def _include(mean, m2, value, seen):
    """Welford's step, each element for itself: ``value`` joins ``seen`` earlier ones.

    Written so that the first value, of which ``mean`` knows nothing, is taken over exactly.
    """
    kept = tl.cast(seen, mean.dtype)
    kept = kept / (kept + 1)
    delta = value - mean
    return value - delta * kept, m2 + delta * delta * kept


@triton.jit
def _join(mean, within, share, AXIS: tl.constexpr):
    """Chan's formula: mean and variance of groups of these means and shares of all values.

    ``within`` is what each group's variance about its own mean adds to the variance.
    """
    joint = tl.sum(mean * share, AXIS, keep_dims=True)
    # Shares are rounded: without this, equal and large means would seem to differ.
    joint += tl.sum((mean - joint) * share, AXIS, keep_dims=True)
    spread = mean - joint
    return joint, tl.sum(within + spread * spread * share, AXIS, keep_dims=True)


@triton.jit(do_not_specialize=_SIZES)
def moments(x, mean, var, C, P, blocks, parts, LAYOUT: tl.constexpr, tiles, factor: tl.float64):
    """Mean and variance · factor of each part of the positions, (N, parts, C)."""
    wide: tl.constexpr = mean.dtype.element_ty
    R: tl.constexpr = LAYOUT.r
    B: tl.constexpr = LAYOUT.b
    n, c, part = _place(blocks, parts, R)
    first = part * tiles * B
    # Distances from a first value are small where |mean| ≫ std, and round to smaller errors.
    column, known = _tile(n, c, first, C, P, 1, LAYOUT)
    origin = tl.load(x + column, mask=known, other=0).to(wide)
    average, m2 = tl.zeros((R, B), wide), tl.zeros((R, B), wide)
    for k in range(tiles):
        offsets, there = _tile(n, c, first + k * B, C, P, B, LAYOUT)
        value = tl.load(x + offsets, mask=there).to(wide) - origin
        # What is not there is taken for the mean so far, and so changes nothing.
        average, m2 = _include(average, m2, tl.where(there, value, average), k)
    count = tl.minimum(P - first, tiles * B)
    seen = ((count - tl.arange(0, B)[None, :] + B - 1) // B).to(wide)
    count = count.to(wide)
    average, variance = _join(average, m2 / count, seen / count, 1)
    rows, known = _rows(n * parts + part, c, C, R)
    tl.store((mean + rows)[:, None], average + origin, mask=known[:, None])
    tl.store((var + rows)[:, None], (variance * factor).to(wide), mask=known[:, None])


@triton.jit(do_not_specialize=_SIZES)
def merge(
    means,
    variances,
    mean,
    var,
    C,
    P,
    blocks,
    parts,
    span,
    factor: tl.float64,
    R: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The parts, each of ``span`` positions but for a shorter last one, as one: (N, C)."""
    n, c, _ = _place(blocks, 1, R)
    part = tl.arange(0, PARTS)[:, None].to(tl.int64)
    channel = c + tl.arange(0, R)[None, :]
    offsets, there = (n * parts + part) * C + channel, (part < parts) & (channel < C)
    average = tl.load(means + offsets, mask=there, other=0)
    share = tl.maximum(tl.minimum(P - part * span, span), 0).to(average.dtype) / P
    within = tl.load(variances + offsets, mask=there, other=0) * share
    average, variance = _join(average, within, share, 0)
    tl.store(mean + n * C + channel, average, mask=channel < C)
    variance = (variance * factor).to(average.dtype)
    tl.store(var + n * C + channel, variance, mask=channel < C)


@triton.jit
def _share(gates, kind, KINDS: tl.constexpr, wide: tl.constexpr):
    """``softmax(gates)[kind]``."""
    kinds = tl.arange(0, 4)
    gate = tl.load(gates + kinds, mask=kinds < KINDS, other=float("-inf")).to(wide)
    gate = tl.exp(gate - tl.max(gate, 0))
    return tl.sum(tl.where(kinds == kind, gate, 0), 0) / tl.sum(gate, 0)


@triton.jit
def _mix(own, ln, running, c, C, gates, INSTANCE: tl.constexpr, KINDS: tl.constexpr):
    """A statistic of the channels c: IN's if mixed in, then LN's, then BN's if there is one."""
    wide: tl.constexpr = own.dtype.element_ty
    mixed = ln * _share(gates, INSTANCE, KINDS, wide)
    if INSTANCE:
        mixed += tl.load(own + c, mask=c < C) * _share(gates, 0, KINDS, wide)
    if running is not None:
        value = tl.load(running + c, mask=c < C).to(wide)
        mixed += value * _share(gates, INSTANCE + 1, KINDS, wide)
    return mixed


@triton.jit(do_not_specialize=_SIZES)
def coefficients(
    mean_in,
    var_in,
    weight,
    mean_gates,
    var_gates,
    running_mean,
    running_var,
    mean,
    scale,
    C,
    tiles,
    eps: tl.float64,
    ln_factor: tl.float64,
    INSTANCE: tl.constexpr,
    KINDS: tl.constexpr,
    B: tl.constexpr,
):
    wide: tl.constexpr = mean_in.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * C
    average, m2, within = tl.zeros((B,), wide), tl.zeros((B,), wide), tl.zeros((B,), wide)
    for k in range(tiles):
        c = k * B + tl.arange(0, B)
        value = tl.load(mean_in + row + c, mask=c < C)
        average, m2 = _include(average, m2, tl.where(c < C, value, average), k)
        within += tl.load(var_in + row + c, mask=c < C, other=0)
    share = ((C - tl.arange(0, B) + B - 1) // B).to(wide) / C
    mean_ln, var_ln = _join(average, (m2 + within) / C, share, 0)
    var_ln = (var_ln * ln_factor).to(wide)
    for k in range(tiles):
        c = k * B + tl.arange(0, B)
        m = _mix(mean_in + row, mean_ln, running_mean, c, C, mean_gates, INSTANCE, KINDS)
        v = _mix(var_in + row, var_ln, running_var, c, C, var_gates, INSTANCE, KINDS)
        gain = tl.load(weight + c, mask=c < C).to(wide)
        tl.store(mean + row + c, m, mask=c < C)
        tl.store(scale + row + c, gain * tl.rsqrt((v + eps).to(wide)), mask=c < C)


@triton.jit(do_not_specialize=_SIZES)
def affine(
    x, mean, scale, bias, shortcut, y, C, P, blocks, parts, LAYOUT: tl.constexpr, RELU: tl.constexpr
):
    n, c, part = _place(blocks, parts, LAYOUT.r)
    offsets, there = _tile(n, c, part * LAYOUT.b, C, P, LAYOUT.b, LAYOUT)
    rows, known = _rows(n, c, C, LAYOUT.r)
    value = tl.load(x + offsets, mask=there).to(mean.dtype.element_ty)
    value -= tl.load(mean + rows, mask=known)[:, None]
    value *= tl.load(scale + rows, mask=known)[:, None]
    value += tl.load(bias + rows - n * C, mask=known)[:, None].to(value.dtype)
    if shortcut is not None:
        value += tl.load(shortcut + offsets, mask=there).to(value.dtype)
    if RELU:
        value = tl.where(value < 0, 0, value)  # NaN is not below 0, and stays
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=_SIZES)
def gradient_sums(x, g, mean, sum_g, sum_gx, C, P, blocks, parts, LAYOUT: tl.constexpr, tiles):
    """The sums over each part of the positions, (N, parts, C)."""
    wide: tl.constexpr = mean.dtype.element_ty
    R: tl.constexpr = LAYOUT.r
    B: tl.constexpr = LAYOUT.b
    n, c, part = _place(blocks, parts, R)
    rows, known = _rows(n, c, C, R)
    average = tl.load(mean + rows, mask=known, other=0)[:, None]
    total_g, total_gx = tl.zeros((R, B), wide), tl.zeros((R, B), wide)
    for k in range(tiles):
        offsets, there = _tile(n, c, (part * tiles + k) * B, C, P, B, LAYOUT)
        gradient = tl.load(g + offsets, mask=there, other=0).to(wide)
        value = tl.load(x + offsets, mask=there, other=0).to(wide)
        total_g += gradient
        total_gx += gradient * (value - average)
    rows, known = _rows(n * parts + part, c, C, R)
    tl.store(sum_g + rows, tl.sum(total_g, 1), mask=known)
    tl.store(sum_gx + rows, tl.sum(total_gx, 1), mask=known)


@triton.jit(do_not_specialize=_SIZES)
def input_gradient(x, g, mean, a, b, c, dx, C, P, blocks, parts, LAYOUT: tl.constexpr):
    n, channel, part = _place(blocks, parts, LAYOUT.r)
    offsets, there = _tile(n, channel, part * LAYOUT.b, C, P, LAYOUT.b, LAYOUT)
    rows, known = _rows(n, channel, C, LAYOUT.r)
    value = tl.load(x + offsets, mask=there).to(mean.dtype.element_ty)
    value -= tl.load(mean + rows, mask=known)[:, None]
    value = value * tl.load(b + rows, mask=known)[:, None] + tl.load(c + rows, mask=known)[:, None]
    gradient = tl.load(g + offsets, mask=there).to(value.dtype)
    value += tl.load(a + rows, mask=known)[:, None] * gradient
    tl.store(dx + offsets, value.to(dx.dtype.element_ty), mask=there)
