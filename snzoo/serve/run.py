"""Run the application with uvicorn until a signal stops it."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from snzoo.errors import ServerError, first_line


def bind(host: str, port: int) -> socket.socket:
    """Return a socket with an address of its own, which does not listen yet.

    Raises:
        ServerError: the address cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        message = f"can't listen on {host} port {port}: {first_line(error)}; choose another --port"
        raise ServerError(message) from None
    return listener


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._state = app.state

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._state.stopping = True
        super().handle_exit(sig, frame)


def run(
    app: FastAPI, listener: socket.socket, *, grace: float, on_start: Callable[[], None]
) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish those that were accepted.

    Args:
        app: the application.
        listener: a bound socket.
        grace: the most seconds to finish requests.
        on_start: called once connections are accepted.
    """
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(grace),
    )
    # uvicorn raises the signals that it handled once more, for the handlers from before.
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        listener.listen(config.backlog)
        on_start()
        _Server(config, app).run([listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore(number: int, frame: FrameType | None) -> None:
    pass
