"""Loops over pixels that numba compiles (extra ``[fast]``). Importing this module imports numba."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from snzoo.data.loops import BITS, HALF, Bytes, Floats, Ints

BYTE, INT = ir.IntType(8), ir.IntType(32)
FOUR_BYTES, FOUR_INTS = ir.VectorType(BYTE, 4), ir.VectorType(INT, 4)


def across(pixels: Bytes, first: Ints, weights: Ints, out: Bytes) -> None:
    """Resize rows, (H, W, 3) → (H, w, 3), by weighted sums of neighbors."""
    for y in range(out.shape[0]):
        row, line = pixels[y].reshape(-1), out[y].reshape(-1)
        for x in range(out.shape[1]):
            sum_neighbors(row, 3 * first[x], weights, x, line, 3 * x)


def down(pixels: Bytes, first: Ints, weights: Ints, out: Bytes) -> None:
    """Resize columns, (H, W, 3) → (h, W, 3), by weighted sums of rows, four at a time."""
    size = 3 * out.shape[1]
    total = np.empty(size, np.int32)
    for y in range(out.shape[0]):
        row = out[y].reshape(-1)
        total[:] = HALF
        for k in range(0, weights.shape[1], 4):
            at, w = first[y] + k, weights[y]
            w0, w1, w2, w3 = w[k], w[k + 1], w[k + 2], w[k + 3]
            p0, p1 = pixels[at].reshape(-1), pixels[at + 1].reshape(-1)
            p2, p3 = pixels[at + 2].reshape(-1), pixels[at + 3].reshape(-1)
            for i in range(size):
                total[i] += (
                    w0 * np.int32(p0[i])
                    + w1 * np.int32(p1[i])
                    + w2 * np.int32(p2[i])
                    + w3 * np.int32(p3[i])
                )
        for i in range(size):
            row[i] = total[i] >> BITS


def look_up(pixels: Bytes, table: Floats, out: Floats) -> None:
    """Convert pixels (3, H, W) to float32: value p in channel c becomes ``table[c, p]``."""
    for c in range(3):
        for y in range(pixels.shape[1]):
            for x in range(pixels.shape[2]):
                out[c, y, x] = table[c, pixels[c, y, x]]


def _sum_neighbors(_: Any, row: Any, at: Any, weights: Any, x: Any, out: Any, to: Any) -> Any:
    """Compute one pixel of :func:`across` with vectors of its channels, for three times the speed.

    It is equal to::

        for c in range(3):
            total = HALF
            for k in range(weights.shape[1]):
                total += weights[x, k] * row[at + 3 * k + c]
            out[to + c] = total >> BITS

    numba itself does not use vectors here, because three channels are too few for a vector loop.
    """
    if any(array.layout != "C" for array in (row, weights, out)):
        return None
    return types.void(row, types.intp, weights, types.intp, out, types.intp), _build_sum


def _build_sum(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Emit the instructions of :func:`_sum_neighbors`."""
    row, weights, out = (
        context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 2, 4)
    )
    at, x, to = args[1], args[3], args[5]
    size = builder.extract_value(weights.shape, 1)
    start_value = ir.Constant(FOUR_INTS, [HALF] * 4)
    total = cgutils.alloca_once_value(builder, start_value)  # type: ignore[no-untyped-call]
    with cgutils.for_range_slice(builder, size.type(0), size, size.type(4)) as (k, _):
        weight_at = builder.gep(weights.data, [builder.add(builder.mul(x, size), k)])
        four = builder.load(builder.bitcast(weight_at, FOUR_INTS.as_pointer()), align=4)
        start = builder.add(at, builder.mul(k, size.type(3)))
        value = builder.load(total)
        for j in range(4):
            # The fourth byte of a load is the next pixel's and is ignored. The last load begins a
            # byte earlier, so that it ends with the pixel, which may be the last one of the image.
            begin, lanes = (3 * j, [0, 1, 2, 3]) if j < 3 else (8, [1, 2, 3, 3])
            byte_at = builder.gep(row.data, [builder.add(start, size.type(begin))])
            pixel = builder.load(builder.bitcast(byte_at, FOUR_BYTES.as_pointer()), align=1)
            pixel = builder.zext(_shuffle(builder, pixel, lanes), FOUR_INTS)
            weight = _shuffle(builder, four, [j] * 4)
            value = builder.add(value, builder.mul(pixel, weight))
        builder.store(value, total)
    rounded = builder.lshr(builder.load(total), ir.Constant(FOUR_INTS, [BITS] * 4))
    channels = _shuffle(builder, builder.trunc(rounded, FOUR_BYTES), [0, 1, 2])
    out_at = builder.bitcast(builder.gep(out.data, [to]), channels.type.as_pointer())
    builder.store(channels, out_at, align=1)
    return context.get_dummy_value()


def _shuffle(builder: Any, vector: Any, lanes: list[int]) -> Any:
    unused = ir.Constant(vector.type, ir.Undefined)
    order = ir.Constant(ir.VectorType(INT, len(lanes)), lanes)
    return builder.shuffle_vector(vector, unused, order)


sum_neighbors: Any = intrinsic(_sum_neighbors)
