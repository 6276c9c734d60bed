"""Files, tars and parquet shards give the content of their images, or say why not."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from snzoo.data import parquet as shards
from snzoo.data import sources
from snzoo.data.parquet import Parquet
from snzoo.data.sources import Files, Tar, tar_members
from snzoo.errors import DataError, printable


def content(i):
    return f"image {i} ".encode() * (1 + i * 37 % 500)


def pack(path, members):
    """A tar of names → content, or of ready TarInfos."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def open_tar(path):
    return Tar(path, {member.name: member for member in tar_members(path)})


def shard(path, images, labels, *, rows=3, paths=None, **kinds):
    """A parquet file in the form of Hugging Face, in row groups of ``rows``."""
    paths = paths or [None] * len(images)
    structs = [{"bytes": image, "path": name} for image, name in zip(images, paths, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(structs, kind), "label": pa.array(labels, pa.int64())})
    parquet.write_table(table, path, row_group_size=rows, **kinds)
    return path


def in_threads(source, *, threads=8):
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(source.read, range(len(source.names))))


def test_files_are_read_below_their_root(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.jpg").write_bytes(b"abc")
    source = Files(tmp_path, ["a/b.jpg"])
    assert source.read(0) == b"abc" and source.locate(0) == str(tmp_path / "a" / "b.jpg")


def too_large(path):
    path.touch()
    os.truncate(path, sources.LARGEST + 1)


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
        (too_large, "256 MiB, more than"),
    ],
    ids=["missing", "folder", "pipe", "broken link", "loop", "large"],
)
def test_what_is_no_proper_file_is_named_with_the_reason(tmp_path, make, reason):
    make(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=f"^can't read {tmp_path}/x.jpg: {reason}"):
        Files(tmp_path, ["x.jpg"]).read(0)


def test_names_of_any_characters_are_shown_on_one_line(tmp_path):
    for name in ("a\nb\x1b[31m.jpg", "\udcff.jpg", "\0.jpg"):
        with pytest.raises(DataError) as caught:
            Files(tmp_path, [name]).read(0)
        assert str(caught.value).isprintable() and str(caught.value).encode()
    assert printable("né 1.jpg") == "né 1.jpg"


def test_a_tar_gives_its_members_to_many_threads(tmp_path):
    path = pack(tmp_path / "x.tar", {f"val/{i}.JPEG": content(i) for i in range(200)})
    source = open_tar(path)
    assert in_threads(source) == [content(i) for i in range(200)]
    assert source.names[3] == "val/3.JPEG" and source.locate(3) == f"{path}: val/3.JPEG"


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_in_all_formats(tmp_path, kind):
    name = "é" * 30 + "/" + "n" * 60 + ".JPEG"
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as tar:
        info = tarfile.TarInfo(name)
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    source = open_tar(tmp_path / "x.tar")
    assert source.names == (name,) and source.read(0) == b"abc"


def test_a_tar_written_by_tar_itself_is_read(tmp_path):
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "a.JPEG").write_bytes(b"abc")
    subprocess.run(["tar", "-cf", "x.tar", "./val"], cwd=tmp_path, check=True)
    members = tar_members(tmp_path / "x.tar")
    assert [member.name for member in members] == ["./val/", "./val/a.JPEG"]
    assert Tar(tmp_path / "x.tar", {"a": members[1]}).read(0) == b"abc"


def test_what_is_no_regular_member_has_a_flaw(tmp_path):
    kinds = {
        "s": tarfile.SYMTYPE,
        "l": tarfile.LNKTYPE,
        "p": tarfile.FIFOTYPE,
        "r": tarfile.REGTYPE,
    }
    members = {}
    for name, kind in kinds.items():
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        members[info] = b""
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 20)
    pack(tmp_path / "x.tar", members)
    assert [member.flaw for member in tar_members(tmp_path / "x.tar")] == [
        "a link",
        "a link",
        "not a regular file",
        None,
    ]
    subprocess.run(["tar", "-Scf", "s.tar", "hole"], cwd=tmp_path, check=True)
    assert [member.flaw for member in tar_members(tmp_path / "s.tar")] == ["a sparse file"]


@pytest.mark.parametrize("kept", [0, 100, 600, 1536, 1600, 2048, 2500, 3071, 3072, 3500])
def test_a_tar_that_is_cut_short_is_refused(tmp_path, kept):
    path = pack(tmp_path / "x.tar", {"a.JPEG": b"a" * 700, "b.JPEG": b"b" * 700})
    os.truncate(path, 3584)  # two members of 1,536 bytes and the end mark
    assert len(tar_members(path)) == 2
    os.truncate(path, kept)
    with pytest.raises(DataError, match=r"x.tar is no tar, damaged or cut short: "):
        tar_members(path)


