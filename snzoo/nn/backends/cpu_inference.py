"""The task of a layer in evaluation mode on the CPU: ``x * scale + shift [+ shortcut] [ReLU]``."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

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


class Inference(Layout):
    """It computes the output with running BN statistics."""

    ADDRESSES: ClassVar[tuple[str, ...]] = ("x", "out", "shortcut", *PARAMETERS)
    COEFFICIENTS = 2

    def compute(self, first: Value, last: Value) -> None:
        b, one = self.b, constant(DOUBLE, 1)
        self.set_floor()
        shares = self.mean_shares, self.var_shares
        only_running = [b.fcmp_ordered("==", bn, one) for _, _, bn in shares]
        needs_sums = b.not_(b.and_(*only_running))
        with b.if_then(needs_sums):
            self.sum_moments(first, last)
        self.wait_for_team()
        self.join_moments(needs_sums)
        self.write(first, last)

    def set_floor(self) -> None:
        """Set the least value of the output: 0, or with no ReLU that of any."""
        b, zero, none = self.b, constant(FLOAT, 0), constant(FLOAT, -INFINITY)
        self.floor = b.select(b.icmp_signed("!=", self.relu, size(0)), zero, none)

    def find_ln(self, sample: Value) -> tuple[Value, Value]:
        """Return the LN mean and variance of a sample."""
        return self.pool_channels(*self.statistics_of(sample))

    def find_bn(self, channel: Value, width: int) -> tuple[Value, Value]:
        """Return the BN means and variances of ``width`` channels."""
        mean, var = self.running_mean, self.running_var
        return self.parameter(mean, channel, width), self.parameter(var, channel, width)

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

    def for_variants(self, emit: Callable[[bool], None]) -> None:
        with self.b.if_else(self.is_given(self.shortcut)) as (given, absent):
            with given:
                emit(True)
            with absent:
                emit(False)

    def put(self, index: Value, coefficients: list[Value], with_shortcut: bool) -> None:
        b, (scale, shift) = self.b, coefficients
        width = lanes(scale)
        y = call_intrinsic(b, "fmuladd", self.load_from(self.x, index, width), scale, shift)
        if with_shortcut:
            y = b.fadd(y, self.load_from(self.shortcut, index, width))
        floor = splat(b, self.floor, width)
        y = b.select(b.fcmp_ordered("<", y, floor), floor, y)  # NaN stays
        self.store_to(self.out, y, index)
