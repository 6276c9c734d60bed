"""insightface's .bin sets: real pickles are read; hostile and damaged ones are refused."""

import os
import pickle
import random
import struct
import tracemalloc

import numpy as np
import pytest

from snzoo.errors import DataError
from snzoo.faces import bin_sets
from snzoo.faces.bin_sets import read_bin_set

PHOTOS = [bytes(range(256)), b"\xff\xd8 one", b"\x80\n.'\\", b"x"]
SAME = [True, False]


def as_column(photo):
    """What ``cv2.imencode`` returned before OpenCV 4.5.3."""
    return np.frombuffer(photo, np.uint8)[:, None]


def as_array(photo):
    return np.frombuffer(photo, np.uint8).copy()


def write(path, data):
    path.write_bytes(data)
    return path


def refuse(path, data, message):
    with pytest.raises(DataError, match=rf"can't read .*x.bin: .*{message}") as caught:
        read_bin_set(write(path / "x.bin", data))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("convert", [bytes, as_array, as_column, lambda p: np.frombuffer(p, "u1")])
def test_pickles_of_every_protocol_are_read(tmp_path, protocol, convert):
    content = [convert(photo) for photo in PHOTOS], SAME
    photos, same = read_bin_set(write(tmp_path / "x.bin", pickle.dumps(content, protocol)))
    assert list(photos.contents) == PHOTOS and same == SAME
    assert len(photos) == 4 and photos.read(1) == PHOTOS[1]
    assert photos.locate(1) == f"{tmp_path / 'x.bin'}, photo 1"


def short(text):
    return b"U" + bytes([len(text)]) + text


def python2(photos, same):
    """What Python 2 writes for strings (cPickle, protocol 2), operation by operation."""
    data = b"\x80\x02]q\x01("
    for i, photo in enumerate(photos, 2):
        length = struct.pack("<I", len(photo))
        data += (short(photo) if len(photo) < 256 else b"T" + length + photo) + b"q" + bytes([i])
    return data + b"e]q\x40(" + b"".join(b"\x88" if flag else b"\x89" for flag in same) + b"e\x86."


def python2_array(photo):
    """What Python 2 writes for a uint8 array, operation by operation."""
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        + short(b"b")
        + b"\x87R(K\x01M"
        + struct.pack("<H", len(photo))
        + b"\x85cnumpy\ndtype\n"
        + short(b"u1")
        + b"K\x00K\x01\x87R(K\x03"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<I", len(photo))
        + photo
        + b"tb"
    )


def test_strings_and_arrays_of_python_2_are_read(tmp_path):
    data = python2(PHOTOS, SAME)
    assert pickle.loads(data, encoding="bytes") == (PHOTOS, SAME)
    photos, same = read_bin_set(write(tmp_path / "x.bin", data))
    assert list(photos.contents) == PHOTOS and same == SAME
    data = b"\x80\x02](" + b"".join(map(python2_array, PHOTOS)) + b"e](I01\nI00\ne\x86."
    arrays, same = pickle.loads(data, encoding="bytes")
    assert [array.tobytes() for array in arrays] == PHOTOS and same == SAME
    photos, same = read_bin_set(write(tmp_path / "x.bin", data))
    assert list(photos.contents) == PHOTOS and same == SAME


def test_flags_may_be_integers_and_lists_may_be_tuples(tmp_path):
    photos, same = read_bin_set(write(tmp_path / "x.bin", pickle.dumps([tuple(PHOTOS), (1, 0)])))
    assert list(photos.contents) == PHOTOS and same == SAME
    assert [type(flag) for flag in same] == [bool, bool]


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("function", [os.system, eval, getattr, np.load, pickle.loads])
def test_no_function_is_called(tmp_path, protocol, function):
    marker = tmp_path / "called"
    content = [Call(function, f"touch {marker}"), *PHOTOS[1:]], SAME
    refuse(tmp_path, pickle.dumps(content, protocol), "which could run code; refused")
    assert not marker.exists()


