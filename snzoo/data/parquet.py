"""Read photos from parquet files, such as those of Hugging Face (extra ``[parquet]``)."""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from snzoo.data.sources import check_size, stamp_of, unreadable
from snzoo.environment import require_packages

# Limits on what a file unpacks to: a few encoded bytes may unpack to any size.
MOST_ROWS = 10_000_000
LARGEST_GROUP = 4 << 30  # bytes of a row group
# Limits on the cached row groups. Two groups are always kept, because threads may read at the end
# of one group and at the start of the next:
CACHED = 256 << 20  # bytes
MOST_GROUPS = 16


class ParquetPhotos:
    """The photos in a column of parquet files.

    The column is ``image``, a struct with the part ``bytes`` (as of Hugging Face) or binary, or
    else a binary column ``bytes``. Photos are read one row group at a time. The last groups are
    cached, so that reading in order reads each group once.

    Raises:
        DataError: a file is not a parquet file with such a column.
        MissingPackageError: pyarrow is not installed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        require_packages("pyarrow", extra="parquet", purpose=f"reading {paths[0]}")
        self._lock = threading.Lock()
        self._groups: OrderedDict[_Place, Any] = OrderedDict()
        self._places: list[_Place] = []
        self._starts: list[int] = []  # the index of the first photo of each place
        self._count = 0
        for path in paths:
            row = 0
            for group, (column, rows) in enumerate(_find_groups(path)):
                self._places.append(_Place(path, column, group, row))
                self._starts.append(self._count)
                row += rows
                self._count += rows

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> bytes:
        place, row = self._find(index)
        try:
            content: bytes | None = self._load_group(place)[row].as_py()
            if content is None:
                raise ValueError("it has no bytes")
            check_size(len(content))
            return content
        except Exception as error:  # pyarrow raises exceptions of many types for damaged files
            raise unreadable(self.locate(index), error) from None

    def locate(self, index: int) -> str:
        place, row = self._find(index)
        return f"{place.path}, row {place.first + row}"

    def _find(self, index: int) -> tuple[_Place, int]:
        """Return the row group of a photo, and its row in the group."""
        number = bisect_right(self._starts, index) - 1
        return self._places[number], index - self._starts[number]

    def _load_group(self, place: _Place) -> Any:
        """Return the contents of a row group, as an arrow array."""
        from pyarrow import compute

        with self._lock:  # held while reading, so that no two threads read the same group
            if place not in self._groups:
                name, *parts = place.column.split(".")
                with _open_parquet(place.path) as file:
                    contents = file.read_row_group(place.group, columns=[place.column])[name]
                self._groups[place] = compute.struct_field(contents, *parts) if parts else contents
                while len(self._groups) > 2 and (
                    len(self._groups) > MOST_GROUPS
                    or sum(kept.nbytes for kept in self._groups.values()) > CACHED
                ):
                    self._groups.popitem(last=False)
            self._groups.move_to_end(place)
            return self._groups[place]


class _Place(NamedTuple):
    """A row group: its file, the column of the photos, its number, and its first row."""

    path: Path
    column: str
    group: int
    first: int


class Parquet(ParquetPhotos):
    """A source of labeled photos in parquet files.

    The files have the columns ``image`` (a struct of ``bytes`` and ``path``) and ``label``.

    Attributes:
        labels: the label of each photo, read on creation.
        paths: the path of each photo, "" if there is none, read on creation.
        names: the path of each photo if it is unique, else ``FILE#ROW``.
        class_count: the number of classes, or None if the metadata does not say it.

    Raises:
        DataError: a file is not a parquet file with these columns.
        MissingPackageError: pyarrow is not installed.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        require_packages("pyarrow", extra="parquet", purpose=f"reading {paths[0]}")
        self.labels: list[int | None] = []
        names: list[str] = []
        for path in paths:
            for labels, image_paths in _labels_and_paths(path):
                self.labels += labels
                names += (name or "" for name in image_paths)
        super().__init__(paths)
        self.paths = tuple(names)
        classes = read_class_names(paths[0])
        self.class_count = None if classes is None else len(classes)
        counts = Counter(names)
        self.names: Sequence[str] = tuple(
            name if name and counts[name] == 1 and "#" not in name else self._name(index)
            for index, name in enumerate(names)
        )

    def stamp(self) -> str:
        return stamp_of(dict.fromkeys(place.path for place in self._places))

    def _name(self, index: int) -> str:
        place, row = self._find(index)
        return f"{place.path.name}#{place.first + row}"


