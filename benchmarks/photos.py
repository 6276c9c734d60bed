"""Folders with a given number of photos, made of symlinks to the real files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from snzoo.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png"}  # that all loaders accept
WARM = 64  # photos of the warm-up pass


class Photos(NamedTuple):
    """Folders of class folders: ``timed`` has all photos, ``warm`` a few."""

    timed: str
    warm: str
    description: str


@contextmanager
def linked(path: Path, images: int) -> Iterator[Photos]:
    """Yield links to ``images`` photos of ``path``, which are repeated if there are fewer."""
    files = sorted(file for file in path.glob("*/*") if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{path} is no folder of class folders with .jpg, .jpeg or .png photos")
    chosen = choose(files, images)
    once = sorted(set(chosen))
    for file in once:
        file.read_bytes()  # into the page cache, because the disk is not measured
    classes = len({file.parent for file in once})
    description = (
        f"{len(chosen):,} photos, {len(once):,} different ones in {classes:,} class folders"
    )
    with tempfile.TemporaryDirectory(prefix="snzoo-benchmark-") as name:
        photos = Photos(f"{name}/timed", f"{name}/warm", description)
        _link(chosen, Path(photos.timed))
        _link(choose(files, min(WARM, images)), Path(photos.warm))
        yield photos


def choose(files: Sequence[Path], images: int) -> list[Path]:
    """Return ``images`` of the files: spread evenly over more, or repeated if there are fewer."""
    if images <= len(files):
        return [files[i * len(files) // images] for i in range(images)]
    return [files[i % len(files)] for i in range(images)]


def _link(files: Sequence[Path], folder: Path) -> None:
    for number, file in enumerate(files):
        link = folder / file.parent.name / f"{number:07}{file.suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.absolute())
