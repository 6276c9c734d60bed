"""Folders of networks: written whole, read with distrust."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

import snzoo
from snzoo.errors import CheckpointError, SnzooError
from snzoo.weights.folder import LARGEST_CONFIG

CLASSES = ["a", "b", "c"]
FILES = {"config.json", "model.safetensors", "README.md"}


@pytest.fixture
def network():
    return snzoo.create_model("resnet18v1_sn", width=8, num_classes=3)


@pytest.fixture
def folder(network, tmp_path):
    snzoo.save_pretrained(network, tmp_path / "saved", classes=CLASSES)
    return tmp_path / "saved"


def forge(folder, **fields):
    """The configuration, in both places, with other fields; None takes one out."""
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text()) | fields
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    save_file(load_file(weights), weights, {"snzoo": json.dumps(config)})


def refuses(folder, *words):
    with pytest.raises(SnzooError) as error:
        snzoo.create_model(str(folder))
    message = str(error.value)
    assert len(message.splitlines()) == 1 and len(message) < 2000
    assert [word for word in words if word not in message] == [], message


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("instead", ["nothing", "folder", "pipe", "dangling link"])
def test_a_folder_without_one_of_its_files_is_refused(folder, name, instead):
    (folder / name).unlink()
    if instead == "folder":
        (folder / name).mkdir()
    elif instead == "pipe":  # which to open would wait for ever
        os.mkfifo(folder / name)
    elif instead == "dangling link":
        (folder / name).symlink_to("nowhere")
    refuses(folder, f"the folder {folder} has no {name}", "snzoo.save_pretrained")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("\ud800", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("9" * 10_000, "is not JSON"),
        ("[]", "is no object"),
        ("null", "is no object"),
        ("{}" + " " * LARGEST_CONFIG, "is no object of at most 1,048,576 characters"),
        ("{}", "model is missing"),
        ('{"model": "resnet50v1_sn"}', "config.json and model.safetensors differ in 'model'"),
        ('{"classes": ["b", "a", "c"]}', "differ in 'classes'"),
    ],
)
def test_a_malformed_configuration_is_refused(folder, text, words):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refuses(folder, words)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"model": "resnet19v1_sn"}, "no model named 'resnet19v1_sn'"),
        ({"model": "../x"}, "no model named '../x'"),
        ({"model": {"a": 1}}, "model has the wrong type"),
        ({"model": None}, "model is missing"),
        ({"model": "resnet34v1_sn"}, "does not fit the network"),
        ({"classes": None}, "classes is missing"),
        ({"classes": ["a", "b", "\x1b[31m"]}, r"must be printable and differ, got '\x1b[31m'"),
        ({"classes": ["a", "b", "c\nd"]}, "must be printable"),
        ({"classes": ["a", "b"]}, "fc.weight is (3, 64), not (2, 64)"),
        ({"classes": "imagenet-1k"}, "fc.weight is (3, 64), not (1000, 64)"),
        ({"preprocessing": {"crop": 1}}, "preprocessing.resize is missing"),
        ({"arguments": [8]}, "arguments has the wrong type"),
        ({"arguments": {"width": 10**9}}, "width must be a whole number from 1 to 1,000,000"),
        ({"arguments": {"width": 10**6}}, "does not fit the network"),
        ({"arguments": {"width": 8, "in_chans": 10**6}}, "does not fit the network"),
        ({"arguments": {"width": {"a": [1]}}}, "width must be a whole number"),
        ({"arguments": {"width": 8, "num_classes": 3}}, "arguments.num_classes"),
        ({"arguments": {"width": 8, "__class__": 3}}, "takes no argument '__class__'"),
        ({"arguments": {"width": 8, "norm": "os.system"}}, "takes no argument 'norm'"),
        ({"arguments": {"width": 8, "\x1b[31m": 1}}, r"takes no argument '\x1b[31m'"),
        ({"arguments": {"width": 8, "drop_rate": float("nan")}}, "drop_rate must be from 0 to 1"),
        ({"arguments": {"width": 8, "output_stride": True}}, "output_stride must be 8, 16 or 32"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(folder, fields, words):
    forge(folder, **fields)
    refuses(folder, words)


class Evil:
    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.parametrize("what", ["pickle", "weights of another", "garbage", "cut short"])
def test_foreign_weights_are_refused_and_no_pickle_is_opened(folder, network, monkeypatch, what):
    weights = folder / "model.safetensors"
    if what == "pickle":
        torch.save({"fc.weight": Evil()}, weights)
    elif what == "weights of another":
        from safetensors.torch import save_model

        save_model(network, str(weights))
    elif what == "garbage":
        weights.write_bytes(b"\0" * 100)
    else:
        weights.write_bytes(weights.read_bytes()[:-1])
    monkeypatch.setattr(torch, "load", None)
    refuses(folder, str(weights))


def test_links_are_followed_as_in_the_cache_of_the_hub(folder, network, tmp_path):
    (tmp_path / "links").mkdir()
    for name in FILES:
        (tmp_path / "links" / name).symlink_to(folder / name)
    model = snzoo.create_model(str(tmp_path / "links"))
    assert torch.equal(model.fc.weight, network.fc.weight)


def test_saving_again_replaces_links_and_leaves_their_targets_and_other_files_alone(
    folder, network, tmp_path
):
    before = content(folder)
    links = tmp_path / "links"
    links.mkdir()
    for name in FILES:
        (links / name).symlink_to(folder / name)
    (links / "notes.txt").write_text("mine")
    network.fc.weight.data += 1
    snzoo.save_pretrained(network, links, classes=CLASSES)
    assert content(folder) == before
    assert set(content(links)) == {*FILES, "notes.txt"}
    assert torch.equal(snzoo.create_model(str(links)).fc.weight, network.fc.weight)


def test_the_files_are_readable_by_whom_the_folder_is(folder):
    assert {path.stat().st_mode & 0o044 for path in folder.iterdir()} == {0o044}


def test_where_no_room_is_the_old_files_stay(folder, tmp_path):
    """The limit on a file's size stands in for a full disk."""
    before = content(folder)
    code = f"""
import resource, signal, snzoo
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=3)
try:
    snzoo.save_pretrained(model, {str(folder)!r}, classes=["x", "y", "z"])
except snzoo.errors.SnzooError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"can't write {folder}: ") and done.stderr == ""
    assert len(done.stdout.splitlines()) == 1 and content(folder) == before


def test_a_save_that_is_killed_leaves_the_old_files(folder):
    before = content(folder)
    code = f"""
import os, signal, pathlib, snzoo
model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=3)
pathlib.Path.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
snzoo.save_pretrained(model, {str(folder)!r}, classes=["x", "y", "z"])
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    assert snzoo.create_model(str(folder)).spec.classes == ("a", "b", "c")


@pytest.mark.parametrize("where", ["file", "file/folder"])
def test_a_folder_that_can_not_be_made_is_named(network, tmp_path, where):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=f"^can't write {tmp_path / where}: "):
        snzoo.save_pretrained(network, tmp_path / where, classes=CLASSES)


def test_a_file_in_the_way_is_named(folder, network):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json is not overwritten"):
        snzoo.save_pretrained(network, folder, classes=CLASSES)


def test_saving_again_keeps_the_modes(tmp_path):
    model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=2)
    snzoo.save_pretrained(model, tmp_path, classes=["a", "b"])
    files = list(tmp_path.iterdir())
    for file in files:
        file.chmod(0o600)
    snzoo.save_pretrained(model, tmp_path, classes=["a", "b"])
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600] * 3
