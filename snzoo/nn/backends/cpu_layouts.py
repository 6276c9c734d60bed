"""The loops of :mod:`snzoo.nn.backends.cpu_kernels` for both layouts."""

from __future__ import annotations

from functools import partial
from typing import Any

from snzoo.llvm import (
    DOUBLE,
    FLOAT,
    Value,
    address,
    call_intrinsic,
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
    vector,
)
from snzoo.nn.backends.cpu_kernels import Kernel

BLOCK = 1 << 11  # positions that are added in float32
TILE = 32  # positions that are read channel by channel, where the channels are last


class Contiguous(Kernel):
    """A unit is a channel of a sample, a row of positions."""

    def set_up(self, thread: Value) -> None:
        b, c = self.b, self.channels
        self.units = b.mul(self.samples, c)
        statistics = b.mul(self.units, size(2))
        own = b.add(b.mul(statistics, size(2)), b.mul(b.mul(thread, c), size(2)))
        self.scale = address(b, self.scratch, own, FLOAT)
        self.shift = address(b, self.scale, c, FLOAT)

    def _statistics(self, sample: Value) -> tuple[Value, Value]:
        """Return the addresses of a sample's means and variances (C,)."""
        b = self.b
        at = b.mul(b.mul(sample, self.channels), size(2))
        mean = address(b, self.scratch, at, DOUBLE)
        return mean, address(b, mean, self.channels, DOUBLE)

    def sum(self, first: Value, last: Value) -> None:
        b = self.b

        def one(row: Value) -> None:
            mean, var = self._statistics(b.sdiv(row, self.channels))
            channel = b.srem(row, self.channels)
            line = b.mul(row, self.positions)

            def write(near: Value) -> tuple[Value, Value]:
                own_mean, own_var, is_far = self._moments(line, near)
                store(b, own_mean, mean, channel)
                store(b, own_var, var, channel)
                return own_mean, is_far

            own_mean, is_far = write(self.load(line))
            with b.if_then(is_far, likely=False):
                write(to_float(b, own_mean))

        loop(b, first, last, one)

    def _moments(self, line: Value, near: Value) -> tuple[Value, Value, Value]:
        """Return mean and variance of a row, and whether ``near`` is too far from the mean."""
        b, zero = self.b, constant(DOUBLE, 0)

        def add(width: int, i: Value, *totals: Value) -> list[Value]:
            distance = b.fsub(self.load(b.add(line, i), width), splat(b, near, width))
            squares = call_intrinsic(b, "fmuladd", distance, distance, totals[1])
            return [b.fadd(totals[0], distance), squares]

        def block(start: Value, *totals: Value) -> list[Value]:
            stop = minimum(b, b.add(start, size(BLOCK)), self.positions)
            parts = sum_over(b, FLOAT, start, stop, add, 2)
            return [b.fadd(t, to_double(b, part)) for t, part in zip(totals, parts, strict=True)]

        sums = loop(b, size(0), self.positions, block, [zero, zero], BLOCK)
        return self.moments_from_sums(near, *sums)

    def join(self, thread: Value, team: Value) -> None:
        """Do nothing: a row has one sum."""

    def write(self, first: Value, last: Value) -> None:
        b, c = self.b, self.channels
        start = b.sdiv(first, c)
        stop = b.sdiv(b.add(last, b.sub(c, size(1))), c)

        def of_sample(i: Value) -> None:
            sample = reverse(b, start, stop, i)
            begin = b.mul(sample, c)
            rows = maximum(b, first, begin), minimum(b, last, b.add(begin, c))
            self.mix(*self._statistics(sample), *(b.sub(row, begin) for row in rows))
            self.for_both(lambda with_shortcut: self._write_rows(begin, *rows, with_shortcut))

        loop(b, start, stop, of_sample)

    def _write_rows(self, sample: Value, start: Value, stop: Value, with_shortcut: bool) -> None:
        b = self.b

        def one(i: Value) -> None:
            row = reverse(b, start, stop, i)
            line, channel = b.mul(row, self.positions), b.sub(row, sample)
            scale, shift = (load(b, at, channel, FLOAT) for at in (self.scale, self.shift))

            def write(width: int, i: Value) -> None:
                scales, shifts = splat(b, scale, width), splat(b, shift, width)
                self.normalize(b.add(line, i), width, scales, shifts, with_shortcut)

            for_lanes(b, self.positions, write)

        loop(b, start, stop, one)


