"""Folders with a given number of photos, made of symlinks to the real files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from snzoo.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png"}  # that all loaders accept
WARM = 64  # photos of the warm-up pass


@dataclass(frozen=True)
class Photos:
    """Folders of class folders: ``timed`` has all, ``each`` every photo once, ``warm`` a few."""

    timed: Path
    each: Path
    warm: Path
    description: str


@contextmanager
def linked(path: Path, images: int) -> Iterator[Photos]:
    """Yield links to ``images`` photos of ``path``, which are repeated if there are fewer.

    Raises:
        DataError: the class folders have no photo.
    """
    files = find(path)
    chosen = choose(files, images)
    once = sorted(set(chosen))
    for file in once:
        file.read_bytes()  # into the page cache, because the disk is not measured
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
    """Return the photos in the class folders of ``path``, sorted.

    Raises:
        DataError: there are no photos.
    """
    files = sorted(file for file in path.glob("*/*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{path} is no folder of class folders with .jpg, .jpeg or .png photos")
    return [file.absolute() for file in files]


def choose(files: Sequence[Path], images: int) -> list[Path]:
    """Return ``images`` of the files: spread evenly over more, or repeated if there are fewer."""
    if images <= len(files):
        return [files[i * len(files) // images] for i in range(images)]
    return [files[i % len(files)] for i in range(images)]


def _link(files: Sequence[Path], folder: Path) -> None:
    for number, file in enumerate(files):
        link = folder / file.parent.name / f"{number:07}{file.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file)
