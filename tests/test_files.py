"""Files that the user names: replaced as a whole or left as they were, and no other is touched."""

import errno
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from snzoo.errors import FileError
from snzoo.files import check_writable, write_atomically, write_json


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def write(path, text="new"):
    with write_atomically(path) as temporary:
        temporary.write_text(text)


def test_only_the_named_file_changes(tmp_path):
    neighbors = [tmp_path / f"x{suffix}" for suffix in (".partial", ".tmp", ".part", "~")]
    for neighbor in neighbors:
        neighbor.write_text("mine")
    write(tmp_path / "x")
    assert [neighbor.read_text() for neighbor in neighbors] == ["mine"] * 4
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "x", *neighbors])


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o644, 0o666])
def test_the_mode_stays_also_if_the_writer_replaces_the_file(tmp_path, bits):
    file = tmp_path / "x"
    file.touch()
    file.chmod(bits)
    with write_atomically(file) as temporary:
        assert mode(temporary) == bits  # private from the start
        temporary.unlink()
        temporary.write_text("new")
    assert (mode(file), file.read_text()) == (bits, "new")


def test_a_new_file_has_the_mode_of_every_other_new_file(tmp_path):
    (tmp_path / "other").touch()
    write(tmp_path / "x")
    assert mode(tmp_path / "x") == mode(tmp_path / "other")


@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing yet"])
def test_links_are_followed(tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target"
    if there:
        target.write_text("old")
    (tmp_path / "first").symlink_to("second")
    (tmp_path / "second").symlink_to(target)
    write(tmp_path / "first")
    assert (tmp_path / "first").is_symlink() and (tmp_path / "second").is_symlink()
    assert target.read_text() == "new" and list(target.parent.iterdir()) == [target]


def test_hard_links_keep_the_old_content(tmp_path):
    (tmp_path / "x").write_text("old")
    os.link(tmp_path / "x", tmp_path / "link")
    write(tmp_path / "x")
    assert (tmp_path / "link").read_text() == "old"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_after_a_failure_the_file_is_as_it_was(tmp_path, error):
    (tmp_path / "x").write_text("old")
    caught = pytest.raises((FileError, KeyboardInterrupt))
    with caught as info, write_atomically(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise error
    assert isinstance(error, KeyboardInterrupt) or str(info.value).endswith(": No space left")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    (tmp_path / "x").write_text("old")
    code = f"from snzoo.files import write_json; write_json({str(tmp_path / 'x')!r}, 'x' * 9999)"

    def fill():  # a file that grows beyond the limit meets the same errors as a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-B", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=fill, env=env)
    assert f"FileError: can't write {tmp_path / 'x'}: File too large" in done.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_pipes_and_devices_are_written_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    read = []
    reader.start()
    check_writable(tmp_path / "pipe")
    write_json(tmp_path / "pipe", [1])
    reader.join(60)
    assert read == ["[\n  1\n]\n"] and (tmp_path / "pipe").is_fifo()
    check_writable(os.devnull)
    write_json(os.devnull, {})
    assert not Path(os.devnull).is_file()


def test_what_can_not_be_written_is_refused_before_and_after(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    for name in ("folder", "no/such", "file/x", "circle/x"):
        with pytest.raises(FileError, match=f"can't write {tmp_path / name}: name a file in"):
            check_writable(tmp_path / name)
        with pytest.raises(FileError, match=f"can't write {tmp_path / name}: "):
            write(tmp_path / name)
    for name in ("file", "new"):
        check_writable(tmp_path / name)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write any file")
def test_a_read_only_file_is_protected(tmp_path):
    (tmp_path / "x").write_text("old")
    (tmp_path / "x").chmod(0o400)
    for use in (check_writable, write):
        with pytest.raises(FileError):
            use(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "old"