@pytest.mark.parametrize(
    "data, message",
    [
        (pickle.dumps((PHOTOS[:3], SAME)), "3 photos for 2 pairs, not two each"),
        (pickle.dumps(([], [])), "0 photos for 0 pairs"),
        (pickle.dumps(PHOTOS), "not a pair of lists"),
        (pickle.dumps((PHOTOS, SAME, SAME)), "not a pair of lists"),
        (pickle.dumps((PHOTOS, 7)), "not a pair of lists"),
        (pickle.dumps(([*PHOTOS[:3], "text"], SAME)), "photo 3 is no encoded photo"),
        (pickle.dumps(([*PHOTOS[:3], b""], SAME)), "photo 3 is no encoded photo"),
        (pickle.dumps(([*PHOTOS[:3], [PHOTOS]], SAME)), "photo 3 is no encoded photo"),
        (pickle.dumps((PHOTOS, [True, 2])), "pair 1 is neither"),
        (pickle.dumps((PHOTOS, [True, None])), "pair 1 is neither"),
        (pickle.dumps((PHOTOS, [True, b"\1"])), "pair 1 is neither"),
        (pickle.dumps({"a": 1}), "operation EMPTY_DICT"),
        (pickle.dumps((PHOTOS, [1.0])), "operation BINFLOAT"),
        (pickle.dumps(([np.zeros((2, 2), "u1")] * 2, [True])), "holds pixels, not an encoded"),
        (pickle.dumps(([np.zeros((2, 2, 3), "u1")] * 2, [True])), "holds pixels"),
        (pickle.dumps(([np.zeros(2, "f4")] * 2, [True])), "more than photos"),
        (pickle.dumps(([np.array([b""], object)] * 2, [True])), "more than photos"),
        (pickle.dumps(([bytearray(b"x")] * 2, [True]), 4), "could run code"),
        (b"", "exhausted"),
        (b"no pickle at all", "."),
        (b"\x80\x04\x8c\x04code\x93.", "a value is missing"),
        (b"\x80\x04]]\x93.", "a name is no text"),
        (b"\x80\x04h\x07.", "refers to a value before it"),
        (b"\x80\x04K\x01K\x02a.", "it appends to no list"),
        (b"\x80\x04t.", "a mark is missing"),
        (b"\x80\x04c\xff\n\xff\n.", "codec"),
        (b"\x80\x02\x82\x01.", "operation EXT1"),
        (b"\x80\x02X\x01\x00\x00\x00xQ.", "operation BINPERSID"),
    ],
)
def test_other_content_is_refused(tmp_path, data, message):
    refuse(tmp_path, data, message)


def laugh(depth):
    """A tuple of two references to a tuple of two references … to a list."""
    pair = b"".join(
        b"r" + struct.pack("<I", i) + (b"j" + struct.pack("<I", i)) + b"\x86" for i in range(depth)
    )
    return b"\x80\x02]" + pair


def encode_often(size, times):
    """One text that is encoded many times."""
    text = b"X" + struct.pack("<I", size) + b"a" * size + b"q\x00"
    encode = b"c_codecs\nencode\nq\x01"
    latin = b"X\x06\x00\x00\x00latin1q\x02"
    return b"\x80\x02](" + text + encode + latin + b"h\x01h\x00h\x02\x86R" * times + b"e."


