"""RecordIO files: read in place as labeled photos, or refused with the file and the record."""

import os
import random
import struct
from concurrent.futures import ThreadPoolExecutor

import pytest
from recordio_writer import MAGIC, frame, insightface, pack, write_records

from snzoo.data import recordio, sources
from snzoo.data.recordio import RecordIO
from snzoo.data.samples import find_samples
from snzoo.data.splits import find_classes, find_splits
from snzoo.errors import DataError

PEOPLE = {0: [b"a", b"bb"], 1: [b"ccc"], 2: [b"dddd", MAGIC, b"12345" + MAGIC + MAGIC + b"x"]}
PHOTOS = [photo for photos in PEOPLE.values() for photo in photos]
NUMBERS = ("0", "1", "2")


def read_all(source):
    return [source.read(i) for i in range(len(source.labels))]


def write_plain(path):
    """Records without a record of insightface's kind."""
    return write_records(path, {i: pack(b"photo %d" % i, i % 2) for i in range(5)})


def test_insightface_photos_are_read_without_the_records_of_people(tmp_path):
    source = RecordIO(write_records(tmp_path / "train.rec", insightface(PEOPLE)))
    assert read_all(source) == PHOTOS
    assert source.labels.tolist() == [0, 0, 1, 2, 2, 2]
    assert source.names == tuple(f"train.rec#{key}" for key in range(1, 7))
    assert source.locate(2) == f"{tmp_path / 'train.rec'}, record 3"


@pytest.mark.parametrize("labels", [1.0, [1.0], [1.0, 0.5, -3.0]])
def test_all_records_are_photos_without_a_record_of_insightface(tmp_path, labels):
    first = {0: pack(b"zero", [7.0, 3.0])}  # two labels as in insightface's, but a photo too
    path = write_records(tmp_path / "x.rec", {**first, 9: pack(b"nine", labels)})
    source = RecordIO(path)
    assert (read_all(source), source.labels.tolist()) == ([b"zero", b"nine"], [7, 1])
    source = RecordIO(write_records(path, {4: pack(b"four", labels), 2: pack(b"two", 5)}))
    assert (read_all(source), source.labels.tolist()) == ([b"two", b"four"], [5, 1])


@pytest.mark.parametrize("shift", range(4))
def test_a_photo_that_holds_the_magic_number_is_joined(tmp_path, shift):
    photo = bytes(shift) + MAGIC + b"abcd" + MAGIC * 3 + b"e" + MAGIC
    path = write_records(tmp_path / "x.rec", {1: pack(photo, 0), 2: pack(b"next", 1)})
    is_split = path.read_bytes()[7] >> 5 == 1
    assert is_split == (shift in (0, 3))  # where a magic number is at a multiple of 4 bytes
    assert read_all(RecordIO(path)) == [photo, b"next"]


def test_a_header_that_holds_the_magic_number_is_joined(tmp_path):
    (number,) = struct.unpack("<Q", MAGIC * 2)
    path = write_records(tmp_path / "x.rec", {1: pack(b"photo", 3, number=number)})
    source = RecordIO(path)
    assert (read_all(source), source.labels.tolist()) == ([b"photo"], [3])


def test_many_threads_read_at_once(tmp_path):
    photos = {i: pack(b"photo %d" % i * (i % 90), i % 7) for i in range(1, 900)}
    source = RecordIO(write_records(tmp_path / "x.rec", photos))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.read, [i for i in range(899) if i % 90 != 89]))
    assert read == [b"photo %d" % i * (i % 90) for i in range(1, 900) if i % 90]


def test_training_photos_and_classes_come_from_a_folder_or_a_file(tmp_path):
    write_records(tmp_path / "train.rec", insightface({7: [b"a"], 10: [b"b"], 9: [b"c", b"d"]}))
    held_out = write_records(tmp_path / "other.rec", {i: pack(b"x", i) for i in (7, 9, 10)})
    for data in (tmp_path, tmp_path / "train.rec"):
        assert find_classes(data) == ("7", "9", "10")
        train, validation = find_splits(data, ("7", "9", "10"), validation=held_out)
        assert train.labels == (0, 2, 1, 1) and validation.labels == (0, 1, 2)
        assert train.read(3) == b"d"
        assert train.description == "4 images in train.rec"
    with pytest.raises(DataError, match="holds no validation photos"):
        find_splits(tmp_path, ("7", "9", "10"))
    held_out.rename(tmp_path / "val.rec")
    held_out.with_suffix(".idx").rename(tmp_path / "val.idx")
    assert find_splits(tmp_path, ("7", "9", "10"))[1].labels == (0, 1, 2)


