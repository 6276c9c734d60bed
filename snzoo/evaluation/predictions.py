"""Write the ranked classes of every image to a csv, ndjson or parquet file, and read it back."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from snzoo.environment import require_packages
from snzoo.errors import ArgumentError, printable
from snzoo.evaluation.measure import Evaluation
from snzoo.files import write_atomically

SUFFIXES = (".csv", ".ndjson", ".parquet")
# Spreadsheets run a cell as a formula if it begins with one of these characters. Such text gets an
# apostrophe in front. So does text that begins with an apostrophe, so that reading can remove one.
ESCAPED = ("=", "+", "-", "@", "\t", "\r", "'")


def check_suffix(path: Path) -> None:
    """Check that a file of this name can be written.

    Raises:
        ArgumentError: the suffix is unknown.
        MissingPackageError: the suffix is ``.parquet``, but pyarrow is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ArgumentError(f"{path}: the suffix of predictions must be {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".parquet":
        require_packages("pyarrow", extra="parquet", purpose=f"writing {path}")


def save_predictions(path: Path, evaluation: Evaluation, names: Sequence[str]) -> None:
    """Write one row for each image and network: the label, five classes and their probabilities.

    Images that could not be read are left out. In csv files, text that a spreadsheet would take
    as a formula begins with an apostrophe; :func:`read_predictions` removes it.

    Args:
        path: the file to write; its suffix determines the format.
        evaluation: the ranked classes.
        names: the names of the networks.

    Raises:
        FileError: the file cannot be written.
    """
    rows = _rows(evaluation, names)
    with write_atomically(path) as temporary:
        if path.suffix.lower() == ".parquet":
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(list(rows)), temporary)
            return
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            (_write_csv if path.suffix.lower() == ".csv" else _write_ndjson)(file, rows)


def read_predictions(path: str | Path) -> list[dict[str, Any]]:
    """Return the rows of a file that ``snzoo eval --predictions`` wrote.

    Raises:
        ArgumentError, MissingPackageError: see :func:`check_suffix`.
        OSError: the file cannot be read.
    """
    path = Path(path)
    check_suffix(path)
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
        return rows
    with open(path, encoding="utf-8", newline="") as file:
        if path.suffix.lower() == ".ndjson":
            return [json.loads(line) for line in file]
        return [
            {column: _parse_cell(column, cell) for column, cell in row.items()}
            for row in csv.DictReader(file)
        ]


def _rows(evaluation: Evaluation, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    images, labels = evaluation.images(), evaluation.labels().tolist()
    for network, name in enumerate(names):
        classes = evaluation.classes(network).tolist()
        probabilities = evaluation.probabilities(network).astype(float).tolist()
        for i, label, ranked, sure in zip(images, labels, classes, probabilities, strict=True):
            row = {"model": name, "image": printable(evaluation.samples.names[i]), "label": label}
            pairs = list(enumerate(zip(ranked, sure, strict=True), 1))
            row |= {f"class{rank}": c if c >= 0 else None for rank, (c, _) in pairs}
            row |= {f"probability{rank}": p if c >= 0 else None for rank, (c, p) in pairs}
            yield row


def _write_csv(file: IO[str], rows: Iterator[dict[str, Any]]) -> None:
    writer = None
    for row in rows:
        if writer is None:
            writer = csv.DictWriter(file, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow({column: _escape_cell(value) for column, value in row.items()})


def _escape_cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(ESCAPED) else value


def _parse_cell(column: str, cell: str) -> str | int | float | None:
    if column in ("model", "image"):
        return cell.removeprefix("'")
    return None if not cell else float(cell) if column.startswith("probability") else int(cell)


def _write_ndjson(file: IO[str], rows: Iterator[dict[str, Any]]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
