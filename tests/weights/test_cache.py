"""The cache folder: shared by processes, on disks that are full or read-only, listed and pruned."""

import os
import resource
import subprocess
import sys
import threading

import pytest

from snzoo.errors import CacheError
from snzoo.weights import prune


def test_two_processes_share_one_download(zoo, mirror, state, content):
    asked, go_on = threading.Event(), threading.Event()

    def slow(request):
        asked.set()
        go_on.wait(60)
        return mirror.file(content)(request)

    zoo.publish(content)
    mirror.answers(slow)
    command = [sys.executable, "-m", "snzoo", "fetch", "made"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert asked.wait(60)
    second = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert second.stderr.readline() == "snzoo: waiting for another process with made\n"
    go_on.set()
    for process in (first, second):
        assert process.communicate(timeout=60)[1] == ""
        assert process.returncode == 0
    zoo.holds(state)
    assert mirror.offsets == [None]


@pytest.mark.parametrize(
    "room", [pytest.param(100_000, id="the download"), pytest.param(500_000, id="its tensors")]
)
def test_on_a_full_disk_nothing_is_kept_but_the_part(zoo, mirror, saved, state, room):
    halves = {
        key: value.half() if value.is_floating_point() else value for key, value in state.items()
    }
    content = saved(halves)
    zoo.publish(content)

    def fill():  # a file that grows beyond the limit meets the same errors as a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    result = zoo.spawn("fetch", "made", preexec_fn=fill)
    zoo.refuses(result, "can't write", "make room, or set SNZOO_HOME")
    assert zoo.part.stat().st_size == min(room, len(content))
    assert not (zoo.folder / "weights.partial").exists()

    mirror.answers(mirror.file(content))
    zoo.holds({key: value.float() for key, value in halves.items()}, zoo.run("fetch", "made"))
    assert mirror.offsets == [min(room, len(content))]


def test_a_cache_below_a_file_is_refused(zoo, mirror, state, content, tmp_path, monkeypatch):
    zoo.publish(content)
    (tmp_path / "file").touch()
    monkeypatch.setenv("SNZOO_HOME", str(tmp_path / "file" / "cache"))
    zoo.refuses(zoo.run("fetch", "made"), "can't write", str(tmp_path / "file"), "set SNZOO_HOME")
    assert mirror.seen == []

    monkeypatch.setenv("SNZOO_HOME", str(zoo.home))
    zoo.holds(state, zoo.run("fetch", "made"))


def test_a_read_only_cache_is_refused(zoo, mirror, state, content):
    zoo.publish(content)
    zoo.home.mkdir()
    zoo.lock(zoo.home)
    zoo.refuses(zoo.run("fetch", "made"), "can't write", str(zoo.home), "set SNZOO_HOME")
    assert mirror.seen == []

    zoo.unlock(zoo.home)
    zoo.holds(state, zoo.run("fetch", "made"))


def test_a_cached_model_is_used_from_a_read_only_cache(cached, state, mirror):
    os.utime(cached.weights, (1, 1))
    cached.lock(cached.folder, cached.folder.parent, cached.home)
    cached.holds(state, cached.run("fetch", "made"))
    assert mirror.seen == []


@pytest.mark.parametrize("broken", ["", "{}", "[1]", '{"source": {}, "weights": 1}', "\0"])
def test_weights_with_a_damaged_stamp_are_fetched_again(cached, mirror, state, content, broken):
    (cached.folder / "stamp.json").write_text(broken)
    mirror.answers(mirror.file(content))
    cached.holds(state, cached.run("fetch", "made"))
    assert len(mirror.seen) == 1


def test_the_cache_is_listed_and_pruned(cached):
    assert "made" in cached.run("cache", "list").out
    size = sum(file.stat().st_size for file in cached.folder.iterdir())
    assert f"{size / 1e6:.1f} MB in {cached.home}" in cached.run("cache").out
    assert cached.run("cache", "prune", "made").out == "made: removed\n"
    assert not cached.folder.exists()
    assert cached.run("cache", "list").out == f"0.0 MB in {cached.home}\n"


def test_everything_is_pruned_where_nothing_is_named(cached):
    (cached.home / "models" / "gone_from_the_manifest").mkdir()
    assert cached.run("cache", "prune").out == "gone_from_the_manifest: removed\nmade: removed\n"
    assert not [path for path in (cached.home / "models").iterdir() if path.is_dir()]


@pytest.mark.parametrize("name", ["unknown", "../x", "..", ".", "", "made/../made"])
def test_pruning_what_is_not_in_the_cache_is_refused(cached, name):
    precious = cached.home / "x"
    precious.mkdir()
    result = cached.run("cache", "prune", name)
    cached.refuses(result, repr(name), "snzoo cache list", keeps=cached.kept())
    with pytest.raises(CacheError):
        prune(name)
    assert precious.exists() and cached.kept() and not (cached.home / "models" / "unknown").exists()
