"""Tars and parquet shards: labeled as the folders they stand for, or refused with the reason."""

import io
import json
import subprocess
import tarfile

import pyarrow as pa
import pytest
from pyarrow import parquet

from snzoo.data import imagenet
from snzoo.data.samples import find_samples
from snzoo.errors import DataError

CLOTHES = ("hat", "t-shirt")
VALIDATION = "ILSVRC2012_val_{:08}.JPEG"


def labels(samples):
    return dict(zip(samples.names, samples.labels, strict=True))


def pack(path, tree, *, prefix=""):
    """A tar of the files below ``tree``, in an order of its own."""
    files = [f for f in tree.rglob("*") if f != path]
    with tarfile.open(path, "w") as tar:
        for file in sorted(files, reverse=True):
            tar.add(file, prefix + file.relative_to(tree).as_posix(), recursive=False)
    return path


def photos(touch):
    """A few class folders with what is to be left out."""
    path = touch(
        "tree/n15075141/b.JPEG",
        "tree/n01443537/a.JPEG",
        "tree/n01443537/.hidden.jpg",
        "tree/n01443537/._a.JPEG",
        "tree/n15075141/x.txt",
        "tree/n15075141/deep/c.JPEG",
        "tree/n15075141/deep/d.JPEG",
        "tree/n01440764/none.txt",
        "tree/notes.txt",
    )
    (path / "tree" / "n01443537" / "a.JPEG").write_bytes(b"abc")
    (path / "tree" / "n02085620").mkdir()
    return path


@pytest.mark.parametrize("prefix", ["", "./", "val/", "./ILSVRC/val/"])
def test_a_tar_of_a_tree_is_labeled_as_the_tree(touch, prefix):
    path = photos(touch)
    folder = find_samples(path / "tree")
    samples = find_samples(pack(path / "x.tar", path / "tree", prefix=prefix))
    assert labels(samples) == labels(folder) and samples.names == folder.names
    assert samples.read(0) == folder.read(0) == b"abc"
    assert samples.locate(0) == f"{path}/x.tar: {prefix}n01443537/a.JPEG"
    assert folder.description == (
        "2 images in 4 of 1,000 class folders (4 other files or folders left out)"
    )
    assert samples.description == folder.description.replace(" (4", " of x.tar (4")


def test_a_tar_with_the_folder_it_was_made_of_is_labeled_alike(touch):
    path = photos(touch)
    subprocess.run(["tar", "-cf", "x.tar", "tree"], cwd=path, check=True)
    assert labels(find_samples(path / "x.tar")) == labels(find_samples(path / "tree"))


def test_a_tar_of_the_folder_itself_is_labeled_alike(touch):
    path = touch("photos/n01440764/a.JPEG", "photos/n01443537/b.JPEG")
    subprocess.run(["tar", "cf", path / "x.tar", "-C", path / "photos", "."], check=True)
    assert labels(find_samples(path / "x.tar")) == labels(find_samples(path / "photos"))


def test_a_single_class_folder_in_a_tar_is_one(touch):
    path = pack(touch("n01443537/a.JPEG") / "x.tar", touch())
    assert labels(find_samples(path)) == {"n01443537/a.JPEG": 1}
    numbered = touch("b/490/ILSVRC2012_val_00000001.JPEG") / "b"
    with pytest.raises(DataError, match=r"b.tar: 1 of 1 .* folder 490 holds photos of n01751748"):
        find_samples(pack(touch() / "b.tar", numbered))


def test_the_validation_tar_is_found_where_nothing_better_lies(touch):
    path = touch("flat/ILSVRC2012_val_00000002.JPEG", "flat/ILSVRC2012_val_00000001.JPEG")
    tar = pack(path / "ILSVRC2012_img_val.tar", path / "flat")
    (path / "flat").rename(path / "other")
    samples = find_samples(path)
    assert labels(samples) == {VALIDATION.format(1): 65, VALIDATION.format(2): 970}
    assert samples.locate(0) == f"{tar}: ILSVRC2012_val_00000001.JPEG"
    assert samples.description == (
        "2 flat validation images of ILSVRC2012_img_val.tar (a part: 2 of 50,000)"
    )
    assert samples.dataset is None
    (path / "other").rename(path / "val")
    assert find_samples(path).locate(0) == str(path / "val" / VALIDATION.format(1))


