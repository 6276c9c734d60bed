"""Read the variables of a TensorFlow checkpoint of format V1, with NumPy alone.

A V1 file is a table as in LevelDB: data blocks, a metaindex block, an index block, and a footer
with the places of the latter two. A block ends with its type and its CRC-32C. The index has the
places of the data blocks. The entries of the data blocks are protocol buffers: the first one
declares the name, shape and type of each variable, and every other one holds the values of one.

The source of the format is TensorFlow: ``core/lib/io/format.h``, ``core/lib/io/block_builder.cc``
and ``core/util/saved_tensor_slice.proto``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from snzoo.errors import CheckpointError, first_line
from snzoo.weights.crc32c import crc32c
from snzoo.weights.pytorch import too_large

MAGIC = bytes.fromhex("57fb808b247547db")
# The start of a file: an entry with an empty key, its size, and the tag of its declarations.
FIRST_ENTRY = re.compile(rb"\0\0[\x80-\xff]{0,9}[\0-\x7f]\n")
FOOTER = 48  # bytes: two handles, zeros, the magic
TRAILER = 5  # bytes after a block: its type, its CRC

# TensorFlow's number of a type → its dtype, and the field of TensorProto with its values
TYPES: dict[int, tuple[np.dtype[Any], int]] = {
    1: (np.dtype("<f4"), 5),
    2: (np.dtype("<f8"), 6),
    3: (np.dtype("<i4"), 7),
    9: (np.dtype("<i8"), 10),
}
MOST_VARIABLES = 100_000
MOST_FIELDS = 32  # of other messages; it bounds the number of dimensions, as NumPy 1 does
MOST_NAME = 1024  # bytes
MOST_INTEGERS = 1 << 16  # in a variable; networks count steps with integers

T = TypeVar("T")


class Handle(NamedTuple):
    """The place of a block in the file, in bytes."""

    offset: int
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size + TRAILER


class Message(NamedTuple):
    """The fields of a protocol buffer by their numbers: integers, and strings or messages."""

    integers: dict[int, list[int]]
    strings: dict[int, list[memoryview]]


class Declaration(NamedTuple):
    """The shape of a variable, and TensorFlow's number of its type."""

    shape: tuple[int, ...]
    kind: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * TYPES[self.kind][0].itemsize


def is_tensorflow(start: bytes, end: bytes) -> bool:
    """Return whether a file is a table of TensorFlow, also if its end was cut off.

    Args:
        start: the first bytes of the file.
        end: the last bytes of the file, at least 8.
    """
    return end.endswith(MAGIC) or bool(FIRST_ENTRY.match(start))


def read_tensorflow(
    content: bytes | memoryview, *, where: str | Path, max_bytes: int
) -> dict[str, NDArray[Any]]:
    """Return the variables of a V1 checkpoint by their names.

    Args:
        content: the content of the file.
        where: the name of the file, for errors.
        max_bytes: the largest total size of the arrays. It is checked before any is made.

    Raises:
        CheckpointError: the file is damaged, too large or compressed, or has variables that are
            empty, partitioned, or of another type than float32, float64, int32 and int64.
    """
    try:
        return _read_variables(memoryview(content), max_bytes)
    except ValueError as error:
        raise CheckpointError(f"can't read {where}: {first_line(error)}") from None


def _read_variables(table: memoryview, max_bytes: int) -> dict[str, NDArray[Any]]:
    entries = _read_table(table)
    declarations = _read_declarations(next(entries))
    if sum(declaration.nbytes for declaration in declarations.values()) > max_bytes:
        raise ValueError(too_large(max_bytes))
    arrays: dict[str, NDArray[Any]] = {}
    for entry in entries:
        data = _read_message(_only(_read_message(entry).strings, 2, "variables in an entry"))
        name = _read_name(data)
        if name not in declarations:
            raise ValueError(f"{name!r} has values, but is not declared")
        if name in arrays:
            raise ValueError(f"{name!r} has values twice")
        declaration = declarations[name]
        _check_whole(data.strings.get(2, []), declaration.shape, name)
        arrays[name] = _read_array(_only(data.strings, 3, f"arrays of {name!r}"), declaration, name)
    if missing := declarations.keys() - arrays.keys():
        raise ValueError(f"{min(missing)!r} is declared, but has no values")
    return arrays


