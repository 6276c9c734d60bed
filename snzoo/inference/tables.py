"""Write rows of predictions to csv, ndjson or parquet files, and read them back."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from snzoo.environment import require_packages
from snzoo.errors import ArgumentError, printable
from snzoo.inference.outcomes import Outcome, PredictionOptions

Row = dict[str, Any]
SUFFIXES = (".csv", ".ndjson", ".parquet")
TEXT = re.compile(r"model|image|error|name\d+")  # columns of text
# Spreadsheets run a cell as a formula if it begins with one of these characters. Such text gets an
# apostrophe in front. So does text that begins with an apostrophe, so that reading can remove one.
ESCAPED = ("=", "+", "-", "@", "\t", "\r", "'")
BUFFERED = 1024  # rows that the writer of a parquet file holds as Python objects
LARGEST_GROUP = 64 << 20  # bytes of the row groups that parts are joined to


def check_suffix(path: Path) -> None:
    """Check that a file of this name can be written.

    Raises:
        ArgumentError: the suffix is unknown.
        MissingPackageError: the suffix is ``.parquet``, but pyarrow is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ArgumentError(
            f"{path}: the suffix of predictions must be one of {', '.join(SUFFIXES)}"
        )
    if path.suffix.lower() == ".parquet":
        require_packages("pyarrow", extra="parquet", purpose=f"writing {path}")


@contextmanager
def open_rows(
    path: Path, columns: Sequence[str], *, suffix: str, header: bool = True
) -> Iterator[Callable[[Row], object]]:
    """Yield a function that writes a row to a file.

    In csv files, text that a spreadsheet would take as a formula begins with an apostrophe;
    :func:`read_predictions` removes it.

    Args:
        path: the file to write.
        columns: the names of the columns: text (:data:`TEXT`), ``probabilityN``, ``embedding`` (a
            float32 array), or integers.
        suffix: the format, one of :data:`SUFFIXES`.
        header: whether a csv file begins with the names of the columns.

    Raises:
        OSError: the file cannot be written.
    """
    if suffix == ".parquet":
        with _open_parquet(path, columns) as write:
            yield write
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        yield _write_csv(file, columns, header) if suffix == ".csv" else _write_ndjson(file)


def list_columns(classes: Iterable[int], options: PredictionOptions) -> list[str]:
    """Return the columns of the rows of :func:`make_rows`.

    Args:
        classes: the number of classes of each model.
        options: the options of the prediction.
    """
    ranks = range(1, min(options.topk, max(classes)) + 1)
    ranked = [f"{kind}{rank}" for kind in ("class", "name", "probability") for rank in ranks]
    return ["model", "image", *ranked, "error", *(["embedding"] if options.embeddings else [])]


def make_rows(outcome: Outcome, models: Sequence[str], columns: Sequence[str]) -> Iterator[Row]:
    """Yield the row of a photo for each model.

    Args:
        outcome: what became of the photo.
        models: the names of the models.
        columns: see :func:`list_columns`. Columns that a row does not fill are None.
    """
    for index, model in enumerate(models):
        row: Row = dict.fromkeys(columns)
        row |= {"model": printable(model), "image": printable(outcome.source)}
        if outcome.error:
            yield row | {"error": printable(str(outcome.error))}
            continue
        found = outcome.predictions[index]
        ranked = zip(found.indices, found.names, found.probabilities, strict=True)
        for k, (number, name, probability) in enumerate(ranked, 1):
            row |= {f"class{k}": number, f"name{k}": printable(name)}
            row[f"probability{k}"] = probability
        if found.embedding is not None:
            row["embedding"] = found.embedding
        yield row


def join_rows(paths: Iterable[Path], path: Path, columns: Sequence[str], *, suffix: str) -> None:
    """Write the rows of several files, without headers, into one file with a header.

    The memory that this needs does not depend on the number of rows.

    Raises:
        OSError: a file cannot be read or written.
    """
    if suffix == ".parquet":
        _join_parquet(paths, path, columns)
        return
    with open(path, "wb") as file:
        if suffix == ".csv":
            file.write(f"{','.join(columns)}\n".encode())
        for part in paths:
            with open(part, "rb") as rows:
                shutil.copyfileobj(rows, file, 1 << 20)


def read_predictions(path: str | Path) -> list[Row]:
    """Return the rows of a file that ``snzoo predict`` or ``snzoo eval --predictions`` wrote.

    Raises:
        ArgumentError, MissingPackageError: see :func:`check_suffix`.
        OSError: the file cannot be read.
    """
    path = Path(path)
    check_suffix(path)
    if path.suffix.lower() == ".parquet":
        from pyarrow import parquet

        rows: list[Row] = parquet.read_table(path).to_pylist()
        return rows
    with open(path, encoding="utf-8", newline="") as file:
        if path.suffix.lower() == ".ndjson":
            return [json.loads(line) for line in file]
        return [
            {column: _parse_cell(column, cell) for column, cell in row.items()}
            for row in csv.DictReader(file)
        ]


def _write_csv(file: IO[str], columns: Sequence[str], header: bool) -> Callable[[Row], object]:
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    return lambda row: writer.writerow({name: _escape_cell(cell) for name, cell in row.items()})


def _escape_cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(ESCAPED) else value


def _parse_cell(column: str, cell: str) -> str | int | float | None:
    if not cell:
        return None
    if TEXT.fullmatch(column):
        return cell.removeprefix("'")
    return float(cell) if column.startswith("probability") else int(cell)


def _write_ndjson(file: IO[str]) -> Callable[[Row], object]:
    return lambda row: file.write(format_row(row, ascii=False) + "\n")


def format_row(row: Row, *, ascii: bool = True) -> str:
    """Return a row as a line of JSON, in ASCII unless it goes into a file in UTF-8."""
    return json.dumps(row, ensure_ascii=ascii, default=np.ndarray.tolist)


@contextmanager
def _open_parquet(path: Path, columns: Sequence[str]) -> Iterator[Callable[[Row], object]]:
    import pyarrow
    from pyarrow import parquet

    schema = make_schema(columns)
    rows: list[Row] = []
    batches = []

    def flush() -> None:
        batches.append(pyarrow.RecordBatch.from_pylist(rows, schema=schema))
        rows.clear()

    def write(row: Row) -> None:
        rows.append(row)
        if len(rows) == BUFFERED:  # arrow holds them in a fraction of the memory
            flush()

    yield write
    flush()
    parquet.write_table(pyarrow.Table.from_batches(batches, schema), path)


def _join_parquet(paths: Iterable[Path], path: Path, columns: Sequence[str]) -> None:
    """Copy the rows in larger row groups, because readers are slow on many small ones."""
    import pyarrow
    from pyarrow import parquet

    with parquet.ParquetWriter(path, make_schema(columns)) as writer:
        tables: list[Any] = []
        for part in paths:
            with parquet.ParquetFile(part) as file:
                for group in range(file.num_row_groups):
                    tables.append(file.read_row_group(group))
                    if sum(table.nbytes for table in tables) >= LARGEST_GROUP:
                        writer.write_table(pyarrow.concat_tables(tables))
                        tables.clear()
        if tables:
            writer.write_table(pyarrow.concat_tables(tables))


def make_schema(columns: Sequence[str]) -> Any:
    import pyarrow

    def find_type(column: str) -> Any:
        if TEXT.fullmatch(column):
            return pyarrow.string()
        if column == "embedding":
            return pyarrow.list_(pyarrow.float32())
        return pyarrow.float64() if column.startswith("probability") else pyarrow.int64()

    return pyarrow.schema([(column, find_type(column)) for column in columns])
