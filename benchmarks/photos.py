"""A folder of class folders → as many photos as wanted, through symlinks to the real files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from snzoo.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png"}  # what all the loaders take for a photo
WARM = 64


@dataclass(frozen=True)
class Photos:
    """Folders of class folders: ``timed`` has all, ``each`` every photo once, ``warm`` a few."""

    timed: Path
    each: Path
    warm: Path
    description: str


@contextmanager
def linked(path: Path, images: int) -> Iterator[Photos]:
    """Photos for a measurement on ``images`` of those in ``path``, repeated where it has fewer.

    Raises:
        DataError: there is no photo in class folders.
    """
    files = find(path)
    chosen = choose(files, images)
    once = sorted(set(chosen))
    for file in once:
        file.read_bytes()  # into the page cache: the disk is not what is measured
    with tempfile.TemporaryDirectory(prefix="snzoo-benchmark-") as name:
        timed, each, warm = (Path(name, part) for part in ("timed", "each", "warm"))
        _link(chosen, timed)
        _link(once, each)
        _link(choose(files, min(WARM, images)), warm)
        classes = len({file.parent for file in once})
        description = (
            f"{len(chosen):,} photos, {len(once):,} different ones in {classes:,} class folders"
        )
        yield Photos(timed, each, warm, description)


def find(path: Path) -> list[Path]:
    """The photos in the class folders of ``path``, sorted.

    Raises:
        DataError: there are none.
    """
    files = sorted(file for file in path.glob("*/*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{path} is no folder of class folders with .jpg, .jpeg or .png photos")
    return [file.absolute() for file in files]


def choose(files: Sequence[Path], images: int) -> list[Path]:
    """``images`` of the files: evenly spread over more, or all of them again and again."""
    if images <= len(files):
        return [files[i * len(files) // images] for i in range(images)]
    return [files[i % len(files)] for i in range(images)]


def _link(files: Sequence[Path], folder: Path) -> None:
    for number, file in enumerate(files):
        link = folder / file.parent.name / f"{number:07}{file.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
