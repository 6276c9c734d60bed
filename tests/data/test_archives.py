"""Tars, zips and webdataset shards: labeled and read in place, or refused with the reason."""

import io
import os
import shutil
import stat
import subprocess
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from snzoo.data import archives, imagenet, sources
from snzoo.data.archives import Archived, list_members
from snzoo.data.samples import find_samples
from snzoo.errors import DataError

CLOTHES = ("hat", "t-shirt")
VALIDATION = "ILSVRC2012_val_{:08}.JPEG"
KINDS = pytest.mark.parametrize("kind", ["tar", "zip"])


def write(path, members, **options):
    """An archive of names (or TarInfos, ZipInfos) → contents, of the kind that ``path`` says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", **options) as file:
            for name, content in members.items():
                file.writestr(name, content)
    else:
        with tarfile.open(path, "w", **options) as file:
            for name, content in members.items():
                info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return path


def pack(path, tree, *, prefix=""):
    """An archive of the files below ``tree``, not in their order."""
    files = sorted((f for f in tree.rglob("*") if f.is_file() and f != path), reverse=True)
    return write(path, {prefix + f.relative_to(tree).as_posix(): f.read_bytes() for f in files})


def empty(path, *names):
    return write(path, dict.fromkeys(names, b""))


def labels(samples):
    return dict(zip(samples.names, samples.labels, strict=True))


def photos(touch):
    """A few class folders, with files to be left out."""
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
        "tree/__MACOSX/n01440764/._a.JPEG",
    )
    (path / "tree" / "n01443537" / "a.JPEG").write_bytes(b"abc")
    return path


@KINDS
@pytest.mark.parametrize("prefix", ["", "./", "val/", "./ILSVRC/val/"])
def test_an_archive_is_labeled_like_the_tree_in_it(touch, kind, prefix):
    path = photos(touch)
    folder = find_samples(path / "tree")
    samples = find_samples(pack(path / f"x.{kind}", path / "tree", prefix=prefix))
    assert labels(samples) == labels(folder) and samples.names == folder.names
    assert samples.read(0) == folder.read(0) == b"abc"
    assert samples.locate(0) == f"{path}/x.{kind}: {prefix}n01443537/a.JPEG"
    assert folder.description == (
        "2 images in 3 of 1,000 class folders (4 other files or folders left out)"
    )
    assert samples.description == folder.description.replace(" (4", f" of x.{kind} (4")


@pytest.mark.parametrize("arguments", [["tree"], ["-C", "tree", "."]])
def test_a_tar_made_by_tar_is_labeled_alike(touch, arguments):
    path = photos(touch)
    subprocess.run(["tar", "-cf", "x.tar", *arguments], cwd=path, check=True)
    samples = find_samples(path / "x.tar")
    assert labels(samples) == labels(find_samples(path / "tree")) and samples.read(0) == b"abc"


@KINDS
def test_a_single_class_folder_in_an_archive_is_one(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    assert labels(find_samples(empty(path, "n01443537/a.JPEG"))) == {"n01443537/a.JPEG": 1}
    with pytest.raises(DataError, match=r"1 of 1 .* folder 490 holds photos of n01751748"):
        find_samples(empty(path, "490/ILSVRC2012_val_00000001.JPEG"))


def test_the_validation_tar_is_found_where_nothing_better_is(touch):
    path = touch("flat/ILSVRC2012_val_00000002.JPEG", "flat/ILSVRC2012_val_00000001.JPEG")
    tar = pack(path / "ILSVRC2012_img_val.tar", path / "flat")
    (path / "flat").rename(path / "other")
    samples = find_samples(path)
    assert labels(samples) == {VALIDATION.format(1): 65, VALIDATION.format(2): 970}
    assert samples.locate(0) == f"{tar}: ILSVRC2012_val_00000001.JPEG"
    description = "2 flat validation images of ILSVRC2012_img_val.tar (a part: 2 of 50,000)"
    assert samples.description == description and samples.dataset is None
    ids = [f"{label + 1}\n" for label in imagenet.validation_labels()]
    truth = path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("".join(ids))
    assert find_samples(path).description == f"{description}, checked against {truth.name}"
    (path / "other").rename(path / "val")
    assert find_samples(path).locate(0) == str(path / "val" / VALIDATION.format(1))


@pytest.mark.slow
def test_the_tar_of_all_fifty_thousand_is_the_whole_set(tmp_path):
    names = map(VALIDATION.format, range(50_000, 0, -1))
    samples = find_samples(empty(tmp_path / "ILSVRC2012_img_val.tar", *names).parent)
    assert samples.dataset == "imagenet-1k-val" and len(samples) == 50_000
    assert samples.labels == tuple(imagenet.validation_labels())


def link(name, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def zip_info(name, *, mode=0, system=3):
    info = zipfile.ZipInfo(name)
    info.external_attr, info.create_system = mode << 16, system
    return info


@KINDS
def test_hostile_names_in_an_archive_are_left_alone(tmp_path, kind):
    names = [
        "n01440764/a.JPEG",
        "../n01443537/b.JPEG",
        "n01440764/../../c.JPEG",
        "/n01443537/d.jpg",
    ]
    samples = find_samples(empty(tmp_path / f"x.{kind}", *names, "n01440764/\x1b[31m\n.JPEG"))
    assert set(labels(samples)) == {
        "n01440764/\x1b[31m\n.JPEG",
        "n01440764/a.JPEG",
        "n01443537/d.jpg",
    }
    assert samples.read(0) == b""


@KINDS
@pytest.mark.parametrize(
    "names, message",
    [
        ([], "holds neither class folders nor images; snzoo takes class folders, .* a tar or zip"),
        (["notes.txt", "../n01440764/a.JPEG"], "holds neither class folders nor images"),
        (["a.JPEG"], r"a.JPEG is neither like .* snzoo takes .* shards, .* 'path,label'"),
        (["a\n\x1b.jpg"], r"a\\n\\x1b.jpg is neither like"),
        (["cats/a.JPEG", "dogs/b.JPEG"], r"not named by wnids .*: cats, dogs; snzoo takes "),
        (["n01440764/a.JPEG", "./n01440764/a.JPEG"], "holds ./n01440764/a.JPEG twice"),
        (["n01440764/ILSVRC2012_val_00000001.JPEG"], "is class 65"),
        ([VALIDATION.format(1), "ILSVRC2012_val_00000001.png"], "00000001 2 times"),
    ],
)
def test_an_archive_that_cannot_be_labeled_is_refused(tmp_path, kind, names, message):
    path = empty(tmp_path / f"x.{kind}", *names)
    with pytest.raises(DataError, match=message) as caught:
        find_samples(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "member, flaw",
    [
        (link("n01440764/b.JPEG"), "a link"),
        (link("n01440764/b.JPEG", tarfile.LNKTYPE), "a link"),
        (link("n01440764/b.JPEG", tarfile.FIFOTYPE), "not a regular file"),
        (zip_info("n01440764/b.JPEG", mode=stat.S_IFLNK | 0o777), "a link"),
    ],
)
def test_members_that_are_no_photos_themselves_are_refused(tmp_path, member, flaw):
    kind = "zip" if isinstance(member, zipfile.ZipInfo) else "tar"
    path = write(tmp_path / f"x.{kind}", {"n01440764/a.JPEG": b"", member: b""})
    with pytest.raises(DataError, match=f"n01440764/b.JPEG is {flaw}; pack the photos themselves"):
        find_samples(path)


def test_a_sparse_file_in_a_tar_is_told(tmp_path):
    with open(tmp_path / "hole", "wb") as file:
        file.truncate(1 << 20)
    subprocess.run(["tar", "-Scf", "s.tar", "hole"], cwd=tmp_path, check=True)
    assert [member.flaw for member in list_members(tmp_path / "s.tar")] == ["a sparse file"]


def content(i):
    return f"image {i} ".encode() * (1 + i * 37 % 500)


def open_archive(path):
    members = list_members(path)
    return Archived([member.name for member in members], members)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("tar", {}),
        ("zip", {"compression": zipfile.ZIP_STORED}),
        ("zip", {"compression": zipfile.ZIP_DEFLATED}),
    ],
)
def test_many_threads_read_members_at_once(tmp_path, kind, options):
    members = {f"val/{i}.JPEG": content(i) for i in range(200)}
    path = write(tmp_path / f"x.{kind}", members, **options)
    source = open_archive(path)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, range(200))) == list(members.values())
    assert source.names[3] == "val/3.JPEG" and source.locate(3) == f"{path}: val/3.JPEG"
    before = source.stamp()
    os.utime(path, (1, 1))
    assert source.stamp() != before


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_in_all_tar_formats(tmp_path, kind):
    name = "é" * 30 + "/" + "n" * 60 + ".JPEG"
    source = open_archive(write(tmp_path / "x.tar", {name: b"abc"}, format=kind))
    assert source.names == [name] and source.read(0) == b"abc"


def test_names_with_the_separator_of_windows_are_read(tmp_path):
    info = zip_info("x", system=0)
    info.filename = "n01443537\\a.JPEG"
    samples = find_samples(write(tmp_path / "x.zip", {info: b"abc"}))
    assert labels(samples) == {"n01443537/a.JPEG": 1} and samples.read(0) == b"abc"


@pytest.mark.parametrize("kept", [0, 100, 600, 1536, 1600, 2048, 2500, 3071, 3072, 3500])
def test_a_tar_that_is_cut_short_is_refused(tmp_path, kept):
    path = write(tmp_path / "x.tar", {"a.JPEG": b"a" * 700, "b.JPEG": b"b" * 700})
    os.truncate(path, 3584)  # two members of 1,536 bytes and the end mark
    assert len(list_members(path)) == 2
    os.truncate(path, kept)
    with pytest.raises(DataError, match=r"x.tar is no tar, damaged or cut short: "):
        list_members(path)


@KINDS
def test_an_archive_that_shrinks_after_it_was_opened_gives_no_half_images(tmp_path, kind):
    path = write(tmp_path / f"x.{kind}", {"a.JPEG": b"a" * 700})
    source = open_archive(path)
    os.truncate(path, 600)
    with pytest.raises(DataError, match=rf"x.{kind}: a.JPEG: .*(cut short|damaged)"):
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
        (damaged_header, "no end mark after the last member"),
        (sized(-512), "a header points back"),  # to itself, without end
        (sized(-5120), "Invalid argument"),
        (sized(1 << 70), "no end mark"),
        (endless_header, "a header of 1099511627776 bytes"),
        (bytearray.clear, "empty file"),
    ],
)
def test_a_damaged_tar_is_refused(tmp_path, damage, message):
    path = write(tmp_path / "x.tar", {"a.JPEG": b"a" * 700, "b.JPEG": b"b" * 700})
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"is no tar, damaged or cut short: .*({message})"):
        list_members(path)


def flip_content(data):
    data[60] ^= 1


def encrypt(data):
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + offset] |= 1


def claim(size, *, packed=False):
    """A lie about the size of the content, in the central directory."""

    def damage(data):
        at = data.index(b"PK\1\2") + (20 if packed else 24)
        data[at : at + 4] = size.to_bytes(4, "little")

    return damage


def lzma(data):
    data[data.index(b"PK\1\2") + 10] = 14


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda data: data.__delitem__(slice(50, None)), "is no zip, damaged or cut short"),
        (bytearray.clear, "is no zip, damaged or cut short"),
        (encrypt, "n01440764/a.JPEG is encrypted"),
        (lzma, "n01440764/a.JPEG is compressed by method 14, not deflated"),
        (claim(1 << 31), "looks like a zip bomb: .* claim to hold 2,147,483,648"),
        (claim(1 << 20, packed=True), "looks like a zip bomb"),
        (claim(300 << 20), "x.zip: n01440764/a.JPEG: 300 MiB, more than the 256 MiB of any"),
        (claim(5), "n01440764/a.JPEG: it is damaged: its size or checksum is wrong"),
        (claim(999), "n01440764/a.JPEG: it is damaged: its size or checksum is wrong"),
        (flip_content, "n01440764/a.JPEG: "),
        (lambda data: data.__setitem__(0, 0), "n01440764/a.JPEG: its header is damaged"),
    ],
)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_or_malicious_zip_is_refused(tmp_path, damage, message, compression):
    path = write(tmp_path / "x.zip", {"n01440764/a.JPEG": os.urandom(700)}, compression=compression)
    assert len(find_samples(path).read(0)) == 700
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    with pytest.raises(DataError, match=message) as caught:
        find_samples(path).read(0)
    assert str(path) in str(caught.value)


def test_a_small_zip_of_huge_members_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "UNSUSPICIOUS", 1 << 20)
    members = {f"n01440764/{i}.bmp": bytes(1 << 20) for i in range(3)}
    path = write(tmp_path / "x.zip", members, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="looks like a zip bomb"):
        find_samples(path)


def test_huge_members_of_a_tar_are_not_read(tmp_path):
    info = tarfile.TarInfo("a.JPEG")
    info.size = sources.LARGEST + 1
    path = tmp_path / "x.tar"
    path.write_bytes(info.tobuf())
    os.truncate(path, 512 + sources.LARGEST + 512 + 1024)
    with pytest.raises(DataError, match=r"x.tar: a.JPEG: 256 MiB, more than"):
        open_archive(path).read(0)


@pytest.mark.parametrize(
    "mode, name, target",
    [
        ("gz", "x.tgz", "x.tar"),
        ("gz", "x y.tar.gz", "x y.tar"),
        ("bz2", "x.tar.bz2", "x.tar"),
        ("xz", "x.txz", "x.tar"),
        ("gz", "x.tar", "x.decompressed.tar"),
    ],
)
def test_a_compressed_tar_is_refused_with_the_command_to_decompress_it(
    tmp_path, mode, name, target
):
    with tarfile.open(tmp_path / name, f"w:{mode}") as tar:
        tar.addfile(tarfile.TarInfo("n01440764/a.JPEG"))
    with pytest.raises(DataError, match=r"is compressed \(\w+\), .*; decompress it: ") as caught:
        find_samples(tmp_path / name)
    command = str(caught.value).split("decompress it: ")[1]
    if shutil.which(command.split()[0]):
        subprocess.run(command, shell=True, check=True)
        assert labels(find_samples(tmp_path / target)) == {"n01440764/a.JPEG": 0}


def webdataset(path, *indices, first=0, key="{:08}"):
    """A shard of photos with these class indices, with files to be ignored."""
    members = {}
    for i, index in enumerate(indices, first):
        name = key.format(i)
        members |= {f"{name}.cls": b"%d\n" % index, f"{name}.JPG": b"photo %d" % i}
        members |= {f"{name}.json": b"{}", f"{name}.txt": b"", f"{name}.seg.png": b"mask"}
    path.parent.mkdir(exist_ok=True)
    return write(path, members)


def test_webdataset_shards_are_labeled_by_their_class_files(tmp_path):
    stem = "imagenet1k-validation"
    webdataset(tmp_path / "in" / f"{stem}-00.tar", 5, 999)
    webdataset(tmp_path / "in" / f"{stem}-01.tar", 7, first=2)
    webdataset(tmp_path / "in" / "imagenet1k-train-00.tar", 1)
    for path, found in [
        ("in", f"2 {stem} shards"),
        (f"in/{stem}-*.tar", "2 shards"),
        (f"in/{stem}-{{00..01}}.tar", "2 shards"),
        ("in/*validation-0[01].tar", "2 shards"),
    ]:
        samples = find_samples(tmp_path / path)
        assert labels(samples) == {f"{i:08}.JPG": c for i, c in enumerate((5, 999, 7))}
        assert samples.description == f"3 images in {found}"
        assert samples.read(2) == b"photo 2" and samples.classes_present == (5, 7, 999)
        assert samples.locate(2) == f"{tmp_path}/in/{stem}-01.tar: 00000002.JPG"
    assert find_samples(tmp_path / "in" / f"{stem}-01.tar").labels == (7,)


def test_equal_keys_in_two_shards_are_told_apart(tmp_path):
    for shard in "01":
        webdataset(tmp_path / f"{shard}.tar", 65, key="a/{}")
    assert find_samples(tmp_path).names == ("0.tar/a/0.JPG", "1.tar/a/0.JPG")


def test_validation_photos_in_shards_are_known_by_their_names(tmp_path):
    key = "ILSVRC2012_val_{:08}"
    assert find_samples(webdataset(tmp_path / "0.tar", 65, first=1, key=key)).labels == (65,)
    with pytest.raises(DataError, match="00000001 is class 65"):
        find_samples(webdataset(tmp_path / "0.tar", 66, first=1, key=key))


@pytest.mark.parametrize(
    "members, message",
    [
        ({"a.jpg": b"", "b.cls": b"1"}, "val-0.tar: a.jpg: no a.cls tells its class"),
        ({"a.jpg": b"", "a.cls": b"2"}, "a.cls: expected a class index from 0 to 1, got '2'"),
        ({"a.jpg": b"", "a.cls": b"hat"}, "a.cls: expected a class index .* got 'hat'"),
        ({"a.jpg": b"", "a.cls": b""}, "a.cls: expected a class index .* got ''"),
        ({"a.jpg": b"", "a.png": b"", "a.cls": b"0"}, "a.png: it is not the only one of its key"),
        ({"a.jpg": b"", link("a.cls"): b""}, "a.cls: it is a link"),
        ({"a.cls": b"0"}, "no image in val-0.tar"),
    ],
)
def test_incomplete_shards_are_refused(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        find_samples(write(tmp_path / "val-0.tar", members), CLOTHES)


@pytest.mark.parametrize(
    "pattern, message",
    [
        ("val-{0..1}.tar", "val-1.tar does not exist"),
        ("val-{5..0}.tar", "0..tar does not exist"),
        ("val-{0..999999999}.tar", "val-1.tar does not exist"),
        ("x*.tar", r"x\*.tar does not exist"),
        ("*", "must stand for tar files or for parquet files only"),
    ],
)
def test_patterns_without_proper_files_are_refused(tmp_path, pattern, message):
    webdataset(tmp_path / "val-0.tar", 1)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=message):
        find_samples(tmp_path / pattern)
