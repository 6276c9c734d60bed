"""The task of a layer in a training step on the CPU: its output, and statistics that are kept.

They are float64 in one tensor: the IN means and variances (N, 2, C), those of LN (N, 2), and those
of BN (2, C). :mod:`snzoo.nn.backends.cpu_gradient` reads them.
"""

from __future__ import annotations

from snzoo.llvm import (
    DOUBLE,
    Value,
    address,
    constant,
    for_lanes,
    load,
    loop,
    size,
    splat,
    store,
    to_float,
    vector,
)
from snzoo.nn.backends.cpu_inference import Normalization
from snzoo.nn.backends.cpu_kernels import PARAMETERS, TRUE
from snzoo.nn.backends.cpu_layout import Layout


class Training(Layout):
    """Where the statistics are that a step keeps for its gradient."""

    ln: Value  # the addresses of the statistics of LN and of BN
    bn: Value
    bn_factor: Value  # unbiased / biased BN variance; 1 with IN

    def place_statistics(self) -> None:
        b, c = self.b, self.channels
        self.statistics, self.stride = self.kept, b.mul(c, size(2))
        self.ln = address(b, self.kept, b.mul(self.samples, self.stride), DOUBLE)
        self.bn = address(b, self.ln, b.mul(self.samples, size(2)), DOUBLE)
        values = b.mul(self.samples, self.positions)
        self.bn_factor = b.select(self.has_in, constant(DOUBLE, 1), self.unbiased(values))

    def find_ln(self, sample: Value) -> tuple[Value, Value]:
        at = self.b.mul(sample, size(2))
        mean, var = (load(self.b, self.ln, self.b.add(at, size(i)), DOUBLE) for i in (0, 1))
        return mean, var

    def find_bn(self, channel: Value, width: int) -> tuple[Value, Value]:
        at = channel, self.b.add(self.channels, channel)
        mean, var = (load(self.b, self.bn, i, DOUBLE, width) for i in at)
        return mean, var

    def find_in(self, sample: Value, channel: Value, width: int) -> tuple[Value, Value]:
        """Return the IN means and variances of ``width`` channels of a sample."""
        at = self.statistics_of(sample)
        mean, var = (load(self.b, values, channel, DOUBLE, width) for values in at)
        return mean, var


class Forward(Training, Normalization):
    """The output of a layer, and with ``batch`` the BN statistics of its input."""

    ADDRESSES = ("x", "out", *PARAMETERS, "kept", "batch_mean", "batch_var")

    def compute(self, first: Value, last: Value) -> None:
        b = self.b
        self.place_statistics()
        self.sum_moments(first, last)
        self.wait_for_team()
        self.join_moments(TRUE)
        loop(b, *self.own_part(self.samples), self._write_ln)
        with b.if_else(self.has_batch) as (batch, running):
            for block, write in ((batch, self._write_batch), (running, self._write_running)):
                with block:
                    for_lanes(b, *self.own_part(self.channels), write)
        self.wait_for_team()
        self.write(first, last)

    def _write_ln(self, sample: Value) -> None:
        b = self.b
        at = b.mul(sample, size(2))
        for i, value in enumerate(self.pool_channels(*self.statistics_of(sample))):
            store(b, value, self.ln, b.add(at, size(i)))

    def _write_bn(self, c: Value, mean: Value, var: Value) -> None:
        store(self.b, mean, self.bn, c)
        store(self.b, var, self.bn, self.b.add(self.channels, c))

    def _write_running(self, width: int, c: Value) -> None:
        self._write_bn(c, *self.find_running(c, width))

    def _write_batch(self, width: int, c: Value) -> None:
        b, zero = self.b, constant(vector(DOUBLE, width), 0)
        count = splat(b, b.sitofp(self.samples, DOUBLE), width)

        def add_mean(n: Value, total: Value) -> list[Value]:
            return [b.fadd(total, self.find_in(n, c, width)[0])]

        mean = b.fdiv(loop(b, size(0), self.samples, add_mean, [zero])[0], count)

        def add_variance(n: Value, total: Value) -> list[Value]:
            own_mean, own_var = self.find_in(n, c, width)
            spread = b.fsub(own_mean, mean)
            return [b.fadd(total, b.fadd(own_var, b.fmul(spread, spread)))]

        var = b.fdiv(loop(b, size(0), self.samples, add_variance, [zero])[0], count)
        var = b.fmul(var, splat(b, self.bn_factor, width))
        self._write_bn(c, mean, var)
        store(b, to_float(b, mean), self.batch_mean, c)
        store(b, to_float(b, var), self.batch_var, c)
