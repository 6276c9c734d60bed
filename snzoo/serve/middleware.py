"""Count requests, and add headers to answers."""

from __future__ import annotations

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from snzoo.serve.limits import RETRY, STOPPING
from snzoo.serve.metrics import Metrics


class Observer:
    """An ASGI application around another, which counts requests by path and status.

    It answers requests that are cancelled because the server stops.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, begun = 500, False  # unless the application answers

        async def observe(message: Message) -> None:
            nonlocal status, begun
            if message["type"] == "http.response.start":
                begun = True
                status = message["status"]
                headers = [*message.get("headers", ()), (b"x-content-type-options", b"nosniff")]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, observe)
        except asyncio.CancelledError:
            if begun or not scope["app"].state.stopping:
                raise
            await JSONResponse({"detail": STOPPING}, 503, RETRY)(scope, receive, observe)
        finally:
            # Clients can name any path, so only those of routes are told apart.
            path = getattr(scope.get("route"), "path", "other")
            self.metrics.requests.labels(path, str(status)).inc()
