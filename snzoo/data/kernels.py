"""Loops over pixels, as LLVM instructions (extra ``[fast]``). Importing this imports llvmlite.

A pixel has 8 bits and a weight has 22, so that their product needs 32. Processors are faster at
multiplying pairs of 16 bits and adding both products. The weights are therefore split into halves
of 11 bits, and two taps are added at a time, once for each half.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from snzoo.data import llvm
from snzoo.data.llvm import BYTE, INT, SHORT, SIZE, repeat, size
from snzoo.data.loops import BITS, HALF

HALF_BITS = BITS // 2
ROWS = 4  # rows that the pass across resizes at a time, with the same weights


def build(lanes: int) -> ir.Module:
    """Return the module of the loops, for registers that hold ``lanes`` 32-bit integers."""
    module = ir.Module("snzoo")
    _build_across(module)
    _build_down(module, 4 * lanes)
    _build_look_up(module)
    return module


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
    b, (pixels, row_bytes, first, weights, taps, halves, out, height, width) = llvm.begin(
        module, "across", "BnIInIBnn"
    )
    _split(b, weights, halves, b.mul(width, taps))

    def resize_rows(y: Any) -> None:
        last = b.sub(height, size(1))
        places = [llvm.smaller(b, b.add(y, size(r)), last) for r in range(ROWS)]
        rows = [b.gep(pixels, [b.mul(place, row_bytes)]) for place in places]
        lines = [b.gep(out, [b.mul(place, b.mul(width, size(3)))]) for place in places]

        def resize_pixel(x: Any, exactly: bool) -> None:
            start = b.mul(b.sext(b.load(b.gep(first, [x])), SIZE), size(3))
            starts = [b.gep(row, [start]) for row in rows]
            sums = _sum_neighbors(b, starts, b.gep(halves, [b.mul(x, taps)]), taps, exactly)
            for r, line in enumerate(lines):
                channels = llvm.take(b, sums, range(4 * r, 4 * r + (3 if exactly else 4)))
                llvm.store(b, channels, b.gep(line, [b.mul(x, size(3))]))

        # A pixel is written as four bytes, and the next pixel overwrites the fourth. The last pixel
        # of a row, and all of the last rows, are read and written exactly.
        is_last = b.icmp_signed(">=", b.add(y, size(ROWS)), height)
        middle = b.select(is_last, size(0), b.sub(width, size(1)))
        repeat(b, size(0), middle, 1, lambda x: resize_pixel(x, False))
        repeat(b, middle, width, 1, lambda x: resize_pixel(x, True))

    repeat(b, size(0), height, ROWS, resize_rows)
    b.ret_void()


def _sum_neighbors(
    b: ir.IRBuilder, starts: Sequence[Any], halves: Any, taps: Any, exactly: bool
) -> Any:
    """Return a pixel of each row, of four bytes, of which the fourth is unused."""
    zeros = ir.Constant(ir.VectorType(BYTE, 16 * ROWS), [0] * 16 * ROWS)
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
        pixels = llvm.join(b, [_load_four(b, b.gep(start, [at]), exactly) for start in starts])
        for pair, order in enumerate((lanes, second)):
            shorts = b.bitcast(llvm.take(b, pixels, order, zeros), ir.VectorType(SHORT, 8 * ROWS))
            sums = _add_pair(b, sums, shorts, halves, b.add(k, size(2 * pair)))
        return sums

    sums = repeat(b, size(0), taps, 4, add_four_taps, _begin_sums(4 * ROWS))
    return b.trunc(_round(b, *sums), ir.VectorType(BYTE, 4 * ROWS))


def _load_four(b: ir.IRBuilder, at: Any, exactly: bool) -> Any:
    """Load four pixels as 16 bytes, of which the last four are unused, and not read if exactly."""
    if not exactly:
        return llvm.load(b, at, BYTE, 16)
    low, high = llvm.load(b, at, BYTE, 8), llvm.load(b, b.gep(at, [size(8)]), BYTE, 4)
    return llvm.join(b, [low, llvm.join(b, [high, high])])


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
    b, (pixels, row_bytes, first, weights, taps, halves, out, height, length) = llvm.begin(
        module, "down", "BnIInIBnn"
    )
    _split(b, weights, halves, b.mul(height, taps))
    is_short = b.icmp_signed("<", length, size(block))
    short = b.select(is_short, length, size(0))

    def resize_row(y: Any) -> None:
        start = b.gep(pixels, [b.mul(b.sext(b.load(b.gep(first, [y])), SIZE), row_bytes)])
        to, at = b.gep(out, [b.mul(y, length)]), b.mul(y, taps)

        def resize_byte(i: Any) -> None:
            total = _sum_bytes(b, b.gep(start, [i]), row_bytes, b.gep(weights, [at]), taps)
            b.store(total, b.gep(to, [i]))

        def resize_block(i: Any) -> None:
            i = llvm.smaller(b, i, b.sub(length, size(block)))
            args = b.gep(start, [i]), row_bytes, b.gep(halves, [at]), taps
            llvm.store(b, _sum_blocks(b, *args, block), b.gep(to, [i]))

        repeat(b, size(0), short, 1, resize_byte)
        repeat(b, short, length, block, resize_block)

    repeat(b, size(0), height, 1, resize_row)
    b.ret_void()


def _sum_bytes(b: ir.IRBuilder, start: Any, row_bytes: Any, weights: Any, taps: Any) -> Any:
    """Return the weighted sum of a column of bytes."""

    def add_tap(k: Any, total: Any) -> Sequence[Any]:
        pixel = b.zext(b.load(b.gep(start, [b.mul(k, row_bytes)])), INT)
        return [b.add(total, b.mul(pixel, b.load(b.gep(weights, [k]))))]

    (total,) = repeat(b, size(0), taps, 1, add_tap, [INT(HALF)])
    return b.trunc(b.lshr(total, INT(BITS)), BYTE)


def _sum_blocks(
    b: ir.IRBuilder, start: Any, row_bytes: Any, halves: Any, taps: Any, block: int
) -> Any:
    """Return the weighted sums of a column of blocks, each of 16 · n bytes.

    Two rows are interleaved within each 16 bytes, in words of two bytes. The first bytes of the
    words are then pairs to multiply, and so are the second bytes.
    """
    words = ir.VectorType(SHORT, block // 2)
    quads = [range(i, i + 4) for i in range(0, words.count, 4)]
    mixed = [
        [x + row for q in quads[part::2] for x in q for row in (0, words.count)] for part in (0, 1)
    ]

    def add_two_taps(k: Any, *sums: Any) -> Sequence[Any]:
        at = b.gep(start, [b.mul(k, row_bytes)])
        row, below = (llvm.load(b, to, SHORT, words.count) for to in (at, b.gep(at, [row_bytes])))
        results: list[Any] = []
        for order in mixed:
            both = llvm.take(b, row, order, below)
            for shorts in (b.and_(both, llvm.fill(255, both)), b.lshr(both, llvm.fill(8, both))):
                done = len(results)
                results += _add_pair(b, sums[done : done + 2], shorts, halves, k)
        return results

    sums = repeat(b, size(0), taps, 2, add_two_taps, _begin_sums(block // 4) * 4)
    first, second, third, fourth = (_round(b, *sums[i : i + 2]) for i in range(0, 8, 2))
    low, high = (
        b.bitcast(b.or_(even, b.shl(odd, llvm.fill(8, odd))), words)
        for even, odd in ((first, second), (third, fourth))
    )
    evens = [range(i, i + 8, 2) for i in range(0, words.count, 8)]  # the other words are zero
    order = [x + part for even in evens for part in (0, words.count) for x in even]
    return llvm.take(b, low, order, high)


def _split(b: ir.IRBuilder, weights: Any, halves: Any, count: Any) -> None:
    """Write the upper halves of two weights, and then their lower halves, for each two weights."""

    def split_pair(k: Any) -> None:
        pair = llvm.load(b, b.gep(weights, [k]), INT, 2)
        upper = b.lshr(pair, llvm.fill(HALF_BITS, pair))
        lower = b.and_(pair, llvm.fill((1 << HALF_BITS) - 1, pair))
        both = b.trunc(llvm.join(b, [upper, lower]), ir.VectorType(SHORT, 4))
        llvm.store(b, both, b.gep(halves, [k]))

    repeat(b, size(0), count, 2, split_pair)


def _begin_sums(count: int) -> list[Any]:
    """Return vectors of sums without taps: for the upper halves of weights and for the lower."""
    kind = ir.VectorType(INT, count)
    return [ir.Constant(kind, [value] * count) for value in (0, HALF)]


def _add_pair(b: ir.IRBuilder, sums: Sequence[Any], shorts: Any, halves: Any, k: Any) -> list[Any]:
    """Add taps k and k + 1, whose pixels are ``shorts``, to the sums of both halves."""
    weights = (b.load(b.gep(halves, [b.add(k, size(half))])) for half in (0, 1))
    return [llvm.add_products(b, s, shorts, w) for s, w in zip(sums, weights, strict=True)]


def _round(b: ir.IRBuilder, upper: Any, lower: Any) -> Any:
    """Return pixels, as 32-bit integers, from the sums of both halves."""
    total = b.add(b.shl(upper, llvm.fill(HALF_BITS, upper)), lower)
    return b.and_(b.lshr(total, llvm.fill(BITS, total)), llvm.fill(255, total))


def _build_look_up(module: ir.Module) -> None:
    """Build the loop that converts pixels to floats, with a table for each channel::

        for n in range(count):
            for y in range(height):
                for x in range(width):
                    for c in range(3):
                        out[n, c, y, x] = table[c, pixels[n, c, y, x]]

    The strides are in elements.
    """
    b, (pixels, pn, pc, py, px, table, out, on, oc, oy, ox, count, height, width) = llvm.begin(
        module, "look_up", "BnnnnFFnnnnnnn"
    )

    def convert_row(n: Any, y: Any) -> None:
        row = b.gep(pixels, [b.add(b.mul(n, pn), b.mul(y, py))])
        line = b.gep(out, [b.add(b.mul(n, on), b.mul(y, oy))])

        def convert_pixel(x: Any) -> None:
            for c in map(size, range(3)):
                at = b.add(b.mul(c, pc), b.mul(x, px))
                level = b.zext(b.load(b.gep(row, [at])), SIZE)
                value = b.load(b.gep(table, [b.add(b.mul(c, size(256)), level)]))
                b.store(value, b.gep(line, [b.add(b.mul(c, oc), b.mul(x, ox))]))

        repeat(b, size(0), width, 1, convert_pixel)

    def convert_image(n: Any) -> None:
        repeat(b, size(0), height, 1, lambda y: convert_row(n, y))

    repeat(b, size(0), count, 1, convert_image)
    b.ret_void()
