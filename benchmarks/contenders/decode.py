"""Decoding alone, in one process per core: an upper limit for pipelines that decode whole photos.

simplejpeg, which is faster and gives Pillow's pixels, is used if it is installed, else Pillow.
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


def batches(job: Job) -> Iterator[list[int]]:
    """Yield the height of each decoded photo, as proof that it was decoded."""
    paths = sorted(Path(job.folder).glob("*/*"))
    for height in _processes(job.workers or 1).imap_unordered(_decode, paths, chunksize=8):
        yield [height]


@cache
def _processes(count: int) -> Pool:
    """Return the processes, which the warm-up pass starts so that their start is not timed."""
    return multiprocessing.Pool(count)


def _decode(path: Path) -> int:
    content = path.read_bytes()
    if decode_jpeg:
        try:
            return int(decode_jpeg(content).shape[0])
        except ValueError:  # not a JPEG, or a JPEG in CMYK
            pass
    with Image.open(io.BytesIO(content)) as image:
        return image.convert("RGB").height
