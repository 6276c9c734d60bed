"""Emit LLVM instructions: loops, and vectors of registers. Importing this imports llvmlite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llvmlite import ir

BYTE, SHORT, INT, SIZE = (ir.IntType(bits) for bits in (8, 16, 32, 64))
# Pointers to bytes, integers and floats, and a size:
TYPES = {"B": BYTE.as_pointer(), "I": INT.as_pointer(), "F": ir.FloatType().as_pointer(), "n": SIZE}


def begin(module: ir.Module, name: str, arguments: str) -> tuple[ir.IRBuilder, Sequence[Any]]:
    """Begin a function without a result; return its builder and its arguments, of ``TYPES``."""
    kind = ir.FunctionType(ir.VoidType(), [TYPES[letter] for letter in arguments])
    function = ir.Function(module, kind, name)
    return ir.IRBuilder(function.append_basic_block()), function.args


def repeat(
    b: ir.IRBuilder,
    start: Any,
    stop: Any,
    step: int,
    body: Callable[..., Sequence[Any] | None],
    values: Sequence[Any] = (),
) -> Sequence[Any]:
    """Emit ``for i in range(start, stop, step): values = body(i, *values)``; return the values."""
    before = b.block
    head, inside, after = (b.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    i, *held = phis = [b.phi(value.type) for value in (start, *values)]
    b.cbranch(b.icmp_signed("<", i, stop), inside, after)
    b.position_at_end(inside)
    results = [b.add(i, size(step)), *(body(i, *held) or ())]
    b.branch(head)
    for phi, first, result in zip(phis, (start, *values), results, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(result, b.block)
    b.position_at_end(after)
    return held


def size(value: int) -> ir.Constant:
    """Return a constant of the type of sizes."""
    return ir.Constant(SIZE, value)


def fill(value: int, like: Any) -> ir.Constant:
    """Return a vector of one constant, of the type of another vector."""
    return ir.Constant(like.type, [value] * like.type.count)


def smaller(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    """Return the smaller one of two sizes."""
    return b.select(b.icmp_signed("<", x, y), x, y)


def load(b: ir.IRBuilder, at: Any, kind: ir.Type, count: int) -> Any:
    """Load a vector from any address."""
    return b.load(b.bitcast(at, ir.VectorType(kind, count).as_pointer()), align=1)


def store(b: ir.IRBuilder, vector: Any, to: Any) -> None:
    """Store a vector at any address."""
    b.store(vector, b.bitcast(to, vector.type.as_pointer()), align=1)


def take(b: ir.IRBuilder, vector: Any, lanes: Iterable[int], other: Any = None) -> Any:
    """Return a vector of the lanes of a vector, whose numbers go on in another one."""
    if other is None:
        other = ir.Constant(vector.type, ir.Undefined)
    numbers = list(lanes)
    order = ir.Constant(ir.VectorType(INT, len(numbers)), numbers)
    return b.shuffle_vector(vector, other, order)


def join(b: ir.IRBuilder, vectors: Sequence[Any]) -> Any:
    """Return one vector of all the lanes of vectors, whose number is a power of two."""
    if len(vectors) == 1:
        return vectors[0]
    middle = len(vectors) // 2
    low, high = join(b, vectors[:middle]), join(b, vectors[middle:])
    return take(b, low, range(2 * low.type.count), high)


def add_products(b: ir.IRBuilder, sums: Any, pairs: Any, weights: Any) -> Any:
    """Add to each sum a pair of products. On x86, that is one instruction, ``pmaddwd``.

    Args:
        b: the builder.
        sums: the 32-bit sums.
        pairs: a pair of 16-bit factors for each sum.
        weights: a 32-bit integer that holds the pair of 16-bit weights, which all sums share.
    """
    count = sums.type.count
    weights = b.insert_element(ir.Constant(ir.VectorType(INT, 1), ir.Undefined), weights, INT(0))
    weights = b.bitcast(take(b, weights, [0] * count), pairs.type)
    wide = ir.VectorType(INT, 2 * count)
    products = b.mul(b.sext(pairs, wide), b.sext(weights, wide))
    even, odd = (take(b, products, range(first, 2 * count, 2)) for first in (0, 1))
    return b.add(sums, b.add(even, odd))
