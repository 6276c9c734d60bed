"""What networks said of every image → a csv, ndjson or parquet file."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from snzoo.errors import SnzooError, printable
from snzoo.evaluation.run import Evaluation
from snzoo.files import write_atomically

SUFFIXES = (".csv", ".ndjson", ".parquet")


def check_suffix(path: Path) -> None:
    """Raises SnzooError where no file can be written for ``path``'s name."""
    if path.suffix.lower() not in SUFFIXES:
        raise SnzooError(f"{path}: name predictions {', '.join(SUFFIXES)}, by what to write")
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise SnzooError(
                f"writing {path} needs pyarrow: python -m pip install pyarrow"
            ) from None


def save_predictions(path: Path, evaluation: Evaluation, names: Sequence[str]) -> None:
    """One row an image and network: its label, and the best classes with probabilities.

    Images that could not be read are left out.

    Args:
        names: of the networks.

    Raises:
        FileError: the file can't be written.
    """
    rows = _rows(evaluation, names)
    with write_atomically(path) as partial:
        if path.suffix.lower() == ".parquet":
            _write_parquet(partial, rows)
        else:
            with open(partial, "w", encoding="utf-8", newline="") as file:
                (_write_csv if path.suffix.lower() == ".csv" else _write_ndjson)(file, rows)


def _rows(evaluation: Evaluation, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    images, labels = evaluation.images(), evaluation.labels().tolist()
    for network, name in enumerate(names):
        classes = evaluation.classes(network).tolist()
        probabilities = evaluation.probabilities(network).astype(float).tolist()
        for i, label, best, sure in zip(images, labels, classes, probabilities, strict=True):
            row = {"model": name, "image": printable(evaluation.samples.names[i]), "label": label}
            ranked = list(enumerate(zip(best, sure, strict=True), 1))
            row |= {f"class{rank}": c if c >= 0 else None for rank, (c, _) in ranked}
            row |= {f"probability{rank}": p if c >= 0 else None for rank, (c, p) in ranked}
            yield row


def _write_csv(file: IO[str], rows: Iterator[dict[str, Any]]) -> None:
    first = next(rows)
    writer = csv.DictWriter(file, list(first), lineterminator="\n")
    writer.writeheader()
    writer.writerow(first)
    writer.writerows(rows)


def _write_ndjson(file: IO[str], rows: Iterator[dict[str, Any]]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
