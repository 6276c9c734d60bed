# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Triton kernels of the (N, C) part of the gradient: of columns, then of rows.

:mod:`snzoo.nn.backends.triton_mix` says why there are two.
"""

import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
from triton import language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]

from snzoo.nn.backends.triton_mix import SIZES, load_shares, pick


@triton.jit
def _gradients(weight, total, centered, var, offsets, c, there, C, eps):
    """Return 1 / sqrt(var + eps), the two sums, and the gradients of the mixed mean and variance.

    Where ``there`` is False, all but the first are 0.
    """
    wide: tl.constexpr = total.dtype.element_ty
    rstd = tl.rsqrt((tl.load(var + offsets, mask=there, other=1) + eps).to(wide))
    scale = tl.load(weight + c, mask=c < C, other=0).to(wide) * rstd
    sum_g = tl.load(total + offsets, mask=there, other=0)
    sum_gx = tl.load(centered + offsets, mask=there, other=0)
    return rstd, sum_g, sum_gx, -scale * sum_g, -0.5 * scale * rstd * rstd * sum_gx


@triton.jit
def _at(i, product):
    """Return the sum of ``product`` in place ``i``, and 0 in the other places of gates."""
    return tl.where(tl.arange(0, 4) == i, tl.sum(tl.sum(product, 1), 0), 0)


@triton.jit
def _by_shares(
    gradient, own, ln, bn, n, c, there, N, C, INSTANCE: tl.constexpr, LOGITS: tl.constexpr
):
    """Return the gradients of the shares, sum(gradient * statistic).

    The softmax's gradient needs only their differences, so for LOGITS the LN statistic is
    subtracted from all three: large and similar means would cancel later, with rounded sums.
    """
    pooled = tl.load(ln + n, mask=n < N, other=0)
    origin = pooled if LOGITS else pooled * 0
    found = _at(INSTANCE, gradient * (pooled - origin))
    if INSTANCE:
        found += _at(0, gradient * (tl.load(own + n * C + c, mask=there, other=0) - origin))
    if bn is not None:
        value = tl.load(bn + c, mask=c < C, other=0).to(gradient.dtype)
        found += _at(INSTANCE + 1, gradient * (value - origin))
    return found


@triton.jit(do_not_specialize=SIZES)
def reduce_columns(
    weight,
    total,
    centered,
    var,
    mean_in,
    var_in,
    mean_ln,
    var_ln,
    mean_bn,
    var_bn,
    to_weight,
    to_bias,
    sums,
    parts,
    N,
    C,
    tiles,
    eps: tl.float64,
    INSTANCE: tl.constexpr,
    LOGITS: tl.constexpr,
    R: tl.constexpr,
    B: tl.constexpr,
):
    """Store the gradients of ``weight`` and ``bias``, and what other programs need.

    ``sums`` (2, C) are over samples, of the mixture's gradients. ``parts`` (programs, 2, 4) are
    this program's part of the gradients of the shares.
    """
    wide: tl.constexpr = total.dtype.element_ty
    c = tl.program_id(0) * R + tl.arange(0, R)
    by_weight, by_bias = tl.zeros((R,), wide), tl.zeros((R,), wide)
    by_mean, by_var = tl.zeros((R,), wide), tl.zeros((R,), wide)
    by_mean_shares, by_var_shares = tl.zeros((4,), wide), tl.zeros((4,), wide)
    for k in range(tiles):
        n = (k * B + tl.arange(0, B)[:, None]).to(tl.int64)
        column = c[None, :]
        there = (n < N) & (column < C)
        rstd, sum_g, sum_gx, m, v = _gradients(
            weight, total, centered, var, n * C + column, column, there, C, eps
        )
        by_weight += tl.sum(rstd * sum_gx, 0)
        by_bias += tl.sum(sum_g, 0)
        by_mean += tl.sum(m, 0)
        by_var += tl.sum(v, 0)
        by_mean_shares += _by_shares(
            m, mean_in, mean_ln, mean_bn, n, column, there, N, C, INSTANCE, LOGITS
        )
        by_var_shares += _by_shares(
            v, var_in, var_ln, var_bn, n, column, there, N, C, INSTANCE, LOGITS
        )
    tl.store(to_weight + c, by_weight, mask=c < C)
    tl.store(to_bias + c, by_bias, mask=c < C)
    tl.store(sums + c, by_mean, mask=c < C)
    tl.store(sums + C + c, by_var, mask=c < C)
    parts += tl.program_id(0) * 8 + tl.arange(0, 4)
    tl.store(parts, by_mean_shares)
    tl.store(parts + 4, by_var_shares)


@triton.jit
def _store_gates(parts, blocks, gates, to_gates, NUM_GATES: tl.constexpr, LOGITS: tl.constexpr):
    """Store the gradients of the gates from the parts of those of their shares."""
    wide: tl.constexpr = parts.dtype.element_ty
    place = tl.arange(0, 4)
    found = tl.zeros((64, 4), wide)
    for k in range(tl.cdiv(blocks, 64)):
        block = k * 64 + tl.arange(0, 64)[:, None]
        found += tl.load(parts + block * 8 + place[None, :], mask=block < blocks, other=0)
    by_shares = tl.sum(found, 0)
    if LOGITS:
        shares = load_shares(gates, NUM_GATES, LOGITS, wide)
        by_shares = shares * (by_shares - tl.sum(shares * by_shares, 0))
    tl.store(to_gates + place, by_shares, mask=place < NUM_GATES)


@triton.jit(do_not_specialize=SIZES)
def spread_rows(
    weight,
    total,
    centered,
    var,
    mean_in,
    mean_ln,
    mean_bn,
    mean_gates,
    var_gates,
    sums,
    parts,
    to_mean_gates,
    to_var_gates,
    abc,
    N,
    C,
    tiles,
    blocks,
    eps: tl.float64,
    ln_factor: tl.float64,
    bn_factor: tl.float64,
    to_mean: tl.float64,
    to_var: tl.float64,
    INSTANCE: tl.constexpr,
    LOGITS: tl.constexpr,
    BATCH: tl.constexpr,
    NUM_GATES: tl.constexpr,
    B: tl.constexpr,
):
    """Store a, b and c of the input's gradient, (3, N, C), and the gradients of the gates.

    The arithmetic is that of :func:`snzoo.nn.functional.mix_backward`.
    """
    wide: tl.constexpr = total.dtype.element_ty
    n = tl.program_id(0).to(tl.int64)
    if n == N:  # one program more than samples
        _store_gates(parts, blocks, mean_gates, to_mean_gates, NUM_GATES, LOGITS)
        _store_gates(parts + 4, blocks, var_gates, to_var_gates, NUM_GATES, LOGITS)
    else:
        by_mean, by_var = tl.zeros((B,), wide), tl.zeros((B,), wide)
        for k in range(tiles):
            c = k * B + tl.arange(0, B)
            _, _, _, m, v = _gradients(weight, total, centered, var, n * C + c, c, c < C, C, eps)
            by_mean += m
            by_var += v
        mean_shares = load_shares(mean_gates, NUM_GATES, LOGITS, wide)
        var_shares = load_shares(var_gates, NUM_GATES, LOGITS, wide)
        m_ln = tl.sum(by_mean, 0) * pick(mean_shares, INSTANCE) / C
        v_ln = (tl.sum(by_var, 0) * pick(var_shares, INSTANCE) * ln_factor / C).to(wide)
        center = tl.load(mean_ln + n)
        for k in range(tiles):
            c = k * B + tl.arange(0, B)
            there = c < C
            rstd, _, _, m, v = _gradients(weight, total, centered, var, n * C + c, c, there, C, eps)
            mean = tl.load(mean_in + n * C + c, mask=there)
            by_mean = m_ln + 2 * (mean - center) * v_ln
            by_var = tl.zeros((B,), wide) + v_ln
            if INSTANCE:
                by_mean += m * pick(mean_shares, 0)
                by_var += v * pick(var_shares, 0)
            if BATCH:
                m_bn = tl.load(sums + c, mask=there) * pick(mean_shares, INSTANCE + 1) / N
                v_bn = tl.load(sums + C + c, mask=there) * pick(var_shares, INSTANCE + 1) / N
                v_bn = (v_bn * bn_factor).to(wide)
                by_mean += m_bn + 2 * (mean - tl.load(mean_bn + c, mask=there)) * v_bn
                by_var += v_bn
            scale = tl.load(weight + c, mask=there).to(wide) * rstd
            tl.store(abc + n * C + c, scale, mask=there)
            tl.store(abc + (N + n) * C + c, (by_var * to_var).to(wide), mask=there)
            tl.store(abc + (2 * N + n) * C + c, (by_mean * to_mean).to(wide), mask=there)
