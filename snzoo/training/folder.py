"""The folder of a run: checked before the work, locked during it, and cleared of partial files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from snzoo.environment import require_packages
from snzoo.errors import ArgumentError, FileError, first_line
from snzoo.files import write_json
from snzoo.training.config import TrainingConfig
from snzoo.training.log import RunLog
from snzoo.training.state import Position


def check_folder(config: TrainingConfig) -> None:
    """Raise an error if a run can't be written to its folder.

    Raises:
        ArgumentError: the folder holds a run that is not to be continued.
        FileError: the folder can't be made or written.
        MissingPackageError: tensorboard is not installed.
    """
    folder = Path(config.output)
    if (folder / "last.pt").exists() and not config.resume:
        raise ArgumentError(
            f"{folder} holds a run: continue it with --resume, or name another folder: --output"
        )
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise FileError(f"can't write the run to {folder}; name another folder: --output")
    if config.tensorboard:
        require_packages("tensorboard", extra="tensorboard", purpose="--tensorboard")


@contextmanager
def lock_folder(config: TrainingConfig) -> Iterator[None]:
    """Make the folder of a run and keep other processes from writing a run to it.

    Raises:
        ArgumentError: another process writes a run to the folder, or has done so.
        FileError: the folder can't be made.
    """
    folder = Path(config.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise ArgumentError(
            f"another process trains in {folder}; name another folder: --output"
        ) from None
    except OSError as error:
        raise FileError(f"can't write the run to {folder}: {first_line(error)}") from None
    try:
        check_folder(config)  # again: another run may have ended in the meantime
        yield
    finally:
        lock.release()


def open_log(config: TrainingConfig, position: Position, document: dict[str, Any]) -> RunLog:
    """Return the log of a run, after partial files are removed and ``recipe.json`` is written."""
    folder = Path(config.output)
    for partial in folder.glob(".snzoo-*"):  # a process that was killed left it
        partial.unlink(missing_ok=True)
    write_json(folder / "recipe.json", document)
    log = RunLog(folder, tensorboard=config.tensorboard, purge_step=position.step + 1)
    log.truncate(position.step, position.validated)
    if position.step:
        log.write("resumed", position.step)
    return log
