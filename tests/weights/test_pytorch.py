"""Files of torch.save from strangers: read as tensors, in bounded memory, or refused by name."""

import argparse
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import snzoo
from snzoo.errors import CheckpointError
from snzoo.weights import read_description, read_state_dict

SMALL = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(4)}
ROOT = Path(__file__).parents[2]


class Payload:
    """A pickle of it runs a command when it is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "place", ["the whole", "a value", "beside the state dict", "the state dict"]
)
@pytest.mark.parametrize("known", [True, False], ids=["checksum known", "not known"])
def test_a_pickle_that_runs_code_is_refused(zoo, saved, state, tmp_path, zipped, place, known):
    payload = Payload(tmp_path / "ran")
    evil = {
        "the whole": payload,
        "a value": state | {"evil": payload},
        "beside the state dict": {"state_dict": state, "epoch": payload},
        "the state dict": {"state_dict": payload},
    }[place]
    zoo.publish(saved(evil, _use_new_zipfile_serialization=zipped), known=known)
    result = zoo.run("fetch", "made")
    zoo.refuses(result, "posix.mkdir, which could run code; refused", "snzoo import FILE")
    assert not (tmp_path / "ran").exists()


def test_code_is_refused_by_every_way_in(zoo, saved, tmp_path):
    zoo.publish(known=False)
    file, trace = tmp_path / "made.pth", tmp_path / "ran"
    file.write_bytes(saved({"fc.weight": Payload(trace)}))
    with pytest.raises(CheckpointError, match="mkdir, which could run code"):
        snzoo.create_model("made", weights=file)
    file.write_bytes(pickle.dumps({"fc.weight": Payload(trace)}))  # torch.load warns of it, too
    zoo.refuses(zoo.spawn("import", file), "more than tensors; refused", "snzoo info made")
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "content, words",
    [
        ({"model": SMALL, "best": np.float64(7)}, "multiarray.scalar, which could run code"),
        ({"model": SMALL, "config": Path("x")}, "pathlib.PosixPath, which could run code"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear, which could run code"),
    ],
)
def test_other_objects_are_named_with_the_safe_way_to_save(tmp_path, zipped, content, words):
    torch.save(content, tmp_path / "x", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(tmp_path / "x")
    assert words in str(caught.value)
    assert "torch.save(model.state_dict(), 'weights.pth')" in str(caught.value)


def test_arguments_in_a_namespace_are_allowed(tmp_path):
    torch.save({"model": SMALL, "args": argparse.Namespace(lr=0.1)}, tmp_path / "x")
    assert read_state_dict(tmp_path / "x").keys() == SMALL.keys()
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


SHARDED = """
import torch.distributed as dist, torch, sys, snzoo
from torch.distributed.checkpoint import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from snzoo.weights import read_state_dict
folder = sys.argv[1]
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=2)
fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
torch.save(model.state_dict(), folder + "/sharded.pth")
save(model.state_dict(), checkpoint_id=folder + "/parts")
for use in (lambda: read_state_dict(folder + "/sharded.pth"),
            lambda: snzoo.save_pretrained(model, folder + "/x", classes=["a", "b"])):
    try: use()
    except snzoo.errors.CheckpointError as error: print(error)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_networks_are_to_be_gathered_first(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", SHARDED, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.stdout.count("get_model_state_dict(model, options=") == 2, done.stderr
    with pytest.raises(CheckpointError, match="gather a full state dict first"):
        read_state_dict(tmp_path / "sharded.pth")
    with pytest.raises(CheckpointError, match="dcp_to_torch FOLDER"):
        read_state_dict(tmp_path / "parts" / "__0_0.distcp")


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT)}


# For each file: by how many MB reading it raised the peak of memory, and why it was refused.
MEASURE = """
import json, re, sys, torch, h5py
from snzoo.errors import CheckpointError
from snzoo.weights import read_state_dict

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1000

for path in sys.argv[1:]:
    before = peak()
    try: read_state_dict(path)
    except CheckpointError as error: print(json.dumps([peak() - before, str(error)]))
"""


def deflate(stored, path):
    with zipfile.ZipFile(stored) as archive, zipfile.ZipFile(path, "w", 8) as smaller:
        for name in archive.namelist():
            smaller.writestr(name, archive.read(name), zipfile.ZIP_DEFLATED)


def deflated(path):
    torch.save({"fc.weight": torch.zeros(50_000_000)}, path.with_name("stored"))
    deflate(path.with_name("stored"), path)


