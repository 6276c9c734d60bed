"""Where images lie: files, a tar, parquet shards. Each gives an image's content by its index.

Nothing is ever written, so a name may say what it likes; all reads are bounded by ``LARGEST``.
"""

from __future__ import annotations

import io
import os
import tarfile
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, Protocol

from snzoo.errors import DataError

LARGEST = 256 << 20  # bytes of an image
# Of parquet files, whose encoding can hide any size in a few bytes:
MOST_ROWS = 10_000_000
LARGEST_GROUP = 4 << 30  # bytes of a row group
# Row groups to keep; two even where they are larger, since readers may be around a border:
CACHED = 256 << 20  # bytes
MOST_GROUPS = 16
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class Source(Protocol):
    """Images by index; its methods may be called by many threads at once."""

    @property
    def names(self) -> Sequence[str]:
        """One unique name an image: its POSIX path below the root, or what stands for it."""

    def read(self, index: int) -> bytes:
        """The whole content of an image.

        Raises:
            DataError: it can't be read; the message names it.
        """

    def locate(self, index: int) -> str:
        """Where the image lies, to be shown: ``/root/n01/x.JPEG``, ``val.tar: n01/x.JPEG``."""


@dataclass(frozen=True)
class Files:
    """Regular files at ``root / name``."""

    root: Path
    names: Sequence[str]

    def read(self, index: int) -> bytes:
        return read_file(self.root / self.names[index])

    def locate(self, index: int) -> str:
        return printable(str(self.root / self.names[index]))


def read_file(path: Path) -> bytes:
    """The whole content of an image file.

    Raises:
        DataError: it can't be read, is no regular file, or larger than ``LARGEST``.
    """
    try:
        status = os.stat(path)
        if not S_ISREG(status.st_mode):
            raise ValueError("not a regular file")  # a pipe would be waited for without end
        _check_size(status.st_size)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise DataError(f"can't read {printable(str(path))}: {_one_line(error)}") from None


@dataclass(frozen=True)
class Member:
    """A member of a tar: the place of its content, or the ``flaw`` that it can't be read for."""

    name: str
    offset: int
    size: int
    flaw: str | None


class Tar:
    """Members of an uncompressed tar, under the names (keys) given to them, read in place."""

    def __init__(self, path: Path, members: Mapping[str, Member]) -> None:
        self.path = path
        self.names: Sequence[str] = tuple(members)
        self._members = tuple(members.values())
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def read(self, index: int) -> bytes:
        member, content = self._members[index], b""
        try:
            _check_size(member.size)
            # pread: no position that threads would share
            while part := os.pread(
                self._file, member.size - len(content), member.offset + len(content)
            ):
                content += part
            if len(content) < member.size:
                raise ValueError("the archive was cut short")
        except (OSError, ValueError) as error:
            raise DataError(f"can't read {self.locate(index)}: {_one_line(error)}") from None
        return content

    def locate(self, index: int) -> str:
        return f"{printable(str(self.path))}: {self._members[index].name}"


class _Headers(io.FileIO):
    """A tar for tarfile, which would take a header of any size into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= 1 << 20:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""


def tar_members(path: Path) -> list[Member]:
    """Everything in an uncompressed tar; the names of folders end in a slash.

    Raises:
        DataError: it is compressed, damaged or cut short.
        OSError: it can't be read.
    """
    if not path.is_file():
        raise DataError(f"can't read {path}: not a regular file")
    members = []
    with _Headers(path) as file:
        start = file.read(8)
        if kind := next((kind for magic, kind in COMPRESSED.items() if start.startswith(magic)), 0):
            raise DataError(
                f"{path} is compressed ({kind}), so images can't be read from where they lie "
                "in it; decompress it first"
            )
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:", errors="surrogateescape") as tar:
                last = -1
                while member := tar.next():
                    if member.offset <= last:
                        raise tarfile.ReadError("a header points back")
                    last = member.offset
                    members.append(_member(member))
                    tar.members.clear()  # type: ignore[attr-defined]  # or all headers stay in memory
                file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("no end mark where the last member ends")
        except Exception as error:  # tarfile raises almost anything on damaged headers
            raise DataError(f"{path} is no tar, damaged or cut short: {_one_line(error)}") from None
    return members


def _member(info: tarfile.TarInfo) -> Member:
    flaw = None
    if info.issparse():
        flaw = "a sparse file"
    elif info.issym() or info.islnk():
        flaw = "a link"
    elif not info.isreg():
        flaw = "not a regular file"
    name = printable(info.name) + "/" * info.isdir()
    return Member(name, info.offset_data, info.size, flaw)


class Parquet:
    """Images of parquet files: a column ``image`` of ``bytes`` and ``path``, and ``label``.

    ``labels`` and names are read at once, the content by row group when it is asked for. Row
    groups are kept for the images after it, so reading in order reads each of them once.

    Raises:
        DataError: pyarrow is missing, or a file is no parquet file with these columns.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[Path, int], Any] = OrderedDict()
        self._rows: list[tuple[Path, int, int, int]] = []  # file, row in it, group, row in that
        self.labels: list[int | None] = []
        names: list[str] = []
        for path in paths:
            before = len(names)
            for group, (labels, image_paths) in enumerate(_labels_and_paths(path)):
                first = len(names) - before
                self._rows += [(path, first + row, group, row) for row in range(len(labels))]
                self.labels += labels
                names += (printable(name or "") for name in image_paths)
        counts = Counter(names)
        self.names: Sequence[str] = tuple(
            name if name and counts[name] == 1 and "#" not in name else f"{path.name}#{row}"
            for name, (path, row, *_) in zip(names, self._rows, strict=True)
        )

    def read(self, index: int) -> bytes:
        path, _, group, row = self._rows[index]
        try:
            content: bytes | None = self._group(path, group)[row].as_py()
            if content is None:
                raise ValueError("it has no bytes")
            _check_size(len(content))
            return content
        except Exception as error:  # pyarrow's own, and Python's, on damaged files
            raise DataError(f"can't read {self.locate(index)}: {_one_line(error)}") from None

    def locate(self, index: int) -> str:
        path, row, *_ = self._rows[index]
        return f"{printable(str(path))}, row {row}"

    def _group(self, path: Path, group: int) -> Any:
        """The image bytes of a row group, as an arrow array."""
        from pyarrow import compute

        with self._lock:  # while it is read too, so that no other thread reads the same
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
    """The labels, and the paths of the images, of each row group."""
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
    except Exception as error:  # pyarrow's own, and Python's, on damaged files
        raise DataError(f"can't read {path}: {_one_line(error)}") from None


def _open_parquet(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ValueError("parquet needs pyarrow: python -m pip install pyarrow") from None
    if not path.is_file():
        raise ValueError("not a regular file")
    return parquet.ParquetFile(path, page_checksum_verification=True)


def _columns(schema: Any) -> list[str]:
    """The columns to label by, once those to read from are known to be there."""
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


def _check_size(size: int) -> None:
    if size > LARGEST:
        raise ValueError(f"{size >> 20} MiB, more than the {LARGEST >> 20} MiB of any photo")


def printable(text: str) -> str:
    """Text of any origin with its control characters escaped, safe to show and to encode."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _one_line(error: Exception) -> str:
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return printable(reason.splitlines()[0])
