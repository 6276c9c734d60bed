"""Load the bundled demo photos and verify their checksum."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from snzoo.data.labels import Classes
from snzoo.data.samples import Samples, find_samples
from snzoo.errors import ChecksumError
from snzoo.manifest import Photos


def demo_samples(photos: Photos, classes: Classes) -> Samples:
    """Return the labeled demo photos.

    Args:
        photos: the ``demo`` of the manifest.
        classes: the classes of the demo's model.

    Raises:
        ChecksumError: the photos do not have the checksum that the manifest names.
    """
    folder = Path(__file__).parents[1] / photos.bundled
    if tree_digest(folder) != photos.sha256:
        raise ChecksumError(
            f"the photos in {folder} are not the published ones; install snzoo again"
        )
    return replace(find_samples(folder, classes), dataset=photos.dataset)


def tree_digest(folder: Path) -> str:
    """Return a sha256 of all files in a folder and its subfolders.

    It is computed from one line ``sha256 relative/path`` per file, sorted by path.
    """
    lines = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.relative_to(folder).as_posix()}\n"
        for path in sorted(folder.rglob("*"), key=lambda path: path.as_posix())
        if path.is_file()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()
