# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
"""Triton kernels that mix statistics (N, C), launched by :mod:`snzoo.nn.backends.triton`.

LN pools a row, the channels of a sample, and BN a column, the samples of a channel. A single
program would take longer than many launches where N·C is large, and programs of one launch can't
wait for each other. So one kernel reduces columns, R to a program, and the next one has a program
for each row, which reduces it and then writes it. No sum depends on which program runs first.
"""

import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
from triton import language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]

from snzoo.nn.backends.triton_kernels import include, join

# See triton_kernels.
SIZES = ["N", "C", "tiles", "blocks"]


@triton.jit
def load_shares(gates, NUM_GATES: tl.constexpr, LOGITS: tl.constexpr, wide: tl.constexpr):
    """Return the shares, the softmax of ``gates`` if they are logits, in 4 places.

    There are at most three, and Triton has only vectors of powers of 2.
    """
    place = tl.arange(0, 4)
    absent: tl.constexpr = float("-inf") if LOGITS else 0.0
    shares = tl.load(gates + place, mask=place < NUM_GATES, other=absent).to(wide)
    if LOGITS:
        shares = tl.exp(shares - tl.max(shares, 0))
        shares /= tl.sum(shares, 0)
    return shares


@triton.jit
def pick(shares, i):
    return tl.sum(tl.where(tl.arange(0, 4) == i, shares, 0), 0)


@triton.jit(do_not_specialize=SIZES)
def pool_columns(
    mean_in,
    var_in,
    mean,
    var,
    N,
    C,
    tiles,
    factor: tl.float64,
    R: tl.constexpr,
    B: tl.constexpr,
):
    """Store the BN mean and variance · factor (C,), from those of IN."""
    wide: tl.constexpr = mean_in.dtype.element_ty
    c = tl.program_id(0) * R + tl.arange(0, R)[None, :]
    average, m2, within = tl.zeros((B, R), wide), tl.zeros((B, R), wide), tl.zeros((B, R), wide)
    for k in range(tiles):
        n = (k * B + tl.arange(0, B)[:, None]).to(tl.int64)
        there = (n < N) & (c < C)
        value = tl.load(mean_in + n * C + c, mask=there)
        average, m2 = include(average, m2, tl.where(there, value, average), k)
        within += tl.load(var_in + n * C + c, mask=there, other=0)
    share = ((N - tl.arange(0, B)[:, None] + B - 1) // B).to(wide) / N
    mean_bn, var_bn = join(average, (m2 + within) / N, share, 0)
    tl.store(mean + c, mean_bn, mask=c < C)
    tl.store(var + c, (var_bn * factor).to(wide), mask=c < C)


@triton.jit
def _mix(own, ln, bn, c, C, shares, INSTANCE: tl.constexpr):
    """Return the mixed statistic of the channels c: of IN if mixed in, LN, and BN if mixed in."""
    mixed = ln * pick(shares, INSTANCE)
    if INSTANCE:
        mixed += tl.load(own + c, mask=c < C) * pick(shares, 0)
    if bn is not None:
        mixed += tl.load(bn + c, mask=c < C).to(mixed.dtype) * pick(shares, INSTANCE + 1)
    return mixed


@triton.jit(do_not_specialize=SIZES)
def mix_rows(
    mean_in,
    var_in,
    weight,
    mean_gates,
    var_gates,
    mean_bn,
    var_bn,
    mean,
    scale,
    var,
    mean_ln,
    var_ln,
    C,
    tiles,
    eps: tl.float64,
    ln_factor: tl.float64,
    INSTANCE: tl.constexpr,
    NUM_GATES: tl.constexpr,
    LOGITS: tl.constexpr,
    B: tl.constexpr,
):
    """Store the mixed mean and ``weight / sqrt(mixed variance + eps)``.

    With ``var``, store the mixed variance and the LN statistics (N,) too.
    """
    wide: tl.constexpr = mean_in.dtype.element_ty
    n = tl.program_id(0).to(tl.int64)
    row = n * C
    average, m2, within = tl.zeros((B,), wide), tl.zeros((B,), wide), tl.zeros((B,), wide)
    for k in range(tiles):
        c = k * B + tl.arange(0, B)
        value = tl.load(mean_in + row + c, mask=c < C)
        average, m2 = include(average, m2, tl.where(c < C, value, average), k)
        within += tl.load(var_in + row + c, mask=c < C, other=0)
    share = ((C - tl.arange(0, B) + B - 1) // B).to(wide) / C
    m_ln, v_ln = join(average, (m2 + within) / C, share, 0)
    v_ln = (v_ln * ln_factor).to(wide)
    if var is not None:
        tl.store(mean_ln + n + tl.arange(0, 1), m_ln)
        tl.store(var_ln + n + tl.arange(0, 1), v_ln)
    mean_shares = load_shares(mean_gates, NUM_GATES, LOGITS, wide)
    var_shares = load_shares(var_gates, NUM_GATES, LOGITS, wide)
    for k in range(tiles):
        c = k * B + tl.arange(0, B)
        m = _mix(mean_in + row, m_ln, mean_bn, c, C, mean_shares, INSTANCE)
        v = _mix(var_in + row, v_ln, var_bn, c, C, var_shares, INSTANCE)
        gain = tl.load(weight + c, mask=c < C).to(wide)
        tl.store(mean + row + c, m, mask=c < C)
        tl.store(scale + row + c, gain * tl.rsqrt((v + eps).to(wide)), mask=c < C)
        if var is not None:
            tl.store(var + row + c, v, mask=c < C)
