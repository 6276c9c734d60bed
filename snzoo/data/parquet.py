"""Read photos from parquet files with the columns of Hugging Face (extra ``[parquet]``)."""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from snzoo.data.sources import check_size, stamp_of, unreadable
from snzoo.environment import require_packages

# Limits on what a file unpacks to: a few encoded bytes may unpack to any size.
MOST_ROWS = 10_000_000
LARGEST_GROUP = 4 << 30  # bytes of a row group
# Limits on the cached row groups. Two groups are always kept, because threads may read at the end
# of one group and at the start of the next:
CACHED = 256 << 20  # bytes
MOST_GROUPS = 16


class Parquet:
    """A source of photos in parquet files.

    The files have the columns ``image`` (a struct of ``bytes`` and ``path``) and ``label``. The
    photos are read one row group at a time. The last groups are cached, so that reading in order
    reads each group once.

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
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[Path, int], Any] = OrderedDict()
        # file, row in the file, group, row in the group:
        self._rows: list[tuple[Path, int, int, int]] = []
        self.labels: list[int | None] = []
        names: list[str] = []
        for path in paths:
            before = len(names)
            for group, (labels, image_paths) in enumerate(_labels_and_paths(path)):
                first = len(names) - before
                self._rows += [(path, first + row, group, row) for row in range(len(labels))]
                self.labels += labels
                names += (name or "" for name in image_paths)
        self.paths = tuple(names)
        classes = read_class_names(paths[0])
        self.class_count = None if classes is None else len(classes)
        counts = Counter(names)
        self.names: Sequence[str] = tuple(
            name if name and counts[name] == 1 and "#" not in name else f"{path.name}#{row}"
            for name, (path, row, *_) in zip(names, self._rows, strict=True)
        )

    def read(self, index: int) -> bytes:
        path, _, group, row = self._rows[index]
        try:
            content: bytes | None = self._load_group(path, group)[row].as_py()
            if content is None:
                raise ValueError("it has no bytes")
            check_size(len(content))
            return content
        except Exception as error:  # pyarrow raises exceptions of many types for damaged files
            raise unreadable(self.locate(index), error) from None

    def locate(self, index: int) -> str:
        path, row, *_ = self._rows[index]
        return f"{path}, row {row}"

    def stamp(self) -> str:
        return stamp_of(dict.fromkeys(path for path, *_ in self._rows))

    def _load_group(self, path: Path, group: int) -> Any:
        """Return the contents of a row group, as an arrow array."""
        from pyarrow import compute

        with self._lock:  # held while reading, so that no two threads read the same group
            key = path, group
            if key not in self._groups:
                with _open_parquet(path) as file:
                    table = file.read_row_group(group, columns=["image.bytes"])
                self._groups[key] = compute.struct_field(table["image"], "bytes")
                while len(self._groups) > 2 and (
                    len(self._groups) > MOST_GROUPS
                    or sum(kept.nbytes for kept in self._groups.values()) > CACHED
                ):
                    self._groups.popitem(last=False)
            self._groups.move_to_end(key)
            return self._groups[key]


def _labels_and_paths(path: Path) -> Iterator[tuple[list[int | None], list[str | None]]]:
    """Yield the labels and the paths of each row group."""
    try:
        with _open_parquet(path) as file:
            columns = _columns(file.schema_arrow)
            if file.metadata.num_rows > MOST_ROWS:
                raise ValueError(f"{file.metadata.num_rows:,} rows are more than {MOST_ROWS:,}")
            for group in range(file.metadata.num_row_groups):
                if file.metadata.row_group(group).total_byte_size > LARGEST_GROUP:
                    raise ValueError(
                        f"row group {group} is larger than {LARGEST_GROUP >> 30} GiB; write the "
                        "file with smaller ones"
                    )
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
