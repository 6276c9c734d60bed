# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Triton kernels of Switchable Normalization, launched by :mod:`snzoo.nn.backends.triton`.

A program covers tiles of R channels × B positions of one sample. The layout of ``x``,
channels LAST or not, decides only the shape of the tile and which axis has the unit stride.
"""

import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
from triton import language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]

# Triton must not specialize on sizes: a 1 would become a constant, without a tensor's methods, and
# each size that 16 divides would be compiled anew. The loads learn divisibility from VECTOR.
_SIZES = ["C", "P", "blocks", "parts", "tiles", "span"]


@triton.jit
def _place(blocks, parts, R: tl.constexpr):
    """Return this program's sample, first channel and part of the positions."""
    block, part = tl.program_id(0) // parts, tl.program_id(0) % parts
    # 64 bits here make every offset 64 bits: N·C·P may exceed 2³¹.
    return (block // blocks).to(tl.int64), block % blocks * R, part.to(tl.int64)


@triton.jit
def _rows(n, c, C, R: tl.constexpr):
    """Return the offsets into (N, C) of R channels from c on, and a mask of those that exist."""
    c += tl.arange(0, R)
    return n * C + c, c < C


@triton.jit
def _tile(
    n, c, p, C, P, LAST: tl.constexpr, VECTOR: tl.constexpr, R: tl.constexpr, B: tl.constexpr
):
    """Return the offsets of R × B elements from channel c and position p on, and their mask."""
    c += tl.arange(0, R)[:, None]
    p += tl.arange(0, B)[None, :]
    # Rounding down changes nothing, but tells the compiler how many elements load together.
    if LAST:
        C = C // VECTOR * VECTOR
        offsets = (n * P + p) * C + c
    else:
        P = P // VECTOR * VECTOR
        offsets = (n * C + c) * P + p
    return offsets, (c < C) & (p < P)


@triton.jit
def include(mean, m2, value, seen):
    """Take Welford's step for each element: ``value`` joins ``seen`` earlier ones.

    The form makes the mean of the first value exactly that value.
    """
    kept = tl.cast(seen, mean.dtype)
    kept = kept / (kept + 1)
    delta = value - mean
    return value - delta * kept, m2 + delta * delta * kept


@triton.jit
def join(mean, within, share, AXIS: tl.constexpr):
    """Return the mean and variance of groups with these means and shares of all values (Chan).

    ``within`` is what each group's variance about its own mean adds to the variance.
    """
    joint = tl.sum(mean * share, AXIS, keep_dims=True)
    # Shares are rounded: without this step, equal and large means would seem to differ.
    joint += tl.sum((mean - joint) * share, AXIS, keep_dims=True)
    spread = mean - joint
    return joint, tl.sum(within + spread * spread * share, AXIS, keep_dims=True)


@triton.jit(do_not_specialize=_SIZES)
def moments(
    x,
    mean,
    var,
    C,
    P,
    blocks,
    parts,
    LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
    tiles,
    factor: tl.float64,
):
    """Store the mean and variance · factor of each part of the positions, (N, parts, C)."""
    wide: tl.constexpr = mean.dtype.element_ty
    n, c, part = _place(blocks, parts, R)
    first = part * tiles * B
    # Distances from a first value are small where |mean| ≫ std, and round to smaller errors.
    column, known = _tile(n, c, first, C, P, LAST, VECTOR, R, 1)
    origin = tl.load(x + column, mask=known, other=0).to(wide)
    average, m2 = tl.zeros((R, B), wide), tl.zeros((R, B), wide)
    for k in range(tiles):
        offsets, there = _tile(n, c, first + k * B, C, P, LAST, VECTOR, R, B)
        value = tl.load(x + offsets, mask=there).to(wide) - origin
        # An element that does not exist is replaced by the mean so far, which changes nothing.
        average, m2 = include(average, m2, tl.where(there, value, average), k)
    count = tl.minimum(P - first, tiles * B)
    seen = ((count - tl.arange(0, B)[None, :] + B - 1) // B).to(wide)
    count = count.to(wide)
    average, variance = join(average, m2 / count, seen / count, 1)
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
    """Join the parts, of ``span`` positions each and a shorter last one, into (N, C)."""
    n, c, _ = _place(blocks, 1, R)
    part = tl.arange(0, PARTS)[:, None].to(tl.int64)
    channel = c + tl.arange(0, R)[None, :]
    offsets, there = (n * parts + part) * C + channel, (part < parts) & (channel < C)
    average = tl.load(means + offsets, mask=there, other=0)
    share = tl.maximum(tl.minimum(P - part * span, span), 0).to(average.dtype) / P
    within = tl.load(variances + offsets, mask=there, other=0) * share
    average, variance = join(average, within, share, 0)
    tl.store(mean + n * C + channel, average, mask=channel < C)
    variance = (variance * factor).to(average.dtype)
    tl.store(var + n * C + channel, variance, mask=channel < C)


@triton.jit(do_not_specialize=_SIZES)
def affine(
    x,
    mean,
    scale,
    bias,
    shortcut,
    y,
    C,
    P,
    blocks,
    parts,
    LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
    RELU: tl.constexpr,
):
    n, c, part = _place(blocks, parts, R)
    offsets, there = _tile(n, c, part * B, C, P, LAST, VECTOR, R, B)
    rows, known = _rows(n, c, C, R)
    value = tl.load(x + offsets, mask=there).to(mean.dtype.element_ty)
    value -= tl.load(mean + rows, mask=known)[:, None]
    value *= tl.load(scale + rows, mask=known)[:, None]
    value += tl.load(bias + rows - n * C, mask=known)[:, None].to(value.dtype)
    if shortcut is not None:
        value += tl.load(shortcut + offsets, mask=there).to(value.dtype)
    if RELU:
        value = tl.where(value < 0, 0, value)  # keeps NaN, which is not below 0
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=_SIZES)
def gradient_sums(
    x,
    g,
    mean,
    sum_g,
    sum_gx,
    C,
    P,
    blocks,
    parts,
    LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
    tiles,
):
    """Store the sums over each part of the positions, (N, parts, C)."""
    wide: tl.constexpr = mean.dtype.element_ty
    n, c, part = _place(blocks, parts, R)
    rows, known = _rows(n, c, C, R)
    average = tl.load(mean + rows, mask=known, other=0)[:, None]
    total_g, total_gx = tl.zeros((R, B), wide), tl.zeros((R, B), wide)
    for k in range(tiles):
        offsets, there = _tile(n, c, (part * tiles + k) * B, C, P, LAST, VECTOR, R, B)
        gradient = tl.load(g + offsets, mask=there, other=0).to(wide)
        value = tl.load(x + offsets, mask=there, other=0).to(wide)
        total_g += gradient
        total_gx += gradient * (value - average)
    rows, known = _rows(n * parts + part, c, C, R)
    tl.store(sum_g + rows, tl.sum(total_g, 1), mask=known)
    tl.store(sum_gx + rows, tl.sum(total_gx, 1), mask=known)


@triton.jit(do_not_specialize=_SIZES)
def input_gradient(
    x,
    g,
    mean,
    a,
    b,
    c,
    dx,
    C,
    P,
    blocks,
    parts,
    LAST: tl.constexpr,
    VECTOR: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
):
    n, channel, part = _place(blocks, parts, R)
    offsets, there = _tile(n, channel, part * B, C, P, LAST, VECTOR, R, B)
    rows, known = _rows(n, channel, C, R)
    value = tl.load(x + offsets, mask=there).to(mean.dtype.element_ty)
    value -= tl.load(mean + rows, mask=known)[:, None]
    value = value * tl.load(b + rows, mask=known)[:, None] + tl.load(c + rows, mask=known)[:, None]
    gradient = tl.load(g + offsets, mask=there).to(value.dtype)
    value += tl.load(a + rows, mask=known)[:, None] * gradient
    tl.store(dx + offsets, value.to(dx.dtype.element_ty), mask=there)
