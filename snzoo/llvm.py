"""Write loops in the intermediate representation of LLVM, and compile them (extra ``[fast]``).

The functions here add to what llvmlite's ``IRBuilder`` has: loops, and vectors of any width.
Nothing optimizes the loops before LLVM generates machine code, so they are written as they run.
Importing this module imports llvmlite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from llvmlite import binding, ir

INT8, INT16, INT32, INT64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
FLOAT, DOUBLE = ir.FloatType(), ir.DoubleType()
POINTER = INT8.as_pointer()
# Lanes of a vector. The widest takes two or four registers, whose operations do not wait for each
# other; the narrower ones finish what is left of a line.
WIDTHS = (32, 8, 1)

Value = Any  # llvmlite has no types
Type = Any
_engines: list[Any] = []  # machine code lives as long as its engine


def compile_functions(
    module: Any, names: Iterable[str], processor: str | None = None, features: str | None = None
) -> list[int]:
    """Compile a module, and return the addresses of functions in it.

    Args:
        module: an ``ir.Module``.
        names: those of the functions.
        processor: LLVM's name of the processor; by default this one's.
        features: LLVM's names of its instruction sets, as in ``"+avx2,-avx512f"``.
    """
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    machine = target.create_target_machine(
        processor or binding.get_host_cpu_name(),
        get_features() if features is None else features,
        opt=3,
        jit=True,
    )
    module.triple, module.data_layout = target.triple, str(machine.target_data)
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _engines.append(engine)
    return [engine.get_function_address(name) for name in names]


def get_features() -> str:
    """Return LLVM's names of this processor's instruction sets."""
    features: str = binding.get_host_cpu_features().flatten()
    return features


def add_function(module: Any, name: str, result: Type, *arguments: Type) -> Any:
    return ir.Function(module, ir.FunctionType(result, arguments), name)


def vector(kind: Type, width: int) -> Type:
    """Return the type of ``width`` values; that of one value for a width of 1."""
    return kind if width == 1 else ir.VectorType(kind, width)


def lanes(value: Value) -> int:
    """Return the number of lanes of a vector; 1 for any other value."""
    return getattr(value.type, "count", 1)


def constant(kind: Type, value: float) -> Value:
    """Return a constant; for the type of a vector, one in each lane."""
    if isinstance(kind, ir.VectorType):
        return ir.Constant(kind, [value] * kind.count)
    return ir.Constant(kind, value)


def size(value: int) -> Value:
    return ir.Constant(INT64, value)


def splat(b: Any, value: Value, width: int) -> Value:
    """Return a vector whose lanes are all ``value``."""
    if width == 1:
        return value
    kind = ir.VectorType(value.type, width)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(INT32, 0))
    return take(b, first, [0] * width)


def take(b: Any, value: Value, places: Iterable[int], other: Value = None) -> Value:
    """Return a vector of the lanes of a vector, whose numbers go on in another one."""
    numbers = list(places)
    order = ir.Constant(ir.VectorType(INT32, len(numbers)), numbers)
    other = ir.Constant(value.type, ir.Undefined) if other is None else other
    return b.shuffle_vector(value, other, order)


def join(b: Any, vectors: Sequence[Value]) -> Value:
    """Return one vector of all the lanes of vectors, whose number is a power of two."""
    if len(vectors) == 1:
        return vectors[0]
    middle = len(vectors) // 2
    low, high = join(b, vectors[:middle]), join(b, vectors[middle:])
    return take(b, low, range(2 * low.type.count), high)


def load(b: Any, base: Value, index: Value, kind: Type, width: int = 1) -> Value:
    """Return ``width`` values from the ``index``-th of an array at ``base``."""
    return load_at(b, address(b, base, index, kind), kind, width, _bytes(kind))


def load_at(b: Any, at: Value, kind: Type, width: int, align: int = 1) -> Value:
    """Return ``width`` values from an address, which is a multiple of ``align``."""
    return b.load(b.bitcast(at, vector(kind, width).as_pointer()), align=align)


def load_address(b: Any, base: Value, index: Value) -> Value:
    """Return the ``index``-th of an array of addresses at ``base``."""
    return b.inttoptr(load(b, base, index, INT64), POINTER)


def store(b: Any, value: Value, base: Value, index: Value) -> None:
    """Write values from the ``index``-th on over an array at ``base``."""
    kind = value.type.element if isinstance(value.type, ir.VectorType) else value.type
    store_at(b, value, address(b, base, index, kind), _bytes(kind))


def store_at(b: Any, value: Value, at: Value, align: int = 1) -> None:
    """Write values from an address on, which is a multiple of ``align``."""
    b.store(value, b.bitcast(at, value.type.as_pointer()), align=align)


def address(b: Any, base: Value, index: Value, kind: Type) -> Value:
    """Return the address of the ``index``-th value of an array at ``base``."""
    return b.gep(base, [b.mul(index, size(_bytes(kind)))])


def _bytes(kind: Type) -> int:
    return {FLOAT: 4, DOUBLE: 8}.get(kind) or int(kind.width) // 8


def loop(
    b: Any,
    start: Value,
    stop: Value,
    body: Callable[..., Sequence[Value] | None],
    carried: Sequence[Value] = (),
    step: int = 1,
) -> list[Value]:
    """Run ``carried = body(i, *carried)`` for ``i`` in ``range(start, stop, step)``; return it."""
    before = b.block
    head, inside, after = (b.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    phis = [b.phi(value.type) for value in (start, *carried)]
    for phi, value in zip(phis, (start, *carried), strict=True):
        phi.add_incoming(value, before)
    b.cbranch(b.icmp_signed("<", phis[0], stop), inside, after)
    b.position_at_end(inside)
    results = body(*phis) or ()
    for phi, value in zip(phis, (b.add(phis[0], size(step)), *results), strict=True):
        phi.add_incoming(value, b.block)
    b.branch(head)
    b.position_at_end(after)
    return phis[1:]


def for_lanes(
    b: Any,
    start: Value,
    stop: Value,
    body: Callable[[int, Value], None],
    widths: Sequence[int] = WIDTHS,
) -> None:
    """Run ``body(width, i)`` for vectors that together cover the values from start to stop."""
    for width in widths:
        end = b.sub(stop, b.and_(b.sub(stop, start), size(width - 1)))
        loop(b, start, end, partial(body, width), step=width)
        start = end


def sum_lanes(b: Any, value: Value, width: int = 1) -> Value:
    """Return a vector of floats with its lanes added in pairs until ``width`` are left."""
    while lanes(value) > width:
        half = lanes(value) // 2
        if half == 1:
            return b.fadd(*(b.extract_element(value, ir.Constant(INT32, i)) for i in range(2)))
        value = b.fadd(take(b, value, range(half)), take(b, value, range(half, 2 * half)))
    return value


def sum_over(
    b: Any, kind: Type, start: Value, stop: Value, body: Callable[..., Sequence[Value]], sums: int
) -> list[Value]:
    """Return ``sums`` sums over the values from ``start`` to ``stop``, of type ``kind``.

    ``body(width, i, *totals)`` adds ``width`` values, from the ``i``-th on, to each total.
    """
    totals: list[Value] = [constant(vector(kind, WIDTHS[0]), 0.0)] * sums
    for width in WIDTHS:
        totals = [sum_lanes(b, total, width) for total in totals]
        end = b.sub(stop, b.and_(b.sub(stop, start), size(width - 1)))
        add = partial(body, width)
        totals = loop(b, start, end, add, totals, step=width)
        start = end
    return totals


def to_double(b: Any, value: Value) -> Value:
    """Return a float, or a vector of floats, as doubles."""
    return b.fpext(value, vector(DOUBLE, lanes(value)))


def to_float(b: Any, value: Value) -> Value:
    """Return a double, or a vector of doubles, as floats."""
    return b.fptrunc(value, vector(FLOAT, lanes(value)))


def call_intrinsic(b: Any, name: str, *values: Value) -> Value:
    """Return ``llvm.<name>`` of values that all have the type of the result."""
    kind = values[0].type
    bits = {FLOAT: "f32", DOUBLE: "f64"}
    suffix = f"v{kind.count}{bits[kind.element]}" if isinstance(kind, ir.VectorType) else bits[kind]
    full = f"llvm.{name}.{suffix}"
    known = b.module.globals.get(full)
    return b.call(known or add_function(b.module, full, kind, *(kind,) * len(values)), values)


def call_at(b: Any, at: int, result: Type, *values: Value) -> Value:
    """Return the result of the C function at an address."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return b.call(b.inttoptr(size(at), kind.as_pointer()), values)


