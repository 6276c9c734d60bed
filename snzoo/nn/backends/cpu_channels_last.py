"""Channels-last activations, for the loops of :mod:`snzoo.nn.backends.cpu_kernels`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    store,
    to_double,
    to_float,
    vector,
)
from snzoo.nn.backends.cpu_layout import Add, Layout

TILE = 32  # positions that are read channel by channel, where the channels are last


class ChannelsLast(Layout):
    """A unit is a part of the positions of a sample, with all channels."""

    def count_parts(self) -> Value:
        """Return a number that gives all threads the same number of units, if it is not many."""
        b = self.b
        most = maximum(b, size(1), b.sdiv(self.positions, size(TILE)))
        rest = b.srem(self.samples, self.threads)
        is_even = b.icmp_signed("==", rest, size(0))
        return b.select(is_even, size(1), minimum(b, self.threads, most))

    def count_units(self) -> Value:
        return self.b.mul(self.samples, self.parts)

    def _split(self, unit: Value) -> tuple[Value, Value, Value]:
        """Return the sample, the first position and the last one, exclusive, of a unit."""
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
            value = self.load_from(self.x, self._index(sample, position, channel), width)
            total = b.fadd(total, b.fmul(value, constant(value.type, 1 / 8)))
        return total

    def _known_mean(self, sample: Value, channel: Value, width: int) -> Value:
        mean = load(self.b, self.statistics_of(sample)[0], channel, DOUBLE, width)
        return to_float(self.b, mean)

    def sum_moments(self, first: Value, last: Value) -> None:
        self._sum(first, last, self._near_mean, self.add_distances)

    def sum_pairs(self, first: Value, last: Value, add: Add) -> None:
        self._sum(first, last, self._known_mean, add)

    def _sum(
        self, first: Value, last: Value, find_near: Callable[[Value, Value, int], Value], add: Add
    ) -> None:
        b, near = self.b, self.arrays[-1]

        def of_unit(unit: Value) -> None:
            sample, start, stop = self._split(unit)
            sums = self.sums_of(unit)

            def begin(width: int, c: Value) -> None:
                store(b, find_near(sample, c, width), near, c)
                for total in sums:
                    store(b, constant(vector(DOUBLE, width), 0), total, c)

            def of_tile(position: Value) -> None:
                end = minimum(b, b.add(position, size(TILE)), stop)
                for_lanes(b, size(0), self.channels, partial(of_channels, position, end))

            def of_channels(start: Value, stop: Value, width: int, c: Value) -> None:
                zero, center = constant(vector(FLOAT, width), 0), load(b, near, c, FLOAT, width)

                def add_position(position: Value, *totals: Value) -> Sequence[Value]:
                    return add(self._index(sample, position, c), center, *totals)

                found = loop(b, start, stop, add_position, [zero, zero])
                for at, value in zip(sums, found, strict=True):
                    store(b, b.fadd(load(b, at, c, DOUBLE, width), to_double(b, value)), at, c)

            for_lanes(b, size(0), self.channels, begin)
            loop(b, start, stop, of_tile, step=TILE)

        loop(b, first, last, of_unit)

    def join_moments(self, needs_sums: Value) -> None:
        """Make statistics of a sample of the sums of its parts.

        This reads ``x`` once more, so the threads wait before one of them may write over it.
        """
        b = self.b
        first, last = self.own_part(self.channels)

        def of_sample(sample: Value) -> None:
            for_lanes(b, first, last, partial(self._join, sample))
            loop(b, first, last, partial(self._repeat_far, sample))

        with b.if_then(needs_sums):
            loop(b, size(0), self.samples, of_sample)
        self.wait_for_team()

    def _join(self, sample: Value, width: int, c: Value) -> None:
        """Write the statistics of a sample's channels; NaN for a variance that is too inexact."""
        b = self.b
        near = self._near_mean(sample, c, width)
        mean, var, is_far = self.moments_from_sums(near, *self.add_parts(sample, width, c))
        var = b.select(is_far, constant(var.type, float("nan")), var)
        for at, value in zip(self.statistics_of(sample), (mean, var), strict=True):
            store(b, value, at, c)

    def _repeat_far(self, sample: Value, c: Value) -> None:
        b, zero = self.b, constant(DOUBLE, 0)
        mean_at, var_at = self.statistics_of(sample)
        var = load(b, var_at, c, DOUBLE)
        with b.if_then(b.fcmp_unordered("uno", var, var), likely=False):
            near = to_float(b, load(b, mean_at, c, DOUBLE))

            def add(position: Value, total: Value, squares: Value) -> list[Value]:
                value = self.load_from(self.x, self._index(sample, position, c))
                distance = to_double(b, b.fsub(value, near))
                return [b.fadd(total, distance), b.fadd(squares, b.fmul(distance, distance))]

            sums = loop(b, size(0), self.positions, add, [zero, zero])
            mean, var, _ = self.moments_from_sums(near, *sums)
            store(b, mean, mean_at, c)
            store(b, var, var_at, c)

    def write(self, first: Value, last: Value) -> None:
        b = self.b

        def of_unit(i: Value) -> None:
            sample, start, stop = self._split(reverse(b, first, last, i))
            self.prepare(sample, size(0), self.channels)
            self.for_variants(partial(self._write_tiles, sample, start, stop))

        loop(b, first, last, of_unit)

    def _write_tiles(self, sample: Value, start: Value, stop: Value, with_shortcut: bool) -> None:
        b = self.b

        def of_tile(i: Value) -> None:
            end = b.sub(stop, b.sub(i, start))
            begin = maximum(b, b.sub(end, size(TILE)), start)

            def of_channels(width: int, c: Value) -> None:
                arrays = self.arrays[: self.COEFFICIENTS]
                coefficients = [load(b, array, c, FLOAT, width) for array in arrays]

                def write(position: Value) -> None:
                    self.put(self._index(sample, position, c), coefficients, with_shortcut)

                loop(b, begin, end, write)

            for_lanes(b, size(0), self.channels, of_channels)

        loop(b, start, stop, of_tile, step=TILE)
