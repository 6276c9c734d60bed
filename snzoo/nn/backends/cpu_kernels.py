"""What the loops of a layer on the CPU have in common. Importing this module imports llvmlite.

A team of OpenMP threads runs one function. It has phases with barriers between them: sums over the
positions of each channel of each sample, the (N, C) part, and a pass that writes an activation.
Sums are of distances to a value near the mean, in float32 over limited numbers of values, so that
neither a far mean nor a large map costs accuracy. All that is (N, C) is float64.

The class of a kernel has two bases. One is a task: ``Inference``, ``Forward`` or ``Backward``, of
the modules ``cpu_inference``, ``cpu_training`` and ``cpu_gradient``. The other is a layout:
``Contiguous`` or ``ChannelsLast``, of ``cpu_contiguous`` and ``cpu_channels_last``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

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
    address,
    call_at,
    call_intrinsic,
    constant,
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
)
from snzoo.nn.backends.openmp import OpenMP

# The argument of the function is a structure of 64-bit fields: the addresses of a task, 0 where
# there is no tensor, and then these sizes and numbers.
SIZES = ("samples", "channels", "positions", "threads", "instance", "batch", "logits", "relu")
NUMBERS = ("eps",)
PARAMETERS = ("weight", "bias", "mean_weight", "var_weight", "running_mean", "running_var")

ARRAYS = 4  # of floats: as many bytes as two of doubles
INFINITY = float("inf")
TRUE = ir.Constant(ir.IntType(1), 1)


class Kernel(ABC):
    """A module whose function ``int run(fields)`` computes a layer, and returns 1 without memory.

    Args:
        values: the type of the activations: FLOAT, or INT16 for bfloat16.
        parameters: the type of the parameters and of the running statistics.
    """

    ADDRESSES: ClassVar[tuple[str, ...]]
    EXTRA_ROWS: ClassVar[int] = 0
    COEFFICIENTS: ClassVar[int]  # how many of the arrays the last pass reads

    statistics: Value  # the address of the IN means and variances (C,) of each sample
    stride: Value  # from those of a sample to those of the next one, in doubles
    arrays: list[Value]  # the addresses of ARRAYS arrays (C,) of floats, of this thread alone
    extra: Value  # the address of EXTRA_ROWS · 2C doubles, which the threads share

    def __init__(self, values: Type, parameters: Type, openmp: OpenMP) -> None:
        self.values, self.parameters, self._openmp = values, parameters, openmp
        self.module = ir.Module()
        work = add_function(self.module, "work", ir.VoidType(), POINTER)
        self.b = b = ir.IRBuilder(work.append_basic_block())
        fields, self.scratch = (load_address(b, work.args[0], size(i)) for i in range(2))
        self._read(fields)
        gates = self.mean_weight, self.var_weight
        self.mean_shares, self.var_shares = map(self._read_shares, gates)
        alone = b.icmp_signed("==", self.threads, size(1))  # perhaps within another team
        self.team, self.thread = (
            b.select(alone, size(one), b.sext(call_at(b, at, INT32), INT64))
            for one, at in ((1, openmp.num_threads), (0, openmp.thread_num))
        )
        self._divide_memory()
        self.compute(*self.own_part(self.count_units()))
        b.ret_void()
        self._add_run(work)

    @abstractmethod
    def compute(self, first: Value, last: Value) -> None:
        """Do the task, with the units from ``first`` to ``last`` as this thread's share."""

    @abstractmethod
    def prepare(self, sample: Value, start: Value, stop: Value) -> None:
        """Write the coefficients of the channels from ``start`` to ``stop`` into ``arrays``."""

    @abstractmethod
    def put(self, index: Value, coefficients: list[Value], with_shortcut: bool) -> None:
        """Write values of the result from the ``index``-th on, one for each lane."""

    def for_variants(self, emit: Callable[[bool], None]) -> None:
        """Emit the last pass once, or with and without a shortcut."""
        emit(False)

    @abstractmethod
    def count_parts(self) -> Value:
        """Return into how many parts the positions of a sample are split."""

    @abstractmethod
    def count_units(self) -> Value:
        """Return the number of units, which the threads share."""

    def own_part(self, count: Value) -> tuple[Value, Value]:
        """Return the range of this thread's share of ``count``."""
        b = self.b
        ends = self.thread, b.add(self.thread, size(1))
        first, last = (b.sdiv(b.mul(count, end), self.team) for end in ends)
        return first, last

    def wait_for_team(self) -> None:
        b = self.b
        with b.if_then(b.icmp_signed(">", self.threads, size(1))):
            call_at(b, self._openmp.barrier, ir.VoidType())

    def _divide_memory(self) -> None:
        """Divide the memory: two sums of each part of a sample, ``arrays``, and ``extra``."""
        b, c = self.b, self.channels
        self.stride = b.mul(b.mul(c, size(2)), self.parts)
        self.statistics = self.scratch
        rows = b.mul(self.samples, self.parts)
        memory, self.extra = (
            address(b, self.scratch, b.mul(b.mul(c, size(2)), b.add(rows, more)), DOUBLE)
            for more in (self.thread, self.threads)
        )
        self.arrays = [address(b, memory, b.mul(c, size(i)), FLOAT) for i in range(ARRAYS)]

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
        threads = self.threads
        rows = b.add(b.mul(self.samples, self.parts), b.add(threads, size(self.EXTRA_ROWS)))
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

    def _read(self, fields: Value) -> None:
        """Set an attribute to each field, and to what follows from them."""
        b, one = self.b, constant(DOUBLE, 1)
        for i, name in enumerate((*self.ADDRESSES, *SIZES, *NUMBERS)):
            if name in self.ADDRESSES:
                value = load_address(b, fields, size(i))
            else:
                value = load(b, fields, size(i), DOUBLE if name in NUMBERS else INT64)
            setattr(self, name, value)
        has_running = self.is_given(self.running_mean)
        for name in ("running_mean", "running_var"):  # what is read instead has a share of 0
            setattr(self, name, b.select(has_running, getattr(self, name), self.weight))
        self.has_in, self.has_batch, self.are_logits = (
            b.icmp_signed("!=", flag, size(0)) for flag in (self.instance, self.batch, self.logits)
        )
        self.has_bn = b.or_(has_running, self.has_batch)
        own = self.unbiased(self.positions)
        pooled = self.unbiased(b.mul(self.channels, self.positions))
        self.variance_factor = b.select(self.has_in, own, one)
        self.pooled_factor = b.select(self.has_in, one, pooled)
        self.share = b.fdiv(one, b.sitofp(self.positions, DOUBLE))
        self.parts = self.count_parts()

    def __getattr__(self, name: str) -> Value:
        """Tell mypy that there are attributes of the fields."""
        raise AttributeError(name)

    def is_given(self, at: Value) -> Value:
        """Return whether an address is not 0."""
        return self.b.icmp_unsigned("!=", self.b.ptrtoint(at, INT64), size(0))

    def unbiased(self, count: Value) -> Value:
        """Return count / (count - 1), or 1 for a count of 1."""
        b = self.b
        less = maximum(b, b.sub(count, size(1)), size(1))
        return b.fdiv(b.sitofp(count, DOUBLE), b.sitofp(less, DOUBLE))

    def _read_shares(self, gates: Value) -> list[Value]:
        """Return the shares of IN, LN and BN; 0 for those that have no gate."""
        b = self.b
        at_bn = b.select(self.has_bn, b.add(self.instance, size(1)), size(0))
        read = [self.parameter(gates, at) for at in (size(0), self.instance, at_bn)]
        there = self.has_in, TRUE, self.has_bn
        zero, never = constant(DOUBLE, 0), constant(DOUBLE, -INFINITY)
        logits = [
            b.select(is_there, gate, never) for is_there, gate in zip(there, read, strict=True)
        ]
        most = logits[1]
        for logit in (logits[0], logits[2]):
            most = b.select(b.fcmp_ordered(">", logit, most), logit, most)
        powers = [call_intrinsic(b, "exp", b.fsub(logit, most)) for logit in logits]
        total = b.fadd(powers[0], b.fadd(powers[1], powers[2]))
        shares = [
            b.select(is_there, gate, zero) for is_there, gate in zip(there, read, strict=True)
        ]
        return [
            b.select(self.are_logits, b.fdiv(power, total), share)
            for power, share in zip(powers, shares, strict=True)
        ]

    def parameter(self, base: Value, index: Value, width: int = 1) -> Value:
        """Return ``width`` values of a parameter as doubles."""
        return to_double(self.b, _load_floats(self.b, base, index, self.parameters, width))

    def find_running(self, channel: Value, width: int) -> tuple[Value, Value]:
        """Return the running means and variances of ``width`` channels."""
        mean, var = self.running_mean, self.running_var
        return self.parameter(mean, channel, width), self.parameter(var, channel, width)

    def load_from(self, base: Value, index: Value, width: int = 1) -> Value:
        """Return ``width`` values of an activation as floats."""
        return _load_floats(self.b, base, index, self.values, width)

    def store_to(self, base: Value, value: Value, index: Value) -> None:
        """Write floats over values of an activation."""
        (store if self.values == FLOAT else store_bfloats)(self.b, value, base, index)

    def sums_of(self, row: Value) -> tuple[Value, Value]:
        """Return the addresses of two sums (C,) of a part of a sample."""
        b = self.b
        total = address(b, self.scratch, b.mul(b.mul(row, self.channels), size(2)), DOUBLE)
        return total, address(b, total, self.channels, DOUBLE)

    def sums_of_sample(self, sample: Value) -> tuple[Value, Value]:
        """Return the addresses of the sums of a sample's first part."""
        return self.sums_of(self.b.mul(sample, self.parts))

    def statistics_of(self, sample: Value) -> tuple[Value, Value]:
        """Return the addresses of the IN means and variances (C,) of a sample."""
        b = self.b
        mean = address(b, self.statistics, b.mul(sample, self.stride), DOUBLE)
        return mean, address(b, mean, self.channels, DOUBLE)

    def pool_channels(self, mean: Value, var: Value) -> tuple[Value, Value]:
        """Return the LN mean and variance of a sample from the addresses of those of IN."""
        b, count = self.b, self.b.sitofp(self.channels, DOUBLE)

        def add_mean(width: int, i: Value, *totals: Value) -> list[Value]:
            return [b.fadd(totals[0], load(b, mean, i, DOUBLE, width))]

        ln_mean = b.fdiv(sum_over(b, DOUBLE, size(0), self.channels, add_mean, 1)[0], count)

        def add_variance(width: int, i: Value, *totals: Value) -> list[Value]:
            spread = b.fsub(load(b, mean, i, DOUBLE, width), splat(b, ln_mean, width))
            own = load(b, var, i, DOUBLE, width)
            return [b.fadd(totals[0], b.fadd(own, b.fmul(spread, spread)))]

        ln_var = b.fdiv(sum_over(b, DOUBLE, size(0), self.channels, add_variance, 1)[0], count)
        return ln_mean, b.fmul(ln_var, self.pooled_factor)

    def mix(self, *statistics: tuple[Value, Value]) -> tuple[Value, Value]:
        """Return the mixed mean and variance from those of IN, LN and BN."""
        means, variances = zip(*statistics, strict=True)
        mixed_mean = self._weighted_sum(self.mean_shares, *means)
        return mixed_mean, self._weighted_sum(self.var_shares, *variances)

    def _weighted_sum(self, shares: list[Value], *statistics: Value) -> Value:
        """Return the mixture; a statistic with a share of 0 may be anything."""
        b, zero = self.b, constant(statistics[0].type, 0)
        terms = []
        for share, statistic in zip(shares, statistics, strict=True):
            product = b.fmul(splat(b, share, lanes(statistic)), statistic)
            is_mixed = b.fcmp_unordered("!=", share, constant(DOUBLE, 0))
            terms.append(b.select(is_mixed, product, zero))
        return b.fadd(terms[0], b.fadd(terms[1], terms[2]))


def _load_floats(b: Any, base: Value, index: Value, kind: Type, width: int) -> Value:
    """Return values of type FLOAT, or of bfloat16 in INT16, as floats."""
    if kind == FLOAT:
        return load(b, base, index, FLOAT, width)
    return load_bfloats(b, base, index, width)
