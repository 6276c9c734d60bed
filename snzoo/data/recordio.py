"""Read photos in place from RecordIO files of MXNet, such as insightface's ``train.rec``.

A record has these parts, little-endian: the number ``0xced7230a``, a word with the kind of the part
(upper 3 bits) and its length (lower 29 bits), and the content, padded to a multiple of 4 bytes. A
record whose content holds that number is cut there into several parts, without the number. The
content begins with a header: a flag, a label (float32) and two ids. If the flag is not 0, it is the
number of labels (float32) that follow the header. The rest is the encoded photo. A text file next
to the ``.rec`` file, with the suffix ``.idx``, has a line ``key<TAB>offset`` for each record.

dmlc-core defines the records (``include/dmlc/recordio.h``), and MXNet the headers
(``python/mxnet/recordio.py``).
"""

from __future__ import annotations

import io
import os
import re
import struct
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snzoo.data.sources import LARGEST, check_size, stamp_of, unreadable
from snzoo.data.tables import number_lines

MAGIC = 0xCED7230A
SEPARATOR = struct.pack("<I", MAGIC)
PART = struct.Struct("<II")  # the magic number; the kind of the part and its length
WHOLE, FIRST, MIDDLE, LAST = range(4)
LENGTH_BITS = 29
HEADER = struct.Struct("<IfQQ")  # flag, label, id, id2
LABEL = struct.Struct("<f")
# The start of a record of one part, up to its first label if labels follow the header:
START = np.dtype(
    {
        "names": ["magic", "word", "count", "label", "first"],
        "formats": ["<u4", "<u4", "<u4", "<f4", "<f4"],
        "offsets": [0, 4, 8, 12, 32],
    }
)
CHUNK = 1 << 16  # records
LABELS_END = 1 << 24  # float32 does not hold every integer from here on
SMALLEST = PART.size + HEADER.size  # bytes of a record
LINE = re.compile(r"(\d{1,18})\s+(\d{1,18})\s*", re.ASCII)


