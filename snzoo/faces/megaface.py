"""Read and write the feature files of MegaFace, one for each photo.

A file is a matrix of OpenCV, little-endian: the numbers of rows and columns, the bytes of a row and
the type 5 (float32) as int32, and then the numbers. A feature is one column or one row.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snzoo.data.sources import unreadable
from snzoo.files import write_atomically

HEADER = struct.Struct("<4i")  # rows, columns, bytes of a row, type
FLOAT32 = 5
MOST_DIMENSIONS = 1 << 16
NOISY = 100.0

Features = NDArray[np.float32]


def read_features(path: str | Path) -> Features:
    """Return the feature of a file, float32 (D,).

    Raises:
        DataError: the file cannot be read, is damaged, or holds numbers that are not finite.
    """
    try:
        if not os.path.isfile(path):  # reading a pipe could wait forever
            raise ValueError("no such file" if not os.path.exists(path) else "not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(HEADER.size)
            if len(head) < HEADER.size:
                raise ValueError("its header is cut short; it is no feature file of MegaFace")
            rows, columns, step, kind = HEADER.unpack(head)
            if kind != FLOAT32 or min(rows, columns) != 1 or step != 4 * columns:
                raise ValueError(
                    f"its header {rows, columns, step, kind} is not (D, 1, 4, 5); it is no feature "
                    "file of MegaFace"
                )
            count = max(rows, columns)
            if count > MOST_DIMENSIONS or size != HEADER.size + 4 * count:
                raise ValueError(f"{size:,} bytes are not those of {count:,} numbers")
            features = np.frombuffer(file.read(4 * count), "<f4").astype(np.float32)
        if len(features) != count or not np.isfinite(features).all():
            raise ValueError("its numbers are not all finite")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    return features


def write_features(path: str | Path, features: NDArray[np.floating]) -> None:
    """Write a feature (D,) to a file as float32, in one column.

    Raises:
        FileError: the file cannot be written; an earlier file is unchanged.
    """
    (count,) = features.shape
    content = HEADER.pack(count, 1, 4, FLOAT32) + features.astype("<f4").tobytes()
    with write_atomically(path) as partial:
        partial.write_bytes(content)


def read_matrices(
    paths: str | Path | Iterable[str | Path], *, rows: int = 4096
) -> Iterator[Features]:
    """Yield the features of many files in matrices of at most ``rows`` rows, float32 (n, D).

    Args:
        paths: the files in order, or a folder, whose files ``*.bin`` at any depth are read in the
            order of their names.
        rows: the most rows of a matrix.

    Raises:
        DataError: a file cannot be read, has another length than the first one, or the folder holds
            no file. It is raised when the matrix is due.
    """
    if isinstance(paths, (str, Path)):
        paths = _find_files(Path(paths))
    rest, dimensions = iter(paths), None
    while part := list(islice(rest, rows)):
        features = [read_features(path) for path in part]
        dimensions = dimensions or len(features[0])
        for path, feature in zip(part, features, strict=True):
            if len(feature) != dimensions:
                reason = f"{len(feature)} numbers, but the first file has {dimensions}"
                raise unreadable(path, reason)
        yield np.stack(features)


def append_noise_mark(features: Features, noisy: NDArray[np.bool_]) -> Features:
    """Return features with one more number, 100 for noisy photos and 0 for others, (M, D + 1).

    With it, noisy distractors of MegaFace are far from all probes, as in insightface's cleaned
    protocol. Features of FaceScrub get 0.

    Args:
        features: float32 (M, D).
        noisy: whether each photo is noisy, (M,).
    """
    marks = np.where(noisy, np.float32(NOISY), np.float32(0))
    return np.concatenate([features, marks[:, None]], axis=1)


def _find_files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise unreadable(folder, "it is no folder of feature files")
    found = False
    for place, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            if name.endswith(".bin"):
                found = True
                yield Path(place, name)
    if not found:
        raise unreadable(folder, "it holds no feature file, *.bin")
