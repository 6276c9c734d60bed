"""TensorFlow checkpoints of the format V1, two of which TensorFlow 2.21 wrote, and hostile ones."""

import itertools
import random
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from mutation import mutate
from slim_writer import NARROW, make_network, modules, save, variables
from tensorflow_writer import (
    block,
    blocks_of,
    declare,
    field,
    handle,
    hold,
    join,
    varint,
    whole,
    write,
)

from snzoo.errors import CheckpointError
from snzoo.weights import read_state_dict
from snzoo.weights.tensorflow import read_tensorflow

TINY = (Path(__file__).parent / "tiny_v1.ckpt").read_bytes()
TYPES = (Path(__file__).parent / "types_v1.ckpt").read_bytes()


def read(content, *, max_bytes=1 << 20):
    return read_tensorflow(content, where="FILE", max_bytes=max_bytes)


# Files of TensorFlow

EXPECTED = {
    "global_step": np.array(7, np.int64),
    "net/conv1/BatchNorm/gamma": np.array([1, 2, 3, 4], np.float32),
    "net/conv1/weights": (np.arange(108) / 10).reshape(3, 3, 3, 4).astype(np.float32),
    "net/logits/biases": np.array([-1.5, 0, 1e-20, 3e38], np.float32),
}


def equal(found, expected):
    return found.keys() == expected.keys() and all(
        found[name].dtype == array.dtype
        and found[name].shape == array.shape
        and found[name].tobytes() == array.tobytes()
        for name, array in expected.items()
    )


def test_a_file_of_tensorflow_is_read_bit_by_bit_and_the_writer_makes_the_same_file():
    assert equal(read(TINY), EXPECTED)
    assert write(EXPECTED) == TINY


def test_all_types_that_are_read():
    expected = {
        "f64": np.array([[1.5, -np.pi], [np.inf, 1e-310]]),
        "i32": np.array([-1, 2**31 - 1, -(2**31), 0, 300], np.int32),
        "i64": np.array([[-1, 2**63 - 1], [-(2**63), 5]], np.int64),
        "nan": np.array([np.nan, -0.0], np.float32),
        "scalar": np.array(2.5, np.float32),
    }
    assert equal(read(TYPES), expected)


# Damaged and hostile files


def refuse(content, words=None, **options):
    with pytest.raises(CheckpointError, match=words) as caught:
        read(content, **options)
    message = str(caught.value)
    assert message.startswith("can't read FILE: ") and len(message) < 300, message
    assert len(message.splitlines()) == 1, message


def test_a_file_cut_anywhere_is_refused():
    for length in range(len(TINY)):
        refuse(TINY[:length])


def test_a_file_cut_at_its_end_is_known_by_its_start(tmp_path):
    for length in range(5, len(TINY)):
        (tmp_path / "x.ckpt").write_bytes(TINY[:length])
        with pytest.raises(CheckpointError, match="TensorFlow V1 checkpoint; it is cut short"):
            read_state_dict(tmp_path / "x.ckpt")


def test_a_file_cut_after_any_block_is_refused():
    blocks = blocks_of(variables(make_network(**NARROW)), nominal=1 << 14)
    content = join(blocks)
    assert len(blocks) > 30 and len(read(content, max_bytes=1 << 24)) == 5 * len(modules()) + 2
    data = sum(len(b) + 5 for b in blocks)
    ends = list(itertools.accumulate(len(b) + 5 for b in blocks))
    for end in [0, *ends, data + 8 + 5, len(content) - 48]:
        refuse(content[:end], "cut short")
        if end < len(content) - 48:
            refuse(content[:end] + content[-48:], "damaged or cut short")


def test_a_damaged_byte_is_found_and_the_block_is_named():
    for place, start in [(0, 0), (500, 0), (0x354, 0), (0x357, 0), (0x35A, 0x359), (0x370, 0x366)]:
        changed = bytearray(TINY)
        changed[place] ^= 1
        refuse(changed, f"the block at byte {start} is damaged: its CRC is wrong")


FLOATS = field(5, np.array([1, 2], "<f4").tobytes())
HUGE = 1 << 62
A, B = declare("a", [2], 1), hold("a", 1, FLOATS)


def forge(*values, meta=(A,)):
    """A file with the declarations ``meta`` and the entries ``values``."""
    entries = [field(1, b"".join(field(1, m) for m in meta)), *values]
    return join([block([(bytes([i]) * (i > 0), value) for i, value in enumerate(entries)], 16)])


def integers(packed, kind=9):
    return forge(
        hold("a", 1, field(10 if kind == 9 else 7, packed)), meta=[declare("a", [2], kind)]
    )


