"""Write files atomically: a file is replaced as a whole or stays unchanged."""

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
    """Yield a temporary file next to ``path`` that replaces ``path`` when the block ends.

    If the block raises an error, ``path`` stays unchanged. The temporary file has a unique name.
    The mode of an existing file is kept, and a new file gets the default mode. A pipe or
    a device is yielded itself, because it must not be replaced.

    Args:
        path: the path of the file to write.
        follow_links: replace the file that a symbolic link leads to (default: True). Otherwise the
            link is replaced.

    Raises:
        OSError: the file cannot be written. ``path`` stays unchanged.
    """
    if _is_special(path):
        yield Path(path)
        return
    # Path.resolve raises an error for a circle of links.
    target = Path(os.path.realpath(path) if follow_links else os.path.abspath(path))
    temporary = target.with_name(f".snzoo-{secrets.token_hex(8)}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        if target.exists() and not target.is_symlink():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        with open(temporary, "r+b") as file:  # the content must be on the disk before the rename
            os.fsync(file.fileno())
        temporary.chmod(mode)  # some writers replace the file by one with another mode
        temporary.replace(target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def write_atomically(path: str | Path) -> Iterator[Path]:
    """Yield the temporary file of :func:`atomic_path`, for a file that the user named.

    Raises:
        FileError: the file cannot be written.
    """
    try:
        with atomic_path(path) as temporary:
            yield temporary
    except OSError as error:
        raise FileError(f"can't write {path}: {first_line(error)}") from None


def read_bounded(path: str | Path, *, limit: int, kind: str) -> bytes:
    """Return the content of a regular file that the user named.

    Args:
        path: the path of the file.
        limit: the largest size in bytes.
        kind: what the file should be, for the error, e.g. "a results file".

    Raises:
        FileError: the file cannot be read, or is too large.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe could wait forever
            raise FileError(f"can't read {path}: not a regular file")
        with open(path, "rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise FileError(f"can't read {path}: {first_line(error)}") from None
    if len(content) > limit:
        raise FileError(f"{path} is larger than {limit >> 20} MiB, so it is not {kind}")
    return content


def write_json(path: str | Path, document: Any) -> None:
    """Write a document as indented JSON in UTF-8, atomically.

    Raises:
        FileError: the file cannot be written.
    """
    with write_atomically(path) as temporary:
        temporary.write_text(format_json(document), encoding="utf-8")


def format_json(document: Any) -> str:
    """Return a document as indented JSON with a newline at the end."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def check_writable(path: str | Path) -> None:
    """Raise an error if :func:`write_atomically` cannot write ``path``.

    Callers use it before long computations.

    Raises:
        FileError: ``path`` is a folder, its folder does not exist, or there is no permission to
            write the file or the folder.
    """
    folder = os.path.dirname(os.path.realpath(path))
    writable = os.access(path, os.W_OK) or not os.path.lexists(os.path.realpath(path))
    if not _is_special(path):
        writable = writable and os.path.isdir(folder) and os.access(folder, os.W_OK)
    if os.path.isdir(path) or not writable:
        raise FileError(f"can't write {path}: name a file in a folder that you may write")


def _is_special(path: str | Path) -> bool:
    """Return whether ``path`` is a pipe or a device (or a folder, which can't be written)."""
    # Unlike Path.exists, these do not raise an error if there is no permission to read the folder.
    return os.path.exists(path) and not os.path.isfile(path)