def test_a_file_is_read_once_for_its_classes_and_its_photos(tmp_path, monkeypatch):
    path = write_plain(tmp_path / "train.rec")
    opened = []
    monkeypatch.setattr(recordio, "_read_index", spy(opened, recordio._read_index))
    assert find_samples(path, find_classes(path)).labels == (0, 1, 0, 1, 0)
    assert len(opened) == 1
    write_records(path, {i: pack(b"photo", i) for i in range(3)})
    assert find_samples(path, find_classes(path)).labels == (0, 1, 2)
    assert len(opened) == 2


def spy(calls, function):
    def call(*args, **options):
        calls.append(args)
        return function(*args, **options)

    return call


def test_labels_are_indices_of_classes_that_have_other_names(tmp_path):
    path = write_plain(tmp_path / "x.rec")
    assert find_samples(path, ("Ann", "Bob")).labels == (0, 1, 0, 1, 0)
    assert find_samples(path).labels == (0, 1, 0, 1, 0)  # ImageNet-1k
    assert find_samples(path, ("001", "000")).labels == (1, 0, 1, 0, 1)
    for classes in (("Ann",), ("0", "2")):
        with pytest.raises(DataError, match=r"x.rec, record 1: label 1 is none of \d classes"):
            find_samples(path, classes)


def test_the_stamp_changes_with_either_file(tmp_path):
    source = RecordIO(write_plain(tmp_path / "x.rec"))
    stamps = {source.stamp()}
    for suffix in (".rec", ".idx"):
        with open(tmp_path / f"x{suffix}", "ab") as file:
            file.write(b"\n")
        stamps.add(source.stamp())
    assert len(stamps) == 3


@pytest.mark.parametrize("bad", [-1, 0.5, float("nan"), float("inf"), 2.0**24])
def test_labels_that_are_no_classes_are_refused(tmp_path, bad):
    for labels in (bad, [bad, 1.0]):
        path = write_records(tmp_path / "x.rec", {1: pack(b"a", 0), 5: pack(b"b", labels)})
        with pytest.raises(DataError, match=r"can't read .*x.rec, record 5: its label .* is not a"):
            RecordIO(path)


