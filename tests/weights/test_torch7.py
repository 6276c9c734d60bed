"""Torch7 files: their objects, and hostile ones."""

import random
import re
import struct
import time
import tracemalloc

import numpy as np
import pytest
from torch7_writer import Object, Storage, Tensor, Writer, array_of, write

from snzoo.errors import CheckpointError
from snzoo.weights import read_state_dict
from snzoo.weights.torch7 import read_torch7


def test_values_tables_and_references_are_read(tmp_path):
    shared = {"x": 0.5}
    table = {"text": "é", "yes": True, "no": False, "nothing": None, 1: shared, 2: shared}
    table["itself"] = table
    table["module"] = Object("nn.Linear", {"parent": table})
    found = read_torch7(write(tmp_path / "x.t7", table))
    assert list(found) == list(table) and found["itself"] is found
    assert [found[key] for key in ("yes", "no", "nothing")] == [True, False, None]
    assert found["text"].encode("latin-1").decode() == "é"
    assert found[1] == {"x": 0.5} and found[1] is found[2]
    assert found["module"].name == "nn.Linear" and found["module"].fields["parent"] is found


@pytest.mark.parametrize("versions", [True, False], ids=["V 1", "without a version"])
@pytest.mark.parametrize(
    "kind, dtype",
    [
        ("Float", "f4"),
        ("Cuda", "f4"),
        ("Double", "f8"),
        ("CudaDouble", "f8"),
        ("Half", "f2"),
        ("CudaHalf", "f2"),
        ("Long", "i8"),
        ("CudaLong", "i8"),
        ("Byte", "u1"),
    ],
)
def test_tensors_of_every_class_are_read(tmp_path, kind, dtype, versions):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    found = read_torch7(write(tmp_path / "x", array_of(array, kind), versions=versions))
    assert found.dtype == array.dtype and np.array_equal(found, array)


VIEWS = {
    "whole": ([2, 3], [3, 1], 0, [[0, 1, 2], [3, 4, 5]]),
    "transposed": ([3, 2], [1, 3], 0, [[0, 3], [1, 4], [2, 5]]),
    "a part": ([2], [2], 3, [3, 5]),
    "backward": ([3], [-2], 5, [5, 3, 1]),
    "size 1, any stride": ([1, 2], [2**62, 1], 4, [[4, 5]]),
    "repeated": ([2, 2], [0, 1], 0, [[0, 1], [0, 1]]),
    "no dimensions": ([], [], 0, []),
    "no elements": ([0, 5], [5, 1], 99, []),
}


@pytest.mark.parametrize("sizes, strides, offset, expected", VIEWS.values(), ids=VIEWS)
def test_views_of_a_storage_are_read(tmp_path, sizes, strides, offset, expected):
    storage = Storage("Float", range(6))
    tensors = {1: storage, 2: Tensor("Float", sizes, strides, offset, storage)}
    assert read_torch7(write(tmp_path / "x", tensors))[2].tolist() == expected
    assert read_torch7(write(tmp_path / "y", Tensor("Float", [], [], 0, None))).size == 0


def nested(depth):
    """A table in a table, and so on: type, index, number of entries, and the key 1.0."""
    tables = [struct.pack("<iiiid", 3, i, 1, 1, 1.0) for i in range(1, depth + 1)]
    return b"".join(tables) + bytes(4)


def nested_objects(depth, name):
    head = struct.pack(f"<i3si{len(name)}s", 3, b"V 1", len(name), name.encode())
    dims = struct.pack("<iq", 0, 1) if name.endswith("Tensor") else b""
    return b"".join(struct.pack("<ii", 4, i) + head + dims for i in range(1, depth))


def bad_view(*view):
    return Writer().write(Tensor("Float", *view, Storage("Float", range(6)))).out


def patched(value, old, new, code):
    """What the writer writes, with a number in place of another one that is there once."""
    out = Writer().write(value).out
    assert out.count(struct.pack(code, old)) == 1
    return out.replace(struct.pack(code, old), struct.pack(code, new))