def test_the_tar_of_all_fifty_thousand_is_the_whole(tmp_path):
    with tarfile.open(tmp_path / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in range(50_000, 0, -1):
            tar.addfile(tarfile.TarInfo(VALIDATION.format(number)))
    samples = find_samples(tmp_path)
    assert samples.dataset == "imagenet-1k-val" and len(samples) == 50_000
    assert samples.labels == tuple(imagenet.validation_labels())


def archive(path, *members):
    """A tar of empty members, by name or ready-made."""
    with tarfile.open(path / "x.tar", "w") as tar:
        for member in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            tar.addfile(info, io.BytesIO())
    return path / "x.tar"


def link(name, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_hostile_names_in_a_tar_are_left_alone(tmp_path):
    path = archive(
        tmp_path,
        "n01440764/a.JPEG",
        "../n01443537/b.JPEG",
        "n01440764/../../c.JPEG",
        link("n01440764/notes.txt"),
        "n01440764/\x1b[31m\n.JPEG",
    )
    samples = find_samples(path)
    assert labels(samples) == {"n01440764/\\x1b[31m\\n.JPEG": 0, "n01440764/a.JPEG": 0}
    assert samples.locate(0).isprintable() and samples.read(0) == b""


@pytest.mark.parametrize(
    "members, message",
    [
        ([], "holds neither class folders nor images"),
        (["notes.txt"], "holds neither class folders nor images"),
        (["a.JPEG"], "a.JPEG is not of the form"),
        (["../n01440764/a.JPEG"], "holds neither class folders nor images"),
        (["cats/a.JPEG", "dogs/b.JPEG"], "not named by wnids .*: cats, dogs"),
        (["n01440764/a.JPEG", link("n01440764/b.JPEG")], "n01440764/b.JPEG is a link"),
        (["n01440764/a.JPEG", link("n01440764/b.JPEG", tarfile.LNKTYPE)], "b.JPEG is a link"),
        (["n01440764/a.JPEG", link("n01440764/b.JPEG", tarfile.FIFOTYPE)], "not a regular file"),
        (["n01440764/a.JPEG", "./n01440764/a.JPEG"], "holds ./n01440764/a.JPEG twice"),
        (["n01440764/ILSVRC2012_val_00000001.JPEG"], "is class 65"),
        ([VALIDATION.format(1), "ILSVRC2012_val_00000001.png"], "00000001 2 times"),
    ],
)
def test_a_tar_that_cannot_be_labeled_is_refused_saying_what_was_found(tmp_path, members, message):
    path = archive(tmp_path, *members)
    with pytest.raises(DataError, match=message) as caught:
        find_samples(path)
    assert str(path) in str(caught.value)


def test_compressed_and_unreal_tars_are_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("n01440764/a.JPEG"))
    (tmp_path / "x.tgz").write_bytes((tmp_path / "x.tar.gz").read_bytes())
    (tmp_path / "y.tar").write_text("no tar")
    for name in ("x.tar.gz", "x.tgz"):
        with pytest.raises(DataError, match=r"is compressed \(gzip\)"):
            find_samples(tmp_path / name)
    with pytest.raises(DataError, match="is no tar, damaged or cut short"):
        find_samples(tmp_path / "y.tar")


def test_the_validation_tar_is_held_against_the_ground_truth_too(touch):
    path = touch("flat/ILSVRC2012_val_00000001.JPEG")
    pack(path / "ILSVRC2012_img_val.tar", path / "flat")
    ids = [f"{label + 1}\n" for label in imagenet.validation_labels()]
    (path / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(ids))
    assert find_samples(path).description.endswith(
        "(a part: 1 of 50,000), checked against ILSVRC2012_validation_ground_truth.txt"
    )


def shard(path, names, indices, images=None):
    structs = [
        {"bytes": image, "path": name}
        for name, image in zip(names, images or [b"x"] * len(names), strict=True)
    ]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array(structs, kind), "label": pa.array(indices, pa.int64())})
    path.parent.mkdir(exist_ok=True)
    parquet.write_table(table, path)
    return path


HF_NAME = "ILSVRC2012_val_{:08}_{}.JPEG"


@pytest.mark.parametrize("folder", ["", "data/", "val/"])
def test_parquet_shards_of_the_validation_split_are_taken(tmp_path, folder):
    names = [HF_NAME.format(1, "n01751748"), HF_NAME.format(2, "n09193705"), "x.jpg"]
    shard(tmp_path / folder / "validation-00000-of-00002.parquet", names[:2], [65, 970])
    shard(tmp_path / folder / "validation-00001-of-00002.parquet", names[2:], [3], [b"c"])
    shard(tmp_path / folder / "train-00000-of-00001.parquet", ["y.jpg"], [0])
    shard(tmp_path / folder / "test-00000-of-00001.parquet", ["z.jpg"], [-1])
    samples = find_samples(tmp_path)
    assert labels(samples) == dict(zip(names, [65, 970, 3], strict=True))
    assert samples.read(2) == b"c"
    of = " of val/" if folder == "val/" else ""
    assert samples.description == f"3 images in 2 validation shards{of}"
    (tmp_path / folder / "validation-00001-of-00002.parquet").unlink()
    assert find_samples(tmp_path).description == f"2 images in 1 of 2 validation shards{of}"


