"""One file of a tar archive: links, devices, paths, bombs and broken archives are refused."""

import gzip
import io
import random
import tarfile
import time
import tracemalloc

import numpy as np
import pytest
import torch
from mutation import mutate
from tensorflow_writer import write

from snzoo.errors import CheckpointError
from snzoo.weights import read_state_dict
from snzoo.weights.archive import MOST_MEMBERS, read_member

NAME = "weights.ckpt"
CONTENT = bytes(range(256)) * 5
LIMIT = 1 << 20


def member(name=NAME, content=CONTENT, **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def pack(*members, format=tarfile.GNU_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return buffer.getvalue()


def correct_checksum(archive, start):
    """Write the checksum of the header that begins at ``start`` into it."""
    archive[start + 148 : start + 156] = b" " * 8
    archive[start + 148 : start + 156] = b"%06o\0 " % sum(archive[start : start + 512])


FOLDER = member("./", b"", type=tarfile.DIRTYPE)
README = member("README", b"text")


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(
    "members", [[member()], [FOLDER, README, member("./" + NAME)], [member(), README]]
)
def test_the_named_file_is_read(tmp_path, members, format, compress):
    path = tmp_path / "x.tar"
    path.write_bytes(compress(pack(*members, format=format)))
    assert read_member(path, NAME, max_bytes=LIMIT) == CONTENT


def link(name, kind, target="/etc/passwd"):
    return member(name, b"", type=kind, linkname=target)


REFUSED = {
    "no file": ([README], "holds 0 files 'weights.ckpt'"),
    "two files": ([member(), member("./" + NAME)], "holds 2 files"),
    "the name in a folder": ([member("folder/" + NAME)], "holds 0 files"),
    "a symbolic link": ([link(NAME, tarfile.SYMTYPE)], "no plain file"),
    "a hard link": ([link(NAME, tarfile.LNKTYPE)], "no plain file"),
    "a link besides": ([member(), link("other", tarfile.SYMTYPE)], "no plain file"),
    "a device": ([member(), link("disk", tarfile.BLKTYPE)], "no plain file"),
    "a pipe": ([link(NAME, tarfile.FIFOTYPE)], "no plain file"),
    "a path upward": ([member("../" + NAME)], "wrong place"),
    "a path upward inside": ([member(), member("a/../../b")], "wrong place"),
    "an absolute path": ([member("/" + NAME)], "wrong place"),
    "a sparse file": (
        [member(pax_headers={"GNU.sparse.map": "0,5", "GNU.sparse.size": "99"})],
        "no plain file",
    ),
    "a member over the limit": ([member(content=bytes(LIMIT + 1))], "unpacks to more than"),
    "members over the limit": ([README, member("a", bytes(LIMIT)), member()], "more than"),
    "many members": ([README] * (MOST_MEMBERS + 1), f"more than {MOST_MEMBERS} members"),
    "a huge header": ([member(pax_headers={"comment": "x" * (2 << 20)})], "more bytes than"),
}


@pytest.mark.parametrize("members, words", REFUSED.values(), ids=REFUSED)
def test_an_archive_with_anything_unexpected_is_refused(tmp_path, members, words):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(pack(*members, format=tarfile.PAX_FORMAT)))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_member(path, NAME, max_bytes=LIMIT)
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_negative_size_is_refused(tmp_path):
    info, content = member()
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 12  # -1 in base 256
    correct_checksum(header, 0)
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(header) + content + bytes(10240))
    with pytest.raises(CheckpointError):
        read_member(path, NAME, max_bytes=LIMIT)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_an_archive_cut_within_the_file_is_refused(tmp_path, compress):
    whole = compress(pack(member()))
    path = tmp_path / "x"
    end = 512 + len(CONTENT) if compress is bytes else len(whole) - 40
    for length in range(0, end, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            read_member(path, NAME, max_bytes=LIMIT)


@pytest.mark.parametrize("size", [1 << 30, 1 << 62])
def test_a_bomb_takes_little_memory(tmp_path, size):
    """The header states a size that gzip could unpack to, within the limit or not."""
    info, _ = member()
    info.size = size
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(32 << 20)))
    tracemalloc.start()
    try:
        for limit in (LIMIT, 1 << 30):  # the second one is within the limit, but cut short
            with pytest.raises(CheckpointError):
                read_member(path, NAME, max_bytes=limit)
            _, peak = tracemalloc.get_traced_memory()
            assert peak < (8 << 20 if limit == LIMIT else 128 << 20)
    finally:
        tracemalloc.stop()


def mutate_headers(archive, chance):
    """Change bytes of the headers of two members, whose checksums stay right."""
    archive = bytearray(archive)
    for start in chance.choice([(0,), (1024,), (0, 1024)]):
        for _ in range(chance.choice([1, 1, 3])):
            # The name, the size, the type, the magic and the prefix, which are read.
            first, last = chance.choice([(0, 100), (124, 136), (156, 157), (257, 265), (345, 500)])
            at = start + chance.randrange(first, last)
            archive[at] = chance.choice(
                [0, 32, 46, 47, 48, 49, 50, 55, 128, 255, chance.randrange(256)]
            )
        correct_checksum(archive, start)
    return bytes(archive)


@pytest.mark.slow
@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["tar", "tar.gz"])
def test_a_changed_archive_gives_the_right_tensors_or_one_error(tmp_path, compress):
    """10,000 archives of a checkpoint. A third is changed before the compression.

    In another third, the checksums of the headers are right.
    """
    arrays = {
        "resnet_v1_50/conv1/weights": np.arange(2 * 2 * 3 * 4, dtype=np.float32).reshape(
            2, 2, 3, 4
        ),
        "resnet_v1_50/conv1/BatchNorm/gamma": np.arange(4, dtype=np.float32),
    }
    weights, gamma = map(torch.from_numpy, arrays.values())
    expected = {"conv1.weight": weights.permute(3, 2, 0, 1), "bn1.weight": gamma}
    archive = pack(README, member("resnet_v1_50.ckpt", write(arrays)))
    chance = random.Random(3)
    path, outcomes, slowest = tmp_path / "x", {"tensors": 0, "refused": 0}, 0.0
    tracemalloc.start()
    for i in range(5000):
        if i % 3 == 0:
            content = mutate(compress(archive), chance)
        elif i % 3 == 1:
            content = compress(mutate(archive, chance))
        else:
            content = compress(mutate_headers(archive, chance))
        path.write_bytes(content)
        start = time.process_time()
        try:
            state = read_state_dict(path)
            assert state.keys() == expected.keys()
            assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
            outcomes["tensors"] += 1
        except CheckpointError as error:
            assert str(path) in str(error) and len(str(error).splitlines()) == 1
            assert len(str(error)) < 500
            outcomes["refused"] += 1
        slowest = max(slowest, time.process_time() - start)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert min(outcomes.values()) > 500, outcomes
    assert slowest < 1 and peak < 8 << 20, (slowest, peak)
