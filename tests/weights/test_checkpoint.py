"""Checkpoint files that strangers made: read as tensors, or refused by name."""

import os
import pickle
import struct
from collections import OrderedDict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

import snzoo
from snzoo.errors import CheckpointError
from snzoo.weights import match, read_description, read_state

SMALL = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(4)}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


class Payload:
    """A pickle of it runs a command when it is read."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


# Each makes what is handed to torch.save from the state dict.
KINDS = {
    "flat": lambda state: state,
    "ordered": OrderedDict,
    "under state_dict": lambda state: {
        "state_dict": state,
        "epoch": 3,
        "best_prec1": torch.tensor(76.0),
        "optimizer": torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9).state_dict(),
        "model": "resnet50v1_sn",
    },
    "under model": lambda state: {"model": state, "epoch": 3},
    "module.": lambda state: {f"module.{key}": value for key, value in state.items()},
    "module. under state_dict": lambda state: {
        "state_dict": OrderedDict((f"module.{key}", value) for key, value in state.items())
    },
    "parameters": lambda state: {
        key: torch.nn.Parameter(value, requires_grad=value.is_floating_point())
        for key, value in state.items()
    },
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_published_kind_of_file_is_fetched(zoo, saved, state, kind, zipped):
    zoo.publish(saved(kind(state), _use_new_zipfile_serialization=zipped), known=False)
    zoo.holds(state, zoo.run("fetch", "made"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "place", ["the whole", "a value", "beside the state dict", "the state dict"]
)
@pytest.mark.parametrize("known", [True, False], ids=["checksum known", "not known"])
def test_a_pickle_that_runs_code_is_refused(
    zoo, saved, state, content, tmp_path, zipped, place, known
):
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

    zoo.publish(content, known=known)
    zoo.holds(state, zoo.run("fetch", "made"))


def test_code_is_refused_by_every_way_in(zoo, saved, tmp_path):
    zoo.publish(known=False)
    file, trace = tmp_path / "made.pth", tmp_path / "ran"
    file.write_bytes(saved({"fc.weight": Payload(trace)}))
    with pytest.raises(CheckpointError, match="mkdir, which could run code"):
        snzoo.create_model("made", weights=file)
    file.write_bytes(pickle.dumps({"fc.weight": Payload(trace)}))  # torch.load warns of it, too
    zoo.refuses(zoo.spawn("import", file), "more than tensors; refused", "snzoo info made")
    assert not trace.exists()


# What is wrong in the file → what the message says of it; no checksum was published.
UNFIT = {
    "missing": (
        lambda state: {key: state[key] for key in state if not key.startswith("layer4.1.conv")},
        "missing: layer4.1.conv1.weight, layer4.1.conv2.weight",
    ),
    "unexpected": (
        lambda state: state | {f"extra{i}": torch.zeros(1) for i in range(5)},
        "unexpected: extra0, extra1, extra2 and 2 more",
    ),
    "shape": (
        lambda state: state | {"fc.weight": torch.zeros(1000, 64)},
        "different: fc.weight is (1000, 64), not (3, 64)",
    ),
    "half": (
        lambda state: state | {"fc.bias": state["fc.bias"].half()},
        "fc.bias is torch.float16, not torch.float32",
    ),
    "double": (
        lambda state: state | {"fc.bias": state["fc.bias"].double()},
        "fc.bias is torch.float64, not torch.float32",
    ),
    "integer": (
        lambda state: state | {"fc.bias": torch.zeros(3, dtype=torch.int64)},
        "fc.bias is torch.int64, not torch.float32",
    ),
    "half a prefix": (
        lambda state: {f"module.{key}" if "fc" in key else key: state[key] for key in state},
        "missing: fc.weight, fc.bias; unexpected: module.fc.weight",
    ),
    "sparse": (
        lambda state: state | {"fc.weight": state["fc.weight"].to_sparse()},
        "no dense tensors: fc.weight",
    ),
    "meta": (
        lambda state: state | {"fc.weight": state["fc.weight"].to("meta")},
        "no dense tensors: fc.weight",
    ),
    "a number": (lambda state: state | {"epoch": 3}, "no dense tensors: epoch"),
    "a numbered key": (lambda state: state | {3: torch.zeros(1)}, "no dense tensors: 3"),
    "list": (lambda state: list(state.values()), "holds no state dict but a list"),
    "tensor": (lambda state: state["fc.bias"], "holds no state dict but a Tensor"),
    "nothing": (lambda state: {}, "holds no state dict but a dict"),
    "network": (lambda state: torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
}


@pytest.mark.parametrize("change, words", UNFIT.values(), ids=UNFIT)
def test_a_file_that_does_not_fit_is_named_and_not_recorded(
    zoo, saved, state, content, change, words
):
    zoo.publish(saved(change(state)), known=False)
    zoo.refuses(zoo.run("fetch", "made"), words, "download it by hand", "snzoo import FILE")
    assert not zoo.part.exists() and not (zoo.home / "checksums.lock.json").exists()

    zoo.publish(content, known=False)
    zoo.holds(state, zoo.run("fetch", "made"))


# What is left of a good file → what the message says of it; no checksum was published.
BROKEN = {
    "truncated": (lambda zipped, legacy: zipped[:-1000], "damaged, cut short or no weights file"),
    "truncated legacy": (lambda zipped, legacy: legacy[:-1000], "damaged, cut short"),
    "its start": (lambda zipped, legacy: legacy[:20], "damaged, cut short or no weights file"),
    "empty": (lambda zipped, legacy: b"", "no weights file"),
    "text": (lambda zipped, legacy: b"quota exceeded\n", "no weights file"),
    "JSON": (lambda zipped, legacy: b'{"error": 429}', "no weights file"),
    "XML": (lambda zipped, legacy: b'<?xml version="1.0"?><Error/>', "no weights file"),
    "web page": (lambda zipped, legacy: b"<html><body>Sign in", "a web page"),
    "zeros": (lambda zipped, legacy: bytes(5000), "no weights file"),
    "other zip": (lambda zipped, legacy: b"PK\3\4" + bytes(5000), "damaged, cut short"),
}


@pytest.mark.parametrize("change, words", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_not_kept(zoo, saved, state, content, tmp_path, change, words):
    broken = change(content, saved(state, _use_new_zipfile_serialization=False))
    file = tmp_path / "made.pth"
    file.write_bytes(broken)
    zoo.publish(broken, known=False)
    zoo.refuses(zoo.run("fetch", "made"), words, "download it by hand", "snzoo import FILE")
    zoo.refuses(zoo.run("import", file), f"{file} is not the file of made", words)
    assert not zoo.part.exists() and not (zoo.home / "checksums.lock.json").exists()

    zoo.publish(content, known=False)
    zoo.holds(state, zoo.run("fetch", "made"))


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
    file.write_bytes(save(SMALL))
    assert_equal(read_state(file), SMALL)
    assert change(save(SMALL)) != save(SMALL)
    file.write_bytes(change(save(SMALL)))
    with pytest.raises(CheckpointError, match=f"can't read {file}: ."):
        read_state(file)


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
    for read in (read_state, read_description):
        try:
            read(file)
        except CheckpointError as error:
            assert str(file) in str(error)


def test_tensors_that_share_or_repeat_memory_are_kept_apart(zoo, saved, state):
    one = torch.arange(8.0)
    tied = {
        "sn1.weight": one,
        "sn1.bias": one,
        "sn1.running_mean": torch.ones(1).expand(1, 8, 1, 1),
    }
    tied = {key: value.reshape(state[key].shape) for key, value in tied.items()}
    zoo.publish(saved(state | tied), known=False)
    zoo.holds(state | tied, zoo.run("fetch", "made"))


def test_a_fingerprint_is_held_to_four_decimals(zoo, saved, state, content):
    key = "layer1.0.sn2.mean_weight"
    published = [round(value, 4) for value in state[key].tolist()]
    zoo.publish(content, known=False, fingerprint={key: published})
    zoo.holds(state, zoo.run("fetch", "made"))
    zoo.run("cache", "prune")
    (zoo.home / "checksums.lock.json").unlink()

    for wrong in (state[key] + 2e-4, state[key].flip(0), state[key] * float("nan")):
        zoo.publish(saved(state | {key: wrong}), known=False, fingerprint={key: published})
        zoo.refuses(zoo.run("fetch", "made"), key, f"published: {published}", "snzoo import FILE")
    for fingerprint in ({key: published[:2]}, {"no.such.key": published}):
        zoo.publish(content, known=False, fingerprint=fingerprint)
        zoo.refuses(zoo.run("fetch", "made"), next(iter(fingerprint)), "published: ")
    assert not (zoo.home / "checksums.lock.json").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_widths_are_converted_where_the_checksum_vouches_for_them(zoo, saved, state, dtype):
    narrow = {
        key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()
    }
    zoo.publish(saved(narrow))
    expected = {key: value.to(state[key].dtype) for key, value in narrow.items()}
    zoo.holds(expected, zoo.run("fetch", "made"))


@pytest.mark.parametrize(
    "found", [torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.complex64)]
)
def test_only_floating_point_is_converted(found):
    with pytest.raises(CheckpointError, match=f"a is {found.dtype}, not torch.float32"):
        match({"a": found}, {"a": torch.zeros(3)}, where="x")


def test_match_orders_by_the_layout_and_fills_in_batch_counts():
    layout = {"b": torch.zeros(2, device="meta"), "bn.num_batches_tracked": torch.tensor(0)}
    matched = match({"b": torch.ones(2)}, layout, where="x")
    assert list(matched) == ["b", "bn.num_batches_tracked"]
    assert matched["bn.num_batches_tracked"].dtype == torch.int64


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


def test_a_small_file_that_unfolds_into_terabytes_is_refused(zoo, saved, tmp_path):
    path = tmp_path / "bomb.pth"
    path.write_bytes(saved({"fc.weight": torch.zeros(1).expand(10**14)}))
    with pytest.raises(CheckpointError, match=r"does not fit|no dense tensors"):
        match(read_state(path), {"fc.weight": torch.empty(2, 2)}, where=path)


def test_a_flipped_byte_is_found_by_its_crc_where_no_checksum_is_known(zoo, content, state):
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    zoo.publish(bytes(damaged), known=False)
    zoo.refuses(zoo.run("fetch", "made"), "is damaged: wrong CRC", "download it by hand")
    assert not (zoo.home / "checksums.lock.json").exists()
    zoo.publish(content, known=False)
    zoo.holds(state, zoo.run("fetch", "made"))


def test_values_that_are_not_finite_are_refused_where_no_checksum_is_known(zoo, saved, state):
    broken = state | {"fc.bias": torch.full_like(state["fc.bias"], float("nan"))}
    zoo.publish(saved(broken), known=False)
    zoo.refuses(zoo.run("fetch", "made"), "not finite: fc.bias")


def test_others_may_read_what_is_cached_if_they_may_read_its_folder(zoo, content):
    zoo.publish(content)
    assert zoo.run("fetch", "made").status == 0
    assert zoo.weights.stat().st_mode & 0o777 == zoo.folder.stat().st_mode & 0o666


def test_prefixes_are_dropped_from_safetensors_too(zoo, state, tmp_path):
    path = tmp_path / "prefixed.safetensors"
    save_file({f"module.{key}": value for key, value in state.items()}, path)
    assert read_state(path).keys() == state.keys()