def minimum(b: Any, first: Value, second: Value) -> Value:
    return b.select(b.icmp_signed("<", first, second), first, second)


def maximum(b: Any, first: Value, second: Value) -> Value:
    return b.select(b.icmp_signed(">", first, second), first, second)


def reverse(b: Any, start: Value, stop: Value, i: Value) -> Value:
    """Return what is in the place of ``i`` if ``range(start, stop)`` is reversed."""
    return b.sub(b.sub(stop, size(1)), b.sub(i, start))


def load_bfloats(b: Any, base: Value, index: Value, width: int = 1) -> Value:
    """Return ``width`` values from an array of bfloat16, as floats, whose upper halves they are."""
    whole = vector(INT32, width)
    bits = b.zext(load(b, base, index, INT16, width), whole)
    return b.bitcast(b.shl(bits, constant(whole, 16)), vector(FLOAT, width))


def store_bfloats(b: Any, value: Value, base: Value, index: Value) -> None:
    """Write floats over an array of bfloat16, each rounded to the nearest, or to the even one."""
    whole = vector(INT32, lanes(value))
    bits = b.bitcast(value, whole)
    is_odd = b.and_(b.lshr(bits, constant(whole, 16)), constant(whole, 1))
    rounded = b.add(b.add(bits, constant(whole, 0x7FFF)), is_odd)
    not_number = b.fcmp_unordered("uno", value, value)  # rounding could make it infinite
    rounded = b.select(not_number, constant(whole, 0x7FC00000), rounded)
    upper = b.lshr(rounded, constant(whole, 16))
    store(b, b.trunc(upper, vector(INT16, lanes(value))), base, index)
