"""The HTTP application: its routes, and the way of a request through them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from snzoo.errors import SnzooError
from snzoo.inference.classifier import Prediction
from snzoo.serve.bodies import Upload, check_count, describe, list_uploads, parse_body, read_body
from snzoo.serve.engine import Engine
from snzoo.serve.limits import Admission, Limits, QueueFullError
from snzoo.serve.metrics import Metrics
from snzoo.serve.photos import Decoder
from snzoo.serve.types import (
    ClassScore,
    ModelList,
    ModelPrediction,
    PhotoResult,
    PredictRequest,
    PredictResponse,
    Problem,
)


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

    Args:
        engine: the networks.
        limits: limits of requests.
        token: the bearer token that ``/v1/…`` and ``/metrics`` demand (default: none).
        allow_urls: fetch photos from public URLs that clients name.
        decoder: the threads that decode photos (default: as many as cores).
        metrics: the figures of ``/metrics`` (default: new ones).
    """
    limits = limits or Limits()
    metrics = metrics or Metrics()
    decoder = decoder or Decoder(limits=limits, metrics=metrics)
    admission = Admission(limits.queue)
    metrics.watch_queue(lambda: admission.count)
    app = FastAPI(title="snzoo", docs_url=None, redoc_url=None)
    app.state.stopping = False

    @app.post("/v1/predict", response_model=PredictResponse)
    async def predict(
        request: Request,
        model: Annotated[list[str] | None, Query()] = None,
        topk: Annotated[int, Query(ge=1)] = 5,
        embeddings: bool = False,
    ) -> Response:
        with admission.admit(1):
            body = await read_body(request, limits)
        start = time.perf_counter()
        parsed = parse_body(request.headers.get("content-type", ""), body, limits)
        if isinstance(parsed, PredictRequest):
            model = model if parsed.models is None else parsed.models
            topk = topk if parsed.topk is None else parsed.topk
            embeddings = embeddings if parsed.embeddings is None else parsed.embeddings
            uploads = list_uploads(parsed)
        else:
            uploads = parsed
        check_count(len(uploads), limits)
        names = model or list(engine.models)
        for name in names:
            if name not in engine.models:
                raise HTTPException(404, f"no model named {name!r}; see: /v1/models")
        with admission.admit(len(uploads)):
            results = await asyncio.gather(
                *(classify(upload, names, topk, embeddings) for upload in uploads)
            )
        answer = PredictResponse(photos=results, seconds=time.perf_counter() - start)
        status = 200 if any(result.predictions for result in results) else 422
        return Response(answer.model_dump_json(), status, media_type="application/json")

    async def classify(
        upload: Upload, names: Sequence[str], topk: int, embeddings: bool
    ) -> PhotoResult:
        if upload.error:
            return PhotoResult(name=upload.name, predictions=[], error=upload.error)
        if upload.url:
            raise HTTPException(403, "this server fetches no URLs")
        preprocessings = {name: engine.models[name].preprocessing for name in names}
        try:
            distinct = list(dict.fromkeys(preprocessings.values()))
            loads = [decoder.load(upload.content, one, name=upload.name) for one in distinct]
            pixels = dict(zip(distinct, await asyncio.gather(*loads), strict=True))
            found = await asyncio.gather(
                *(
                    engine.predict(
                        name, pixels[preprocessings[name]], topk=topk, embeddings=embeddings
                    )
                    for name in names
                )
            )
        except QueueFullError:
            raise
        except SnzooError as error:
            return PhotoResult(name=upload.name, predictions=[], error=str(error))
        predictions = [to_document(name, one) for name, one in zip(names, found, strict=True)]
        return PhotoResult(name=upload.name, predictions=predictions)

    @app.get("/v1/models")
    async def models() -> ModelList:
        return ModelList(models=[served.info for served in engine.models.values()])

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz", include_in_schema=False)
    async def readyz() -> Response:
        ready = engine.ready and not app.state.stopping
        return Response("ready\n" if ready else "not ready\n", 200 if ready else 503)

    @app.get("/metrics", include_in_schema=False)
    async def figures() -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.add_exception_handler(QueueFullError, _answer_full)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(ClientDisconnect, _answer_gone)
    if find_spec("snzoo.serve.page"):
        page = import_module("snzoo.serve.page")
        app.include_router(page.make_router())
    return app


def to_document(model: str, prediction: Prediction) -> ModelPrediction:
    """Return a prediction as it stands in an answer."""
    rows = zip(prediction.names, prediction.indices, prediction.probabilities, strict=True)
    embedding = prediction.embedding
    return ModelPrediction(
        model=model,
        classes=[ClassScore(name=n, index=i, probability=p) for n, i, p in rows],
        embedding=None if embedding is None else embedding.tolist(),
    )


def _answer_full(request: Request, error: Exception) -> Response:
    return JSONResponse(Problem(detail=str(error)).model_dump(), 503, {"Retry-After": "1"})


def _answer_invalid(request: Request, error: Any) -> Response:
    return JSONResponse(Problem(detail=describe(error.errors())).model_dump(), 400)


def _answer_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)
