"""Serve networks as a deployment of Ray Serve."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import validate_call
from ray import serve
from ray.serve import Application

from snzoo.data.decode import Pixels
from snzoo.data.loops import Floats
from snzoo.errors import SnzooError
from snzoo.inference.classifier import Classifier, Prediction
from snzoo.integrations.ray.cpus import count_cpus
from snzoo.serve import Decoder, LocalEngine, Metrics, create_app, load_classifiers
from snzoo.serve.batching import MAX_WAIT, Item
from snzoo.serve.token import read_token

Answer = Prediction | SnzooError


def build_app(
    models: Sequence[str] = (),
    *,
    device: str | None = None,
    max_batch: int = 16,
    max_wait: float = MAX_WAIT,
    num_replicas: int | Literal["auto"] | None = None,
    token: str | None = None,
    allow_urls: bool = False,
    **deployment: Any,
) -> Application:
    """Return the page and the HTTP API of ``snzoo serve`` as an application of Ray Serve.

    Each replica loads the models, and decodes with as many threads as it has CPUs. Ray sends it
    requests once the models are loaded and warm.

    Args:
        models: names, folders or checkpoints (default: the demo network).
        device: the device (default: CUDA if Ray gives the replica a GPU, else the CPU).
        max_batch: the largest number of photos in a forward pass.
        max_wait: the most seconds that a photo waits for others.
        token: the bearer token that the API demands (default: the environment variable
            ``SNZOO_SERVE_TOKEN`` of this process, else none).
        allow_urls: fetch photos from public URLs that clients name.
        num_replicas: the number of replicas (default: 1, or as ``autoscaling_config`` says).
        deployment: other options of :func:`ray.serve.deployment`, such as ``autoscaling_config``,
            ``ray_actor_options`` and ``max_queued_requests``.

    Raises:
        ArgumentError: the token of the environment is empty, or has blanks.
    """
    token = token or read_token()

    def make_app() -> FastAPI:  # each replica calls it
        metrics = Metrics()
        classifiers = load_classifiers(models, device=device)
        engine = RayEngine(classifiers, metrics=metrics, max_batch=max_batch, max_wait=max_wait)
        engine.warm_up()
        decoder = Decoder(workers=count_cpus(), metrics=metrics)
        decoder.warm_up({served.preprocessing for served in engine.models.values()})
        return create_app(
            engine, decoder=decoder, metrics=metrics, token=token, allow_urls=allow_urls
        )

    # With Ray's default, a replica has 5 requests at most, and no larger batches.
    options = {"name": "snzoo", "max_ongoing_requests": 4 * max_batch, **deployment}
    deploy = serve.deployment(num_replicas=num_replicas, **options)
    return deploy(serve.ingress(make_app)()).bind()


def app(args: dict[str, Any]) -> Application:
    """Return :func:`build_app` with the arguments of ``serve run`` or of a configuration file.

    ``models`` may be several names with commas. Text is converted to the types of the arguments.

    Raises:
        pydantic.ValidationError: an argument has a wrong type.
    """
    if isinstance(args.get("models"), str):
        args = args | {"models": args["models"].split(",")}
    application: Application = validate_call(build_app)(**args)
    return application


class RayEngine(LocalEngine):
    """Networks in a replica, whose batches Ray Serve collects."""

    def __init__(
        self,
        classifiers: Mapping[str, Classifier],
        *,
        metrics: Metrics,
        max_batch: int,
        max_wait: float,
    ) -> None:
        super().__init__(classifiers, metrics=metrics, max_batch=max_batch)
        collect = serve.batch(max_batch_size=max_batch, batch_wait_timeout_s=max_wait)
        self._collect: dict[str, Callable[[Item], Awaitable[Answer]]] = {
            name: collect(self._make_batch(name)) for name in classifiers
        }

    async def predict(
        self, model: str, pixels: Pixels | Floats, *, topk: int, embeddings: bool
    ) -> Prediction:
        """Classify a photo, see :class:`~snzoo.serve.engine.Engine`."""
        loop = asyncio.get_running_loop()
        item = Item(pixels, topk, embeddings, loop.time(), loop.create_future())
        answer = await self._collect[model](item)
        if isinstance(answer, SnzooError):
            raise answer
        return answer

    def _make_batch(self, model: str) -> Callable[[list[Item]], Coroutine[Any, Any, list[Answer]]]:
        async def classify(items: list[Item]) -> list[Answer]:
            return await asyncio.to_thread(self._compute, model, items)

        return classify
