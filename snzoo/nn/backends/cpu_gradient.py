"""The task of a layer's gradients on the CPU; :mod:`snzoo.nn.function` has the formulas."""

from __future__ import annotations

from typing import Any, ClassVar

from snzoo.llvm import (
    DOUBLE,
    Value,
    address,
    call_intrinsic,
    constant,
    for_lanes,
    lanes,
    load,
    loop,
    size,
    splat,
    store,
    sum_over,
    to_double,
    to_float,
    vector,
)
from snzoo.nn.backends.cpu_kernels import ARRAYS, PARAMETERS
from snzoo.nn.backends.cpu_training import Training

COLUMNS = 6  # arrays (C,) of sums over samples that a gradient needs
NARROW = (8, 1)  # lanes where there are many sums at a time


class Backward(Training):
    """The gradients of the parameters and, unless ``out`` is 0, that of the input."""

    ADDRESSES: ClassVar[tuple[str, ...]] = (
        *("x", "out", "grad", *PARAMETERS, "kept"),
        *("weight_grad", "bias_grad", "mean_grad", "var_grad"),
    )
    EXTRA_ROWS = COLUMNS // 2
    COEFFICIENTS = ARRAYS

    columns: list[Value]  # the addresses of COLUMNS arrays (C,), see ``_reduce_samples``

    def compute(self, first: Value, last: Value) -> None:
        b = self.b
        self.place_statistics()
        self.columns = [
            address(b, self.extra, b.mul(self.channels, size(i)), DOUBLE) for i in range(COLUMNS)
        ]
        self.sum_pairs(first, last, self._add_products)
        self.wait_for_team()
        for_lanes(b, *self.own_part(self.channels), self._reduce_samples, NARROW)
        self.wait_for_team()
        with b.if_then(b.icmp_signed("==", self.thread, size(0))):
            self._write_gates()
        with b.if_then(self.is_given(self.out)):
            self.write(first, last)

    def _add_products(
        self, index: Value, near: Value, total: Value, products: Value
    ) -> list[Value]:
        """Add gradients, and their products with distances to ``near``."""
        b, width = self.b, lanes(near)
        grad = self.load_from(self.grad, index, width)
        distance = b.fsub(self.load_from(self.x, index, width), near)
        return [b.fadd(total, grad), call_intrinsic(b, "fmuladd", grad, distance, products)]

    def _scale(self, c: Value, mixed_var: Value) -> tuple[Value, Value]:
        """Return 1 / sqrt(mixed variance + eps), and the weight times it."""
        b, width = self.b, lanes(mixed_var)
        deviation = call_intrinsic(b, "sqrt", b.fadd(mixed_var, splat(b, self.eps, width)))
        rstd = b.fdiv(constant(deviation.type, 1), deviation)
        return rstd, b.fmul(self.parameter(self.weight, c, width), rstd)

    def _mix_of(self, sample: Value, c: Value, width: int) -> list[tuple[Value, Value]]:
        """Return the means and variances of IN, LN and BN, and the mixed ones."""
        ln_mean, ln_var = (splat(self.b, value, width) for value in self.find_ln(sample))
        found = [self.find_in(sample, c, width), (ln_mean, ln_var), self.find_bn(c, width)]
        return [*found, self.mix(*found)]

    def _reduce_samples(self, width: int, c: Value) -> None:
        """Replace the sums of samples by the gradients of the mixed mean and variance.

        This writes the gradients of ``weight`` and ``bias``, and sums over samples: of both
        gradients, and of their products with the mean and the variance of IN and of LN.
        """
        b, zero = self.b, constant(vector(DOUBLE, width), 0)

        def of_sample(n: Value, *totals: Value) -> list[Value]:
            own, ln, _bn, (mixed_mean, mixed_var) = self._mix_of(n, c, width)
            total, centered = self.add_parts(n, width, c)
            near = to_double(b, to_float(b, own[0]))  # what distances were taken to
            centered = b.fadd(centered, b.fmul(b.fsub(near, mixed_mean), total))
            rstd, scale = self._scale(c, mixed_var)
            by_mean = b.fneg(b.fmul(scale, total))
            half = b.fmul(constant(scale.type, -0.5), b.fmul(scale, b.fmul(rstd, rstd)))
            by_var = b.fmul(half, centered)
            for sums, value in zip(self.sums_of_sample(n), (by_mean, by_var), strict=True):
                store(b, value, sums, c)
            added = b.fmul(rstd, centered), total, by_mean, by_var
            products = [
                b.fmul(by, statistic)
                for i, by in enumerate((by_mean, by_var))
                for statistic in (own[i], ln[i])
            ]
            return [b.fadd(t, value) for t, value in zip(totals, (*added, *products), strict=True)]

        by_weight, by_bias, *sums = loop(
            b, size(0), self.samples, of_sample, [zero] * (2 + COLUMNS)
        )
        store(b, to_float(b, by_weight), self.weight_grad, c)
        store(b, to_float(b, by_bias), self.bias_grad, c)
        for column, value in zip(self.columns, sums, strict=True):
            store(b, value, column, c)

    def _write_gates(self) -> None:
        """Write the gradients of the gates from the products of :meth:`_reduce_samples`."""
        b = self.b

        def add(width: int, c: Value, *totals: Value) -> list[Value]:
            columns = (load(b, column, c, DOUBLE, width) for column in self.columns)
            by_mean, by_var, mean_in, mean_ln, var_in, var_ln = columns
            mean, var = self.find_bn(c, width)
            of_mean = mean_in, mean_ln, b.fmul(by_mean, mean)
            of_var = var_in, var_ln, b.fmul(by_var, var)
            return [b.fadd(t, value) for t, value in zip(totals, of_mean + of_var, strict=True)]

        kinds = len(self.mean_shares)
        sums = sum_over(b, DOUBLE, size(0), self.channels, add, 2 * kinds)
        self._write_gate_gradients(self.mean_shares, sums[:kinds], self.mean_grad)
        self._write_gate_gradients(self.var_shares, sums[kinds:], self.var_grad)

    def _write_gate_gradients(self, shares: list[Value], sums: list[Value], at: Value) -> None:
        """Write what the gradients of the shares, which are ``sums``, are for the gates."""
        b = self.b
        terms = [b.fmul(share, value) for share, value in zip(shares, sums, strict=True)]
        common = b.fadd(terms[0], b.fadd(terms[1], terms[2]))
        own, ln, bn = (
            to_float(b, b.select(self.are_logits, b.fmul(share, b.fsub(value, common)), value))
            for share, value in zip(shares, sums, strict=True)
        )
        with b.if_then(self.has_in):
            store(b, own, at, size(0))
        store(b, ln, at, self.instance)
        with b.if_then(self.has_bn):
            store(b, bn, at, b.add(self.instance, size(1)))

    def prepare(self, sample: Value, start: Value, stop: Value) -> None:
        """Write the coefficients of ``a * grad + b * (x - near) + c``: a, b, c and near."""
        b = self.b
        from_ln = self._spread_over_channels(sample)
        of_var = b.fmul(constant(DOUBLE, 2), b.fmul(self.variance_factor, self.share))

        def write(width: int, c: Value) -> None:
            own, ln, bn, (_, mixed_var) = self._mix_of(sample, c, width)
            of_ln = [splat(b, value, width) for value in from_ln]
            pooled = (ln, of_ln), (bn, self._spread_over_samples(c, width))
            by_mean, by_var = self._gradients_of_in(sample, c, own[0], pooled)
            near, factor = to_float(b, own[0]), to_float(b, b.fmul(by_var, splat(b, of_var, width)))
            offset = b.fmul(to_double(b, factor), b.fsub(to_double(b, near), own[0]))
            offset = b.fadd(b.fmul(by_mean, splat(b, self.share, width)), offset)
            scale = self._scale(c, mixed_var)[1]
            values = to_float(b, scale), factor, to_float(b, offset), near
            for array, value in zip(self.arrays, values, strict=True):
                store(b, value, array, c)

        for_lanes(b, start, stop, write, NARROW)

    def _spread_over_channels(self, sample: Value) -> list[Value]:
        """Return what each channel of a sample gets of the gradients of LN's mean and variance."""
        b, count = self.b, self.b.sitofp(self.channels, DOUBLE)
        at = self.sums_of_sample(sample)

        def add(width: int, c: Value, *totals: Value) -> list[Value]:
            values = (load(b, sums, c, DOUBLE, width) for sums in at)
            return [b.fadd(total, value) for total, value in zip(totals, values, strict=True)]

        sums = sum_over(b, DOUBLE, size(0), self.channels, add, 2)
        shares = self.mean_shares[1], b.fmul(self.var_shares[1], self.pooled_factor)
        return [b.fdiv(b.fmul(of, total), count) for of, total in zip(shares, sums, strict=True)]

    def _spread_over_samples(self, c: Value, width: int) -> list[Value]:
        """Return what each sample gets of the gradients of BN's mean and variance.

        They are 0 where BN statistics are the running ones.
        """
        b, zero = self.b, constant(vector(DOUBLE, width), 0)
        each = b.fdiv(constant(DOUBLE, 1), b.sitofp(self.samples, DOUBLE))
        shares = self.mean_shares[2], b.fmul(self.var_shares[2], self.bn_factor)
        factors = (b.fmul(of, each) for of in shares)
        return [
            b.select(
                self.has_batch,
                b.fmul(splat(b, factor, width), load(b, column, c, DOUBLE, width)),
                zero,
            )
            for factor, column in zip(factors, self.columns[:2], strict=True)
        ]

    def _gradients_of_in(self, sample: Value, c: Value, mean: Value, pooled: Any) -> list[Value]:
        """Return the gradients of the IN mean and variance, see ``functional.mix_backward``.

        ``pooled`` has the statistics of LN and of BN, each with their gradients.
        """
        b, width = self.b, lanes(mean)
        at, shares = self.sums_of_sample(sample), (self.mean_shares, self.var_shares)
        by_mean, by_var = (
            b.fmul(splat(b, of[0], width), load(b, sums, c, DOUBLE, width))
            for of, sums in zip(shares, at, strict=True)
        )
        for (pooled_mean, _), (of_mean, of_var) in pooled:
            spread = b.fmul(constant(mean.type, 2), b.fsub(mean, pooled_mean))
            by_mean = b.fadd(by_mean, b.fadd(of_mean, b.fmul(spread, of_var)))
            by_var = b.fadd(by_var, of_var)
        return [by_mean, by_var]

    def put(self, index: Value, coefficients: list[Value], with_shortcut: bool) -> None:
        b, (scale, factor, offset, near) = self.b, coefficients
        width = lanes(scale)
        distance = b.fsub(self.load_from(self.x, index, width), near)
        dx = call_intrinsic(b, "fmuladd", factor, distance, offset)
        grad = self.load_from(self.grad, index, width)
        self.store_to(self.out, call_intrinsic(b, "fmuladd", scale, grad, dx), index)
