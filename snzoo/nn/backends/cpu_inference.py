"""The task of a layer in evaluation mode on the CPU."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from snzoo.llvm import (
    DOUBLE,
    FLOAT,
    Value,
    call_intrinsic,
    constant,
    for_lanes,
    lanes,
    load,
    size,
    splat,
    store,
    to_double,
    to_float,
)
from snzoo.nn.backends.cpu_kernels import INFINITY, PARAMETERS
from snzoo.nn.backends.cpu_layout import Layout


class Normalization(Layout):
    """The last pass of a task that writes a layer's output: ``x * scale + shift``."""

    COEFFICIENTS = 2

    @abstractmethod
    def find_ln(self, sample: Value) -> tuple[Value, Value]:
        """Return the LN mean and variance of a sample."""

    @abstractmethod
    def find_bn(self, channel: Value, width: int) -> tuple[Value, Value]:
        """Return the BN means and variances of ``width`` channels."""

    def prepare(self, sample: Value, start: Value, stop: Value) -> None:
        """Write ``scale`` and ``shift``."""
        b = self.b
        at, ln = self.statistics_of(sample), self.find_ln(sample)

        def write(width: int, c: Value) -> None:
            own = tuple(load(b, statistic, c, DOUBLE, width) for statistic in at)
            pooled = tuple(splat(b, statistic, width) for statistic in ln)
            mean, var = self.mix(own, pooled, self.find_bn(c, width))
            deviation = call_intrinsic(b, "sqrt", b.fadd(var, splat(b, self.eps, width)))
            scale = b.fdiv(self.parameter(self.weight, c, width), deviation)
            scale = to_float(b, scale)  # whose rounding the shift cancels at the mean
            product = b.fmul(mean, to_double(b, scale))
            shift = b.fsub(self.parameter(self.bias, c, width), product)
            store(b, scale, self.arrays[0], c)
            store(b, to_float(b, shift), self.arrays[1], c)

        for_lanes(b, start, stop, write)

    def put(self, index: Value, coefficients: list[Value], with_shortcut: bool) -> None:
        self.store_to(self.out, self.normalize(index, *coefficients), index)

    def normalize(self, index: Value, scale: Value, shift: Value) -> Value:
        """Return values of the layer's output from the ``index``-th on."""
        x = self.load_from(self.x, index, lanes(scale))
        return call_intrinsic(self.b, "fmuladd", x, scale, shift)


class Inference(Normalization):
    """The output of a layer with running BN statistics [+ shortcut] [ReLU]."""

    ADDRESSES = ("x", "out", "shortcut", *PARAMETERS)

    floor: Value  # the least value of the output

    def compute(self, first: Value, last: Value) -> None:
        b, zero, one = self.b, constant(FLOAT, 0), constant(DOUBLE, 1)
        has_relu = b.icmp_signed("!=", self.relu, size(0))
        self.floor = b.select(has_relu, zero, constant(FLOAT, -INFINITY))
        shares = self.mean_shares, self.var_shares
        only_running = [b.fcmp_ordered("==", bn, one) for _, _, bn in shares]
        needs_sums = b.not_(b.and_(*only_running))
        with b.if_then(needs_sums):
            self.sum_moments(first, last)
        self.wait_for_team()
        self.join_moments(needs_sums)
        self.write(first, last)

    def find_ln(self, sample: Value) -> tuple[Value, Value]:
        return self.pool_channels(*self.statistics_of(sample))

    def find_bn(self, channel: Value, width: int) -> tuple[Value, Value]:
        return self.find_running(channel, width)

    def for_variants(self, emit: Callable[[bool], None]) -> None:
        with self.b.if_else(self.is_given(self.shortcut)) as (given, absent):
            with given:
                emit(True)
            with absent:
                emit(False)

    def put(self, index: Value, coefficients: list[Value], with_shortcut: bool) -> None:
        b, y = self.b, self.normalize(index, *coefficients)
        if with_shortcut:
            y = b.fadd(y, self.load_from(self.shortcut, index, lanes(y)))
        floor = splat(b, self.floor, lanes(y))
        y = b.select(b.fcmp_ordered("<", y, floor), floor, y)  # NaN stays
        self.store_to(self.out, y, index)
