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
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary file next to ``path`` that replaces it when the block ends.

    The temporary file has a unique name, so no other file is touched. The mode of an existing
    file is kept; a new file gets the default one. Symbolic links are followed. Pipes and devices
    are yielded themselves, because they must not be replaced.

    Raises:
        OSError: the file cannot be written. ``path`` is then what it was.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    temporary = target.with_name(f".snzoo-{secrets.token_hex(8)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        if target.exists():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)  # safetensors replaces the file by a private one
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
        FileError: it names a folder, a folder that does not exist, or one without permission.
    """
    path = Path(path)
    special = path.exists() and not path.is_file() and not path.is_dir()
    folder = path.resolve().parent
    writable = os.access(path if special else folder, os.W_OK)
    if path.is_dir() or not folder.is_dir() or not writable:
        raise FileError(f"can't write {path}: name a file in a folder that you may write")