class ChannelsLast(Kernel):
    """A unit is a part of the positions of a sample, with all channels."""

    def count_parts(self) -> Value:
        """Return a number that gives all threads the same number of units, if it is not many."""
        b = self.b
        most = maximum(b, size(1), b.sdiv(self.positions, size(TILE)))
        rest = b.srem(self.samples, self.threads)
        is_even = b.icmp_signed("==", rest, size(0))
        return b.select(is_even, size(1), minimum(b, self.threads, most))

    def set_up(self, thread: Value) -> None:
        b, c = self.b, self.channels
        self.units = b.mul(self.samples, self.parts)
        sums = b.mul(b.mul(self.units, c), size(2))
        own = b.add(sums, b.mul(b.mul(thread, c), size(2)))
        self.scale = address(b, self.scratch, own, DOUBLE)
        self.shift = address(b, self.scale, c, FLOAT)
        self.near = address(b, self.shift, c, FLOAT)

    def _sums(self, unit: Value) -> tuple[Value, Value]:
        b = self.b
        total = address(b, self.scratch, b.mul(b.mul(unit, self.channels), size(2)), DOUBLE)
        return total, address(b, total, self.channels, DOUBLE)

    def _unit(self, unit: Value) -> tuple[Value, Value, Value]:
        """Return the sample, the first position and the last one, exclusive."""
        b = self.b
        part = b.srem(unit, self.parts)
        start = b.sdiv(b.mul(self.positions, part), self.parts)
        stop = b.sdiv(b.mul(self.positions, b.add(part, size(1))), self.parts)
        return b.sdiv(unit, self.parts), start, stop

    def _index(self, sample: Value, position: Value, channel: Value) -> Value:
        b = self.b
        line = b.add(b.mul(sample, self.positions), position)
        return b.add(b.mul(line, self.channels), channel)

    def _near_mean(self, sample: Value, channel: Value, width: int) -> Value:
        """Return the means of eight positions."""
        b = self.b
        total = constant(vector(FLOAT, width), 0)
        for i in range(8):
            position = b.sdiv(b.mul(self.positions, size(i)), size(8))
            value = self.load(self._index(sample, position, channel), width)
            total = b.fadd(total, b.fmul(value, constant(value.type, 1 / 8)))
        return total

    def sum(self, first: Value, last: Value) -> None:
        b = self.b

        def of_unit(unit: Value) -> None:
            sample, start, stop = self._unit(unit)
            sums = self._sums(unit)

            def begin(width: int, c: Value) -> None:
                store(b, self._near_mean(sample, c, width), self.near, c)
                for total in sums:
                    store(b, constant(vector(DOUBLE, width), 0), total, c)

            def of_tile(position: Value) -> None:
                end = minimum(b, b.add(position, size(TILE)), stop)
                for_lanes(b, self.channels, partial(self._sum_tile, sample, position, end, sums))

            for_lanes(b, self.channels, begin)
            loop(b, start, stop, of_tile, step=TILE)

        loop(b, first, last, of_unit)

    def _sum_tile(
        self, sample: Value, start: Value, stop: Value, sums: Any, width: int, c: Value
    ) -> None:
        b, zero = self.b, constant(vector(FLOAT, width), 0)
        near = load(b, self.near, c, FLOAT, width)

        def add(position: Value, total: Value, squares: Value) -> list[Value]:
            distance = b.fsub(self.load(self._index(sample, position, c), width), near)
            return [
                b.fadd(total, distance),
                call_intrinsic(b, "fmuladd", distance, distance, squares),
            ]

        found = loop(b, start, stop, add, [zero, zero])
        for at, value in zip(sums, found, strict=True):
            store(b, b.fadd(load(b, at, c, DOUBLE, width), to_double(b, value)), at, c)

    def write(self, first: Value, last: Value) -> None:
        b = self.b

        def of_unit(i: Value) -> None:
            sample, start, stop = self._unit(reverse(b, first, last, i))
            self.mix(*self._statistics(sample), size(0), self.channels)
            self.for_both(
                lambda with_shortcut: self._write_tiles(sample, start, stop, with_shortcut)
            )

        loop(b, first, last, of_unit)

    def join(self, thread: Value, team: Value) -> None:
        """Replace the sums of each sample's first part by the sample's statistics.

        This reads ``x`` once more, so the threads wait before one of them may write over it.
        """
        b = self.b
        first, last = self.own_part(self.channels, thread, team)

        def of_sample(sample: Value) -> None:
            join = partial(self._join, sample)
            for_lanes(b, b.sub(last, first), lambda width, c: join(width, b.add(first, c)))
            loop(b, first, last, partial(self._repeat_far, sample))

        with b.if_then(self.needs_sums):
            loop(b, size(0), self.samples, of_sample)
        self.wait_for_team()

    def _statistics(self, sample: Value) -> tuple[Value, Value]:
        """Return the addresses of a sample's means and variances (C,)."""
        return self._sums(self.b.mul(sample, self.parts))

    def _join(self, sample: Value, width: int, c: Value) -> None:
        """Write the statistics of a sample's channels; NaN for a variance that is too inexact."""
        b, zero = self.b, constant(vector(DOUBLE, width), 0)

        def add(part: Value, *totals: Value) -> list[Value]:
            sums = self._sums(b.add(b.mul(sample, self.parts), part))
            values = (load(b, at, c, DOUBLE, width) for at in sums)
            return [b.fadd(total, value) for total, value in zip(totals, values, strict=True)]

        sums = loop(b, size(0), self.parts, add, [zero, zero])
        near = self._near_mean(sample, c, width)
        mean, var, is_far = self.moments_from_sums(near, *sums)
        var = b.select(is_far, constant(var.type, float("nan")), var)
        for at, value in zip(self._statistics(sample), (mean, var), strict=True):
            store(b, value, at, c)

    def _repeat_far(self, sample: Value, c: Value) -> None:
        b, zero = self.b, constant(DOUBLE, 0)
        mean_at, var_at = self._statistics(sample)
        var = load(b, var_at, c, DOUBLE)
        with b.if_then(b.fcmp_unordered("uno", var, var), likely=False):
            near = to_float(b, load(b, mean_at, c, DOUBLE))

            def add(position: Value, total: Value, squares: Value) -> list[Value]:
                distance = b.fsub(self.load(self._index(sample, position, c)), near)
                distance = to_double(b, distance)
                return [b.fadd(total, distance), b.fadd(squares, b.fmul(distance, distance))]

            sums = loop(b, size(0), self.positions, add, [zero, zero])
            mean, var, _ = self.moments_from_sums(near, *sums)
            store(b, mean, mean_at, c)
            store(b, var, var_at, c)

    def _write_tiles(self, sample: Value, start: Value, stop: Value, with_shortcut: bool) -> None:
        b = self.b

        def of_tile(i: Value) -> None:
            end = b.sub(stop, b.sub(i, start))
            begin = maximum(b, b.sub(end, size(TILE)), start)

            def of_channels(width: int, c: Value) -> None:
                scale, shift = (load(b, at, c, FLOAT, width) for at in (self.scale, self.shift))

                def write(position: Value) -> None:
                    index = self._index(sample, position, c)
                    self.normalize(index, width, scale, shift, with_shortcut)

                loop(b, begin, end, write)

            for_lanes(b, self.channels, of_channels)

        loop(b, start, stop, of_tile, step=TILE)