class RecordIO:
    """A source of photos in a RecordIO file.

    If record 0 has two labels and no photo, it is insightface's: the first label is the key of the
    first record after the photos, which are the records from 1 on. Otherwise all records are
    photos. Each read opens the file, so many threads may read at once.

    Attributes:
        labels: the label of each photo (its first one, if it has several), int64 (n,), read on
            creation.
        names: ``FILE#KEY`` for each photo.

    Raises:
        DataError: the files cannot be read, are damaged, or do not belong together.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        index_path = path.with_suffix(".idx")
        if not index_path.is_file():  # reading a pipe could wait forever
            reason = f"no {index_path.name} beside it; copy it there, or write it with MXNet's "
            raise unreadable(path, reason + "rec2idx.py")
        try:
            keys, offsets = _read_index(index_path, size=path.stat().st_size)
        except (OSError, ValueError) as error:
            raise unreadable(index_path, error) from None
        with open(path, "rb", buffering=0) as file:
            photos = self._find_photos(file, keys, offsets)
            self._keys, self._offsets = keys[photos], offsets[photos]
            self.labels = self._read_labels(file)
        name = path.name
        self.names: Sequence[str] = tuple(f"{name}#{key}" for key in self._keys.tolist())

    def __len__(self) -> int:
        return len(self._offsets)

    def read(self, index: int) -> bytes:
        try:
            with open(self._path, "rb", buffering=0) as file:
                content = read_record(file, int(self._offsets[index]))
            _, start = _parse_labels(content)
            if len(content) <= start:
                raise ValueError("it holds no photo")
        except (OSError, ValueError) as error:
            raise unreadable(self.locate(index), error) from None
        return content[start:]

    def locate(self, index: int) -> str:
        return f"{self._path}, record {self._keys[index]}"

    def stamp(self) -> str:
        return stamp_of(_files_of(self._path))

    def _find_photos(
        self, file: io.FileIO, keys: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> slice:
        """Return which of the sorted keys are those of photos."""
        if keys[0] != 0:
            return slice(None)
        name = f"{self._path}, record 0"
        try:
            content = read_record(file, int(offsets[0]), most=HEADER.size + 2 * LABEL.size + 1)
            label, start = _parse_labels(content)
            if start != HEADER.size + 2 * LABEL.size or len(content) != start:
                return slice(None)
            if not (label.is_integer() and label >= 2):
                raise ValueError(f"it says that the photos end before record {label}")
        except (OSError, ValueError) as error:
            raise unreadable(name, error) from None
        end = int(np.searchsorted(keys, min(int(label), np.iinfo(np.int64).max)))
        if end != int(label):
            raise unreadable(
                name,
                f"it says that {int(label) - 1:,} photos follow, but the .idx file lists "
                f"{end - 1:,} of them; the files do not belong together",
            )
        return slice(1, end)

    def _read_labels(self, file: io.FileIO) -> NDArray[np.int64]:
        """Return the labels of all photos. Most are read at once, which saves much time."""
        size, labels = file.seek(0, io.SEEK_END), np.empty(len(self._offsets), np.int64)
        for start in range(0, len(labels), CHUNK):
            offsets = self._offsets[start : start + CHUNK]
            heads = b"".join(
                os.pread(file.fileno(), START.itemsize, offset).ljust(START.itemsize, b"\0")
                for offset in offsets.tolist()
            )
            found, is_plain = _find_labels(np.frombuffer(heads, START), size - offsets - PART.size)
            labels[start : start + CHUNK][is_plain] = found[is_plain]
            for index in (start + np.flatnonzero(~is_plain)).tolist():
                labels[index] = self._read_label(file, index)
        return labels

    def _read_label(self, file: io.FileIO, index: int) -> int:
        try:
            most = HEADER.size + LABEL.size
            label, _ = _parse_labels(read_record(file, int(self._offsets[index]), most=most))
            if not (0 <= label < LABELS_END and label.is_integer()):
                raise ValueError(f"its label {label} is not a whole number from 0 to 2**24 - 1")
        except (OSError, ValueError) as error:
            raise unreadable(self.locate(index), error) from None
        return int(label)


def open_recordio(path: Path) -> RecordIO:
    """Return the source of a RecordIO file. The last one is kept while its files do not change.

    The classes and the photos are asked for one after the other, and millions of labels take long.
    """
    return _open(path, stamp_of(_files_of(path)))


@lru_cache(maxsize=1)
def _open(path: Path, stamp: str) -> RecordIO:
    return RecordIO(path)


def _files_of(path: Path) -> list[Path]:
    return [path, path.with_suffix(".idx")]


def read_record(file: io.FileIO, offset: int, *, most: int = LARGEST) -> bytes:
    """Return the content of the record at ``offset``, at most its first ``most`` bytes.

    Raises:
        ValueError: there is no record, or it is cut short or larger than ``LARGEST`` bytes.
    """
    size = file.seek(0, io.SEEK_END)
    content = bytearray()
    kinds: tuple[int, ...] = (WHOLE, FIRST)
    while True:
        file.seek(offset)
        magic, word = PART.unpack(file.read(PART.size).ljust(PART.size, b"\0"))
        kind, length = word >> LENGTH_BITS, word & ((1 << LENGTH_BITS) - 1)
        if magic != MAGIC or kind not in kinds:
            raise ValueError(f"no {'record' if FIRST in kinds else 'part of it'} at byte {offset}")
        if length > size - offset - PART.size:
            raise ValueError("the file was cut short, or its length is wrong")
        if kind in (MIDDLE, LAST):
            content += SEPARATOR
        check_size(len(content) + length)
        content += file.read(min(length, max(0, most - len(content))))
        if kind in (WHOLE, LAST) or len(content) >= most:
            return bytes(content[:most])
        kinds = (MIDDLE, LAST)
        offset += PART.size + -(-length // 4) * 4


def _find_labels(
    starts: NDArray[np.void], left: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the first label of each record, and where it is right: in records without a flaw.

    Args:
        starts: the first bytes of each record, with the fields of ``START``.
        left: how many bytes the file has after the length of each record.
    """
    has_labels, length = starts["count"] > 0, starts["word"].astype(np.int64)
    labels = np.where(has_labels, starts["first"], starts["label"])
    is_plain = (starts["magic"] == MAGIC) & (length <= left)
    is_plain &= length >= HEADER.size + LABEL.size * has_labels
    is_plain &= length < 1 << LENGTH_BITS  # the record is whole
    with np.errstate(invalid="ignore"):
        is_plain &= (labels >= 0) & (labels < LABELS_END) & (labels == np.floor(labels))
    return labels, is_plain


def _parse_labels(content: bytes) -> tuple[float, int]:
    """Return the first label of a record, and the position of its photo."""
    if len(content) < HEADER.size:
        raise ValueError("its header is cut short")
    count, label, _, _ = HEADER.unpack_from(content)
    if count:
        if len(content) < HEADER.size + LABEL.size:
            raise ValueError("its labels are cut short")
        (label,) = LABEL.unpack_from(content, HEADER.size)
    return label, HEADER.size + LABEL.size * count


def _read_index(path: Path, *, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorted keys of the records in an ``.idx`` file, and their offsets.

    Args:
        path: the path of the ``.idx`` file.
        size: the size of the ``.rec`` file in bytes.

    Raises:
        OSError: a file cannot be read.
        ValueError: a line is no key and offset of a record, or a key occurs twice.
    """
    keys, offsets = array("q"), array("q")
    with open(path, encoding="ascii") as file:
        for number, line in number_lines(file, path):
            match = LINE.fullmatch(line)
            if not match:
                raise ValueError(f"line {number}: expected 'key<TAB>offset', got {line[:80]!r}")
            keys.append(int(match[1]))
            offsets.append(int(match[2]))
            if offsets[-1] > size - SMALLEST or len(keys) > size // SMALLEST:
                raise ValueError(
                    f"line {number}: the .rec file is too short, at {size:,} bytes; it was cut "
                    "short, or belongs to another .idx file"
                )
    if not keys:
        raise ValueError("it lists no record")
    key_array, offset_array = np.frombuffer(keys, np.int64), np.frombuffer(offsets, np.int64)
    order = np.argsort(key_array, kind="stable")
    key_array, offset_array = key_array[order], offset_array[order]
    if (twice := np.flatnonzero(np.diff(key_array) == 0)).size:
        raise ValueError(f"it lists record {key_array[twice[0]]} twice")
    return key_array, offset_array
