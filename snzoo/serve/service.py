"""Classify the photos of a request: fetch, decode, compute."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi import HTTPException
from starlette.requests import ClientDisconnect, Request

from snzoo.errors import SnzooError
from snzoo.inference.classifier import Prediction
from snzoo.serve.bodies import Options, Upload
from snzoo.serve.engine import Engine
from snzoo.serve.limits import RETRY, QueueFullError
from snzoo.serve.metrics import Metrics
from snzoo.serve.photos import Decoder
from snzoo.serve.types import ClassScore, ModelPrediction, PhotoResult

Result = TypeVar("Result")


@dataclass(frozen=True)
class Service:
    """What classifies photos: an engine, threads that decode, and threads that fetch URLs."""

    engine: Engine
    decoder: Decoder
    metrics: Metrics
    fetch: Callable[[str], Awaitable[bytes]] | None = None

    async def classify(self, uploads: Sequence[Upload], options: Options) -> list[PhotoResult]:
        """Return the result of each photo.

        Raises:
            HTTPException: 404 for an unknown model, 403 for a URL that is not allowed.
            QueueFullError: see :class:`~snzoo.serve.engine.Engine`.
        """
        for name in options.models:
            if name not in self.engine.models:
                raise HTTPException(404, f"no model named {name!r}; see: /v1/models")
        if self.fetch is None and any(upload.url is not None for upload in uploads):
            raise HTTPException(403, "this server fetches no URLs")
        models = dict.fromkeys(options.models or self.engine.models)
        options = options._replace(models=list(models))
        return await gather([self._classify_photo(upload, options) for upload in uploads])

    async def _classify_photo(self, upload: Upload, options: Options) -> PhotoResult:
        predictions: list[ModelPrediction] = []
        error = upload.error
        try:
            if not error:
                predictions = await self._predict(upload, options)
        except QueueFullError:
            raise
        except SnzooError as reason:
            error = str(reason)
        for name in options.models:
            self.metrics.photos.labels(name, "failed" if error else "classified").inc()
        return PhotoResult(name=upload.name, predictions=predictions, error=error)

    async def _predict(self, upload: Upload, options: Options) -> list[ModelPrediction]:
        content = upload.content
        if upload.url is not None and self.fetch:
            content = await self.fetch(upload.url)
        prepared = [self.engine.models[name].preprocessing for name in options.models]
        distinct = list(dict.fromkeys(prepared))
        loads = [self.decoder.load(content, each, name=upload.name) for each in distinct]
        pixels = dict(zip(distinct, await gather(loads), strict=True))
        found = await gather(
            [
                self.engine.predict(
                    name, pixels[each], topk=options.topk, embeddings=options.embeddings
                )
                for name, each in zip(options.models, prepared, strict=True)
            ]
        )
        return [to_document(*pair) for pair in zip(options.models, found, strict=True)]


def to_document(model: str, prediction: Prediction) -> ModelPrediction:
    """Return a prediction as it stands in an answer."""
    rows = zip(prediction.names, prediction.indices, prediction.probabilities, strict=True)
    embedding = prediction.embedding
    return ModelPrediction(
        model=model,
        classes=[ClassScore(name=n, index=i, probability=p) for n, i, p in rows],
        embedding=None if embedding is None else embedding.tolist(),
    )


async def gather(coroutines: Sequence[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Return the results of coroutines that run at once. After an error, the others are stopped."""
    if len(coroutines) == 1:  # saves a task, for most requests
        return [await coroutines[0]]
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def finish_for(
    request: Request, coroutine: Coroutine[Any, Any, Result], *, timeout: float
) -> Result:
    """Return the result of a coroutine, which is stopped when the client goes or time is up.

    Args:
        request: the request of the client, whose body was read.
        coroutine: the work.
        timeout: the most seconds that it may take.

    Raises:
        ClientDisconnect: the client has gone.
        HTTPException: 503, the time is up.
    """
    work = asyncio.ensure_future(coroutine)
    gone = asyncio.ensure_future(request.receive())  # after the body, only a disconnect comes
    try:
        await asyncio.wait((work, gone), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if gone.done():
            raise ClientDisconnect
        raise HTTPException(503, f"no answer within {timeout:g} s", RETRY)
    finally:
        work.cancel()
        gone.cancel()
