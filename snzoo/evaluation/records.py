"""The ranked classes of every image, and the files that keep them until a run has finished."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from snzoo.data.samples import Samples
from snzoo.weights import cache


@dataclass(frozen=True)
class Records:
    """The five most probable classes of every image, and the errors of unreadable images.

    ``classes`` int32 and ``probabilities`` float32 are (rows, images, 5), most probable first.
    There are one or two rows for each network (see
    :class:`~snzoo.evaluation.measure.Evaluation`). A class of -1 means that there is no class, or
    that the image is not ranked yet.
    """

    classes: NDArray[np.int32]
    probabilities: NDArray[np.float32]
    errors: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, rows: int, images: int) -> Records:
        shape = (rows, images, 5)
        return cls(np.full(shape, -1, np.int32), np.zeros(shape, np.float32))

    @property
    def images(self) -> int:
        return int(self.classes.shape[1])

    def put(
        self,
        row: int,
        images: Sequence[int],
        classes: NDArray[np.integer],
        probabilities: NDArray[np.float32],
    ) -> None:
        """Store the classes and probabilities (n, k) of n images in a row; k is at most 5."""
        k = classes.shape[1]
        self.classes[row, images, :k] = classes
        self.probabilities[row, images, :k] = probabilities

    def read(self) -> NDArray[np.bool_]:
        """Return a mask (images,) of the images that every network has ranked."""
        return np.asarray((self.classes[:, :, 0] >= 0).all(0))

    def done(self) -> NDArray[np.bool_]:
        """Return a mask (images,) of the images that are ranked or known to be unreadable."""
        done = self.read()
        done[list(self.errors)] = True
        return done

    def update(self, other: Records) -> None:
        """Add the content of other records of the same run."""
        known = other.read()
        self.classes[:, known] = other.classes[:, known]
        self.probabilities[:, known] = other.probabilities[:, known]
        self.errors.update(other.errors)


class Journal:
    """A folder with the records of an unfinished run, one JSON line for each batch.

    Every process of the run writes its own file. A line that was cut off when a process was
    killed is ignored when the file is read.
    """

    def __init__(self, folder: Path, *, resume: bool = True) -> None:
        self.folder = folder
        self.resume = resume
        self.error: str | None = None
        self._file: IO[str] | None = None

    def exists(self) -> bool:
        return any(self.folder.glob("*.ndjson"))

    def restore(self, records: Records) -> None:
        """Add the records of earlier processes, if the run is resumed."""
        for path in sorted(self.folder.glob("*.ndjson")) if self.resume else ():
            with suppress(OSError), open(path, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    with suppress(ValueError, IndexError, TypeError, KeyError):
                        _restore_line(json.loads(line), records)

    def write(self, records: Records, images: Sequence[int]) -> None:
        """Append the records of a batch. A failure sets ``error`` and stops further writing."""
        if self.error:
            return
        try:
            if self._file is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                handle, _ = tempfile.mkstemp(".ndjson", dir=self.folder)
                self._file = os.fdopen(handle, "w", encoding="utf-8")
            self._file.write(json.dumps(_line(records, images)) + "\n")
            self._file.flush()
        except OSError as error:  # the evaluation can go on
            self.error = f"{self.folder}: {error.strerror}"

    def remove(self) -> None:
        """Remove the folder, because the run has finished."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _line(records: Records, images: Sequence[int]) -> dict[str, Any]:
    return {
        "images": list(images),
        "classes": records.classes[:, images].tolist(),
        "probabilities": records.probabilities[:, images].astype(np.float64).tolist(),
    }


def _restore_line(line: dict[str, Any], records: Records) -> None:
    """Add all records of a line, or raise an error and add none."""
    images = np.array(line["images"], np.int64)
    classes = np.array(line["classes"], np.int32)
    probabilities = np.array(line["probabilities"], np.float32)
    shape = records.classes[:, images].shape
    if not classes.shape == probabilities.shape == shape or (images < 0).any():
        raise ValueError("these are not the records of a batch")
    records.classes[:, images] = classes
    records.probabilities[:, images] = probabilities


def runs() -> Path:
    """Return the folder that holds the records of unfinished evaluations; it may not exist."""
    return cache.home() / "runs"


def unfinished_runs() -> int:
    """Return the number of unfinished evaluations that left records."""
    return sum(1 for path in runs().iterdir() if path.is_dir()) if runs().is_dir() else 0


def prune_runs() -> None:
    """Remove the records of all unfinished evaluations.

    Raises:
        CacheError: the records cannot be removed.
    """
    with cache.writing(runs()):
        shutil.rmtree(runs())


def run_folder(identity: dict[str, Any]) -> Path:
    """Return the folder for the records of the run that has this identity."""
    text = json.dumps(identity, sort_keys=True)
    return runs() / hashlib.sha256(text.encode()).hexdigest()[:24]


def digest_of(samples: Samples) -> str:
    """Return the SHA-256 of the names and labels in their order, and of the state of the files."""
    digest = hashlib.sha256(samples.source.stamp().encode())
    for name, label in zip(samples.names, samples.labels, strict=True):
        digest.update(f"{label} {name}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
