"""Atomic writes: a file is replaced as a whole or stays as it was."""

from __future__ import annotations

import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from snzoo.errors import FileError, first_line


@contextmanager
def atomic_path(path: str | Path, *, follow_links: bool = True) -> Iterator[Path]:
    """Yield a temporary file next to ``path`` that replaces it when the block ends.

    The temporary file has a unique name, so no other file is touched. The mode of an existing
    file is kept; a new file gets the default one. Symbolic links are followed unless
    ``follow_links`` is False, which replaces the link. Pipes and devices are yielded themselves,
    because they must not be replaced.

    Raises:
        OSError: the file cannot be written. ``path`` is then what it was.
    """
    if _is_special(path):
        yield Path(path)
        return
    # Path.resolve fails on a circle of links.
    target = Path(os.path.realpath(path) if follow_links else os.path.abspath(path))
    temporary = target.with_name(f".snzoo-{secrets.token_hex(8)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        if target.exists() and not target.is_symlink():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        with open(temporary, "r+b") as file:  # the content is on the disk before its name
            os.fsync(file.fileno())
        temporary.chmod(mode)  # some writers replace the file by one of another mode
        temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Do what :func:`atomic_path` does, for a file that the user named.

    Raises:
        FileError: the file cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise FileError(f"can't write {path}: {first_line(error)}") from None


def write_json(path: str | Path, document: Any) -> None:
    """Write a JSON document atomically, indented, in UTF-8.

    Raises:
        FileError: the file cannot be written.
    """
    with write_atomically(path) as temporary:
        temporary.write_text(format_json(document), encoding="utf-8")


def format_json(document: Any) -> str:
    """Return a document as indented JSON with a newline at the end."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def check_writable(path: str | Path) -> None:
    """Check that :func:`write_atomically` can write ``path``, before any other work.

    Raises:
        FileError: it names a folder, a folder that does not exist, or one without permission, or
            a file without permission.
    """
    folder = os.path.dirname(os.path.realpath(path))
    writable = os.access(path, os.W_OK) or not os.path.lexists(os.path.realpath(path))
    if not _is_special(path):
        writable = writable and os.path.isdir(folder) and os.access(folder, os.W_OK)
    if os.path.isdir(path) or not writable:
        raise FileError(f"can't write {path}: name a file in a folder that you may write")


def _is_special(path: str | Path) -> bool:
    """Return whether ``path`` is a pipe or a device (or a folder, which can't be written)."""
    # Unlike Path.exists, these do not raise where the folder may not be searched.
    return os.path.exists(path) and not os.path.isfile(path)
