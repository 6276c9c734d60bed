"""What a task of :mod:`snzoo.nn.backends.cpu_kernels` can ask of a layout of activations."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

from snzoo.llvm import (
    DOUBLE,
    Value,
    call_intrinsic,
    constant,
    lanes,
    load,
    loop,
    size,
    splat,
    to_double,
    vector,
)
from snzoo.nn.backends.cpu_kernels import Kernel

# Where the mean is so many standard deviations away from the value that distances are taken to,
# E[d²] − E[d]² loses more than 2 bits, and is computed once more.
FAR = 2.0

# Adds values of ``x`` from an index on, or what is at the same index, to two totals; the value near
# the mean has as many lanes: (index, near, total, total) → [total, total].
Add = Callable[[Value, Value, Value, Value], Sequence[Value]]


class Layout(Kernel):
    """What a task can ask of a layout."""

    @abstractmethod
    def sum_moments(self, first: Value, last: Value) -> None:
        """Compute IN statistics, or sums for :meth:`join_moments`, of this thread's units."""

    @abstractmethod
    def join_moments(self, needs_sums: Value) -> None:
        """Make IN statistics of the sums of all threads, if they are needed."""

    @abstractmethod
    def sum_pairs(self, first: Value, last: Value, add: Add) -> None:
        """Compute two sums for each channel of each part of a sample, see ``sums_of``.

        The value near the mean is the IN mean as a float.
        """

    @abstractmethod
    def write(self, first: Value, last: Value) -> None:
        """Write the result of this thread's units with ``prepare`` and ``put``.

        It begins with the last one, which is most likely to be in a cache still.
        """

    def add_parts(self, sample: Value, width: int, c: Value) -> list[Value]:
        """Return both sums of ``width`` channels of a sample."""
        b, zero = self.b, constant(vector(DOUBLE, width), 0)

        def add(part: Value, *totals: Value) -> list[Value]:
            sums = self.sums_of(b.add(b.mul(sample, self.parts), part))
            values = (load(b, at, c, DOUBLE, width) for at in sums)
            return [b.fadd(total, value) for total, value in zip(totals, values, strict=True)]

        return loop(b, size(0), self.parts, add, [zero, zero])

    def add_distances(self, index: Value, near: Value, total: Value, squares: Value) -> list[Value]:
        """Add distances to ``near``, and their squares."""
        b = self.b
        distance = b.fsub(self.load_from(self.x, index, lanes(near)), near)
        return [b.fadd(total, distance), call_intrinsic(b, "fmuladd", distance, distance, squares)]

    def moments_from_sums(
        self, near: Value, total: Value, squares: Value
    ) -> tuple[Value, Value, Value]:
        """Return mean and variance, and whether ``near`` is too far from the mean.

        Args:
            near: what distances were taken to, as floats.
            total, squares: the sums of the distances and of their squares, as doubles.
        """
        b, width = self.b, lanes(total)
        share = splat(b, self.share, width)
        distance = b.fmul(total, share)
        offset = b.fmul(distance, distance)
        var = b.fsub(b.fmul(squares, share), offset)
        is_far = b.fcmp_ordered(">", offset, b.fmul(var, constant(var.type, FAR**2)))
        var = b.fmul(var, splat(b, self.variance_factor, width))
        return b.fadd(to_double(b, near), distance), var, is_far
