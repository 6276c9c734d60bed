"""Photos are the same wherever they lie, and inputs are opened when their turn comes."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from recordio_writer import pack, write_records

from snzoo.data.inputs import iter_chunks
from snzoo.errors import ArgumentError, DataError

IMAGES = {"b.jpg": b"image b", "a.png": b"image a", "sub/c.jpg": b"image c"}
OTHERS = {"notes.md": b"x", "._d.jpg": b"x", "__MACOSX/e.jpg": b"x", "sub/.git/f.jpg": b"x"}


def fill_folder(path):
    for name, content in (IMAGES | OTHERS).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def fill_tar(path, *, prefix=""):
    with tarfile.open(path, "w") as file:
        for name, content in (IMAGES | OTHERS).items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))


def fill_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in (IMAGES | OTHERS).items():
            file.writestr(name, content)


def fill_parquet(path, *, column="image", struct=True, rows=2):
    contents = list(IMAGES.values())
    cells = [{"bytes": content, "path": None} for content in contents] if struct else contents
    parquet.write_table(pa.table({"other": [1, 2, 3], column: cells}), path, row_group_size=rows)


def fill_list(path):
    fill_folder(path.parent / "listed")
    path.write_text("".join(f"\nlisted/{name}\r\n \n" for name in IMAGES))


FORMS = {
    "folder": fill_folder,
    "x.tar": fill_tar,
    "dots.tar": lambda path: fill_tar(path, prefix="./"),
    "x.zip": fill_zip,
    "hub.parquet": fill_parquet,
    "binary.parquet": lambda path: fill_parquet(path, struct=False, rows=1),
    "bytes.parquet": lambda path: fill_parquet(path, column="bytes", struct=False),
    "x.txt": fill_list,
}


def read(inputs, size=2):
    """The names and contents of all photos; of one that cannot be read, the error."""
    found = []
    for chunk in iter_chunks(inputs, size):
        for i in range(len(chunk)):
            try:
                photo = chunk.read(i)
                content = photo if isinstance(photo, bytes) else Path(photo).read_bytes()
            except DataError as error:
                content = str(error)
            found.append((chunk.locate(i), content))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_holds_the_same_photos(tmp_path, form):
    path = tmp_path / form
    FORMS[form](path)
    found = read(path)
    assert sorted(content for _, content in found) == sorted(IMAGES.values())
    assert len({name for name, _ in found}) == 3
    assert all(name.startswith(str(tmp_path)) for name, _ in found)


def test_a_recordio_file_holds_photos(tmp_path):
    contents = enumerate(IMAGES.values(), 1)
    write_records(tmp_path / "x.rec", {i: pack(content, float(i)) for i, content in contents})
    assert [content for _, content in read(tmp_path / "x.rec")] == list(IMAGES.values())


@pytest.mark.parametrize("pattern", ["x-{00..01}.tar", "x-*.tar", "x-0[01].tar"])
def test_patterns_stand_for_several_files(tmp_path, pattern):
    for number in range(3):
        fill_tar(tmp_path / f"x-{number:02}.tar")
    wanted = 3 if "*" in pattern else 2
    assert len(read(tmp_path / pattern)) == 3 * wanted
    (tmp_path / "x-00.tar").write_bytes(b"no tar")  # the others are read nevertheless
    found = read(tmp_path / pattern)
    assert len(found) == 3 * (wanted - 1) + 1 and "x-00.tar is no tar" in found[0][1]


def test_folders_are_read_in_the_order_of_names(tmp_path):
    for name in ("b/2.jpg", "b/1.jpg", "a/3.jpg", "c.jpg", "a/x/4.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    names = [Path(name).relative_to(tmp_path).as_posix() for name, _ in read(tmp_path)]
    assert names == ["c.jpg", "a/3.jpg", "a/x/4.jpg", "b/1.jpg", "b/2.jpg"]


def test_chunks_go_across_inputs_and_number_photos_in_memory(tmp_path):
    fill_folder(tmp_path)
    pixels = np.zeros((2, 2, 3), np.uint8)
    inputs = [b"x", tmp_path, Image.new("RGB", (2, 2)), "https://host/y.jpg", pixels]
    chunks = list(iter_chunks(inputs, 3))
    assert [(chunk.start, len(chunk)) for chunk in chunks] == [(0, 3), (3, 3), (6, 1)]
    names = [chunk.locate(i) for chunk in chunks for i in range(len(chunk))]
    assert names[0] == "image 0" and names[4:] == ["image 4", "https://host/y.jpg", "image 6"]
    again = list(iter_chunks(inputs, 3))
    assert [c.digest() for c in chunks] == [c.digest() for c in again]
    assert len({chunk.digest() for chunk in chunks}) == 3


def test_names_of_any_bytes_are_listed_and_read(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9.jpg\n")
    assert read(tmp_path / "list.txt") == [(str(tmp_path / name), b"x")]
    assert next(iter_chunks(tmp_path, 9)).digest()


def break_archive(path):
    fill_tar(path)
    path.write_bytes(path.read_bytes()[:1500])


def make_link(path):
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(info)


@pytest.mark.parametrize(
    "name, make, words",
    [
        ("none.tar", lambda path: None, "No such file"),
        ("none", lambda path: None, "No such file"),
        ("none-*.tar", lambda path: None, "does not exist"),
        ("none-{00..01}.tar", lambda path: None, "none-00.tar does not exist"),
        ("empty", Path.mkdir, "no image in or below"),
        ("x.tar", break_archive, "cut short"),
        ("empty.tar", lambda path: tarfile.open(path, "w").close(), "no image in"),
        ("x.tar", make_link, "a link"),
        ("x.tar", os.mkfifo, "not a regular file"),
        ("x.txt", os.mkfifo, "not a regular file"),
        ("x.txt", lambda path: path.write_text(" \n"), "lists no image"),
        ("x.txt", lambda path: path.write_text("a" * 70_000), "characters or more"),
        ("x.txt", lambda path: path.write_bytes(b"\xff\xd8\nJF\0IF"), "no list: line 2 has a NUL"),
        ("x.rec", lambda path: path.write_bytes(b"x"), "no x.idx beside it"),
        ("x.parquet", lambda path: path.write_bytes(b"x"), "can't read"),
        (
            "x.parquet",
            lambda path: parquet.write_table(pa.table({"a": [1]}), path),
            "in a list NAME",
        ),
    ],
)
def test_an_input_that_cannot_be_opened_is_one_broken_photo(tmp_path, name, make, words):
    make(tmp_path / name)
    inputs = [tmp_path / name, b"good"]
    ((_, error), good) = read(inputs)
    whole = [] if make is make_link else [str(tmp_path / name)]  # a link is a photo of its tar
    assert next(iter_chunks(inputs, 9)).list_unreadable() == whole
    assert words in error and str(tmp_path) in error and error.isprintable()
    assert good == ("image 1", b"good")


def test_a_list_names_photos_only(tmp_path):
    fill_folder(tmp_path / "folder")
    fill_tar(tmp_path / "x.tar")
    (tmp_path / "list.txt").write_text("folder\nfolder/b.jpg\nx.tar\nhttps://host/y.parquet\n")
    found = [str(content) for _, content in read(tmp_path / "list.txt")]
    assert ["name this on the command line" in each for each in found] == [True, False, True, True]


def test_a_folder_that_cannot_be_read_leaves_the_others_as_they_are(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.jpg").write_bytes(b"x")
    chunks = iter_chunks(tmp_path, 1)
    next(chunks)
    shutil.rmtree(tmp_path / "b")
    names = [chunk.locate(0) for chunk in chunks]
    assert names == [str(tmp_path / "b"), str(tmp_path / "c" / "x.jpg")]


def test_an_empty_name_is_refused():
    with pytest.raises(ArgumentError, match="one of the names is empty"):
        read(["x.jpg", ""])


def test_inputs_are_opened_when_their_turn_comes(tmp_path):
    fill_tar(tmp_path / "x.tar")
    taken = []
    chunks = iter_chunks((taken.append(1) or tmp_path / "x.tar" for _ in range(100)), 3)
    next(chunks)
    assert len(taken) == 1
    next(chunks)
    assert len(taken) == 2


PEAK = """
import sys, tracemalloc
from snzoo.data.inputs import iter_chunks
list(iter_chunks(sys.argv[1], 1000))  # imports
tracemalloc.start()
print(sum(map(len, iter_chunks(sys.argv[1], 1000))), tracemalloc.get_traced_memory()[1])
"""


def test_memory_does_not_grow_with_the_length_of_a_list(tmp_path):
    def peak(lines):
        (tmp_path / "list.txt").write_text("".join(f"{i:0100}.jpg\n" for i in range(lines)))
        command = [sys.executable, "-c", PEAK, str(tmp_path / "list.txt")]
        count, found = map(int, subprocess.check_output(command).split())
        assert count == lines
        return found

    assert peak(60_000) < 2 * peak(12_000)
