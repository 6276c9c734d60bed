"""The HTTP application: its routes, and the answers to requests that fail."""

from __future__ import annotations

import hmac
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from snzoo.serve.bodies import Options, check_query, describe_invalid, parse_body, read_body
from snzoo.serve.engine import Engine
from snzoo.serve.limits import RETRY, STOPPING, Admission, Limits, QueueFullError
from snzoo.serve.metrics import Metrics
from snzoo.serve.middleware import Observer
from snzoo.serve.openapi import PREDICT, add_schemas
from snzoo.serve.page import make_router as make_page
from snzoo.serve.photos import Decoder
from snzoo.serve.service import Service, finish_for
from snzoo.serve.types import ModelList, PredictResponse
from snzoo.serve.urls import Fetcher


def create_app(
    engine: Engine,
    *,
    limits: Limits | None = None,
    token: str | None = None,
    allow_urls: bool = False,
    decoder: Decoder | None = None,
    metrics: Metrics | None = None,
) -> FastAPI:
    """Return the HTTP application over an engine.

    While ``app.state.stopping`` is True, it takes no new work and ``/readyz`` answers 503. The
    timeouts of bodies that arrive are in ``app.state.arriving``.

    Args:
        engine: the networks.
        limits: limits of requests (default: those of :class:`~snzoo.serve.limits.Limits`).
        token: the bearer token that ``/v1/…`` and ``/metrics`` demand (default: none).
        allow_urls: fetch photos from public URLs that clients name.
        decoder: the threads that decode photos (default: as many as cores).
        metrics: the figures of ``/metrics`` (default: new ones).
    """
    limits = limits or Limits()
    metrics = metrics or Metrics()
    decoder = decoder or Decoder(limits=limits, metrics=metrics)
    fetch = Fetcher(limits).fetch if allow_urls else None
    admission = Admission(limits.queue)
    metrics.watch_queue(lambda: admission.count)
    app = FastAPI(title="snzoo", docs_url=None, redoc_url=None)
    app.state.stopping, app.state.arriving = False, set()
    guards = [Depends(make_guard(token))] if token else []
    service = Service(engine, decoder, metrics, fetch)
    app.include_router(_make_api(service, admission, limits), dependencies=guards)
    app.include_router(_make_probes(engine))
    app.include_router(_make_figures(metrics), dependencies=guards)
    app.include_router(make_page())
    app.add_middleware(Observer, metrics=metrics)
    app.add_exception_handler(QueueFullError, _answer_full)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer_failure)
    add_schemas(app)
    return app


def make_guard(token: str) -> Any:
    """Return a dependency that demands a bearer token. Comparing takes the same time for any."""
    expected = token.encode()

    bearer = Depends(HTTPBearer(auto_error=False))
    wrong = HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    async def guard(given: HTTPAuthorizationCredentials | None = bearer) -> None:
        if given is None or not hmac.compare_digest(given.credentials.encode(), expected):
            raise wrong

    return guard


def _make_api(service: Service, admission: Admission, limits: Limits) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/predict", response_model=PredictResponse, **PREDICT)
    async def predict(
        request: Request,
        model: Annotated[list[str] | None, Query()] = None,
        topk: Annotated[int, Query(ge=1)] = 5,
        embeddings: bool = False,
    ) -> Response:
        """Classify photos. The status is 200 if at least one photo was classified."""
        if request.app.state.stopping:
            raise HTTPException(503, STOPPING, RETRY)
        check_query([name for name, _ in request.query_params.multi_items()])
        with admission.admit(1):
            body = await read_body(request, limits)
        start = time.perf_counter()
        kind = request.headers.get("content-type", "")
        uploads, options = parse_body(body, kind, Options(model or (), topk, embeddings), limits)
        with admission.admit(len(uploads)):
            work = service.classify(uploads, options)
            photos = await finish_for(request, work, timeout=limits.timeout)
        answer = PredictResponse(photos=photos, seconds=time.perf_counter() - start)
        status = 200 if any(photo.predictions for photo in photos) else 422
        return Response(answer.model_dump_json(), status, media_type="application/json")

    @router.get("/v1/models")
    async def models() -> ModelList:
        """Describe the models of the server."""
        return ModelList(models=[served.info for served in service.engine.models.values()])

    return router


def _make_probes(engine: Engine) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.api_route("/healthz", methods=["GET", "HEAD"])
    async def healthz() -> Response:
        return Response("alive\n", media_type="text/plain")

    @router.api_route("/readyz", methods=["GET", "HEAD"])
    async def readyz(request: Request) -> Response:
        ready = engine.ready and not request.app.state.stopping
        text = "ready\n" if ready else "not ready\n"
        return Response(text, 200 if ready else 503, media_type="text/plain")

    return router


def _make_figures(metrics: Metrics) -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/metrics")
    async def figures() -> Response:
        return Response(metrics.render(), headers={"Content-Type": metrics.CONTENT_TYPE})

    return router


def _answer_full(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": str(error)}, 503, RETRY)


def _answer_invalid(request: Request, error: Any) -> Response:
    return JSONResponse({"detail": describe_invalid(error.errors())}, 400)


def _answer_nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # the client has gone; the status is for the figures


def _answer_failure(request: Request, error: Exception) -> Response:
    return JSONResponse({"detail": "the server failed; its log says why"}, 500)