def test_all_fifty_thousand_in_parquet_are_the_whole(tmp_path):
    truth = imagenet.validation_labels()
    names = [HF_NAME.format(i, imagenet.wnids()[label]) for i, label in enumerate(truth, 1)]
    path = shard(tmp_path / "x.parquet", names, list(truth))
    samples = find_samples(path)
    assert samples.dataset == "imagenet-1k-val"
    assert samples.description == "50,000 images in x.parquet"


def test_the_only_split_is_taken_whatever_its_name(tmp_path):
    shard(tmp_path / "a" / "0000.parquet", ["a.jpg"], [1])
    shard(tmp_path / "a" / "0001.parquet", ["b.jpg"], [2])
    samples = find_samples(tmp_path / "a")
    assert samples.description == "2 images in 2 parquet shards" and samples.labels == (1, 2)
    shard(tmp_path / "b" / "test-00000-of-00001-0123456789abcdef.parquet", ["b.jpg"], [1])
    assert find_samples(tmp_path / "b", CLOTHES).description == "1 images in 1 test shards"
    shard(tmp_path / "b" / "other.parquet", ["b.jpg"], [2])
    with pytest.raises(DataError, match=r"2 splits \(other, test\) and none is named validation"):
        find_samples(tmp_path / "b")


def test_shards_of_different_counts_are_not_mixed(tmp_path):
    shard(tmp_path / "val-00000-of-00002.parquet", ["a.jpg"], [1])
    shard(tmp_path / "val-00000-of-00001.parquet", ["a.jpg"], [1])
    with pytest.raises(DataError, match="mixes val shards of different counts"):
        find_samples(tmp_path)


@pytest.mark.parametrize(
    "name, label, message",
    [
        ("a.jpg", 1000, r"x.parquet, row 1: label 1000 is not from 0 to 999"),
        ("a.jpg", -1, "row 1: label -1 is not"),
        ("a.jpg", None, "row 1: label None is not"),
        (VALIDATION.format(1), 7, "1 of 2 labels contradict .* is class 65"),
        (HF_NAME.format(1, "n01440764"), 65, r"is class 65 \(n01751748\), not n01440764"),
    ],
)
def test_wrong_labels_in_parquet_are_refused(tmp_path, name, label, message):
    path = shard(tmp_path / "x.parquet", ["b.jpg", name], [0, label])
    with pytest.raises(DataError, match=message) as caught:
        find_samples(path)
    assert str(path) in str(caught.value)


def test_the_same_photos_in_two_shards_are_refused(tmp_path):
    name = "ILSVRC2012_val_00000001.JPEG"
    for digest in ("aaaaaaaa", "bbbbbbbb"):  # two revisions of one shard
        path = tmp_path / f"validation-00000-of-00001-{digest}.parquet"
        shard(path, [name], [65])
    with pytest.raises(DataError, match="mixes validation shards"):
        find_samples(tmp_path)
    shard(tmp_path / "x.parquet", [name, name], [65, 65])
    with pytest.raises(DataError, match="holds ILSVRC2012_val_00000001 2 times"):
        find_samples(tmp_path / "x.parquet")
    shard(tmp_path / "x.parquet", [name, name], [5, 6])
    with pytest.raises(DataError, match="2 of 2 labels contradict"):
        find_samples(tmp_path / "x.parquet")


def test_parquet_of_other_classes_is_refused(tmp_path):
    shard(tmp_path / "x.parquet", ["a.JPEG"], [5])
    table = parquet.read_table(tmp_path / "x.parquet")
    features = {"label": {"names": [f"class {i}" for i in range(10)]}}
    about = json.dumps({"info": {"features": features}})
    parquet.write_table(
        table.replace_schema_metadata({"huggingface": about}), tmp_path / "x.parquet"
    )
    with pytest.raises(DataError, match="labels of 10 classes, not of 1,000"):
        find_samples(tmp_path / "x.parquet")
    assert find_samples(tmp_path / "x.parquet", tuple("abcdefghij")).labels == (5,)


def test_parquet_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"x.parquet holds no image"):
        find_samples(shard(tmp_path / "x.parquet", [], []))
