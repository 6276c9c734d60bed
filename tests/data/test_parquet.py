"""Parquet files in Hugging Face's form: labeled, read by row groups, or refused with the reason."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from pyarrow import parquet

from snzoo.data import imagenet
from snzoo.data import parquet as module
from snzoo.data.parquet import Parquet
from snzoo.data.samples import find_samples
from snzoo.errors import DataError

CLOTHES = ("hat", "t-shirt")
VALIDATION = "ILSVRC2012_val_{:08}.JPEG"
HF_NAME = "ILSVRC2012_val_{:08}_{}.JPEG"


def shard(path, images, labels=None, *, rows=3, paths=None, **kinds):
    """A parquet file in row groups of ``rows``."""
    labels = [0] * len(images) if labels is None else labels
    paths = paths or [None] * len(images)
    structs = [{"bytes": image, "path": name} for image, name in zip(images, paths, strict=True)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(structs, kind), "label": pa.array(labels, pa.int64())})
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(table, path, row_group_size=rows, **kinds)
    return path


def named(path, *names, labels=None):
    return shard(path, [b"x"] * len(names), labels, paths=names)


@pytest.mark.parametrize("folder", ["", "data/", "val/"])
def test_shards_of_the_validation_split_are_taken(tmp_path, folder):
    names = [HF_NAME.format(1, "n01751748"), HF_NAME.format(2, "n09193705"), "x.jpg"]
    named(tmp_path / folder / "validation-00000-of-00002.parquet", *names[:2], labels=[65, 970])
    shard(tmp_path / folder / "validation-00001-of-00002.parquet", [b"c"], [3], paths=["x.jpg"])
    named(tmp_path / folder / "train-00000-of-00001.parquet", "y.jpg")
    named(tmp_path / folder / "test-00000-of-00001.parquet", "z.jpg", labels=[-1])
    samples = find_samples(tmp_path)
    assert list(samples.names) == names and samples.labels == (65, 970, 3)
    assert samples.read(2) == b"c"
    of = " of val/" if folder == "val/" else ""
    assert samples.description == f"3 images in 2 validation shards{of}"
    (tmp_path / folder / "validation-00001-of-00002.parquet").unlink()
    assert find_samples(tmp_path).description == f"2 images in 1 of 2 validation shards{of}"


@pytest.mark.slow
def test_all_fifty_thousand_are_the_whole_set(tmp_path):
    truth = imagenet.validation_labels()
    names = [HF_NAME.format(i, imagenet.wnids()[label]) for i, label in enumerate(truth, 1)]
    samples = find_samples(named(tmp_path / "x.parquet", *names, labels=list(truth)))
    assert samples.dataset == "imagenet-1k-val"
    assert samples.description == "50,000 images in x.parquet"


def test_the_only_split_is_taken_whatever_its_name(tmp_path):
    named(tmp_path / "a" / "0000.parquet", "a.jpg", labels=[1])
    named(tmp_path / "a" / "0001.parquet", "b.jpg", labels=[2])
    for path, found in ((tmp_path / "a", "2 parquet"), (tmp_path / "a" / "*.parquet", "2")):
        samples = find_samples(path)
        assert samples.labels == (1, 2) and samples.description == f"2 images in {found} shards"
    named(tmp_path / "b" / "test-00000-of-00001-0123456789abcdef.parquet", "b.jpg")
    assert find_samples(tmp_path / "b", CLOTHES).description == "1 images in 1 test shards"
    named(tmp_path / "b" / "other.parquet", "b.jpg")
    with pytest.raises(DataError, match=r"2 splits \(other, test\), not one that is named valid"):
        find_samples(tmp_path / "b")


@pytest.mark.parametrize("count", ["00002", "00001-aaaaaaaa"])
def test_shards_of_different_counts_or_revisions_are_not_mixed(tmp_path, count):
    named(tmp_path / f"val-00000-of-{count}.parquet", "a.jpg")
    named(tmp_path / "val-00000-of-00001.parquet", "a.jpg")
    with pytest.raises(DataError, match="mixes val shards of different counts"):
        find_samples(tmp_path)


@pytest.mark.parametrize(
    "names, labels, message",
    [
        ((), [], "x.parquet holds no image"),
        (("b.jpg", "a.jpg"), [0, 1000], r"x.parquet, row 1: label 1000 is not from 0 to 999"),
        (("b.jpg", "a.jpg"), [0, -1], "row 1: label -1 is not"),
        (("b.jpg", "a.jpg"), [0, None], "row 1: label None is not"),
        (("b.jpg", VALIDATION.format(1)), [0, 7], "1 of 2 labels contradict .* is class 65"),
        ((HF_NAME.format(1, "n01440764"),), [65], r"is class 65 \(n01751748\), not n01440764"),
        ((VALIDATION.format(1),) * 2, [65, 65], "holds ILSVRC2012_val_00000001 2 times"),
    ],
)
def test_wrong_labels_are_refused(tmp_path, names, labels, message):
    path = named(tmp_path / "x.parquet", *names, labels=labels)
    with pytest.raises(DataError, match=message) as caught:
        find_samples(path)
    assert str(path) in str(caught.value)


def test_labels_of_other_classes_are_refused(tmp_path):
    path = named(tmp_path / "x.parquet", "a.JPEG", labels=[5])
    features = {"label": {"names": [f"class {i}" for i in range(10)]}}
    about = json.dumps({"info": {"features": features}})
    parquet.write_table(
        parquet.read_table(path).replace_schema_metadata({"huggingface": about}), path
    )
    with pytest.raises(DataError, match="labels of 10 classes, not of 1,000"):
        find_samples(path)
    assert find_samples(path, tuple("abcdefghij")).labels == (5,)


def in_threads(source, *, threads=8):
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(source.read, range(len(source.names))))


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


def test_many_threads_read_each_row_group_once(tmp_path, reads):
    images = [[b"image %d" % (100 * i + j) * (j + 1) for j in range(100)] for i in range(2)]
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


def test_a_few_row_groups_are_kept_by_size_and_number(tmp_path, monkeypatch, reads):
    source = Parquet([shard(tmp_path / "x.parquet", [b"x" * 400] * 30, rows=1)])
    monkeypatch.setattr(module, "CACHED", 0)  # two are kept even so
    reads.clear()
    for index in (0, 1, 0, 2, 0):
        source.read(index)
    assert reads == {0: 1, 1: 1, 2: 1} and len(source._groups) == 2
    monkeypatch.setattr(module, "CACHED", 1 << 20)
    in_threads(source, threads=2)
    assert len(source._groups) == module.MOST_GROUPS


def test_images_are_named_by_unique_paths_or_by_row(tmp_path):
    names = ["a.jpg", None, "b.jpg", "b.jpg", "", "c\n.jpg", "x.parquet#1"]
    expected = ["a.jpg", 1, 2, 3, 4, "c\n.jpg", 6]
    assert list(Parquet([named(tmp_path / "x.parquet", *names)]).names) == [
        n if isinstance(n, str) else f"x.parquet#{n}" for n in expected
    ]


def test_a_file_without_paths_is_read(tmp_path):
    image = pa.array([{"bytes": b"abc"}], pa.struct([("bytes", pa.large_binary())]))
    parquet.write_table(
        pa.table({"label": pa.array([3], pa.int8()), "image": image}), tmp_path / "x"
    )
    source = Parquet([tmp_path / "x"])
    assert (source.names, source.labels, source.read(0)) == (("x#0",), [3], b"abc")


def test_an_image_without_bytes_is_named_by_its_row(tmp_path):
    source = Parquet([shard(tmp_path / "x.parquet", [b"a", b"b", b"c", b"d", None])])
    assert source.read(3) == b"d"
    with pytest.raises(DataError, match=r"can't read .*x.parquet, row 4: it has no bytes"):
        source.read(4)


IMAGE = pa.array([{"bytes": b"x", "path": "y"}])


@pytest.mark.parametrize(
    "columns, message",
    [
        ([("image", IMAGE)], "no column 'label' of integers"),
        ([("image", IMAGE), ("label", ["cat"])], "no column 'label' of integers"),
        ([("image", IMAGE), ("label", [1.0])], "no column 'label' of integers"),
        ([("label", [1])], "no column 'image' with a part 'bytes'"),
        ([("label", [1]), ("image", [b"x"])], "no column 'image' with a part 'bytes'"),
        ([("label", [1]), ("image", [{"path": "x"}])], "no column 'image' with a part 'bytes'"),
        ([("label", [1]), ("image", [{"bytes": "x"}])], "no column 'image' with a part 'bytes'"),
        ([("image", IMAGE), ("label", [1]), ("label", [2])], ""),
    ],
)
def test_other_columns_are_refused(tmp_path, columns, message):
    names, arrays = zip(*columns, strict=True)
    table = pa.Table.from_arrays([pa.array(array) for array in arrays], list(names))
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=f"can't read .*x.parquet: {message}"):
        Parquet([tmp_path / "x.parquet"])


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(b"no parquet"),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
    ],
    ids=["text", "cut short", "missing", "pipe", "compressed"],
)
def test_an_improper_file_is_refused(tmp_path, harm):
    path = shard(tmp_path / "x.parquet", [b"x"] * 5)
    harm(path)
    with pytest.raises(DataError, match=r"can't read .*x.parquet: ") as caught:
        Parquet([path])
    assert str(caught.value).isprintable()


def test_damaged_pages_are_found_by_their_checksum(tmp_path):
    images = [bytes([i]) * 999 for i in range(3)]
    kinds = {"compression": "none", "use_dictionary": False, "write_page_checksum": True}
    path = shard(tmp_path / "x.parquet", images, **kinds)
    data = path.read_bytes()
    assert data.count(images[1]) == 1
    path.write_bytes(data.replace(images[1], b"\7" * 999))
    with pytest.raises(DataError, match=r"x.parquet, row 1: .*CRC checksum"):
        Parquet([path]).read(1)


@pytest.mark.parametrize(
    "bound, message",
    [("MOST_ROWS", "5 rows are more than 4"), ("LARGEST_GROUP", "row group 0 is larger")],
)
def test_a_file_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch, bound, message):
    monkeypatch.setattr(module, bound, 4)
    with pytest.raises(DataError, match=message):
        Parquet([shard(tmp_path / "x.parquet", [b"x"] * 5)])


def test_the_missing_package_is_named(tmp_path):
    path = shard(tmp_path / "x.parquet", [b"x"])
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from snzoo.data.samples import find_samples\n"
        f"find_samples({str(path)!r})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = run.stderr.splitlines()[-1]
    assert run.returncode == 1 and last.startswith("snzoo.errors.MissingPackageError: ")
    assert "pip install 'snzoo[parquet]'" in last
