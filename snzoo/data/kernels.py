"""Loops over pixels, as LLVM instructions (extra ``[fast]``). Importing this imports llvmlite.

A pixel has 8 bits and a weight has 22, so that their product needs 32. Processors are faster at
multiplying pairs of 16 bits and adding both products. The weights are therefore split into halves
of 11 bits, and two taps are added at a time, once for each half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from snzoo.data.loops import BITS, HALF
from snzoo.llvm import (
    FLOAT,
    INT8,
    INT16,
    INT32,
    INT64,
    add_function,
    constant,
    join,
    load_at,
    loop,
    minimum,
    size,
    store_at,
    take,
)

HALF_BITS = BITS // 2
ROWS = 4  # rows that the pass across resizes at a time, with the same weights
# Pointers to bytes, integers and floats, and a size
TYPES = {"B": INT8.as_pointer(), "I": INT32.as_pointer(), "F": FLOAT.as_pointer(), "n": INT64}


def build(lanes: int) -> ir.Module:
    """Return the module of the loops, for registers that hold ``lanes`` 32-bit integers."""
    module = ir.Module("snzoo")
    _build_across(module)
    _build_down(module, 4 * lanes)
    _build_look_up(module)
    return module


def _begin(module: ir.Module, name: str, arguments: str) -> tuple[ir.IRBuilder, Sequence[Any]]:
    """Begin a function without a result; return its builder and its arguments, of ``TYPES``."""
    kinds = (TYPES[letter] for letter in arguments)
    function = add_function(module, name, ir.VoidType(), *kinds)
    return ir.IRBuilder(function.append_basic_block()), function.args


def _build_across(module: ir.Module) -> None:
    """Build the loop that resizes rows, (H, W, 3) → (H, w, 3), by weighted sums of neighbors::

        for y in range(height):
            for x in range(width):
                for c in range(3):
                    total = HALF
                    for k in range(taps):
                        total += weights[x, k] * pixels[y, first[x] + k, c]
                    out[y, x, c] = total >> BITS

    It takes several rows at a time. Rows that the last group lacks are the last row once more.
    """
    b, (pixels, row_bytes, first, weights, taps, halves, out, height, width) = _begin(
        module, "across", "BnIInIBnn"
    )
    _split(b, weights, halves, b.mul(width, taps))

    def resize_rows(y: Any) -> None:
        last = b.sub(height, size(1))
        places = [minimum(b, b.add(y, size(r)), last) for r in range(ROWS)]
        rows = [b.gep(pixels, [b.mul(place, row_bytes)]) for place in places]
        lines = [b.gep(out, [b.mul(place, b.mul(width, size(3)))]) for place in places]

        def resize_pixel(x: Any, exactly: bool) -> None:
            start = b.mul(b.sext(b.load(b.gep(first, [x])), INT64), size(3))
            starts = [b.gep(row, [start]) for row in rows]
            sums = _sum_neighbors(b, starts, b.gep(halves, [b.mul(x, taps)]), taps, exactly)
            for r, line in enumerate(lines):
                channels = take(b, sums, range(4 * r, 4 * r + (3 if exactly else 4)))
                store_at(b, channels, b.gep(line, [b.mul(x, size(3))]))

        # A pixel is written as four bytes, and the next pixel overwrites the fourth. The last pixel
        # of a row, and all of the last rows, are read and written exactly.
        is_last = b.icmp_signed(">=", b.add(y, size(ROWS)), height)
        middle = b.select(is_last, size(0), b.sub(width, size(1)))
        loop(b, size(0), middle, lambda x: resize_pixel(x, False))
        loop(b, middle, width, lambda x: resize_pixel(x, True))

    loop(b, size(0), height, resize_rows, step=ROWS)
    b.ret_void()


def _sum_neighbors(
    b: ir.IRBuilder, starts: Sequence[Any], halves: Any, taps: Any, exactly: bool
) -> Any:
    """Return a pixel of each row, of four bytes, of which the fourth is unused."""
    zeros = ir.Constant(ir.VectorType(INT8, 16 * ROWS), [0] * 16 * ROWS)
    zero = 16 * ROWS  # the number of the first lane of the zeros
    # The bytes of 16-bit numbers: for each row and channel, a pair of neighbors
    lanes = [
        lane
        for row in range(0, 16 * ROWS, 16)
        for c in range(4)
        for lane in ((row + c, zero, row + c + 3, zero) if c < 3 else (zero,) * 4)
    ]
    second = [lane + 6 if lane < zero else zero for lane in lanes]

    def add_four_taps(k: Any, *values: Any) -> Sequence[Any]:
        sums: Sequence[Any] = values
        at = b.mul(k, size(3))
        pixels = join(b, [_load_four(b, b.gep(start, [at]), exactly) for start in starts])
        for pair, order in enumerate((lanes, second)):
            shorts = b.bitcast(take(b, pixels, order, zeros), ir.VectorType(INT16, 8 * ROWS))
            sums = _add_pair(b, sums, shorts, halves, b.add(k, size(2 * pair)))
        return sums

    sums = loop(b, size(0), taps, add_four_taps, _begin_sums(4 * ROWS), 4)
    return b.trunc(_round(b, *sums), ir.VectorType(INT8, 4 * ROWS))


def _load_four(b: ir.IRBuilder, at: Any, exactly: bool) -> Any:
    """Load four pixels as 16 bytes, of which the last four are unused, and not read if exactly."""
    if not exactly:
        return load_at(b, at, INT8, 16)
    low, high = load_at(b, at, INT8, 8), load_at(b, b.gep(at, [size(8)]), INT8, 4)
    return join(b, [low, join(b, [high, high])])


def _build_down(module: ir.Module, block: int) -> None:
    """Build the loop that resizes columns, rows of ``length`` bytes, by weighted sums of rows::

        for y in range(height):
            for i in range(length):
                total = HALF
                for k in range(taps):
                    total += weights[y, k] * pixels[first[y] + k, i]
                out[y, i] = total >> BITS

    It takes blocks of columns whose sums fit into the registers. The last block begins earlier, so
    that it ends with the row. Rows that are shorter than a block are summed byte by byte.
    """
    b, (pixels, row_bytes, first, weights, taps, halves, out, height, length) = _begin(
        module, "down", "BnIInIBnn"
    )
    _split(b, weights, halves, b.mul(height, taps))
    is_short = b.icmp_signed("<", length, size(block))
    short = b.select(is_short, length, size(0))

    def resize_row(y: Any) -> None:
        start = b.gep(pixels, [b.mul(b.sext(b.load(b.gep(first, [y])), INT64), row_bytes)])
        to, at = b.gep(out, [b.mul(y, length)]), b.mul(y, taps)

        def resize_byte(i: Any) -> None:
            total = _sum_bytes(b, b.gep(start, [i]), row_bytes, b.gep(weights, [at]), taps)
            b.store(total, b.gep(to, [i]))

        def resize_block(i: Any) -> None:
            i = minimum(b, i, b.sub(length, size(block)))
            args = b.gep(start, [i]), row_bytes, b.gep(halves, [at]), taps
            store_at(b, _sum_blocks(b, *args, block), b.gep(to, [i]))

        loop(b, size(0), short, resize_byte)
        loop(b, short, length, resize_block, step=block)

    loop(b, size(0), height, resize_row)
    b.ret_void()


def _sum_bytes(b: ir.IRBuilder, start: Any, row_bytes: Any, weights: Any, taps: Any) -> Any:
    """Return the weighted sum of a column of bytes."""

    def add_tap(k: Any, total: Any) -> Sequence[Any]:
        pixel = b.zext(b.load(b.gep(start, [b.mul(k, row_bytes)])), INT32)
        return [b.add(total, b.mul(pixel, b.load(b.gep(weights, [k]))))]

    (total,) = loop(b, size(0), taps, add_tap, [INT32(HALF)])
    return b.trunc(b.lshr(total, INT32(BITS)), INT8)


def _sum_blocks(
    b: ir.IRBuilder, start: Any, row_bytes: Any, halves: Any, taps: Any, block: int
) -> Any:
    """Return the weighted sums of a column of blocks, each of 16 · n bytes.

    Two rows are interleaved within each 16 bytes, in words of two bytes. The first bytes of the
    words are then pairs to multiply, and so are the second bytes.
    """
    words = ir.VectorType(INT16, block // 2)
    quads = [range(i, i + 4) for i in range(0, words.count, 4)]
    mixed = [
        [x + row for q in quads[part::2] for x in q for row in (0, words.count)] for part in (0, 1)
    ]

    def add_two_taps(k: Any, *sums: Any) -> Sequence[Any]:
        at = b.gep(start, [b.mul(k, row_bytes)])
        row, below = (load_at(b, to, INT16, words.count) for to in (at, b.gep(at, [row_bytes])))
        results: list[Any] = []
        for order in mixed:
            both = take(b, row, order, below)
            for shorts in (
                b.and_(both, constant(both.type, 255)),
                b.lshr(both, constant(both.type, 8)),
            ):
                done = len(results)
                results += _add_pair(b, sums[done : done + 2], shorts, halves, k)
        return results

    sums = loop(b, size(0), taps, add_two_taps, _begin_sums(block // 4) * 4, 2)
    first, second, third, fourth = (_round(b, *sums[i : i + 2]) for i in range(0, 8, 2))
    low, high = (
        b.bitcast(b.or_(even, b.shl(odd, constant(odd.type, 8))), words)
        for even, odd in ((first, second), (third, fourth))
    )
    evens = [range(i, i + 8, 2) for i in range(0, words.count, 8)]  # the other words are zero
    order = [x + part for even in evens for part in (0, words.count) for x in even]
    return take(b, low, order, high)


def _split(b: ir.IRBuilder, weights: Any, halves: Any, count: Any) -> None:
    """Write the upper halves of two weights, and then their lower halves, for each two weights."""

    def split_pair(k: Any) -> None:
        pair = load_at(b, b.gep(weights, [k]), INT32, 2)
        upper = b.lshr(pair, constant(pair.type, HALF_BITS))
        lower = b.and_(pair, constant(pair.type, (1 << HALF_BITS) - 1))
        both = b.trunc(join(b, [upper, lower]), ir.VectorType(INT16, 4))
        store_at(b, both, b.gep(halves, [k]))

    loop(b, size(0), count, split_pair, step=2)


def _begin_sums(count: int) -> list[Any]:
    """Return vectors of sums without taps: for the upper halves of weights and for the lower."""
    kind = ir.VectorType(INT32, count)
    return [ir.Constant(kind, [value] * count) for value in (0, HALF)]


def _add_pair(b: ir.IRBuilder, sums: Sequence[Any], shorts: Any, halves: Any, k: Any) -> list[Any]:
    """Add taps k and k + 1, whose pixels are ``shorts``, to the sums of both halves."""
    weights = (b.load(b.gep(halves, [b.add(k, size(half))])) for half in (0, 1))
    return [_add_products(b, s, shorts, w) for s, w in zip(sums, weights, strict=True)]


def _add_products(b: ir.IRBuilder, sums: Any, pairs: Any, weights: Any) -> Any:
    """Add to each sum a pair of products. On x86, that is one instruction, ``pmaddwd``.

    Args:
        b: the builder.
        sums: the 32-bit sums.
        pairs: a pair of 16-bit factors for each sum.
        weights: a 32-bit integer that holds the pair of 16-bit weights, which all sums share.
    """
    count = sums.type.count
    weights = b.insert_element(
        ir.Constant(ir.VectorType(INT32, 1), ir.Undefined), weights, INT32(0)
    )
    weights = b.bitcast(take(b, weights, [0] * count), pairs.type)
    wide = ir.VectorType(INT32, 2 * count)
    products = b.mul(b.sext(pairs, wide), b.sext(weights, wide))
    even, odd = (take(b, products, range(first, 2 * count, 2)) for first in (0, 1))
    return b.add(sums, b.add(even, odd))


def _round(b: ir.IRBuilder, upper: Any, lower: Any) -> Any:
    """Return pixels, as 32-bit integers, from the sums of both halves."""
    total = b.add(b.shl(upper, constant(upper.type, HALF_BITS)), lower)
    return b.and_(b.lshr(total, constant(total.type, BITS)), constant(total.type, 255))


def _build_look_up(module: ir.Module) -> None:
    """Build the loop that converts pixels to floats, with a table for each channel::

        for n in range(count):
            for y in range(height):
                for x in range(width):
                    for c in range(3):
                        out[n, c, y, x] = table[c, pixels[n, c, y, x]]

    The strides are in elements.
    """
    b, (pixels, pn, pc, py, px, table, out, on, oc, oy, ox, count, height, width) = _begin(
        module, "look_up", "BnnnnFFnnnnnnn"
    )

    def convert_row(n: Any, y: Any) -> None:
        row = b.gep(pixels, [b.add(b.mul(n, pn), b.mul(y, py))])
        line = b.gep(out, [b.add(b.mul(n, on), b.mul(y, oy))])

        def convert_pixel(x: Any) -> None:
            for c in map(size, range(3)):
                at = b.add(b.mul(c, pc), b.mul(x, px))
                level = b.zext(b.load(b.gep(row, [at])), INT64)
                value = b.load(b.gep(table, [b.add(b.mul(c, size(256)), level)]))
                b.store(value, b.gep(line, [b.add(b.mul(c, oc), b.mul(x, ox))]))

        loop(b, size(0), width, convert_pixel)

    def convert_image(n: Any) -> None:
        loop(b, size(0), height, lambda y: convert_row(n, y))

    loop(b, size(0), count, convert_image)
    b.ret_void()
