"""Read files of Torch7 (``torch.save`` of Lua) in binary mode, without running code.

A file is one object. An object is an int, its type, and then its content. Tables and objects of
classes have an index before their content; an index that was read before is a reference, so objects
may be shared and may contain themselves. ``File.lua`` of torch7 (https://github.com/torch/torch7)
defines the format. Numbers are little-endian, an int has 4 bytes, and a long has 8, as on x86-64.
"""

from __future__ import annotations

import math
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from snzoo.errors import CheckpointError, first_line

NIL, NUMBER, STRING, TABLE, TORCH, BOOLEAN = range(6)
FUNCTIONS = (6, 7, 8)

MAX_VALUES = 1 << 18  # a ResNet has some 15,000; it bounds the time and the memory
MAX_DIMS = 8

_NUMBERS = {"Byte": "u1", "Char": "i1", "Short": "<i2", "Int": "<i4", "Long": "<i8"}
_NUMBERS |= {"Half": "<f2", "Float": "<f4", "Double": "<f8"}
# "Byte", "CudaByte", …, and "Cuda", which is float32
DTYPES = {
    name: np.dtype(dtype)
    for kind, dtype in _NUMBERS.items()
    for name in (kind, "Cuda" if kind == "Float" else f"Cuda{kind}")
}
TENSORS = {f"torch.{name}Tensor": dtype for name, dtype in DTYPES.items()}
STORAGES = {f"torch.{name}Storage": dtype for name, dtype in DTYPES.items()}


class Module(NamedTuple):
    """An object of a class such as ``nn.Linear``, with the table of its fields."""

    name: str
    fields: dict[str | float, Any]


class Storage(NamedTuple):
    """Elements in the file: their dtype, the position of the first byte, and how many they are."""

    dtype: np.dtype[Any]
    start: int
    numel: int


def is_torch7(start: bytes) -> bool:
    """Return whether a file is a table or an object of Torch7, the first object of the file.

    Args:
        start: the first bytes of the file, at least 8.
    """
    return start[:8] in (struct.pack("<2i", kind, 1) for kind in (TABLE, TORCH))


def read_torch7(path: Path) -> Any:
    """Return the content of a file.

    Tables become dicts, numbers become floats, strings are decoded as Latin-1, tensors become
    read-only NumPy arrays over the bytes of the file, and objects of other classes than tensors
    and storages become :class:`Module`. The keys of a table may be strings and numbers only.

    Raises:
        CheckpointError: the file can't be read, holds functions, or has too many values.
    """
    try:
        return _Reader(path.read_bytes()).read()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"can't read {path}: {first_line(error)}") from None