def overlapping(path):
    """The directory of a stored file names one member many times."""
    torch.save({f"{i}": torch.zeros(100_000) for i in range(10)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist += archive.filelist * 100
        archive._didModify = True


def expanded(path, zipped=True):
    state = {"fc.weight": torch.zeros(1).expand(10**14)}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)


def hdf5(path, **options):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.create_dataset("conv1_conv/conv1_conv/kernel:0", dtype="float32", **options)


BOMBS = {
    "deflated": deflated,
    "overlapping": overlapping,
    "expanded": expanded,
    "expanded, legacy": lambda path: expanded(path, zipped=False),
    "HDF5 without data": lambda path: hdf5(path, shape=(10**9,)),
    "HDF5, deflated": lambda path: hdf5(
        path, shape=(30_000_000,), data=np.zeros(30_000_000, "f4"), compression="gzip"
    ),
    "HDF5, one large chunk": lambda path: hdf5(
        path, shape=(10,), maxshape=(None,), chunks=(10**9,)
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory in /proc")
def test_small_files_do_not_take_much_memory(tmp_path):
    paths = [tmp_path / name for name in BOMBS]
    for path in paths:
        BOMBS[path.name](path)
    command = [sys.executable, "-c", MEASURE, *paths]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    refused = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(refused) == len(paths), done
    for path, (megabytes, message) in zip(paths, refused, strict=True):
        assert message.startswith(f"can't read {path}: it unpacks to more than"), path
        assert megabytes < 50 + path.stat().st_size / 1e6, path


@pytest.mark.parametrize("padding", [0, 4_000_000])
def test_what_a_file_may_unpack_to_is_bounded_by_the_layout(zoo, state, tmp_path, padding):
    torch.save({"state_dict": state, "x": torch.zeros(padding)}, tmp_path / "stored")
    deflate(tmp_path / "stored", tmp_path / "made.pth")
    zoo.publish((tmp_path / "made.pth").read_bytes())
    result = zoo.run("import", tmp_path / "made.pth")
    if padding:
        zoo.refuses(result, "it unpacks to more than")
    else:
        zoo.holds(state, result)


def test_what_is_stored_is_read_whatever_its_size(tmp_path):
    torch.save({"a": torch.rand(10_000)}, tmp_path / "x")
    assert read_state_dict(tmp_path / "x", max_bytes=1)["a"].numel() == 10_000


# What is left of a good file → what the message says of it.
BROKEN = {
    "truncated": (lambda zipped, legacy: zipped[:-1000], "damaged, cut short or not a weights"),
    "truncated legacy": (lambda zipped, legacy: legacy[:-1000], "damaged, cut short"),
    "its start": (lambda zipped, legacy: legacy[:20], "damaged, cut short or not a weights file"),
    "empty": (lambda zipped, legacy: b"", "not a weights file"),
    "text": (lambda zipped, legacy: b"quota exceeded\n", "not a weights file"),
    "JSON": (lambda zipped, legacy: b'{"error": 429}', "not a weights file"),
    "XML": (lambda zipped, legacy: b'<?xml version="1.0"?><Error/>', "not a weights file"),
    "web page": (lambda zipped, legacy: b"<html><body>Sign in", "a web page"),
    "zeros": (lambda zipped, legacy: bytes(5000), "not a weights file"),
    "other zip": (lambda zipped, legacy: b"PK\3\4" + bytes(5000), "damaged, cut short"),
}


@pytest.mark.parametrize("change, words", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused(saved, state, content, tmp_path, change, words):
    file = tmp_path / "made.pth"
    file.write_bytes(change(content, saved(state, _use_new_zipfile_serialization=False)))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_state_dict(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("written", ["zip", "legacy", "safetensors"])
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_bytes_are_changed_it_is_read_or_refused(tmp_path, saved, written, data):
    good = (
        save(SMALL)
        if written == "safetensors"
        else saved(SMALL, _use_new_zipfile_serialization=written == "zip")
    )
    at = data.draw(st.integers(0, len(good) - 1))
    put = data.draw(st.binary(min_size=1, max_size=8))
    file = tmp_path / "x"
    file.write_bytes(good[:at] + put + good[at + len(put) :])
    for read in (read_state_dict, read_description):
        try:
            read(file)
        except CheckpointError as error:
            assert str(file) in str(error)