def _find_groups(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the column of the photos and the number of rows of each row group."""
    try:
        with _open_parquet(path) as file:
            _check_size(file.metadata)
            column = _find_column(file.schema_arrow)
            for group in range(file.metadata.num_row_groups):
                yield column, file.metadata.row_group(group).num_rows
    except Exception as error:  # pyarrow raises exceptions of many types for damaged files
        raise unreadable(path, error) from None


def _check_size(metadata: Any) -> None:
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    rows = max(metadata.num_rows, sum(group.num_rows for group in groups))
    if rows > MOST_ROWS:
        raise ValueError(f"{rows:,} rows are more than {MOST_ROWS:,}")
    for number, group in enumerate(groups):
        if group.total_byte_size > LARGEST_GROUP:
            raise ValueError(
                f"row group {number} is larger than {LARGEST_GROUP >> 30} GiB; write the file with "
                "smaller ones"
            )


def _find_column(schema: Any) -> str:
    """Return the name of the column of the photos, after checking that its type is binary."""
    import pyarrow as pa

    binary = (pa.binary(), pa.large_binary())
    fields = {field.name: field.type for field in schema}
    for name in ("image", "bytes"):
        kind = fields.get(name)
        if kind in binary:
            return name
        if name == "image" and kind is not None and pa.types.is_struct(kind):
            parts = {part.name: part.type for part in kind}
            if parts.get("bytes") in binary:
                return "image.bytes"
    raise ValueError(
        "no column 'image' or 'bytes' that holds the images' content; name paths in a list NAME.txt"
    )


def _labels_and_paths(path: Path) -> Iterator[tuple[list[int | None], list[str | None]]]:
    """Yield the labels and the paths of each row group."""
    try:
        with _open_parquet(path) as file:
            columns = _columns(file.schema_arrow)
            _check_size(file.metadata)
            for group in range(file.metadata.num_row_groups):
                table = file.read_row_group(group, columns=columns)
                labels = table["label"].to_pylist()
                images = table["image"].to_pylist() if len(columns) > 1 else [None] * len(labels)
                yield labels, [image and image["path"] for image in images]
    except Exception as error:  # pyarrow raises exceptions of many types for damaged files
        raise unreadable(path, error) from None


def read_class_names(path: Path) -> tuple[str, ...] | None:
    """Return the names of the classes in the metadata of Hugging Face, or None if it has none.

    Raises:
        DataError: the file is not a parquet file.
        MissingPackageError: pyarrow is not installed.
    """
    require_packages("pyarrow", extra="parquet", purpose=f"reading {path}")
    try:
        with _open_parquet(path) as file:
            metadata = file.schema_arrow.metadata or {}
    except Exception as error:  # pyarrow raises exceptions of many types for damaged files
        raise unreadable(path, error) from None
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError):
        return None


def _open_parquet(path: Path) -> Any:
    from pyarrow import parquet

    if not path.is_file():
        raise ValueError("not a regular file")
    return parquet.ParquetFile(path, page_checksum_verification=True)


def _columns(schema: Any) -> list[str]:
    """Return the columns of labels and paths, after checking that the needed columns exist."""
    import pyarrow as pa

    fields = {field.name: field.type for field in schema}
    if not ("label" in fields and pa.types.is_integer(fields["label"])):
        raise ValueError("no column 'label' of integers (class indices)")
    is_struct = "image" in fields and pa.types.is_struct(fields["image"])
    parts = {part.name: part.type for part in fields["image"]} if is_struct else {}
    if parts.get("bytes") not in (pa.binary(), pa.large_binary()):
        raise ValueError("no column 'image' with a part 'bytes' (the images' content)")
    has_paths = parts.get("path") in (pa.string(), pa.large_string())
    return ["label", "image.path"] if has_paths else ["label"]
