"""safetensors files: written aligned, read as copies or mapped, refused when they are broken."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

import snzoo
from snzoo.errors import CheckpointError
from snzoo.weights import read_description, read_state_dict
from snzoo.weights.safetensors import write_safetensors

SMALL = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(4)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_is_written_is_read_by_every_reader_and_large_tensors_are_aligned(tmp_path, dtype):
    state = {"odd": torch.arange(3, dtype=dtype), "z": torch.rand(32, 3).to(dtype).T}
    state |= {"empty": torch.zeros(0, dtype=dtype), "count": torch.tensor(7)}
    write_safetensors(tmp_path / "x", state, {"model": "ß"})
    for found in (load_file(tmp_path / "x"), read_state_dict(tmp_path / "x", mmap=True)):
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], state[key]) for key in state)
        assert found["z"].data_ptr() % 64 == 0
    assert read_description(tmp_path / "x") == {"model": "ß"}
    with safe_open(tmp_path / "x", framework="pt") as file:
        assert file.metadata()["format"] == "pt"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda good: good[:-1], id="truncated"),
        pytest.param(lambda good: good + b"x", id="too long"),
        pytest.param(lambda good: good[:12], id="cut in the header"),
        pytest.param(lambda good: struct.pack("<Q", 1 << 60) + good[8:], id="endless header"),
        pytest.param(lambda good: struct.pack("<Q", 2) + good[8:], id="short header"),
        pytest.param(lambda good: good.replace(b"F32", b"F99"), id="unknown dtype"),
        pytest.param(lambda good: good.replace(b"[2,3]", b"[2,9]"), id="shape beyond the data"),
    ],
)
def test_broken_safetensors_are_refused(tmp_path, change):
    file = tmp_path / "x.safetensors"
    assert change(save(SMALL)) != save(SMALL)
    file.write_bytes(change(save(SMALL)))
    with pytest.raises(CheckpointError, match=f"can't read {file}: ."):
        read_state_dict(file)


@pytest.mark.parametrize(
    "metadata, expected",
    [(None, None), ({"other": "{"}, None), ({"snzoo": '{"model": "x"}'}, {"model": "x"})],
)
def test_a_description_is_read_where_there_is_one(tmp_path, metadata, expected):
    save_file(SMALL, tmp_path / "x", metadata=metadata)
    assert read_description(tmp_path / "x") == expected


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000])
def test_a_damaged_description_is_refused(tmp_path, text):
    save_file(SMALL, tmp_path / "x", metadata={"snzoo": text})
    with pytest.raises(CheckpointError, match=str(tmp_path / "x")):
        read_description(tmp_path / "x")


OVERWRITE = """
import os, shutil, sys, torch, snzoo
from pathlib import Path
from safetensors.torch import save_file
folder = Path(sys.argv[1])
file, other = folder / "model.safetensors", folder / "other"
zoo = snzoo.create_model("resnet18v1_sn_clothing", pretrained=True)
save_file({key: torch.zeros_like(value) for key, value in zoo.state_dict().items()}, other)
x = torch.rand(1, 3, 64, 64)
for overwrite in (
    lambda: shutil.copyfile(other, file),
    lambda: file.write_bytes(b"x" * 100),
    lambda: torch.save({"a": torch.zeros(1)}, file),
    lambda: os.truncate(file, 0),
    file.unlink,
):
    for name, source in ((folder, {}), ("resnet18v1_sn_clothing", {"weights": file})):
        snzoo.save_pretrained(zoo, folder)
        model = snzoo.create_model(name, **source).eval()
        before = model(x)
        overwrite()
        assert torch.equal(model(x), before)
"""


def test_a_network_outlives_what_happens_to_the_users_file(tmp_path):
    # In a process of its own: a mapped file that becomes shorter ends the process.
    command = [sys.executable, "-c", OVERWRITE, tmp_path]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")


def test_mapped_and_copied_weights_give_the_same_bits(cached, tmp_path):
    mapped = snzoo.create_model("made", pretrained=True).eval()
    copied = snzoo.create_model("made", weights=shutil.copy(cached.weights, tmp_path)).eval()
    assert all(value.data_ptr() % 64 == 0 for value in mapped.parameters())
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(mapped(x), copied(x))
