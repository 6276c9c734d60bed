"""Limits of requests, and how many photos are accepted at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from snzoo.errors import SnzooError

RETRY = {"Retry-After": "1"}  # seconds
STOPPING = "the server is stopping"


class QueueFullError(SnzooError):
    """Too many photos wait already; the client should try again later."""


@dataclass(frozen=True)
class Limits:
    """Limits of requests.

    Attributes:
        body: bytes of a body.
        pixels: pixels of a photo, as its header says, and after resizing. Pillow opens no photo
            of more than ``2 * Image.MAX_IMAGE_PIXELS`` pixels.
        photos: photos in a request. It is at most ``queue``, or such a request would wait forever.
        queue: photos that are accepted and not answered yet, in all requests.
        timeout: seconds in which a body must arrive, and then seconds until its answer.
    """

    body: int = 32 << 20
    pixels: int = 64_000_000
    photos: int = 64
    queue: int = 256
    timeout: float = 60.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "photos", min(self.photos, self.queue))


class Admission:
    """The number of photos that were accepted and are not answered yet."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.count = 0

    @contextmanager
    def admit(self, photos: int) -> Iterator[None]:
        """Count photos until the context ends.

        Raises:
            QueueFullError: there would be more than ``most``.
        """
        if self.count + photos > self.most:
            raise QueueFullError("the queue is full; try again")
        self.count += photos
        try:
            yield
        finally:
            self.count -= photos
