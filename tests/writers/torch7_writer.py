"""Write files of Torch7, after the description of the format."""

import struct
from collections import namedtuple

import numpy as np

NUMBERS = {"Double": "<f8", "Half": "<f2", "Long": "<i8", "Byte": "u1"}  # Float and Cuda: "<f4"

Object = namedtuple("Object", "name content")  # of a class; the content is a value
Tensor = namedtuple("Tensor", "kind sizes strides offset storage")
Storage = namedtuple("Storage", "kind elements")


def array_of(array, kind="Float"):
    """The tensor of a contiguous array."""
    strides = [int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim)]
    return Tensor(kind, array.shape, strides, 0, Storage(kind, array.ravel()))


class Writer:
    """Write objects as File.lua of torch7 does; ``starts`` are the positions of the values."""

    def __init__(self, versions=True):
        self.out, self.starts, self.versions, self.seen = bytearray(), [], versions, {}

    def put(self, code, *numbers):
        self.out += struct.pack(f"<{code}", *numbers)

    def string(self, text):
        encoded = text.encode()
        self.put(f"i{len(encoded)}s", len(encoded), encoded)

    def write(self, value):
        self.starts.append(len(self.out))
        if value is None:
            self.put("i", 0)
        elif isinstance(value, bool):
            self.put("ii", 5, value)
        elif isinstance(value, int | float):
            self.put("id", 1, value)
        elif isinstance(value, str):
            self.put("i", 2)
            self.string(value)
        else:
            known = id(value) in self.seen
            index, _ = self.seen.setdefault(id(value), (len(self.seen) + 1, value))
            self.put("ii", 3 if isinstance(value, dict) else 4, index)
            if not known:
                self.write_content(value)
        return self

    def write_content(self, value):
        if isinstance(value, dict):
            self.put("i", len(value))
            for item in (item for pair in value.items() for item in pair):
                self.write(item)
            return
        if self.versions:
            self.string("V 1")
        if isinstance(value, Object):
            self.string(value.name)
            self.write(value.content)
        elif isinstance(value, Tensor):
            self.string(f"torch.{value.kind}Tensor")
            count = len(value.sizes)
            self.put(f"i{2 * count + 1}q", count, *value.sizes, *value.strides, value.offset + 1)
            self.write(value.storage)
        else:
            self.string(f"torch.{value.kind}Storage")
            dtype = NUMBERS.get(value.kind.removeprefix("Cuda"), "<f4")
            self.put("q", len(value.elements))
            self.out += np.asarray(value.elements, dtype).tobytes()


def write(path, value, **options):
    path.write_bytes(Writer(**options).write(value).out)
    return path