def test_a_tar_that_shrinks_after_it_was_opened_gives_no_half_images(tmp_path):
    path = pack(tmp_path / "x.tar", {"a.JPEG": b"a" * 700})
    source = open_tar(path)
    os.truncate(path, 600)
    with pytest.raises(DataError, match=r"x.tar: a.JPEG: the archive was cut short"):
        source.read(0)


def damaged_header(data):
    data[512 + 1024 + 20] ^= 1


def sized(size):
    """The size in the second header, in tar's binary form, and the checksum over it."""

    def damage(data):
        header = data[1536:2048]
        header[124:136] = size.to_bytes(12, "big", signed=True)
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        data[1536:2048] = header

    return damage


def endless_header(data):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    data[:512] = info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "damage, message",
    [
        (damaged_header, "no end mark where the last member ends"),
        (sized(-512), "a header points back"),  # to itself, without end
        (sized(-5120), "Invalid argument"),
        (sized(1 << 70), "no end mark"),
        (endless_header, "a header of 1099511627776 bytes"),
        (bytearray.clear, "empty file"),
    ],
)
def test_a_damaged_tar_is_refused(tmp_path, damage, message):
    path = pack(tmp_path / "x.tar", {"a.JPEG": b"a" * 700, "b.JPEG": b"b" * 700})
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"is no tar, damaged or cut short: .*({message})"):
        tar_members(path)


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_a_compressed_tar_is_refused_with_the_reason(tmp_path, mode):
    with tarfile.open(tmp_path / "x.tar", f"w:{mode}") as tar:
        tar.addfile(tarfile.TarInfo("a.JPEG"))
    with pytest.raises(DataError, match=r"is compressed \(\w+\), .*; decompress it first"):
        tar_members(tmp_path / "x.tar")


def test_huge_members_are_not_read(tmp_path):
    info = tarfile.TarInfo("a.JPEG")
    info.size = sources.LARGEST + 1
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf())
    os.truncate(path, 512 + sources.LARGEST + 512 + 1024)
    with pytest.raises(DataError, match=r"x.tar: a.JPEG: 256 MiB, more than"):
        open_tar(path).read(0)


def test_the_file_of_a_tar_is_closed_with_it(tmp_path):
    path = pack(tmp_path / "x.tar", {"a.JPEG": b"abc"})

    def links():
        return sum(os.path.realpath(f) == str(path) for f in Path("/proc/self/fd").iterdir())

    source = open_tar(path)
    assert links() == 1
    del source
    assert links() == 0


@pytest.fixture
def reads(monkeypatch):
    """Counts the row groups that are read, by number."""
    counts = Counter()
    original = parquet.ParquetFile.read_row_group

    def counted(self, group, **options):
        counts[group] += 1
        return original(self, group, **options)

    monkeypatch.setattr(parquet.ParquetFile, "read_row_group", counted)
    return counts


def test_parquet_gives_its_images_to_many_threads_reading_each_row_group_once(tmp_path, reads):
    images = [[content(100 * i + j) for j in range(100)] for i in range(2)]
    paths = [
        shard(tmp_path / f"{i}.parquet", images[i], [i] * 100, rows=20, write_page_checksum=True)
        for i in range(2)
    ]
    source = Parquet(paths)
    reads.clear()
    assert in_threads(source) == images[0] + images[1]
    assert reads == dict.fromkeys(range(5), 2)
    assert source.labels == [0] * 100 + [1] * 100
    assert source.locate(101) == f"{paths[1]}, row 1"


def test_the_row_groups_in_use_are_kept(tmp_path, monkeypatch, reads):
    monkeypatch.setattr(shards, "CACHED", 0)
    source = Parquet([shard(tmp_path / "x.parquet", [b"x"] * 3, [0] * 3, rows=1)])
    reads.clear()
    for index in (0, 1, 0, 2, 0):
        source.read(index)
    assert reads == {0: 1, 1: 1, 2: 1}


def test_parquet_keeps_a_few_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CACHED", 1000)
    path = shard(tmp_path / "x.parquet", [b"x" * 400] * 30, range(30), rows=1)
    source = Parquet([path])
    in_threads(source, threads=2)
    assert len(source._groups) == 2
    monkeypatch.setattr(shards, "CACHED", 1 << 20)
    in_threads(source, threads=2)
    assert len(source._groups) == shards.MOST_GROUPS


