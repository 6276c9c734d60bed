"""The bundled demo photos, verified before they are used."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from snzoo.data.labels import Classes
from snzoo.data.samples import Samples, find_samples
from snzoo.errors import ChecksumError
from snzoo.manifest import Photos


def demo_samples(photos: Photos, classes: Classes) -> Samples:
    """Return the photos of the manifest's ``demo``, labeled.

    Raises:
        ChecksumError: they are not those that the manifest names.
    """
    folder = Path(__file__).parents[1] / photos.bundled
    if tree_digest(folder) != photos.sha256:
        raise ChecksumError(
            f"the photos in {folder} are not the published ones; install snzoo again"
        )
    return replace(find_samples(folder, classes), dataset=photos.dataset)


def tree_digest(folder: Path) -> str:
    """Return the sha256 of the sorted lines ``sha256 relative/path`` of the files in a tree."""
    lines = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.relative_to(folder).as_posix()}\n"
        for path in sorted(folder.rglob("*"), key=lambda path: path.as_posix())
        if path.is_file()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()
