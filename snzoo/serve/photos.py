"""Decode photos of clients in threads, within limits."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from snzoo.data.batches import WORTH_COMPILING, resizer
from snzoo.data.decode import Pixels, explain
from snzoo.data.loops import Floats
from snzoo.data.pixels import geometry, load_pixels
from snzoo.data.sources import unreadable
from snzoo.inference.network import local_cores
from snzoo.preprocessing import Preprocessing
from snzoo.serve.limits import Limits
from snzoo.serve.metrics import Metrics

# Formats of photos. Pillow knows others, such as EPS, for which it runs another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
UNKNOWN = f"not a photo in a format that the server takes: {', '.join(FORMATS)}"


class Decoder:
    """Threads that decode and resize photos exactly.

    Attributes:
        pending: the number of photos that wait or are being decoded.
    """

    def __init__(
        self, *, workers: int | None = None, limits: Limits | None = None, metrics: Metrics
    ) -> None:
        self.pending = 0
        self._limits = limits or Limits()
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(workers or local_cores(), "decode")

    async def load(
        self, content: bytes, preprocessing: Preprocessing, *, name: str
    ) -> Pixels | Floats:
        """Return the pixels (H, W, 3) of :func:`~snzoo.data.pixels.load_pixels`, upright.

        A photo that no thread has begun is dropped if the caller is cancelled.

        Raises:
            DataError: the photo cannot be read, or is larger than the limit.
        """
        loop = asyncio.get_running_loop()
        self.pending += 1
        try:
            return await loop.run_in_executor(
                self._threads, self._load, content, preprocessing, name
            )
        finally:
            self.pending -= 1

    def _load(self, content: bytes, preprocessing: Preprocessing, name: str) -> Pixels | Floats:
        start = time.perf_counter()
        check_size(content, preprocessing, most=self._limits.pixels, name=name)
        pixels = _read(content, preprocessing, name)
        self._metrics.decoding.observe(time.perf_counter() - start)
        return pixels

    def warm_up(self, preprocessings: Iterable[Preprocessing]) -> None:
        """Decode a photo for each preprocessing, so that the loops are compiled."""
        file = io.BytesIO()
        Image.new("RGB", (640, 480)).save(file, "JPEG")
        for preprocessing in preprocessings:
            self._threads.submit(_read, file.getvalue(), preprocessing, "a photo").result()


def _read(content: bytes, preprocessing: Preprocessing, name: str) -> Pixels | Floats:
    compiled = resizer(WORTH_COMPILING, None, preprocessing.resampling) == "llvmlite"
    return load_pixels(content, preprocessing, name=name, upright=True, compiled=compiled)


def check_size(content: bytes, preprocessing: Preprocessing, *, most: int, name: str) -> None:
    """Check the size of a photo by its header.

    Raises:
        DataError: the photo has more than ``most`` pixels, would have more after resizing, or is
            not an image of ``FORMATS``.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except Exception as error:  # Pillow raises exceptions of many types for damaged files
        raise unreadable(name, explain(error, content, unknown=UNKNOWN)) from None
    if width * height > most:
        raise unreadable(name, f"{width}x{height} pixels, more than {most:,}; make it smaller")
    rule = preprocessing.resampling
    fit = geometry(
        (width, height), resize=preprocessing.resize, crop=preprocessing.crop, resampling=rule
    )
    if fit.resized[0] * fit.resized[1] > most:
        raise unreadable(name, f"{width}x{height} pixels are too narrow; crop it first")
