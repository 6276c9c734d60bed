"""Classify the photos of a dataset of Ray Data."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import isnan
from typing import Any

import numpy as np
import pyarrow as pa

from snzoo.data.inputs import Chunk
from snzoo.data.sources import unreadable
from snzoo.errors import ArgumentError
from snzoo.inference.computation import number_names
from snzoo.inference.outcomes import PredictionOptions, classify, open_classifiers
from snzoo.inference.tables import list_columns, make_rows, make_schema
from snzoo.inference.transform import Model
from snzoo.integrations.ray.cpus import count_cpus

# Columns that hold the content of image files, under the names that Ray's readers give:
PHOTO_COLUMNS = ("bytes", "image", "jpg", "jpeg", "png", "webp")
NAME_COLUMNS = ("path", "__key__")


class PhotoClassifier:
    """A class for ``ray.data.Dataset.map_batches`` that classifies photos.

    For each photo and model, the result has a row, with the columns of ``snzoo predict``:
    ``model``, ``image`` (the name of the photo), ``class1`` … (indices), ``name1`` …,
    ``probability1`` …, ``error`` and ``embedding``. The columns of the classes are null for a photo
    that cannot be read, and ``error`` has the reason. The other columns of the photo are repeated,
    except those with its content. A column ``image`` of other content is kept.

    A photo is the content of an image file, in one of ``columns``: a binary column, or a struct
    with a part ``bytes``, as of Hugging Face. If several are there, it is in the first that is not
    null. Its name is the part ``path``, or the column ``path`` or ``__key__``.

    ``map_batches`` must have ``batch_format="pyarrow"``. The worker decodes with as many threads
    as it has CPUs (``num_cpus``).

    Args:
        models: one or several models, which take pixels of the same size; see
            :func:`snzoo.predict`.
        topk, embeddings, upright, device: see :func:`snzoo.predict`.
        columns: the columns with photos.
        keep_photos: keep these columns too.

    Raises:
        ArgumentError: an option has a wrong value, or the models take pixels of different sizes.
        UnknownModelError, CheckpointError, DeviceError: see :func:`snzoo.predict`.
    """

    def __init__(
        self,
        models: Model | Sequence[Model],
        *,
        topk: int = 5,
        embeddings: bool = False,
        upright: bool = True,
        device: str | None = None,
        columns: Sequence[str] = PHOTO_COLUMNS,
        keep_photos: bool = False,
    ) -> None:
        workers = count_cpus()
        self.options = PredictionOptions(
            topk, embeddings, workers=workers, upright=upright, on_error="skip"
        )
        self.columns, self.keep_photos = columns, keep_photos
        self._open = ExitStack()  # for the life of the worker
        self.classifiers = self._open.enter_context(open_classifiers(models, device))
        self.names = number_names([classifier.spec for classifier in self.classifiers])
        self.seen = 0  # photos

    def __call__(self, batch: Any) -> pa.Table:
        """Return the rows of the photos of a batch.

        Raises:
            ArgumentError: the batch has another format, no column holds photos, or a column of the
                result exists already.
            NonFiniteError: see :func:`snzoo.predict`.
        """
        if not isinstance(batch, pa.Table):  # other formats have NaN instead of null
            raise ArgumentError("call map_batches with batch_format='pyarrow'")
        found = [column for column in self.columns if column in batch.column_names]
        photos = read_columns(batch, found)
        chunk = Chunk(self.seen, [(photos, i) for i in range(len(photos))])
        self.seen += len(photos)
        columns = list_columns([each.num_classes for each in self.classifiers], self.options)
        rows = [
            row
            for outcome in classify(self.classifiers, chunk, self.options)
            for row in make_rows(outcome, self.names, columns)
        ]
        added = pa.Table.from_pylist(rows, schema=make_schema(columns))
        kept = batch if self.keep_photos else batch.drop_columns(found)
        return join_columns(kept, added, times=len(self.names))


@dataclass(frozen=True)
class Rows:
    """The photos of a batch, see :class:`~snzoo.data.sources.Photos`."""

    contents: Sequence[bytes | None]
    names: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.contents)

    def read(self, index: int) -> bytes:
        content = self.contents[index]
        if content is None:
            raise unreadable(self.locate(index), "it has no bytes")
        return content

    def locate(self, index: int) -> str:
        return self.names[index] or f"image {index}"


def read_columns(table: pa.Table, columns: Sequence[str]) -> Rows:
    """Return the photos of the rows of a table.

    Raises:
        ArgumentError: there are no columns, or a column does not hold the content of image files.
    """
    if not columns:
        raise ArgumentError(
            f"no column of photos among {', '.join(table.column_names)}; name it with columns=[…]"
        )
    contents: list[bytes | None] = [None] * len(table)
    names: list[str | None] = [None] * len(table)
    for column in columns:
        values = table[column].to_pylist()
        if pa.types.is_struct(table.schema.field(column).type):
            names = _fill(names, [value and value.get("path") for value in values])
            values = [value and value.get("bytes") for value in values]
        # Where a tar has no file with a suffix, read_webdataset gives NaN.
        values = [None if isinstance(value, float) and isnan(value) else value for value in values]
        if wrong := {type(value).__name__ for value in values} - {"bytes", "NoneType"}:
            raise ArgumentError(
                f"the column {column} holds {', '.join(wrong)}, not the content of image files "
                "(read_webdataset decodes unless decoder=None)"
            )
        contents = _fill(contents, values)
    for column in NAME_COLUMNS:
        if column in table.column_names:
            names = _fill(names, table[column].to_pylist())
    return Rows(contents, names)


def _fill(values: list[Any], others: Sequence[Any]) -> list[Any]:
    """Return values, with others where they are None."""
    return [b if a is None else a for a, b in zip(values, others, strict=True)]


def join_columns(table: pa.Table, added: pa.Table, *, times: int) -> pa.Table:
    """Return ``added`` after the columns of ``table``, whose rows are repeated ``times`` times.

    Raises:
        ArgumentError: both have a column, other than ``image``, which is that of ``table``.
    """
    if doubled := {*table.column_names} & {*added.column_names} - {"image"}:
        raise ArgumentError(
            f"the photos have a column {min(doubled)} already; call rename_columns first"
        )
    rows = np.repeat(np.arange(len(table)), times)
    repeated = {name: table[name].take(rows) for name in table.column_names}
    return pa.table(dict(zip(added.column_names, added.columns, strict=True)) | repeated)
