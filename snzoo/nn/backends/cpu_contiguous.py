"""Contiguous activations, for the loops of :mod:`snzoo.nn.backends.cpu_kernels`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from snzoo.llvm import (
    DOUBLE,
    FLOAT,
    Value,
    constant,
    for_lanes,
    load,
    loop,
    maximum,
    minimum,
    reverse,
    size,
    splat,
    store,
    sum_over,
    to_double,
    to_float,
)
from snzoo.nn.backends.cpu_layout import Add, Layout

BLOCK = 1 << 11  # positions that are added in float32


class Contiguous(Layout):
    """A unit is a channel of a sample, a row of positions."""

    def count_parts(self) -> Value:
        return size(1)

    def count_units(self) -> Value:
        return self.b.mul(self.samples, self.channels)

    def _split(self, row: Value) -> tuple[Value, Value, Value]:
        """Return the sample, the channel and the index of the first value of a row."""
        b, c = self.b, self.channels
        return b.sdiv(row, c), b.srem(row, c), b.mul(row, self.positions)

    def sum_moments(self, first: Value, last: Value) -> None:
        b = self.b

        def of_row(row: Value) -> None:
            sample, channel, line = self._split(row)

            def write(near: Value) -> tuple[Value, Value]:
                sums = self._sum_row(line, near, self.add_distances)
                own_mean, own_var, is_far = self.moments_from_sums(near, *sums)
                for at, value in zip(self.statistics_of(sample), (own_mean, own_var), strict=True):
                    store(b, value, at, channel)
                return own_mean, is_far

            own_mean, is_far = write(self.load_from(self.x, line))
            with b.if_then(is_far, likely=False):
                write(to_float(b, own_mean))

        loop(b, first, last, of_row)

    def join_moments(self, needs_sums: Value) -> None:
        """Do nothing: a row has one sum."""

    def sum_pairs(self, first: Value, last: Value, add: Add) -> None:
        b = self.b

        def of_row(row: Value) -> None:
            sample, channel, line = self._split(row)
            near = to_float(b, load(b, self.statistics_of(sample)[0], channel, DOUBLE))
            sums = self._sum_row(line, near, add)
            for at, value in zip(self.sums_of(sample), sums, strict=True):
                store(b, value, at, channel)

        loop(b, first, last, of_row)

    def _sum_row(self, line: Value, near: Value, add: Add) -> list[Value]:
        b, zero = self.b, constant(DOUBLE, 0)

        def add_lanes(width: int, i: Value, *totals: Value) -> Sequence[Value]:
            return add(b.add(line, i), splat(b, near, width), *totals)

        def of_block(start: Value, *totals: Value) -> list[Value]:
            stop = minimum(b, b.add(start, size(BLOCK)), self.positions)
            parts = sum_over(b, FLOAT, start, stop, add_lanes, 2)
            return [b.fadd(t, to_double(b, part)) for t, part in zip(totals, parts, strict=True)]

        return loop(b, size(0), self.positions, of_block, [zero, zero], BLOCK)

    def write(self, first: Value, last: Value) -> None:
        b, c = self.b, self.channels
        start = b.sdiv(first, c)
        stop = b.sdiv(b.add(last, b.sub(c, size(1))), c)

        def of_sample(i: Value) -> None:
            sample = reverse(b, start, stop, i)
            begin = b.mul(sample, c)
            rows = maximum(b, first, begin), minimum(b, last, b.add(begin, c))
            self.prepare(sample, *(b.sub(row, begin) for row in rows))
            self.for_variants(partial(self._write_rows, *rows))

        loop(b, start, stop, of_sample)

    def _write_rows(self, start: Value, stop: Value, with_shortcut: bool) -> None:
        b = self.b

        def of_row(i: Value) -> None:
            _, channel, line = self._split(reverse(b, start, stop, i))
            arrays = self.arrays[: self.COEFFICIENTS]
            values = [load(b, array, channel, FLOAT) for array in arrays]

            def write(width: int, i: Value) -> None:
                coefficients = [splat(b, value, width) for value in values]
                self.put(b.add(line, i), coefficients, with_shortcut)

            for_lanes(b, size(0), self.positions, write)

        loop(b, start, stop, of_row)
