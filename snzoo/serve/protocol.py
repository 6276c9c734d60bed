"""uvicorn's HTTP protocol with limits on the headers of a request, which uvicorn does not have."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEAD = 1 << 16  # bytes of a request line and its headers
SECONDS = 10.0  # for them to arrive, and for the rest of a body that nobody reads


class LimitedProtocol(HttpToolsProtocol):
    """A connection that is closed when headers are too long or too slow.

    After an answer to a request whose body has not ended, such as 413, the rest of the body is
    discarded for a while. If the connection were closed at once, the client might not see the
    answer.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head: int | None = 0  # bytes of the head so far, or None while a body arrives
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        rest = b""
        if self._head is not None:
            room = LARGEST_HEAD - self._head
            data, rest = data[:room], data[room:]
            self._head += len(data)
            self._start_timer()
        super().data_received(data)
        if rest and self._head is not None and self._head >= LARGEST_HEAD:
            self.transport.close()
        elif rest and not self.transport.is_closing():
            super().data_received(rest)

    def on_headers_complete(self) -> None:
        self._head = None
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._head = 0
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._head is None:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
