"""Run the application with uvicorn until a signal stops it."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable
from types import FrameType

from fastapi import FastAPI

from snzoo.environment import require_packages
from snzoo.errors import ServerError, first_line

require_packages("uvicorn", "httptools", "uvloop", extra="serve", purpose="snzoo serve")

import uvicorn  # noqa: E402

from snzoo.serve.protocol import LimitedProtocol  # noqa: E402

GRACE = 25  # seconds to finish requests after a signal; supervisors often kill after 30
SLOW = 5  # seconds of these for bodies to arrive


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that has the address but does not listen yet.

    Args:
        host: a name or an address.
        port: the port; 0 chooses a free one.

    Raises:
        ServerError: the address cannot be used.
    """
    listener: socket.socket | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener:
            listener.close()
        option = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        message = f"can't listen on {host}, port {port}: {first_line(error)}; try another {option}"
        raise ServerError(message) from None
    return listener


def run(app: FastAPI, listener: socket.socket, *, on_start: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish those that were accepted.

    Args:
        app: an application of :func:`~snzoo.serve.create_app`.
        listener: a socket of :func:`bind`.
        on_start: called once clients can connect.
    """
    config = configure(app)
    # After it has stopped, uvicorn raises its signals again for the handlers from before.
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: None) for number in signals}
    try:
        listener.listen(config.backlog)
        on_start()
        _Server(config, app).run([listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def configure(app: FastAPI) -> uvicorn.Config:
    """Return uvicorn's configuration: one process, no log of requests, limits on headers."""
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=LimitedProtocol,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._state = app.state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._state.stopping = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        end = asyncio.get_running_loop().time() + SLOW
        for clock in self._state.arriving:
            if not clock.expired():
                clock.reschedule(min(clock.when(), end))
        await super().shutdown(sockets)
