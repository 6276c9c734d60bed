"""ILSVRC2012_img_train.tar, a tar of tars: read in place, or refused with the member's name."""

import io
import tarfile

import pytest

from snzoo.data import archives
from snzoo.data.splits import find_classes, find_split
from snzoo.errors import DataError

TENCH, TISSUE = "n01440764", "n15075141"


def content(name):
    """What the photo of a name holds in these tests, which decode none."""
    return f"content of {name}".encode()


def tar(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for info, data in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def inner(wnid, *photos, damage=lambda data: data, more=b""):
    """The tar of a class, as a member of the outer tar."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for info in photos:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            photo = content(info.name) + more if info.isreg() else b""
            info.size = len(photo)
            file.addfile(info, io.BytesIO(photo))
    return f"{wnid}.tar", damage(data.getvalue())


def imagenet(path, *members):
    tar(path / "ILSVRC2012_img_train.tar", members)
    return path


def link(name, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def test_the_training_tar_is_read_in_place(tmp_path):
    # The prefix is what `tar -C folder` of some tools adds.
    name, data = inner(TISSUE, f"{TISSUE}_7.JPEG")
    path = imagenet(
        tmp_path, inner(TENCH, f"{TENCH}_18.JPEG", f"{TENCH}_2.JPEG"), (f"./{name}", data)
    )
    samples = find_split(path, "train", "imagenet-1k")
    assert samples.names == (
        f"{TENCH}/{TENCH}_18.JPEG",
        f"{TENCH}/{TENCH}_2.JPEG",
        f"{TISSUE}/{TISSUE}_7.JPEG",
    )
    assert samples.labels == (0, 0, 999)
    for i, name in reversed(list(enumerate(samples.names))):
        assert samples.read(i) == content(name.split("/")[1])
    assert samples.description == (
        "3 images in 2 of 1,000 class folders of ILSVRC2012_img_train.tar"
    )
    tar_path = path / "ILSVRC2012_img_train.tar"
    assert samples.locate(2) == f"{tar_path}: {TISSUE}/{TISSUE}_7.JPEG"
    assert find_classes(path) == (TENCH, TISSUE)
    assert find_split(tar_path, "train", (TISSUE, TENCH)).labels == (1, 1, 0)


def test_the_index_of_the_training_tar_reads_headers_only(tmp_path, monkeypatch):
    read = []

    class Counted(archives._Headers):
        def read(self, size=-1, /):
            read.append(size)
            return super().read(size)

    monkeypatch.setattr(archives, "_Headers", Counted)
    members = [
        inner(wnid, *(f"{wnid}_{i}.JPEG" for i in range(9)), more=bytes(50_000))
        for wnid in (TENCH, TISSUE)
    ]
    path = imagenet(tmp_path, *members)
    assert len(find_split(path, "train", "imagenet-1k")) == 18
    assert sum(read) < 600 * (2 * 9 + 10)


def huge(data):
    """The last photo claims more bytes than the class's tar has, but fewer than the outer one."""
    info = tarfile.TarInfo.frombuf(data[:512], "utf-8", "strict")
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data[512:]


@pytest.mark.parametrize(
    "bad, message",
    [
        (inner(TENCH, f"{TENCH}_1.JPEG", damage=huge), r"n01440764_1.JPEG leaves its bounds"),
        (inner(TENCH, f"{TENCH}_1.JPEG", damage=lambda d: d[:530]), "_1.JPEG leaves its bounds"),
        (inner(TENCH, f"{TENCH}_1.JPEG", damage=lambda d: d[:700]), "unexpected end of data"),
        (inner(TENCH, f"{TENCH}_1.JPEG", damage=lambda d: d[:1024]), "no end mark"),
        (inner(TENCH, f"{TENCH}_1.JPEG", damage=lambda d: b""), "no tar, damaged or cut short"),
        (inner(TENCH, f"{TENCH}_1.JPEG", damage=lambda d: b"\x1f\x8b" + d), "no tar, damaged"),
        (inner(TENCH, f"{TENCH}_1.JPEG", damage=lambda d: d[:100] + b"?" + d[101:]), "no tar"),
        (inner(TENCH, link(f"{TENCH}_1.JPEG")), rf"{TENCH}.tar: {TENCH}_1.JPEG is a link"),
        (inner(TENCH, link(f"{TENCH}_1.JPEG", tarfile.LNKTYPE)), r"_1.JPEG is a link"),
        (inner(TENCH, link(f"{TENCH}_1.JPEG", tarfile.FIFOTYPE)), r"is not a regular file"),
        (inner(TENCH, f"{TISSUE}_1.JPEG"), rf"{TISSUE}_1.JPEG is not named like {TENCH}_18.JPEG"),
        (inner(TENCH, f"../{TENCH}_1.JPEG"), r"\.\./n01440764_1.JPEG is not named like"),
        (inner(TENCH, f"{TENCH}_1\n.JPEG"), r"_1\\n.JPEG is not named like"),
        (inner(TENCH, *[f"{TENCH}_1.JPEG"] * 2), rf"{TENCH}.tar holds {TENCH}_1.JPEG twice"),
        (inner(TISSUE, f"{TISSUE}_8.JPEG"), r"n15075141.tar: it is not the only tar of its class"),
        (inner("n00000000", "n00000000_1.JPEG"), r"not named by wnids .*: n00000000"),
        ((f"{TENCH}_1.JPEG", b"x"), rf"{TENCH}_1.JPEG is not named like n01440764.tar"),
        ((link(f"{TENCH}.tar"), b""), rf"{TENCH}.tar is a link; pack the tars themselves"),
    ],
)
def test_a_hostile_training_tar_is_refused_and_the_member_named(tmp_path, bad, message):
    path = imagenet(tmp_path, bad, inner(TISSUE, f"{TISSUE}_7.JPEG"))
    with pytest.raises(DataError, match=message) as error:
        find_split(path, "train", "imagenet-1k")
    assert "\n" not in str(error.value) and "ILSVRC2012_img_train.tar" in str(error.value)


def test_a_training_tar_that_is_cut_short_is_refused(tmp_path):
    path = imagenet(tmp_path, inner(TENCH, f"{TENCH}_1.JPEG"), inner(TISSUE, f"{TISSUE}_7.JPEG"))
    file = path / "ILSVRC2012_img_train.tar"
    whole = file.read_bytes()
    for size in (0, 100, 512, 5000, 10240, 15000, 21000):
        file.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"img_train.tar.* is no tar, damaged or cut short"):
            find_split(path, "train", "imagenet-1k")
