"""The bundled demo photos, verified like any other file before they are used."""

from __future__ import annotations

import hashlib
from pathlib import Path

from snzoo.data.samples import Samples, find_samples
from snzoo.errors import ChecksumError, ManifestError
from snzoo.manifest import load_manifest


def demo_samples() -> Samples:
    """The photos of the manifest's ``demo``, labelled.

    Raises:
        ChecksumError: they are not the ones the manifest names.
        ManifestError: the manifest has none.
    """
    photos = load_manifest().demo
    if photos is None:
        raise ManifestError("the manifest has no demo photos; name a folder with --imagenet")
    folder = Path(__file__).parents[1] / photos.bundled
    if tree_digest(folder) != photos.sha256:
        raise ChecksumError(
            f"the photos in {folder} are not the published ones; install snzoo again"
        )
    return find_samples(folder, photos.classes)


def tree_digest(folder: Path) -> str:
    """sha256 of the sorted lines ``sha256 relative/path`` of all photos below ``folder``."""
    lines = (
        f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.relative_to(folder).as_posix()}\n"
        for path in sorted(folder.rglob("*.jpg"), key=lambda path: path.as_posix())
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()