class _Reader:
    """The state of reading a file.

    Tables are filled from a stack instead of recursively: ``unfilled`` holds the open tables, each
    with the number of its entries that are not read yet.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0
        self.values = 0
        self.objects: dict[int, Any] = {}  # by index; None while the content is being read
        self.unfilled: list[tuple[dict[str | float, Any], int]] = []

    def read(self) -> Any:
        content = self.read_value()
        while self.unfilled:
            table, count = self.unfilled.pop()
            if count:
                self.unfilled.append((table, count - 1))
                key = self.read_value()
                if not isinstance(key, str | float) or key in table:
                    raise ValueError("a table has a key twice, or one that is no string or number")
                table[key] = self.read_value()
        if self.position < len(self.data):
            raise ValueError(f"{len(self.data) - self.position:,} bytes follow its content")
        return content

    def read_value(self, *, owner: str | None = None) -> Any:
        """Return the next value. The entries of a table are read later.

        Args:
            owner: the class of the object whose content the value is, or None for an entry of a
                table. Owners are not nested, so this method calls itself twice at most.
        """
        self.values += 1
        if self.values > MAX_VALUES:
            raise ValueError(f"it holds more than {MAX_VALUES:,} values; refused")
        kind = self.read_int()
        if kind == NIL:
            return None
        if kind == NUMBER:
            return struct.unpack_from("<d", self.data, self.skip(8))[0]
        if kind == STRING:
            return self.read_string()
        if kind == BOOLEAN:
            return self.read_int() == 1
        if kind in FUNCTIONS:
            raise ValueError("it holds a Lua function, which is code; refused")
        if kind not in (TABLE, TORCH):
            raise ValueError(f"type {kind} before byte {self.position:,} is unknown; it is damaged")
        return self.read_object(kind, owner)

    def read_object(self, kind: int, owner: str | None) -> Any:
        index = self.read_int()
        if index not in self.objects:
            self.objects[index] = None
            self.objects[index] = self.read_table() if kind == TABLE else self.read_torch(owner)
        found = self.objects[index]
        if found is None or isinstance(found, dict) != (kind == TABLE):
            raise ValueError(f"a reference before byte {self.position:,} is wrong; it is damaged")
        return found

    def read_table(self) -> dict[str | float, Any]:
        count = self.read_int()
        self.check(12 * count)  # a key and a value take 12 bytes at least
        table: dict[str | float, Any] = {}
        self.unfilled.append((table, count))
        return table

    def read_torch(self, owner: str | None) -> Any:
        """Return an object of a class; files of old versions have its name without a version."""
        version = self.read_string()
        name = self.read_string() if version.startswith("V ") else version
        if not re.fullmatch(r"[\w.]{1,80}", name, re.ASCII):
            raise ValueError(f"the name of a class before byte {self.position:,} is wrong")
        if name in STORAGES:
            dtype = STORAGES[name]
            (count,) = self.read_longs(1)
            return Storage(dtype, self.skip(count * dtype.itemsize), count)
        if owner is not None:
            raise ValueError(f"the content of a {owner} is a {name}; it is damaged")
        if name in TENSORS:
            return self.read_tensor(name)
        fields = self.read_value(owner=name)
        if not isinstance(fields, dict):
            raise ValueError(f"the content of a {name} is not a table of fields")
        return Module(name, fields)

    def read_tensor(self, name: str) -> NDArray[Any]:
        dtype, dims = TENSORS[name], self.read_int()
        if not 0 <= dims <= MAX_DIMS:
            raise ValueError(f"a tensor has {dims:,} dimensions, not 0 to {MAX_DIMS}")
        sizes, strides = self.read_longs(dims), self.read_longs(dims)
        offset = self.read_longs(1)[0] - 1
        storage = self.read_value(owner=name)
        if storage is None:
            storage = Storage(dtype, 0, 0)
        if not isinstance(storage, Storage) or storage.dtype != dtype:
            raise ValueError(f"a {name} has no storage of its type")
        if not dims or 0 in sizes:
            return np.empty(0, dtype)
        _check_view(sizes, strides, offset, storage.numel)
        # The stride of a dimension of size 1 is not used and may be any number.
        steps = [
            step * dtype.itemsize if size > 1 else 0
            for size, step in zip(sizes, strides, strict=True)
        ]
        start = storage.start + offset * dtype.itemsize
        return np.ndarray(sizes, dtype, self.data, start, steps)

    def read_string(self) -> str:
        size = self.read_int()
        start = self.skip(size)
        return self.data[start : start + size].decode("latin-1")

    def read_int(self) -> int:
        return int(struct.unpack_from("<i", self.data, self.skip(4))[0])

    def read_longs(self, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}q", self.data, self.skip(8 * count))

    def skip(self, size: int) -> int:
        """Go ``size`` bytes forward, and return the position before them."""
        self.check(size)
        self.position += size
        return self.position - size

    def check(self, size: int) -> None:
        """Raise a ValueError if ``size`` is negative, or more than what is left of the file."""
        left = len(self.data) - self.position
        if not 0 <= size <= left:
            raise ValueError(
                f"at byte {self.position:,} it announces {size:,} bytes, {left:,} are left; it is "
                "damaged or cut short"
            )


def _check_view(sizes: tuple[int, ...], strides: tuple[int, ...], offset: int, count: int) -> None:
    """Raise a ValueError unless a tensor lies within a storage of ``count`` elements.

    It may not have more elements than the storage, so that a copy of it is not larger.
    """
    reach = [(size - 1) * stride for size, stride in zip(sizes, strides, strict=True)]
    first = offset + sum(min(0, step) for step in reach)
    last = offset + sum(max(0, step) for step in reach)
    if min(sizes) < 0 or math.prod(sizes) > count or first < 0 or last >= count:
        raise ValueError(f"a tensor does not fit into its storage of {count:,} elements; refused")