PART = field(1, field(2, 1))  # the first row of a variable
LONG = b"\xff" * 10 + b"\1"  # an integer of 11 bytes

FORGED = {
    "declared twice": (forge(B, meta=[A, A]), "'a' is declared twice"),
    "stored twice": (forge(B, B), "'a' has values twice"),
    "not declared": (forge(B, hold("b", 1, FLOATS)), "'b' has values, but is not declared"),
    "not stored": (forge(B, meta=[A, declare("c", [1], 1)]), "'c' is declared, but has no values"),
    "no declarations": (join([block([(b"", B)], 16)]), "does not declare the variables"),
    "a second declaration": (forge(field(1, A)), "0 variables in an entry"),
    "a string": (forge(B, meta=[declare("a", [2], 7)]), "type 7, which snzoo does not read"),
    "a huge type": (forge(B, meta=[declare("a", [2], HUGE)]), f"type {HUGE}"),
    "values of another type": (forge(B, meta=[declare("a", [2], 2)]), "0 float64 arrays of 'a'"),
    "no values": (forge(hold("a", 1, b"")), "0 float32 arrays of 'a'"),
    "values twice": (forge(hold("a", 1, FLOATS * 2)), "2 float32 arrays"),
    "too few values": (
        forge(hold("a", 1, field(5, b"1234"))),
        r"has 4 bytes, but the shape \(2,\)",
    ),
    "a cut value": (forge(hold("a", 1, field(5, bytes(9)))), "has 9 bytes"),
    "a partition": (forge(B, meta=[declare("a", [2], 1, part=PART)]), "'a' is partitioned"),
    "a part": (forge(hold("a", 1, FLOATS, part=PART)), "'a' is partitioned"),
    "two slices": (forge(B, meta=[A + field(4, whole(1))]), "'a' is partitioned"),
    "another rank": (forge(hold("a", 2, FLOATS)), r"shape \(2,\), but 2 extents"),
    "a negative size": (forge(B, meta=[declare("a", [-1], 1)]), "must be positive"),
    "no size": (forge(B, meta=[declare("a", [0, HUGE], 1)]), "must be positive"),
    "a huge size": (forge(B, meta=[declare("a", [HUGE], 1)]), "unpacks to more than"),
    "huge sizes": (forge(B, meta=[declare("a", [HUGE] * 32, 1)]), "unpacks to more than"),
    "many dimensions": (forge(B, meta=[declare("a", [1] * 33, 1)]), "more than 32 fields"),
    "a size over the limit": (forge(B, meta=[declare("a", [1 << 18, 2], 1)]), "1,048,576 bytes"),
    "no name": (forge(B, meta=[A[3:]]), "0 names of a variable"),
    "a name of other bytes": (forge(B, meta=[A.replace(b"a", b"\xff")]), "decode"),
    "a long name": (forge(B, meta=[declare("a" * 2000, [2], 1)]), "has 2,000 bytes"),
    "a control character": (
        forge(B, meta=[A, declare("\x1b[2J\n", [2], 7)]),
        r"'\\x1b\[2J\\n' has",
    ),
    "a huge string": (forge(varint(2 << 3 | 2) + varint(HUGE)), "a message is cut short"),
    "a group": (forge(varint(2 << 3 | 3)), "wire type 3"),
    "a cut integer": (forge(b"\x08\xff"), "cut short"),
    "a long integer": (forge(b"\x08" + LONG), "more than 10 bytes"),
    "a fixed integer cut": (forge(varint(2 << 3 | 1) + b"1234567"), "cut short"),
    "many fields": (forge(field(9, 1) * 33), "more than 32 fields"),
    "too many integers": (integers(b"\1\2\3"), "has 3 integers"),
    "no integers": (integers(b""), "has 0 integers"),
    "an integer cut": (integers(b"\1\2\xff"), "more than 10 bytes, or is cut short"),
    "an integer too long": (integers(b"\1" + LONG), "more than 10 bytes, or is cut short"),
    "many integers": (integers(bytes((1 << 16) + 1)), "more than 65,536 integers"),
    "an integer too large": (integers(b"\1" + varint(1 << 31), kind=3), "outside int32"),
}


@pytest.mark.parametrize("content, words", FORGED.values(), ids=FORGED)
def test_contents_that_disagree_or_are_not_read_are_refused(content, words):
    refuse(content, words)


def test_a_forged_file_is_read_without_a_fault():
    assert equal(read(forge(B)), {"a": np.array([1, 2], np.float32)})
    assert equal(read(integers(b"\1\2", kind=3)), {"a": np.array([1, 2], np.int32)})


