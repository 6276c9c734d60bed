"""Keep the finished parts of a file in a folder beside it, until the file is complete.

The folder ``FILE.partial`` holds ``run.json``, which says what determines the rows, and a file for
each finished chunk of photos. Every file is written atomically, so a run can be resumed after it
was killed at any time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from snzoo.errors import FileError, first_line, printable
from snzoo.files import read_bounded, write_atomically, write_json

RUN = "run.json"
LOCK = ".lock"
LARGEST_RUN = 1 << 20  # bytes
NAME = re.compile(r"(\d{8,})-([0-9a-f]{16})-(\d+)\.[a-z]+", re.ASCII)


@dataclass(frozen=True)
class Part:
    """A finished part.

    Attributes:
        path: the path of its file.
        digest: the digest of the names of its photos.
        broken: the number of its photos that could not be read.
    """

    path: Path
    digest: str
    broken: int


def partial_folder(output: Path) -> Path:
    """Return the folder for the parts of a file."""
    return output.with_name(f"{output.name}.partial")


def check_resumed(output: Path, *, resume: bool) -> None:
    """Check that the parts of an interrupted run are resumed or were removed.

    Raises:
        FileError: there are parts, but the run is not to be resumed.
    """
    folder = partial_folder(output)
    if os.path.lexists(folder) and not resume:
        raise FileError(
            f"{folder} holds what an interrupted run has done: go on from there with --resume "
            "(resume=True), or remove it"
        )


def is_complete(output: Path) -> bool:
    """Return whether a file is there, and no run that goes on or was interrupted writes it."""
    return os.path.lexists(output) and not os.path.lexists(partial_folder(output))


def read_parts(folder: Path, run: dict[str, Any]) -> dict[int, Part] | None:
    """Return the finished parts by their numbers, or None if no run has begun.

    Args:
        folder: the folder of the parts.
        run: what determines the rows, as a flat document of JSON.

    Raises:
        FileError: the folder cannot be read, or belongs to another run; the message says what
            differs.
    """
    if not os.path.lexists(folder / RUN):
        return None
    try:
        known = json.loads(read_bounded(folder / RUN, limit=LARGEST_RUN, kind="of a run"))
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise FileError(f"{folder / RUN} is damaged; remove {folder} to begin anew")
    differ = [
        f"{key} was {known.get(key)}, is {run.get(key)}"
        for key in sorted({*run, *known})
        if run.get(key) != known.get(key)
    ]
    if differ:
        raise FileError(
            printable(
                f"{folder} is of another run: {'; '.join(differ)}; repeat that run, or remove the "
                "folder to begin anew"
            )
        )
    return list_parts(folder)


def list_parts(folder: Path) -> dict[int, Part]:
    """Return the finished parts by their numbers.

    Raises:
        FileError: the folder cannot be read.
    """
    try:
        matches = [(path, NAME.fullmatch(path.name)) for path in folder.iterdir()]
    except OSError as error:
        raise FileError(f"can't read {folder}: {first_line(error)}") from None
    return {int(found[1]): Part(path, found[2], int(found[3])) for path, found in matches if found}


@contextmanager
def lock_parts(folder: Path) -> Iterator[None]:
    """Make the folder for the parts of a run, and keep other runs out of it.

    Raises:
        FileError: another run writes to the folder, or it cannot be written.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(exist_ok=True)
        lock.acquire()
    except Timeout:
        raise FileError(f"another run writes to {folder}; wait until it ends") from None
    except OSError as error:
        raise FileError(f"can't write {folder}: {first_line(error)}") from None
    try:
        yield
    finally:
        lock.release()


def begin_run(folder: Path, run: dict[str, Any]) -> None:
    """Write the description of a run.

    Raises:
        FileError: the folder cannot be written.
    """
    write_json(folder / RUN, run)


def write_part(
    folder: Path, number: int, digest: str, suffix: str, write: Callable[[Path], int]
) -> None:
    """Write a part.

    Args:
        folder: the folder of the parts.
        number: the number of the part.
        digest: the digest of the names of its photos.
        suffix: the suffix of its file.
        write: a function that writes a file, and returns the number of photos that could not be
            read.

    Raises:
        FileError: the file cannot be written.
    """
    unfinished = folder / f".{number:08}{suffix}"
    try:
        broken = write(unfinished)
        name = f"{number:08}-{digest}-{broken}{suffix}"
        with write_atomically(folder / name) as temporary:
            unfinished.replace(temporary)
    except OSError as error:
        raise FileError(f"can't write {unfinished}: {first_line(error)}") from None


def remove_parts(folder: Path) -> None:
    """Remove the files of a run, and the folder unless it holds other files."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if path.name.startswith(".") or NAME.fullmatch(path.name):
                path.unlink()
        (folder / RUN).unlink()  # last: parts without it would be those of any run
        folder.rmdir()
