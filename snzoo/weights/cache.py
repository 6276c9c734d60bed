"""Manage the cache folder.

$SNZOO_HOME/                     (default: ~/.cache/snzoo)
    checksums.lock.json          checksums recorded on first use (snzoo.weights.checksums)
    models/NAME/
        weights.safetensors      the tensors of the verified file
        stamp.json               the digest of that file, and of weights.safetensors
        download.part            an unfinished download, with download.part.json
    models/.NAME.lock            held by the process that writes models/NAME
    runs/                        records of unfinished evaluations (snzoo.evaluation.records)
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from snzoo.errors import CacheError, first_line

WEIGHTS = "weights.safetensors"


def home() -> Path:
    """Return the cache folder: ``SNZOO_HOME``, or ``snzoo`` in the user's cache folder.

    Raises:
        CacheError: ``SNZOO_HOME`` begins with ``~`` and the name of an unknown user.
    """
    if chosen := os.environ.get("SNZOO_HOME"):
        try:
            return Path(chosen).expanduser()
        except RuntimeError as error:  # ~nobody/...
            raise CacheError(f"SNZOO_HOME={chosen}: {error}") from None
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "snzoo"


def folder_of(name: str) -> Path:
    """Return the folder of a model, which may not exist."""
    return home() / "models" / name


def lock_of(name: str) -> FileLock:
    """Return the lock of a model. Its file is next to the folder, so :func:`prune` keeps it."""
    return FileLock(folder_of(name).with_name(f".{name}.lock"))


@contextmanager
def locked(name: str) -> Iterator[Path]:
    """Create the folder of a model if necessary, lock it against other processes, and yield it.

    Raises:
        CacheError: the folder cannot be created or written.
    """
    folder = folder_of(name)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_of(name)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            logging.getLogger("snzoo").warning("waiting for another process with %s", name)
            lock.acquire()
        try:
            folder.mkdir(exist_ok=True)
            yield folder
        finally:
            with suppress(OSError):  # removes the folder only if it is empty
                folder.rmdir()
            lock.release()


def discard(part: Path) -> None:
    """Remove an unfinished download and the file that :func:`origin_of` returns."""
    part.unlink(missing_ok=True)
    origin_of(part).unlink(missing_ok=True)


def origin_of(part: Path) -> Path:
    """Return the file that holds the URL and the version of an unfinished download."""
    return part.with_name(part.name + ".json")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise a CacheError instead of an OSError, for example if the disk is full or read-only."""
    try:
        yield
    except OSError as error:
        raise CacheError(
            f"can't write {error.filename or path}: {first_line(error)}; "
            "make room, or set SNZOO_HOME to another folder"
        ) from None


def stored() -> dict[str, int]:
    """Return a dict from the name of each model in the cache to its size on disk in bytes.

    The size includes unfinished downloads.

    Raises:
        CacheError: the cache cannot be read.
    """
    models = home() / "models"
    try:
        folders = [path for path in models.iterdir() if path.is_dir()] if models.is_dir() else []
        return {
            folder.name: sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
            for folder in sorted(folders)
        }
    except OSError as error:
        raise CacheError(f"can't read {error.filename}: {first_line(error)}") from None


def prune(name: str) -> None:
    """Remove a model from the cache. Its recorded checksum is kept.

    Raises:
        CacheError: the model is not in the cache, or cannot be removed.
    """
    if name not in stored():  # a path, perhaps
        raise CacheError(f"{name!r} is not in the cache; see: snzoo cache list")
    with locked(name) as folder:
        shutil.rmtree(folder)
