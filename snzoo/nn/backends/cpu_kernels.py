"""The loops of a layer in evaluation mode on the CPU. Importing this module imports llvmlite.

A team of OpenMP threads runs one function. It has two phases with a barrier between them: the sums
of each channel of each sample, and then ``x * scale + shift [+ shortcut] [ReLU]``. Coefficients are
computed in float64. Sums are of distances to a value near the mean, in float32 over limited numbers
of values, so that neither a far mean nor a large map costs accuracy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from snzoo.llvm import (
    DOUBLE,
    FLOAT,
    INT32,
    INT64,
    POINTER,
    Type,
    Value,
    add_function,
    call_at,
    call_intrinsic,
    constant,
    for_lanes,
    lanes,
    load,
    load_address,
    load_bfloats,
    maximum,
    size,
    splat,
    store,
    store_bfloats,
    sum_over,
    to_double,
    to_float,
)
from snzoo.nn.backends.openmp import OpenMP

# The argument of the function: a structure of these 64-bit fields. The address of the shortcut,
# and those of running statistics, are 0 where there are none.
ADDRESSES = (
    *("x", "out", "shortcut", "weight", "bias", "mean_weight", "var_weight"),
    *("running_mean", "running_var"),
)
SIZES = ("samples", "channels", "positions", "threads", "instance", "relu")
NUMBERS = ("eps",)

# Where the mean is so many standard deviations away from the value that distances are taken to,
# E[d²] − E[d]² loses more than 2 bits, and is computed once more.
FAR = 2.0
INFINITY = float("inf")


class Kernel(ABC):
    """A module whose function ``int run(fields)`` computes a layer, and returns 1 without memory.

    A subclass has the instructions for a layout of ``x``, the shortcut and the output.

    Args:
        values: the type of these three: FLOAT, or INT16 for bfloat16.
        parameters: the type of the parameters and of the running statistics.
    """

    units: Value  # what the threads share among them: their number
    scale: Value  # addresses of coefficients (C,), which each thread has for itself
    shift: Value

    def __init__(self, values: Type, parameters: Type, openmp: OpenMP) -> None:
        self.values, self.parameters, self._openmp = values, parameters, openmp
        self.module = ir.Module()
        work = add_function(self.module, "work", ir.VoidType(), POINTER)
        self.b = b = ir.IRBuilder(work.append_basic_block())
        fields, self.scratch = (load_address(b, work.args[0], size(i)) for i in range(2))
        self._read(fields)
        self.mean_shares, self.var_shares = map(self._softmax, (self.mean_weight, self.var_weight))
        alone = b.icmp_signed("==", self.threads, size(1))  # perhaps within another team
        team, thread = (
            b.select(alone, size(one), b.sext(call_at(b, address, INT32), INT64))
            for one, address in ((1, openmp.num_threads), (0, openmp.thread_num))
        )
        self.set_up(thread)
        first, last = self.own_part(self.units, thread, team)
        only_running = [
            b.fcmp_ordered("==", shares[2], constant(DOUBLE, 1))
            for shares in (self.mean_shares, self.var_shares)
        ]
        self.needs_sums = b.not_(b.and_(*only_running))
        with b.if_then(self.needs_sums):
            self.sum(first, last)
        self.wait_for_team()
        self.join(thread, team)
        self.write(first, last)
        b.ret_void()
        self._add_run(work)

    def own_part(self, count: Value, thread: Value, team: Value) -> tuple[Value, Value]:
        """Return the range of a thread's share of ``count``."""
        b = self.b
        following = b.add(thread, size(1))
        return b.sdiv(b.mul(count, thread), team), b.sdiv(b.mul(count, following), team)

    def wait_for_team(self) -> None:
        b = self.b
        with b.if_then(b.icmp_signed(">", self.threads, size(1))):
            call_at(b, self._openmp.barrier, ir.VoidType())

    def _add_run(self, work: Any) -> None:
        """Add the function that has a team of threads run ``work``, with memory for it.

        One thread needs no OpenMP. So a forked process with one thread, as a worker of a data
        loader is, can't wait for threads that only its parent has.
        """
        run = add_function(self.module, "run", INT32, POINTER)
        malloc = add_function(self.module, "malloc", POINTER, INT64)
        free = add_function(self.module, "free", ir.VoidType(), POINTER)
        self.b = b = ir.IRBuilder(run.append_basic_block())
        self._read(run.args[0])
        # 2C doubles per part of a sample, and as many bytes per thread for up to 4C floats.
        threads = self.threads
        rows = b.add(b.mul(self.samples, self.parts), threads)
        scratch = b.call(malloc, [b.mul(b.mul(rows, self.channels), size(16))])
        with b.if_then(b.icmp_unsigned("==", b.ptrtoint(scratch, INT64), size(0)), likely=False):
            b.ret(ir.Constant(INT32, 1))
        argument = b.bitcast(b.alloca(INT64, 2), POINTER)
        for i, pointer in enumerate((run.args[0], scratch)):
            store(b, b.ptrtoint(pointer, INT64), argument, size(i))
        with b.if_else(b.icmp_signed("==", threads, size(1))) as (alone, together):
            with alone:
                b.call(work, [argument])
            with together:
                none = ir.Constant(INT32, 0)
                rest = work, argument, b.trunc(threads, INT32), none
                call_at(b, self._openmp.parallel, ir.VoidType(), *rest)
        b.call(free, [scratch])
        b.ret(ir.Constant(INT32, 0))

    @abstractmethod
    def set_up(self, thread: Value) -> None:
        """Set ``units``, and what the thread has for itself."""

    @abstractmethod
    def sum(self, first: Value, last: Value) -> None:
        """Compute the sums, or the statistics, of units ``first`` to ``last``."""

    @abstractmethod
    def join(self, thread: Value, team: Value) -> None:
        """Make statistics of the sums, where a sample has several."""

    @abstractmethod
    def write(self, first: Value, last: Value) -> None:
        """Write the output of units ``first`` to ``last``.

        It begins with the last one, which is most likely to be in a cache still.
        """

    def _read(self, fields: Value) -> None:
        """Set an attribute to each field, and to what follows from them."""
        b, one = self.b, constant(DOUBLE, 1)
        for i, name in enumerate((*ADDRESSES, *SIZES, *NUMBERS)):
            if name in ADDRESSES:
                value = load_address(b, fields, size(i))
                given = b.icmp_unsigned("!=", b.ptrtoint(value, INT64), size(0))
                if name.startswith("running"):  # what is read instead has a share of 0
                    value = b.select(given, value, self.weight)
                setattr(self, f"has_{name}", given)
            else:
                value = load(b, fields, size(i), DOUBLE if name in NUMBERS else INT64)
            setattr(self, name, value)
        self.has_in = b.icmp_signed("!=", self.instance, size(0))
        own = self._unbiased(self.positions)
        pooled = self._unbiased(b.mul(self.channels, self.positions))
        self.variance_factor = b.select(self.has_in, own, one)
        self.pooled_factor = b.select(self.has_in, one, pooled)
        zero, none = constant(FLOAT, 0), constant(FLOAT, -INFINITY)
        self.floor = b.select(b.icmp_signed("!=", self.relu, size(0)), zero, none)
        self.share = b.fdiv(one, b.sitofp(self.positions, DOUBLE))
        self.parts = self.count_parts()

    def _unbiased(self, count: Value) -> Value:
        """Return count / (count - 1), or 1 for a count of 1."""
        b = self.b
        less = maximum(b, b.sub(count, size(1)), size(1))
        return b.fdiv(b.sitofp(count, DOUBLE), b.sitofp(less, DOUBLE))

    def count_parts(self) -> Value:
        """Return into how many units a sample's positions are split."""
        return size(1)

    def __getattr__(self, name: str) -> Value:
        """Tell mypy that there are attributes of the fields."""
        raise AttributeError(name)

    def _softmax(self, logits: Value) -> list[Value]:
        """Return the shares of IN, LN and BN; 0 for those that have no logit."""
        b, never = self.b, constant(DOUBLE, -INFINITY)
        own, ln = (self._parameter(logits, at) for at in (size(0), self.instance))
        at_bn = b.select(self.has_running_mean, b.add(self.instance, size(1)), size(0))
        bn = b.select(self.has_running_mean, self._parameter(logits, at_bn), never)
        found = [b.select(self.has_in, own, never), ln, bn]
        most = ln
        for logit in (found[0], bn):
            most = b.select(b.fcmp_ordered(">", logit, most), logit, most)
        powers = [call_intrinsic(b, "exp", b.fsub(logit, most)) for logit in found]
        total = b.fadd(powers[0], b.fadd(powers[1], powers[2]))
        return [b.fdiv(power, total) for power in powers]

    def _parameter(self, base: Value, index: Value, width: int = 1) -> Value:
        return to_double(self.b, _load_floats(self.b, base, index, self.parameters, width))

    def load(self, index: Value, width: int = 1) -> Value:
        """Return ``width`` values of ``x`` as floats."""
        return _load_floats(self.b, self.x, index, self.values, width)

    def mix(self, mean: Value, var: Value, start: Value, stop: Value) -> None:
        """Write coefficients of a sample from its IN mean and variance (C,).

        These are ``scale`` and ``shift`` of the channels from ``start`` to ``stop``.
        """
        b, count = self.b, self.b.sitofp(self.channels, DOUBLE)

        def add_mean(width: int, i: Value, *totals: Value) -> list[Value]:
            return [b.fadd(totals[0], load(b, mean, i, DOUBLE, width))]

        ln_mean = b.fdiv(sum_over(b, DOUBLE, size(0), self.channels, add_mean, 1)[0], count)

        def add_variance(width: int, i: Value, *totals: Value) -> list[Value]:
            spread = b.fsub(load(b, mean, i, DOUBLE, width), splat(b, ln_mean, width))
            own = load(b, var, i, DOUBLE, width)
            return [b.fadd(totals[0], b.fadd(own, b.fmul(spread, spread)))]

        ln_var = b.fdiv(sum_over(b, DOUBLE, size(0), self.channels, add_variance, 1)[0], count)
        ln_var = b.fmul(ln_var, self.pooled_factor)

        def write(width: int, i: Value) -> None:
            i = b.add(start, i)
            own = [load(b, statistic, i, DOUBLE, width) for statistic in (mean, var)]
            ln = [splat(b, statistic, width) for statistic in (ln_mean, ln_var)]
            bn = [self._parameter(at, i, width) for at in (self.running_mean, self.running_var)]
            mixed_mean = self._weighted_sum(self.mean_shares, own[0], ln[0], bn[0])
            mixed_var = self._weighted_sum(self.var_shares, own[1], ln[1], bn[1])
            deviation = call_intrinsic(b, "sqrt", b.fadd(mixed_var, splat(b, self.eps, width)))
            factor = b.fdiv(self._parameter(self.weight, i, width), deviation)
            factor = to_float(b, factor)  # whose rounding the offset cancels at the mean
            product = b.fmul(mixed_mean, to_double(b, factor))
            offset = b.fsub(self._parameter(self.bias, i, width), product)
            store(b, factor, self.scale, i)
            store(b, to_float(b, offset), self.shift, i)

        for_lanes(b, b.sub(stop, start), write)

    def _weighted_sum(self, shares: list[Value], *statistics: Value) -> Value:
        """Return the mixture; a statistic with a share of 0 may be anything."""
        b, zero = self.b, constant(statistics[0].type, 0)
        terms = []
        for share, statistic in zip(shares, statistics, strict=True):
            product = b.fmul(splat(b, share, lanes(statistic)), statistic)
            is_mixed = b.fcmp_unordered("!=", share, constant(DOUBLE, 0))
            terms.append(b.select(is_mixed, product, zero))
        return b.fadd(terms[0], b.fadd(terms[1], terms[2]))

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

    def for_both(self, emit: Callable[[bool], None]) -> None:
        """Emit instructions with and without a shortcut; the call decides which of them run."""
        with self.b.if_else(self.has_shortcut) as (given, absent):
            with given:
                emit(True)
            with absent:
                emit(False)

    def normalize(
        self, index: Value, width: int, scale: Value, shift: Value, with_shortcut: bool
    ) -> None:
        """Write ``width`` values of the output, from the ``index``-th on."""
        b = self.b
        y = call_intrinsic(b, "fmuladd", self.load(index, width), scale, shift)
        if with_shortcut:
            y = b.fadd(y, _load_floats(b, self.shortcut, index, self.values, width))
        floor = splat(b, self.floor, width)
        y = b.select(b.fcmp_ordered("<", y, floor), floor, y)  # NaN stays
        (store if self.values == FLOAT else store_bfloats)(b, y, self.out, index)


def _load_floats(b: Any, base: Value, index: Value, kind: Type, width: int) -> Value:
    """Return values of type FLOAT, or of bfloat16 in INT16, as floats."""
    if kind == FLOAT:
        return load(b, base, index, FLOAT, width)
    return load_bfloats(b, base, index, width)
