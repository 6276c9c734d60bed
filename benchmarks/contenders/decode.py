"""Decoding alone, by one process a core: what no pipeline that decodes whole photos exceeds.

simplejpeg where it is installed (the pixels of Pillow, faster), else Pillow.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

from jobs import Job
from PIL import Image

decode_jpeg: Any = find_spec("simplejpeg") and import_module("simplejpeg").decode_jpeg
CHUNK = 8  # photos that a process takes at a time


def batches(job: Job) -> Iterator[list[int]]:
    """Yield the heights of decoded photos, one list per chunk: they show that there were pixels."""
    paths = sorted(Path(job.folder).glob("*/*"))
    chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
    yield from _processes(job.workers or 1).imap_unordered(_decode, chunks)


@cache
def _processes(count: int) -> Pool:
    """Return processes that the warm-up pass starts, so that starting them is not timed."""
    return multiprocessing.Pool(count)


def _decode(paths: list[Path]) -> list[int]:
    return [_height(path.read_bytes()) for path in paths]


def _height(content: bytes) -> int:
    if decode_jpeg:
        try:
            return int(decode_jpeg(content).shape[0])
        except ValueError:  # no JPEG, or one in CMYK
            pass
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB").height