MANY_DIMS = bad_view([], [], 77).replace(
    struct.pack("<iq", 0, 78), struct.pack("<iq", 2**31 - 1, 78)
)
TABLE, TEXT, ARRAY = {"k": dict.fromkeys("abcdefg")}, "s" * 77, Storage("Float", range(99))
WRONG = Tensor("Float", [6], [1], 0, Storage("Double", range(6)))
ITSELF = struct.pack(
    "<iii3si17siqqqii", 4, 1, 3, b"V 1", 17, b"torch.FloatTensor", 1, 6, 1, 1, 4, 1
)
HOSTILE = {
    "function": (struct.pack("<iiiiq", 3, 1, 1, 8, 2), "it holds a Lua function, which is code"),
    "old function": (struct.pack("<iiiiq", 3, 1, 1, 6, 0), "it holds a Lua function"),
    "unknown type": (struct.pack("<iiiiq", 3, 1, 1, 9, 0), "type 9 before byte 16 is unknown"),
    "string of 2^31 - 1": (patched({1: TEXT}, 77, 2**31 - 1, "<i"), "announces 2,147,483,647"),
    "string of -1": (patched({1: TEXT}, 77, -1, "<i"), "it announces -1 bytes"),
    "table of 2^31 - 1": (patched(TABLE, 7, 2**31 - 1, "<i"), "announces 25,769,803,764 bytes"),
    "table of -1": (patched(TABLE, 7, -1, "<i"), "it announces -12 bytes"),
    "storage of 2^62": (patched(ARRAY, 99, 2**62, "<q"), "announces 18,446,744,073,709,551,616"),
    "storage of -1": (patched(ARRAY, 99, -1, "<q"), "it announces -4 bytes"),
    "dimensions": (bad_view([1] * 9, [1] * 9, 0), "a tensor has 9 dimensions, not 0 to 8"),
    "2^31 - 1 dimensions": (MANY_DIMS, "a tensor has 2,147,483,647 dimensions"),
    "beyond the storage": (bad_view([2, 3], [3, 1], 1), "does not fit into its storage of 6 elem"),
    "before the storage": (bad_view([3], [-2], 3), "a tensor does not fit into its storage"),
    "offset of 2^62": (bad_view([1], [1], 2**62), "a tensor does not fit into its storage"),
    "strides of 2^62": (bad_view([2, 2], [2**62, -(2**62)], 0), "does not fit into its storage"),
    "more elements than the storage": (bad_view([2**40, 2**22], [0, 0], 0), "does not fit into"),
    "negative sizes": (bad_view([-2, -3], [1, 1], 5), "a tensor does not fit into its storage"),
    "storage of another type": (Writer().write(WRONG).out, "FloatTensor has no storage of its"),
    "a tensor is its storage": (ITSELF, "a reference before byte 72 is wrong"),
    "a table is a storage": (Writer().write(Tensor("Float", [1], [1], 0, {})).out, "no storage"),
    "a module of modules": (nested_objects(100_000, "nn.X"), "content of a nn.X is a nn.X"),
    "tensors of tensors": (nested_objects(100_000, "torch.IntTensor"), "is a torch.IntTensor"),
    "a module of a number": (Writer().write(Object("nn.X", 1)).out, "nn.X is not a table of fiel"),
    "generator": (Writer().write(Object("torch.Generator", None)).out, "torch.Generator is not"),
    "no class": (Writer().write(Object("os.execute('x')", {})).out, "the name of a class before"),
    "key twice": (struct.pack("<iiiidiidi", 3, 1, 2, 1, 7.0, 0, 1, 7.0, 0), "has a key twice"),
    "table as key": (struct.pack("<iiiiiii", 3, 1, 1, 3, 2, 0, 0), "or one that is no string"),
    "an index twice": (struct.pack("<iiiidii", 3, 1, 1, 1, 7.0, 4, 1), "a reference before byte"),
    "more bytes": (Writer().write({}).out + b"abc", "3 bytes follow its content"),
    "deep nesting": (
        nested(20_000),
        "is not the ResNet-50 of fb.resnet.torch: it holds another value",
    ),
    "many values": (nested(140_000), "it holds more than 262,144 values"),
}


@pytest.mark.parametrize("content, words", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_in_bounded_memory_and_time(tmp_path, content, words):
    path = tmp_path / "x.t7"
    path.write_bytes(content)
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
            read_state_dict(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22 + 16 * len(content)
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - begin < 30
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


SMALL = {"a": array_of(np.ones((2, 3), np.float32)), "b": Object("nn.Linear", {"c": True, "d": 1})}


def refuses_or_reads(path, content):
    path.write_bytes(content)
    try:
        read_state_dict(path)
    except CheckpointError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
        return True
    return False


def test_a_file_cut_short_is_refused_wherever_it_is_cut(tmp_path, tree):
    small, large = Writer().write(SMALL).out, Writer().write(tree)
    for size in range(len(small)):
        (tmp_path / "x").write_bytes(small[:size])
        with pytest.raises(CheckpointError, match="cut short"):
            read_torch7(tmp_path / "x")
    for size in large.starts[1::40]:  # every value takes a minute
        assert refuses_or_reads(tmp_path / "x", large.out[:size])


@pytest.mark.slow
@pytest.mark.parametrize("content, files", [("small", 5000), ("network", 2000)])
def test_whatever_is_changed_the_file_is_read_or_refused(tmp_path, tree, content, files):
    """7,000 files: bytes near the beginning of a value are changed, removed or repeated."""
    writer = Writer().write(SMALL if content == "small" else tree)
    generator = random.Random(7)
    refused = 0
    for _ in range(files):
        changed = bytearray(writer.out)
        for _ in range(generator.choice((1, 1, 1, 3))):
            at = min(generator.choice(writer.starts) + generator.randrange(48), len(changed) - 1)
            put = generator.choice((b"\0", b"\xff", b"\x7f", generator.randbytes(4), b""))
            changed[at : at + generator.choice((0, 1, 4, 8))] = put * generator.choice((1, 1, 4))
        refused += refuses_or_reads(tmp_path / "x", changed)
    assert refused > files / 2