def _read_declarations(entry: memoryview) -> dict[str, Declaration]:
    """Return the declarations in the first entry of a file."""
    found = _read_message(entry).strings.get(1, [])
    if len(found) != 1:
        raise ValueError(
            "its first entry does not declare the variables; snzoo reads checkpoints of the format "
            "V1, not the index of a V2 checkpoint"
        )
    (meta,) = found
    declarations: dict[str, Declaration] = {}
    for variable in _read_message(meta, most=MOST_VARIABLES).strings.get(1, []):
        fields = _read_message(variable)
        name = _read_name(fields)
        if name in declarations:
            raise ValueError(f"{name!r} is declared twice")
        dims = _read_message(_only(fields.strings, 2, f"shapes of {name!r}")).strings.get(2, [])
        sizes = [_read_message(dim).integers.get(1, [0])[-1] for dim in dims]
        kind = _only(fields.integers, 3, f"types of {name!r}")
        if not all(0 < size < 1 << 63 for size in sizes):
            raise ValueError(f"{name!r} has the shape {sizes}; a size must be positive")
        if kind not in TYPES:
            raise ValueError(f"{name!r} has TensorFlow's type {kind}, which snzoo does not read")
        declarations[name] = Declaration(tuple(sizes), kind)
        _check_whole(fields.strings.get(4, []), declarations[name].shape, name)
    return declarations


def _read_name(message: Message) -> str:
    name = _only(message.strings, 1, "names of a variable")
    if len(name) > MOST_NAME:
        raise ValueError(f"the name of a variable has {len(name):,} bytes")
    return str(name, "utf-8")


def _check_whole(slices: list[memoryview], shape: tuple[int, ...], name: str) -> None:
    """Check that a variable is stored as one slice that extends over every dimension."""
    extents = [_read_message(part).strings.get(1, []) for part in slices]
    if len(extents) != 1 or any(map(len, extents[0])):  # an extent without bytes is the whole one
        raise ValueError(f"{name!r} is partitioned; snzoo reads whole variables only")
    if len(extents[0]) != len(shape):
        raise ValueError(f"{name!r} has the shape {shape}, but {len(extents[0])} extents")


def _read_array(data: memoryview, declaration: Declaration, name: str) -> NDArray[Any]:
    """Return the values of a ``TensorProto``, which does not state their type and shape itself."""
    dtype, field = TYPES[declaration.kind]
    packed = _only(_read_message(data).strings, field, f"{dtype.name} arrays of {name!r}")
    if dtype.kind == "f":
        if len(packed) != declaration.nbytes:
            raise ValueError(
                f"{name!r} has {len(packed):,} bytes, but the shape {declaration.shape} of "
                f"{dtype.name}"
            )
        values = np.frombuffer(packed, dtype)
    else:
        values = _read_integers(packed, name)
        if values.size != math.prod(declaration.shape):
            raise ValueError(
                f"{name!r} has {values.size} integers, but the shape {declaration.shape}"
            )
    array = values.astype(dtype.newbyteorder("="))  # a copy, which is aligned
    if dtype.kind == "i" and not np.array_equal(array, values):
        raise ValueError(f"{name!r} has values outside {dtype.name}")
    return array.reshape(declaration.shape)


def _read_integers(packed: memoryview, name: str) -> NDArray[np.int64]:
    """Return the integers of a string that consists of varints."""
    values: list[int] = []
    position = 0
    while position < len(packed):
        value, position = _read_varint(packed, position)
        values.append(value % (1 << 64))
        if len(values) > MOST_INTEGERS:
            raise ValueError(f"{name!r} has more than {MOST_INTEGERS:,} integers")
    return np.array(values, np.uint64).view(np.int64)


