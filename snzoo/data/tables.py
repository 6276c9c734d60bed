"""Read the classes of photos from text files: lists, csv files, and Kaggle's solution file."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TextIO

from snzoo.data import imagenet
from snzoo.data.labels import Classes, class_indices
from snzoo.errors import DataError

LONGEST_LINE = 1 << 16  # characters
SOLUTION_HEADER = ["ImageId", "PredictionString"]  # of Kaggle's LOC_val_solution.csv


def read_table(
    file: TextIO, classes: Classes, *, path: Path, by_number: bool = False
) -> dict[str, int]:
    """Return a mapping from paths of photos to class indices, read from a list or csv file.

    The file has one of these forms:

    - ``path index`` lines;
    - ``path,label`` lines in a file named ``.csv``, or below a header with these two columns;
    - Kaggle's ``LOC_val_solution.csv``: ``id,wnid x1 y1 x2 y2 …``, where all boxes have one wnid.

    A label is a class index, a wnid, or the name of a class. A number is always an
    index, unless ``by_number`` is set.

    Args:
        file: the open file.
        classes: ``"imagenet-1k"``, or the names of the classes.
        path: the path of the file, for errors.
        by_number: whether a number is the name of a class. If so, all names must be numbers.

    Raises:
        DataError: a line does not have this form, or a photo is listed twice.
    """
    index = class_indices(classes)
    if isinstance(classes, str):
        index = {**class_indices(imagenet.class_names()), **index}
    count = len(class_indices(classes))
    table: dict[str, int] = {}
    for number, name, label in read_rows(file, path):
        if name in table:
            raise DataError(f"{path}, line {number}: {name!r} is listed before")
        if not imagenet.is_number(label):
            table[name] = index.get(label, count)
        elif by_number:
            table[name] = index.get(str(int(label)), count)
        else:
            table[name] = int(label)
        if table[name] >= count:
            raise DataError(
                f"{path}, line {number}: {label[:80]!r} is no class: neither an index from 0 to "
                f"{count - 1}, nor {'a wnid or ' * isinstance(classes, str)}a name of one"
            )
    if not table:
        raise DataError(f"{path} lists no image")
    return table


def read_rows(file: TextIO, path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the number of each line, the path of its photo and its label, as :func:`read_table`.

    Raises:
        DataError: a line does not have the form of a list or csv file.
    """
    lines = number_lines(file, path)
    first = next(lines, (1, ""))
    parse, has_header = _choose_format(first[1], path)
    for number, line in chain([] if has_header else [first], lines):
        try:
            if line.strip():
                yield number, *parse(line)
        except (ValueError, csv.Error) as error:
            raise DataError(f"{path}, line {number}: {error}") from None


def _choose_format(line: str, path: Path) -> tuple[Callable[[str], tuple[str, str]], bool]:
    """Return the function that parses a line to (path, label), and whether ``line`` is a header."""
    header = [column.strip().lower() for column in line.split(",")]
    if is_solution(line):
        return _parse_solution, True
    if {"path", "label"} <= set(header):
        columns = header.index("path"), header.index("label")
        return partial(_parse_csv, columns=columns, width=len(header)), True
    if path.suffix.lower() == ".csv":
        return _parse_csv, False
    return _parse_list, False


def is_solution(line: str) -> bool:
    """Return whether a line is the header of Kaggle's ``LOC_val_solution.csv``."""
    return line.strip().split(",") == SOLUTION_HEADER


def _parse_list(line: str) -> tuple[str, str]:
    *path, label = line.strip().rsplit(maxsplit=1)
    if not path:
        raise ValueError(f"expected 'path index', got {line.strip()[:80]!r}")
    return path[0], label


def _parse_csv(line: str, *, columns: tuple[int, int] = (0, 1), width: int = 2) -> tuple[str, str]:
    fields = next(csv.reader([line], strict=True, skipinitialspace=True))
    path, label = (fields[i].strip() for i in columns) if len(fields) == width else ("", "")
    if not path or not label:
        raise ValueError(
            f"expected {width} columns, path and label among them, got {line.strip()[:80]!r}"
        )
    return path, label


def _parse_solution(line: str) -> tuple[str, str]:
    fields = next(csv.reader([line], strict=True))
    image, boxes = fields if len(fields) == 2 else ("", "")
    wnids = set(boxes.split()[::5])
    wnid = wnids.pop() if len(wnids) == 1 else ""
    if not re.fullmatch(r"[\w.-]+", image, re.ASCII) or not re.fullmatch(r"n\d{8}", wnid):
        raise ValueError("expected 'ImageId,wnid x1 y1 x2 y2 …' with one wnid")
    return f"{image}.JPEG", wnid


def number_lines(file: TextIO, path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of a file with their numbers, which start from 1.

    Raises:
        DataError: a line has ``LONGEST_LINE`` characters or more.
    """
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), ""), 1):
        if len(line) == LONGEST_LINE and not line.endswith("\n"):
            raise DataError(f"{path}, line {number}: {LONGEST_LINE:,} characters or more")
        yield number, line