GOOD = block([(b"", field(1, field(1, A))), (b"a", B)], 16)
EMPTY = block([], 1)
FIRST, SECOND = block([(b"", field(1, field(1, A)))], 16), block([(b"a", B)], 16)


def entry(shared, unshared, size, *, restarts=1):
    head = varint(shared) + varint(unshared) + varint(size)
    return head + b"xy" + bytes(4) + restarts.to_bytes(4, "little")


TABLES = {
    "a shared key at the start": (join([entry(1, 1, 1)]), "byte 0 has an entry beyond its end"),
    "a huge key": (join([entry(0, HUGE, 0)]), "an entry beyond its end"),
    "a huge value": (join([entry(0, 0, HUGE)]), "an entry beyond its end"),
    "a huge shared key": (join([entry(HUGE, 0, 0)]), "an entry beyond its end"),
    "a long integer": (join([LONG * 2 + bytes(8)]), "more than 10 bytes"),
    "many restarts": (join([entry(0, 1, 1, restarts=99)]), "byte 0 has no entries"),
    "most restarts": (join([entry(0, 1, 1, restarts=(1 << 32) - 1)]), "byte 0 has no entries"),
    "a block without entries": (join([FIRST, EMPTY]), f"byte {len(FIRST) + 5} has no entries"),
    "a tiny block": (join([b"\0\0"]), "byte 0 has no entries"),
    "no blocks": (join([], index=EMPTY), "has no entries"),
    "an index of other bytes": (join([GOOD], index=b"\xff" * 9), "has no entries"),
    "a compressed block": (join([GOOD], kind=1), "byte 0 is compressed .type 1"),
    "a block that is left out": (join([GOOD, SECOND], handles=[handle(0, len(GOOD))]), "lacks"),
    "a block that is read twice": (join([GOOD], handles=[handle(0, len(GOOD))] * 2), "wrong place"),
    "a block in a block": (join([GOOD], handles=[handle(2, 10)]), "wrong place"),
    "a huge block": (join([GOOD], handles=[handle(0, HUGE)]), "wrong place"),
    "a block far away": (join([GOOD], handles=[handle(HUGE, 5)]), "wrong place"),
    "a footer far away": (
        TINY[:-48] + (handle(HUGE, HUGE) * 2).ljust(40, b"\0") + TINY[-8:],
        "damaged or cut short",
    ),
    "a footer of long integers": (TINY[:-48] + b"\xff" * 40 + TINY[-8:], "more than 10 bytes"),
    "only a footer": (TINY[-48:], "damaged or cut short"),
}


@pytest.mark.parametrize("content, words", TABLES.values(), ids=TABLES)
def test_a_table_of_wrong_places_is_refused(content, words):
    refuse(content, words)


def test_two_blocks_are_read():
    assert equal(read(join([FIRST, SECOND])), {"a": np.array([1, 2], np.float32)})


def test_a_limit_on_memory_is_kept(tmp_path):
    arrays = {"a": np.ones(1000, np.float32), "b": np.ones(1, np.float32)}
    refuse(write(arrays), "unpacks to more than 4,003 bytes", max_bytes=4003)
    assert equal(read(write(arrays), max_bytes=4004), arrays)
    path = save(tmp_path / "x.tar.gz", write({"a": np.zeros(10 << 20, np.float32)}))
    with pytest.raises(CheckpointError, match="unpacks to more than"):
        read_state_dict(path)


@pytest.mark.slow
def test_mutations_give_arrays_or_one_error_in_little_time_and_memory():
    """Half of the mutations have right CRCs, so that they reach the parsers."""
    chance = random.Random(12)
    data, index = TINY[:0x354], TINY[0x366:0x375]
    outcomes = {"arrays": 0, "refused": 0, "wrong CRC": 0}
    slowest = 0.0
    tracemalloc.start()
    for i in range(10_000):
        if i % 2:
            changed = mutate(TINY, chance)
        elif i % 8:
            changed = join([mutate(data, chance)])
        else:
            changed = join([data], index=mutate(index, chance) or b"\0")
        start = time.process_time()
        try:
            read(changed)
            outcomes["arrays"] += 1
        except CheckpointError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 2000
            outcomes["wrong CRC" if "CRC" in str(error) else "refused"] += 1
        slowest = max(slowest, time.process_time() - start)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert outcomes["arrays"] > 500 and outcomes["refused"] > 3000, outcomes
    assert slowest < 1 and peak < 16 << 20, (slowest, peak)
