"""Digests of classes and photos, by which a resumed run is compared with the one it continues."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

from snzoo.data.samples import Samples
from snzoo.data.sources import Files, PhotoList

if TYPE_CHECKING:
    from snzoo.faces.pairs import FacePairs


def digest(value: Any) -> str:
    """Return a digest of a value by its representation."""
    return hashlib.sha256(repr(value).encode()).hexdigest()


def digest_photos(samples: Samples) -> str:
    """Return a digest of the names, labels and sizes of photos, wherever they lie."""
    source = samples.source
    sizes: tuple[int, ...] = ()
    if isinstance(source, Files):
        sizes = tuple(os.stat(source.root / name).st_size for name in source.names)
    return digest((tuple(samples.names), samples.labels, sizes))


def digest_validation(found: Samples | FacePairs) -> str:
    """Return a digest of validation photos, or of pairs of photos and of the photos."""
    if isinstance(found, Samples):
        return digest_photos(found)
    columns = (found.first, found.second, found.same)
    of_columns = [hashlib.sha256(column.tobytes()).hexdigest() for column in columns]
    return digest((_digest_pair_photos(found.photos), of_columns))


def _digest_pair_photos(photos: Any) -> str:
    if isinstance(photos, Samples):
        return digest_photos(photos)
    if isinstance(photos, PhotoList):  # the files that a list of pairs names
        paths = [photos.locate(index) for index in range(len(photos))]
        root = os.path.commonpath(paths)
        return digest([(os.path.relpath(path, root), os.stat(path).st_size) for path in paths])
    contents = hashlib.sha256()  # of a .bin file, which is in memory
    for index in range(len(photos)):
        contents.update(photos.read(index))
    return contents.hexdigest()