def _read_table(table: memoryview) -> Iterator[memoryview]:
    """Yield the values of all entries. The blocks must fill the file without gaps."""
    if len(table) < FOOTER or table[-8:] != MAGIC:
        raise ValueError("it does not end as a TensorFlow V1 checkpoint; it is cut short")
    metaindex, position = _read_handle(table[-FOOTER:-8], 0)
    index, _ = _read_handle(table[-FOOTER:-8], position)
    if (metaindex.end, index.end) != (index.offset, len(table) - FOOTER):
        raise ValueError("its index is not where its footer says; it is damaged or cut short")
    _read_block(table, metaindex)
    end = 0
    for entry in _read_entries(_read_block(table, index), index):
        handle, _ = _read_handle(entry, 0)
        if handle.offset != end or handle.end > metaindex.offset:
            raise ValueError(f"the index has a wrong place for the block at byte {end}")
        yield from _read_entries(_read_block(table, handle), handle)
        end = handle.end
    if end != metaindex.offset:
        raise ValueError(f"the index lacks the block at byte {end}")


def _read_handle(data: memoryview, position: int) -> tuple[Handle, int]:
    offset, position = _read_varint(data, position)
    size, position = _read_varint(data, position)
    return Handle(offset, size), position


def _read_block(table: memoryview, handle: Handle) -> memoryview:
    """Return the contents of a block within the file after verifying its CRC."""
    end = handle.offset + handle.size
    crc = crc32c(table[handle.offset : end + 1])
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    if int.from_bytes(table[end + 1 : handle.end], "little") != masked:
        raise ValueError(f"the block at byte {handle.offset} is damaged: its CRC is wrong")
    if table[end] != 0:
        raise ValueError(
            f"the block at byte {handle.offset} is compressed (type {table[end]}, 1 is Snappy), "
            "which snzoo does not read"
        )
    return table[handle.offset : end]


def _read_entries(block: memoryview, handle: Handle) -> Iterator[memoryview]:
    """Yield the values of the entries of a block. Their keys are skipped."""
    restarts = int.from_bytes(block[-4:], "little")
    entries = block[: max(0, len(block) - 4 * (restarts + 1))]
    if not entries:
        raise ValueError(f"the block at byte {handle.offset} has no entries")
    position, key = 0, 0
    while position < len(entries):
        shared, position = _read_varint(entries, position)  # bytes of the last key
        unshared, position = _read_varint(entries, position)
        size, position = _read_varint(entries, position)
        start = position + unshared
        if shared > key or size > len(entries) - start:
            raise ValueError(f"the block at byte {handle.offset} has an entry beyond its end")
        yield entries[start : start + size]
        position, key = start + size, shared + unshared


def _read_message(data: memoryview, *, most: int = MOST_FIELDS) -> Message:
    """Return the fields of a protocol buffer, of which there may be ``most``."""
    message = Message({}, {})
    position = count = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _read_varint(data, position)
            message.integers.setdefault(field, []).append(value)
            size = 0
        elif wire == 2:
            size, position = _read_varint(data, position)
            message.strings.setdefault(field, []).append(data[position : position + size])
        elif wire in (1, 5):  # numbers of fixed size, which no message here has outside arrays
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field has the wire type {wire}, which is not allowed")
        position += size
        count += 1
        if position > len(data) or count > most:
            raise ValueError(f"a message is cut short, or has more than {most:,} fields")
    return message


def _read_varint(data: memoryview, position: int) -> tuple[int, int]:
    """Return an integer of 7 bits a byte, the lowest first, and the position after it."""
    value = 0
    for i, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, position + i + 1
    raise ValueError("an integer has more than 10 bytes, or is cut short")


def _only(fields: Mapping[int, list[T]], field: int, what: str) -> T:
    """Return the value of a field that must occur once."""
    values = fields.get(field, [])
    if len(values) != 1:
        raise ValueError(f"it has {len(values)} {what}, not 1")
    return values[0]
