"""Read insightface's verification sets (``lfw.bin``, ``cfp_fp.bin``, …) without running code.

Such a file is ``pickle.dump((photos, is_same))``: a list of 2·P encoded photos, as bytes or as
arrays of ``cv2.imencode``, and a list of P booleans. Pair p has the photos 2p and 2p + 1. Old files
come from Python 2.

``pickletools`` of the standard library splits a pickle into its operations without acting on them.
This module carries out the operations that such a file needs, and refuses all others. It never
imports or calls what a pickle names.
"""

from __future__ import annotations

import io
import math
import pickletools
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any

from snzoo.data.sources import unreadable

LARGEST_SET = 1 << 30  # bytes; lfw.bin has some 60 MB
MOST_OPERATIONS = 2_000_000  # a photo takes 3 to 30; it bounds the time and the memory


@dataclass(frozen=True)
class Name:
    """The name of a function, a class or a type of numbers, which is never looked up."""

    text: str


@dataclass(eq=False)
class Array:
    """A uint8 array. Its content follows after it in a pickle."""

    content: bytes = b""


UINT8 = Name("uint8")
# The names that a pickle may hold. A module of NumPy has an old and a new name.
NAMES = {
    "_codecs encode": Name("encode"),
    "numpy dtype": Name("dtype"),
    "numpy ndarray": Name("ndarray"),
    "numpy.core.multiarray _reconstruct": Name("reconstruct"),
    "numpy._core.multiarray _reconstruct": Name("reconstruct"),
    "numpy.core.numeric _frombuffer": Name("frombuffer"),
    "numpy._core.numeric _frombuffer": Name("frombuffer"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Operations whose argument is the value: integers, texts and bytes.
VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"}
VALUES |= {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
VALUES |= {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class BinPhotos:
    """The encoded photos of a set, for :func:`~snzoo.data.batches.read_batches`."""

    path: Path
    contents: tuple[bytes, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.contents)

    def read(self, index: int) -> bytes:
        return self.contents[index]

    def locate(self, index: int) -> str:
        return f"{self.path}, photo {index}"


def read_bin_set(path: Path) -> tuple[BinPhotos, list[bool]]:
    """Return the 2·P photos of a set, which are not decoded, and whether each pair is one person.

    Raises:
        DataError: the file cannot be read, is damaged, is larger than ``LARGEST_SET`` bytes, or
            holds something else.
    """
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise ValueError("not a regular file")  # reading a pipe could wait forever
        if status.st_size > LARGEST_SET:
            raise ValueError(f"larger than {LARGEST_SET >> 20} MiB; split the set")
        photos, is_same = _split_set(_Unpickler(path.read_bytes()).load())
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    return BinPhotos(path, photos), is_same


def _split_set(content: Any) -> tuple[tuple[bytes, ...], list[bool]]:
    """Return the photos and the booleans of a set, after a check of all of them."""
    match content:
        case (list() | tuple() as photos, list() | tuple() as flags):
            pass
        case _:
            raise ValueError("it is not a pair of lists, the photos and whether pairs are the same")
    if not flags or len(photos) != 2 * len(flags):
        raise ValueError(f"it holds {len(photos):,} photos for {len(flags):,} pairs, not two each")
    contents = [photo.content if isinstance(photo, Array) else photo for photo in photos]
    for index, photo in enumerate(contents):
        if not isinstance(photo, bytes) or not photo:
            raise ValueError(f"photo {index} is no encoded photo")
    for index, flag in enumerate(flags):
        if not isinstance(flag, int) or flag not in (0, 1):
            raise ValueError(f"pair {index} is neither the same nor not the same person")
    return tuple(contents), list(map(bool, flags))


class _Unpickler:
    """The state of reading a pickle: the stack, the marks in it, and the memo."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.encoded = 0  # bytes that strings were encoded to
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """Return the content of the pickle.

        Raises:
            ValueError: the pickle is damaged, or holds more than lists, tuples, bytes, texts,
                integers, booleans and uint8 arrays.
        """
        operations = pickletools.genops(io.BytesIO(self.data))
        for count, (operation, argument, _) in enumerate(operations):
            if count >= MOST_OPERATIONS:
                raise ValueError(f"its pickle has more than {MOST_OPERATIONS:,} operations")
            if operation.name == "STOP":
                break
            if not self.push_value(operation.name, argument):
                self.act(operation.name, argument)
        return self.pop()

    def push_value(self, operation: str, argument: Any) -> bool:
        """Return whether an operation adds a value to the stack, and do it."""
        if operation in CONSTANTS:
            self.stack.append(CONSTANTS[operation])
        elif operation in VALUES:
            self.stack.append(argument)
        elif operation == "BYTEARRAY8":
            self.stack.append(bytes(argument))
        elif operation in ("BINSTRING", "SHORT_BINSTRING"):  # bytes of Python 2
            self.stack.append(argument.encode("latin-1"))
        elif operation == "EMPTY_LIST":
            self.stack.append([])
        else:
            return False
        return True

    def act(self, operation: str, argument: Any) -> None:
        """Carry out an operation on the values before it."""
        match operation:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "LIST":
                self.stack.append(self.pop_to_mark())
            case "TUPLE":
                self.stack.append(tuple(self.pop_to_mark()))
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                values = [self.pop() for _ in range(TUPLES[operation])]
                self.stack.append(tuple(reversed(values)))
            case "APPEND":
                value = self.pop()
                self.extend([value])
            case "APPENDS":
                values = self.pop_to_mark()
                self.extend(values)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "GET" | "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise ValueError("its pickle is damaged: it refers to a value before it")
                self.stack.append(self.memo[argument])
            case "GLOBAL":
                self.stack.append(_find_name(argument))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                if not (isinstance(name, str) and isinstance(module, str)):
                    raise ValueError("its pickle is damaged: a name is no text")
                self.stack.append(_find_name(f"{module} {name}"))
            case "REDUCE":
                arguments, function = self.pop(), self.pop()
                self.stack.append(self.reduce(function, arguments))
            case "BUILD":
                _build(state=self.pop(), value=self.top())
            case _:
                raise ValueError(f"its pickle has the operation {operation}, which no set needs")

    def pop(self) -> Any:
        value = self.top()
        del self.stack[-1]
        return value

    def top(self) -> Any:
        if not self.stack:
            raise ValueError("its pickle is damaged: a value is missing")
        return self.stack[-1]

    def pop_to_mark(self) -> list[Any]:
        """Return the values since the last mark, and remove them from the stack."""
        if not self.marks:
            raise ValueError("its pickle is damaged: a mark is missing")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def extend(self, values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise ValueError("its pickle is damaged: it appends to no list")
        target += values

    def reduce(self, function: Any, arguments: Any) -> Any:
        """Return what an allowed function returns for the arguments that sets have."""
        match function, arguments:
            case Name("encode"), (str() as text, "latin1"):  # bytes in protocols before 3
                self.encoded += len(text)
                if self.encoded > len(self.data):  # it encodes one text many times
                    raise ValueError("its pickle unpacks to more bytes than it has")
                return text.encode("latin-1")
            case Name("dtype"), ("u1" | b"u1", *_):
                return UINT8
            case Name("reconstruct"), (Name("ndarray"), *_):
                return Array()
            case Name("frombuffer"), (bytes() as content, Name("uint8"), tuple() as shape, *_):
                return Array(_check_shape(content, shape))
        raise ValueError("its pickle holds more than photos: bytes or arrays of type uint8")


def _find_name(name: str) -> Name:
    if name not in NAMES:
        raise ValueError(f"its pickle names {name[:80]!r}, which could run code; refused")
    return NAMES[name]


def _build(*, value: Any, state: Any) -> None:
    """Give an array its content. The byte order of uint8, which is its state, means nothing."""
    match value, state:
        case Name("uint8"), _:
            pass
        case Array(), (_, tuple() as shape, Name("uint8"), _, bytes() as content):
            value.content = _check_shape(content, shape)
        case _:
            raise ValueError("its pickle holds more than photos: bytes or arrays of type uint8")


def _check_shape(content: bytes, shape: tuple[Any, ...]) -> bytes:
    """Return the content of an array of one row or one column."""
    sizes = [size for size in shape[:3] if isinstance(size, int)]
    if len(shape) > 2 or sizes != list(shape) or max(sizes, default=0) != math.prod(sizes):
        raise ValueError("an array of its pickle holds pixels, not an encoded photo")
    if math.prod(sizes) != len(content):
        raise ValueError("an array of its pickle was cut short")
    return content
