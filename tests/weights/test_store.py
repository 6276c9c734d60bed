"""The store: fetch, import, verify, pin, and the cache in between."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import snzoo


@pytest.fixture
def other(saved, state):
    """Another good file of the same network."""
    return saved({key: value + 1 for key, value in state.items()})


def damage(path, *, unnoticed=False):
    """Flip one byte in the middle; ``unnoticed``: with the time of before."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))
    later = 0 if unnoticed else 1
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + later))


def test_a_fetched_model_is_created_with_its_weights(zoo, state, content):
    zoo.publish(content)
    model = snzoo.create_model("made", pretrained=True)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    zoo.holds(state)


def test_a_cached_model_needs_neither_network_nor_unpickling(cached, mirror, monkeypatch):
    monkeypatch.setattr(torch, "load", None)
    assert snzoo.create_model("made", pretrained=True).fc.out_features == 3
    assert cached.run("fetch", "made").status == 0
    assert mirror.seen == []


def test_a_warm_start_neither_hashes_nor_draws_nor_imports_what_it_does_not_need(cached):
    code = """
import hashlib, sys, torch, snzoo
hashlib.file_digest = None
random = torch.get_rng_state()
snzoo.create_model("made", pretrained=True)
assert torch.equal(torch.get_rng_state(), random)
print([name for name in ("requests", "torchvision", "torch._dynamo") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("", "[]\n")


def test_a_loaded_model_lies_in_the_file_and_training_it_leaves_the_file_alone(cached):
    before = cached.weights.read_bytes()
    model = snzoo.create_model("made", pretrained=True)
    if sys.platform == "linux":
        assert str(cached.weights) in Path("/proc/self/maps").read_text()
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.data += 1
    assert cached.weights.read_bytes() == before


@pytest.mark.parametrize("how", ["pruned", "replaced"])
def test_a_loaded_model_outlives_its_file(cached, state, other, tmp_path, how):
    model = snzoo.create_model("made", pretrained=True)
    before = cached.weights.read_bytes()
    os.link(cached.weights, tmp_path / "link")
    if how == "pruned":
        assert cached.run("cache", "prune", "made").status == 0
    else:
        cached.publish(other)
        assert cached.run("fetch", "made").status == 0
        assert cached.weights.read_bytes() != before
    assert (tmp_path / "link").read_bytes() == before  # else the next line might end in a SIGBUS
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_offline_a_cached_model_is_used(cached, state, mirror, monkeypatch):
    monkeypatch.setenv("SNZOO_OFFLINE", "1")
    cached.holds(state, cached.spawn("fetch", "made"))
    assert mirror.seen == []


def test_offline_a_model_that_is_not_cached_is_refused(zoo, mirror, state, content, monkeypatch):
    zoo.publish(content)
    monkeypatch.setenv("SNZOO_OFFLINE", "1")
    result = zoo.run("fetch", "made")
    zoo.refuses(result, str(zoo.home), "SNZOO_OFFLINE=1", "run snzoo fetch made with a network")
    assert mirror.seen == [] and not zoo.home.exists()

    monkeypatch.delenv("SNZOO_OFFLINE")
    zoo.holds(state, zoo.run("fetch", "made"))


def test_damaged_weights_are_fetched_again(cached, mirror, state, content):
    damage(cached.weights)
    mirror.answers(mirror.file(content))
    cached.holds(state, cached.run("fetch", "made"))
    assert len(mirror.seen) == 1


def test_damaged_weights_are_not_used_without_a_network(cached, mirror, monkeypatch):
    damage(cached.weights)
    before = cached.kept()
    cached.refuses(cached.run("fetch", "made"), "HTTP 500", "snzoo import", keeps=before)
    monkeypatch.setenv("SNZOO_OFFLINE", "1")
    result = cached.run("fetch", "made")
    cached.refuses(
        result, "missing or damaged", "SNZOO_OFFLINE=1", "snzoo fetch made", keeps=before
    )


def test_a_file_that_is_published_anew_replaces_the_old(cached, mirror, saved, state, other):
    before = cached.kept()
    cached.publish(other)
    mirror.answers(mirror.reply(404))
    cached.refuses(cached.run("fetch", "made"), "HTTP 404", keeps=before)
    mirror.answers(mirror.file(other))
    changed = {key: value + 1 for key, value in state.items()}
    cached.holds(changed, cached.run("fetch", "made"))


def test_touched_weights_are_hashed_once_and_used(cached, mirror, state, monkeypatch):
    os.utime(cached.weights, (1, 1))
    cached.holds(state, cached.run("fetch", "made"))
    assert mirror.seen == []
    monkeypatch.setattr(hashlib, "file_digest", None)
    cached.holds(state, cached.run("fetch", "made"))


def test_verify_finds_a_flipped_byte_that_no_time_betrays(cached):
    assert "made: " in cached.run("verify").out
    damage(cached.weights, unnoticed=True)
    before = cached.kept()
    for arguments in (["verify"], ["verify", "made"]):
        cached.refuses(
            cached.run(*arguments), "made: ", "damaged", "snzoo cache prune made", keeps=before
        )


def test_verify_finds_weights_of_another_file(cached, other):
    before = cached.kept()
    cached.publish(other)
    cached.refuses(cached.run("verify"), "another file", "sha256", "snzoo fetch made", keeps=before)


@pytest.mark.parametrize("name", ["made", "resnet18v1_sn"])
def test_verify_of_what_is_not_stored_says_so(zoo, content, name):
    zoo.publish(content)
    zoo.refuses(zoo.run("verify", name), f"{name}: it is not stored", f"snzoo fetch {name}")
    assert zoo.run("verify").status == 0


@pytest.mark.parametrize("arguments", [[], ["--model", "made"]])
def test_a_file_downloaded_by_hand_is_imported(zoo, mirror, state, content, tmp_path, arguments):
    file = tmp_path / ("renamed (1).pth" if arguments else "made.pth")
    file.write_bytes(content)
    zoo.publish(content)
    zoo.holds(state, zoo.run("import", file, *arguments))
    assert file.read_bytes() == content and mirror.seen == []
    assert str(zoo.weights) in zoo.run("fetch", "made").out and mirror.seen == []


@pytest.mark.parametrize(
    "wrong, words",
    [
        pytest.param(lambda content: content[:-1] + b"x", "sha256 is", id="damaged"),
        pytest.param(lambda content: content[:-1], "size is", id="cut short"),
        pytest.param(lambda content: b"<html>", "is a web page, not a weights file", id="web page"),
    ],
)
def test_a_wrong_file_is_not_imported_and_left_alone(zoo, state, content, tmp_path, wrong, words):
    file = tmp_path / "made.pth"
    file.write_bytes(wrong(content))
    zoo.publish(content)
    zoo.refuses(
        zoo.run("import", file), f"{file} is not the file of made", words, "snzoo info made"
    )
    assert file.read_bytes() == wrong(content)

    file.write_bytes(content)
    zoo.holds(state, zoo.run("import", file))


def test_import_names_what_it_can_not_place(zoo, content, tmp_path):
    zoo.publish(content)
    (tmp_path / "other.pth").write_bytes(content)
    zoo.refuses(zoo.run("import", tmp_path / "other.pth"), "other.pth", "--model NAME")
    zoo.refuses(zoo.run("import", tmp_path / "made.pth"), "made.pth: No such file")
    zoo.refuses(zoo.run("import", tmp_path, "--model", "made"), "Is a directory")
    result = zoo.run("import", tmp_path / "other.pth", "--model", "resnet18v1_sn")
    zoo.refuses(result, "resnet18v1_sn has no published weights", "snzoo list --pretrained")


@pytest.fixture
def recorded(zoo, content):
    """The zoo after a first use of a file whose checksum was never published."""
    zoo.publish(content, known=False)
    assert zoo.run("fetch", "made").status == 0
    return zoo


def checksums(zoo):
    return zoo.home / "checksums.lock.json"


def test_a_checksum_that_was_never_published_is_recorded(recorded, content):
    digest = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "md5": None}
    assert json.loads(checksums(recorded).read_text()) == {"made": digest}


def test_the_recorded_checksum_is_enforced_after_prune(recorded, state, content, other, tmp_path):
    record = checksums(recorded).read_bytes()
    recorded.run("cache", "prune", "made")
    recorded.publish(other, known=False)
    words = ["recorded on first use", "if you trust the new file", str(checksums(recorded))]
    recorded.refuses(recorded.run("fetch", "made"), *words, "snzoo import FILE --model made")
    (tmp_path / "made.pth").write_bytes(other)
    recorded.refuses(recorded.run("import", tmp_path / "made.pth"), *words)
    assert checksums(recorded).read_bytes() == record

    recorded.publish(content, known=False)
    recorded.holds(state, recorded.run("fetch", "made"))
    assert checksums(recorded).read_bytes() == record


def test_a_published_checksum_is_not_recorded(cached):
    assert not checksums(cached).exists()


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"made": "x"}', '{"made": {"sha": "0"}}'])
def test_damaged_records_are_never_taken_for_none(recorded, state, content, broken):
    whole, kept = checksums(recorded).read_bytes(), recorded.kept()
    words = ["recorded checksums", str(checksums(recorded)), "repair that file"]
    checksums(recorded).write_text(broken)
    recorded.refuses(recorded.run("fetch", "made"), *words, keeps=kept)
    recorded.run("cache", "prune", "made")
    recorded.refuses(recorded.run("fetch", "made"), *words)
    assert checksums(recorded).read_text() == broken

    checksums(recorded).write_bytes(whole)
    recorded.holds(state, recorded.run("fetch", "made"))


def test_required_checksums_refuse_what_has_none_until_it_is_pinned(
    recorded, mirror, state, content, monkeypatch
):
    monkeypatch.setenv("SNZOO_REQUIRE_CHECKSUM", "1")
    mirror.answers(mirror.file(content))
    words = ["no checksum of made", "SNZOO_REQUIRE_CHECKSUM=1", "snzoo pin MANIFEST"]
    recorded.refuses(recorded.run("fetch", "made"), *words, keeps=recorded.kept())  # cached, too
    before = json.loads(recorded.manifest.read_text())
    assert recorded.run("pin", recorded.manifest).out == f"{recorded.manifest}: made\n"
    recorded.holds(state, recorded.run("fetch", "made"))
    recorded.run("cache", "prune", "made")
    recorded.holds(state, recorded.run("fetch", "made"))

    before["models"]["made"]["file"]["sha256"] = hashlib.sha256(content).hexdigest()
    before["models"]["made"]["file"]["size"] = len(content)
    assert json.loads(recorded.manifest.read_text()) == before
    assert recorded.run("pin", recorded.manifest).out.endswith("nothing to pin\n")


def test_required_checksums_refuse_a_first_fetch(zoo, mirror, content, state, monkeypatch):
    monkeypatch.setenv("SNZOO_REQUIRE_CHECKSUM", "1")
    zoo.publish(content, known=False)
    zoo.refuses(zoo.run("fetch", "made"), "SNZOO_REQUIRE_CHECKSUM=1", "snzoo pin MANIFEST")
    assert mirror.seen == []

    zoo.publish(content)
    zoo.holds(state, zoo.run("fetch", "made"))


def test_pin_leaves_a_file_that_is_no_manifest_alone(recorded, tmp_path):
    file = tmp_path / "no.json"
    for text in ("{", "{}", "[]"):
        file.write_text(text)
        result = recorded.run("pin", file)
        recorded.refuses(result, keeps=recorded.kept())
        assert file.read_text() == text


def test_safetensors_are_fetched_as_they_are(zoo, state, tmp_path):
    save_file(state, tmp_path / "made.safetensors")
    zoo.publish((tmp_path / "made.safetensors").read_bytes(), format="safetensors")
    zoo.holds(state, zoo.run("fetch", "made"))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_trainers_save_is_fetched(zoo, saved, state, zipped):
    wrapped = {"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}
    zoo.publish(saved(wrapped, _use_new_zipfile_serialization=zipped), known=False)
    zoo.holds(state, zoo.run("fetch", "made"))


# What is wrong with a file without a published checksum → what the message says.
UNFIT = {
    "another shape": (lambda s: s | {"fc.bias": torch.zeros(9)}, "fc.bias is (9,), not (3,)"),
    "another width": (lambda s: s | {"fc.bias": s["fc.bias"].half()}, "fc.bias is torch.float16"),
    "not a number": (lambda s: s | {"fc.bias": s["fc.bias"] * torch.nan}, "not finite: fc.bias"),
    "not a state dict": (lambda s: list(s.values()), "holds no state dict but a list"),
}


@pytest.mark.parametrize("change, words", UNFIT.values(), ids=UNFIT)
def test_a_file_that_does_not_fit_is_neither_kept_nor_recorded(
    zoo, saved, state, content, tmp_path, change, words
):
    (tmp_path / "made.pth").write_bytes(saved(change(state)))
    zoo.publish((tmp_path / "made.pth").read_bytes(), known=False)
    zoo.refuses(zoo.run("fetch", "made"), words, "download it by hand", "snzoo import FILE")
    zoo.refuses(zoo.run("import", tmp_path / "made.pth"), "made.pth is not the file of made", words)
    assert not zoo.part.exists() and not checksums(zoo).exists()

    zoo.publish(content, known=False)
    zoo.holds(state, zoo.run("fetch", "made"))


def test_a_flipped_bit_is_found_by_its_crc_without_a_checksum(zoo, content):
    damaged = bytearray(content)
    damaged[len(damaged) // 2] ^= 1
    zoo.publish(bytes(damaged), known=False)
    zoo.refuses(zoo.run("fetch", "made"), "is damaged: wrong CRC", "download it by hand")


def test_published_values_are_compared(zoo, content, state):
    key = "layer1.0.sn2.mean_weight"
    published = [round(value, 4) for value in state[key].tolist()]
    zoo.publish(content, known=False, fingerprint={key: published[::-1]})
    zoo.refuses(zoo.run("fetch", "made"), key, f"published: {published[::-1]}", "snzoo import")
    zoo.publish(content, known=False, fingerprint={key: published})
    zoo.holds(state, zoo.run("fetch", "made"))


def test_what_a_killed_process_left_is_removed(cached, mirror, content, state):
    (cached.folder / ".snzoo-0123456789abcdef").touch()
    damage(cached.weights)
    mirror.answers(mirror.file(content))
    cached.holds(state, cached.run("fetch", "made"))
    assert sorted(path.name for path in cached.folder.iterdir()) == [
        "stamp.json",
        "weights.safetensors",
    ]


def test_whoever_may_read_the_folder_may_read_the_weights(cached):
    assert cached.weights.stat().st_mode & 0o777 == cached.folder.stat().st_mode & 0o666