HOSTILE = {
    "huge memo index": b"\x80\x02](r\xff\xff\xff\xffe](e\x86.",
    "decimal memo index": b"\x80\x02]p" + b"9" * 4000 + b"\n.",
    "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 62) + b"abc.",
    "large bytes": b"\x80\x04B" + struct.pack("<I", (1 << 32) - 1) + b"abc.",
    "huge text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"abc.",
    "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc.",
    "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"](e.",
    "negative string": b"\x80\x02T\xff\xff\xff\xffabc.",
    "huge integer": b"\x80\x02\x8b" + struct.pack("<i", (1 << 31) - 1) + b"abc.",
    "many digits": b"I" + b"9" * 5000 + b"\n.",
    "deep tuples": b"\x80\x02]" + b"\x85" * 30_000 + b".",
    "deep lists": b"\x80\x02" + b"]" * 30_000 + b"a" * 29_999 + b".",
    "tuples of tuples as a name": laugh(64) + b"q\x00h\x00\x93.",
    "tuples of tuples as arguments": b"c_codecs\nencode\n" + laugh(64)[2:] + b"R.",
    "tuples of tuples as a set": laugh(64) + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "a list in itself as the set": b"\x80\x02]q\x00(h\x00h\x00e.",
    "one text encoded often": encode_often(100_000, 10_000),
    "a huge shape": b"\x80\x02cnumpy.core.numeric\n_frombuffer\n(C\x01xcnumpy\ndtype\nX\x02\x00\x00"
    b"\x00u1\x85R(" + (b"\x8a\xfe" + b"\x7f" * 254) * 1000 + b"tX\x01\x00\x00\x00CtR.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_takes_little_memory(tmp_path, name):
    path = write(tmp_path / "x.bin", HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read_bin_set(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * path.stat().st_size + 1_000_000


def test_the_number_of_operations_is_limited(tmp_path, monkeypatch):
    data = pickle.dumps((PHOTOS, SAME), 4)
    operations = sum(1 for _ in bin_sets.pickletools.genops(data))
    monkeypatch.setattr(bin_sets, "MOST_OPERATIONS", operations)
    assert read_bin_set(write(tmp_path / "x.bin", data))[1] == SAME
    monkeypatch.setattr(bin_sets, "MOST_OPERATIONS", operations - 1)
    refuse(tmp_path, data, "its pickle has more than")


def test_large_missing_and_irregular_files_are_refused(tmp_path, monkeypatch):
    data = pickle.dumps((PHOTOS, SAME))
    monkeypatch.setattr(bin_sets, "LARGEST_SET", len(data))
    assert read_bin_set(write(tmp_path / "x.bin", data))[1] == SAME
    refuse(tmp_path, data + b" ", "larger than 0 MiB")
    (tmp_path / "x.bin").unlink()
    with pytest.raises(DataError, match="No such file"):
        read_bin_set(tmp_path / "x.bin")
    os.mkfifo(tmp_path / "x.bin")
    with pytest.raises(DataError, match="not a regular file"):
        read_bin_set(tmp_path / "x.bin")


SMALL = [
    *(pickle.dumps((PHOTOS, SAME), protocol) for protocol in (0, 2, 4)),
    *(pickle.dumps(([as_array(p) for p in PHOTOS], SAME), protocol) for protocol in (2, 4, 5)),
    python2(PHOTOS, SAME),
]


@pytest.mark.parametrize("data", SMALL, ids=range(len(SMALL)))
def test_a_file_cut_short_at_any_byte_is_refused(tmp_path, data):
    for size in range(len(data)):
        refuse(tmp_path, data[:size], ".")


def mutate(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        change = rng.randrange(4)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at] = rng.choice(b"(.]aeutRbcq\x80\x85\x86\x87\x88\x8c\x8e\x93\x94\x95\xff\x00")
        elif change == 2:
            del data[at : at + rng.randint(1, 8)]
        else:
            data[at:at] = data[rng.randrange(len(data)) :][: rng.randint(1, 16)]
        data = data or bytearray(b".")
    return bytes(data)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused(tmp_path, count):
    read = 0
    for seed in range(count):
        rng = random.Random(seed)
        path = write(tmp_path / "x.bin", mutate(rng.choice(SMALL), rng))
        try:
            photos, same = read_bin_set(path)
        except DataError as error:
            assert str(error).isprintable()
            continue
        read += 1
        assert len(photos) == 2 * len(same) > 0
        assert all(type(photo) is bytes for photo in photos.contents)
    assert 0 < read < count