@pytest.mark.parametrize(
    "index, message",
    [
        ("", "it lists no record"),
        ("1\t0\n1\t36\n", "it lists record 1 twice"),
        ("1\t0\n2 36 7\n", r"line 2: expected 'key<TAB>offset', got '2 36 7\\n'"),
        ("1\t-1\n", "line 1: expected"),
        ("1\t٣\n", "'ascii' codec"),
        ("1\t" + "9" * 18, "line 1: the .rec file is too short, at 180 bytes"),
        ("1\t149\n", "line 1: the .rec file is too short"),
        ("".join(f"{i}\t0\n" for i in range(9)), "line 6: the .rec file is too short"),
        ("x" * 70_000, "line 1: 65,536 characters or more"),
        ("0\t4\n", "no record at byte 4"),
    ],
)
def test_an_improper_index_is_refused(tmp_path, index, message):
    path = write_plain(tmp_path / "x.rec")
    path.write_bytes(path.read_bytes()[:180])
    path.with_suffix(".idx").write_text(index, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        RecordIO(path)
    assert "x.idx" in str(caught.value) or "x.rec, record 0" in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_missing_index_is_named(tmp_path):
    path = write_plain(tmp_path / "x.rec")
    index = path.with_suffix(".idx")
    for make in (lambda path: None, os.mkfifo):
        index.unlink()
        make(index)
        with pytest.raises(DataError, match=r"can't read .*x.rec: no x.idx beside it; copy it"):
            RecordIO(path)
        index.touch()


@pytest.mark.parametrize("end", [1.0, -3.0, 2.5, float("nan"), float("inf"), 4.0, 1e30])
def test_a_wrong_count_of_photos_is_refused(tmp_path, end):
    records = {0: pack(b"", (end, end)), 1: pack(b"a", 0), 2: pack(b"b", 1)}
    path = write_records(tmp_path / "x.rec", records)
    with pytest.raises(DataError, match=r"x.rec, record 0: it says that "):
        RecordIO(path)


BAD_RECORDS = {
    "another number": (MAGIC[::-1] + frame(pack(b"", 0))[4:], "no record at byte"),
    "a part in the middle": (MAGIC + struct.pack("<I", 2 << 29 | 25) + bytes(28), "no record at"),
    "an unknown part": (MAGIC + struct.pack("<I", 5 << 29 | 25) + bytes(28), "no record at byte"),
    "too long": (MAGIC + struct.pack("<I", 29) + bytes(25), "its length is wrong"),
    "a short header": (MAGIC + struct.pack("<I", 23) + bytes(25), "its header is cut short"),
    "no label": (frame(struct.pack("<IfQQ", 1, 0, 0, 0) + b"abc"), "its labels are cut short"),
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_damaged_record_is_refused_at_the_start(tmp_path, name):
    record, message = BAD_RECORDS[name]
    path = write_records(tmp_path / "x.rec", {1: pack(b"a", 0)})
    start = path.stat().st_size
    with open(path, "ab") as file:
        file.write(record)
    path.with_suffix(".idx").write_text(f"1\t0\n2\t{start}\n")
    with pytest.raises(DataError, match=rf"can't read .*x.rec, record 2: .*{message}"):
        RecordIO(path)


PARTS = MAGIC + struct.pack("<I", 1 << 29 | 28) + pack(b"abcd", 0)
BAD_PHOTOS = {
    "no photo": (frame(pack(b"", 0)), "it holds no photo"),
    "labels only": (frame(pack(b"", [0, 0, 0])), "it holds no photo"),
    "too many labels": (frame(struct.pack("<IfQQ", 2**32 - 1, 0, 0, 0) + bytes(9)), "no photo"),
    "no last part": (PARTS, "no part of it at byte"),
    "a whole record as part": (PARTS + frame(pack(b"b", 0)), "no part of it at byte"),
    "a part too long": (PARTS + MAGIC + struct.pack("<I", 3 << 29 | 9) + b"abcdefgh", "cut short"),
}


@pytest.mark.parametrize("name", BAD_PHOTOS)
def test_a_damaged_photo_is_refused_when_it_is_read(tmp_path, name):
    record, message = BAD_PHOTOS[name]
    path = write_records(tmp_path / "x.rec", {})
    path.write_bytes(record)
    path.with_suffix(".idx").write_text("7\t0\n")
    source = RecordIO(path)
    with pytest.raises(DataError, match=rf"can't read .*x.rec, record 7: .*{message}"):
        source.read(0)


def test_a_huge_photo_is_refused_before_it_is_read(tmp_path, monkeypatch):
    photo = b"abcd" + MAGIC + b"efgh"
    path = write_records(tmp_path / "x.rec", {1: pack(photo, 0)})
    source = RecordIO(path)
    monkeypatch.setattr(sources, "LARGEST", 24 + 12)
    assert source.read(0) == photo
    monkeypatch.setattr(sources, "LARGEST", 24 + 11)
    with pytest.raises(DataError, match="record 1: 0 MiB, more than"):
        source.read(0)


def read_or_refuse(path):
    """The photos that can be read; another error than DataError fails the test."""
    try:
        source = RecordIO(path)
    except DataError as error:
        assert str(error).isprintable()
        return []
    photos = []
    for i in range(len(source.labels)):
        try:
            photos.append(source.read(i))
        except DataError as error:
            assert f"record {source.names[i].split('#')[1]}" in str(error)
    return photos


def test_a_file_cut_short_at_any_byte_is_refused(tmp_path):
    path = write_records(tmp_path / "x.rec", insightface(PEOPLE))
    data, index = path.read_bytes(), path.with_suffix(".idx").read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(DataError):
            RecordIO(path)
    path.write_bytes(data)
    for size in range(len(index) - 1):
        path.with_suffix(".idx").write_bytes(index[:size])
        photos = read_or_refuse(path)
        assert set(photos) <= set(PHOTOS)


def mutate(data, rng):
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data))
        data[at] = rng.choice([0, 255, data[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
    cut = rng.randrange(len(data)) if rng.random() < 0.1 else len(data)
    return bytes(data[:cut])


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_files_are_read_or_refused(tmp_path, count):
    path = write_records(tmp_path / "x.rec", insightface(PEOPLE))
    files = {file: file.read_bytes() for file in (path, path.with_suffix(".idx"))}
    for seed in range(count):
        rng = random.Random(seed)
        for file, data in files.items():
            file.write_bytes(mutate(data, rng) if rng.random() < 0.7 else data)
        photos = read_or_refuse(path)
        assert sum(map(len, photos)) <= sum(map(len, files.values()))