def test_images_in_parquet_are_named_by_unique_paths_or_by_row(tmp_path):
    names = ["a.jpg", None, "b.jpg", "b.jpg", "", "c\n.jpg", "x.parquet#1"]
    path = shard(tmp_path / "x.parquet", [b"x"] * 7, [0] * 7, paths=names)
    named = Parquet([path]).names
    expected = ["a.jpg", 1, 2, 3, 4, r"c\n.jpg", 6]
    assert list(named) == [n if isinstance(n, str) else f"x.parquet#{n}" for n in expected]


def test_parquet_without_paths_is_read(tmp_path):
    image = pa.array([{"bytes": b"abc"}], pa.struct([("bytes", pa.large_binary())]))
    parquet.write_table(
        pa.table({"label": pa.array([3], pa.int8()), "image": image}), tmp_path / "x"
    )
    source = Parquet([tmp_path / "x"])
    assert (source.names, source.labels, source.read(0)) == (("x#0",), [3], b"abc")


def test_an_image_without_bytes_is_named_by_its_row(tmp_path):
    path = shard(tmp_path / "x.parquet", [b"a", b"b", b"c", b"d", None], [0] * 5)
    assert Parquet([path]).read(3) == b"d"
    with pytest.raises(DataError, match=r"can't read .*x.parquet, row 4: it has no bytes"):
        Parquet([path]).read(4)


IMAGE = pa.array([{"bytes": b"x", "path": "y"}])


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"image": IMAGE}, "no column 'label' of integers"),
        ({"image": IMAGE, "label": ["cat"]}, "no column 'label' of integers"),
        ({"image": IMAGE, "label": [1.0]}, "no column 'label' of integers"),
        ({"label": [1]}, "no column 'image' with a part 'bytes'"),
        ({"label": [1], "image": [b"x"]}, "no column 'image' with a part 'bytes'"),
        ({"label": [1], "image": [{"path": "x"}]}, "no column 'image' with a part 'bytes'"),
        ({"label": [1], "image": [{"bytes": "x"}]}, "no column 'image' with a part 'bytes'"),
    ],
)
def test_parquet_with_other_columns_is_refused(tmp_path, columns, message):
    parquet.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=f"can't read .*x.parquet: {message}"):
        Parquet([tmp_path / "x.parquet"])


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays([IMAGE, pa.array([1]), pa.array([2])], ["image", "label", "label"])
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"can't read .*x.parquet: "):
        Parquet([tmp_path / "x.parquet"])


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b"no parquet"),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
    ],
    ids=["text", "cut short", "missing", "pipe", "compressed"],
)
def test_what_is_no_proper_parquet_file_is_refused(tmp_path, make):
    path = shard(tmp_path / "x.parquet", [b"x"] * 5, [0] * 5)
    make(path)
    with pytest.raises(DataError, match=r"can't read .*x.parquet: ") as caught:
        Parquet([path])
    assert str(caught.value).isprintable()


def test_damaged_pages_are_found_by_their_checksum(tmp_path):
    images = [bytes([i]) * 999 for i in range(3)]
    path = shard(
        tmp_path / "x.parquet",
        images,
        [0] * 3,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
    )
    data = path.read_bytes()
    assert data.count(images[1]) == 1
    path.write_bytes(data.replace(images[1], b"\7" * 999))
    with pytest.raises(DataError, match=r"x.parquet, row 1: .*CRC checksum"):
        Parquet([path]).read(1)


def test_more_rows_than_memory_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MOST_ROWS", 4)
    path = shard(tmp_path / "x.parquet", [b"x"] * 5, [0] * 5)
    with pytest.raises(DataError, match="5 rows are more than 4"):
        Parquet([path])
    monkeypatch.undo()
    monkeypatch.setattr(shards, "LARGEST_GROUP", 10)
    with pytest.raises(DataError, match="row group 0 is larger"):
        Parquet([path])


def test_without_pyarrow_the_way_to_it_is_named(tmp_path):
    path = shard(tmp_path / "x.parquet", [b"x"], [0])
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from snzoo.data.samples import find_samples\n"
        f"find_samples({str(path)!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = run.stderr.splitlines()[-1]
    assert last.startswith("snzoo.errors.DataError: can't read") and run.returncode == 1
    assert last.endswith("parquet needs pyarrow: python -m pip install pyarrow")
