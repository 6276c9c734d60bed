"""Write the ranked classes of every image to a csv, ndjson or parquet file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from snzoo.errors import printable
from snzoo.evaluation.measure import Evaluation
from snzoo.files import write_atomically
from snzoo.inference.tables import Row, open_rows
from snzoo.inference.tables import read_predictions as read_predictions

RANKS = range(1, 6)
COLUMNS = (
    *("model", "image", "label"),
    *(f"class{rank}" for rank in RANKS),
    *(f"probability{rank}" for rank in RANKS),
)


def save_predictions(path: Path, evaluation: Evaluation, names: Sequence[str]) -> None:
    """Write one row for each image and network: the label, five classes and their probabilities.

    Images that could not be read are left out. See :func:`~snzoo.inference.tables.open_rows` for
    the formats.

    Args:
        path: the file to write; its suffix determines the format.
        evaluation: the ranked classes.
        names: the names of the networks.

    Raises:
        FileError: the file cannot be written.
    """
    with (
        write_atomically(path) as temporary,
        open_rows(temporary, COLUMNS, suffix=path.suffix.lower()) as write,
    ):
        for row in _rows(evaluation, names):
            write(row)


def _rows(evaluation: Evaluation, names: Sequence[str]) -> Iterator[Row]:
    images, labels = evaluation.images(), evaluation.labels().tolist()
    for network, name in enumerate(names):
        classes = evaluation.classes(network).tolist()
        probabilities = evaluation.probabilities(network).astype(float).tolist()
        for i, label, ranked, sure in zip(images, labels, classes, probabilities, strict=True):
            row = {"model": name, "image": printable(evaluation.samples.names[i]), "label": label}
            pairs = list(zip(RANKS, ranked, sure, strict=True))
            row |= {f"class{rank}": c if c >= 0 else None for rank, c, _ in pairs}
            row |= {f"probability{rank}": p if c >= 0 else None for rank, c, p in pairs}
            yield row
