"""Networks in this process: photos that wait together go through a network together."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from snzoo.data.decode import Pixels
from snzoo.data.loops import Floats
from snzoo.data.pixels import pixel_dtype
from snzoo.errors import SnzooError
from snzoo.inference.classifier import Classifier, Prediction, Scores
from snzoo.preprocessing import Preprocessing
from snzoo.serve.engine import ServedModel, describe_classifier, to_batch
from snzoo.serve.metrics import Metrics

MAX_WAIT = 0.002  # seconds


class Item(NamedTuple):
    """A photo that waits for a network."""

    pixels: Pixels | Floats
    topk: int
    embeddings: bool
    since: float  # in seconds of the loop's clock
    answer: asyncio.Future[Prediction]


class LocalEngine:
    """Classifiers on one device.

    A network computes as soon as a thread is free. It then takes all photos that wait for it, up
    to ``max_batch``; free threads share them evenly. Of several networks, the one whose photo has
    waited longest comes first.

    Args:
        classifiers: the classifiers by name, all on one device.
        metrics: where the sizes of batches and the times go.
        max_batch: the largest number of photos in a forward pass.
        max_wait: the most seconds that a photo waits for others although a thread is free. It
            waits only while other photos are coming.
        coming: returns the number of photos that are being decoded.
        threads: the number of forward passes at the same time. More than one is for a CPU.
    """

    def __init__(
        self,
        classifiers: Mapping[str, Classifier],
        *,
        metrics: Metrics,
        max_batch: int = 16,
        max_wait: float = MAX_WAIT,
        coming: Callable[[], int] = lambda: 0,
        threads: int = 1,
    ) -> None:
        self.models: dict[str, ServedModel] = {
            name: describe_classifier(name, classifier) for name, classifier in classifiers.items()
        }
        self.ready = False
        self._classifiers = classifiers
        self._max_batch, self._max_wait = max_batch, max_wait
        self._coming = coming
        self._metrics = metrics
        self._waiting: dict[str, deque[Item]] = {name: deque() for name in classifiers}
        self._free = threads
        self._threads = ThreadPoolExecutor(threads, "inference")

    def warm_up(self) -> None:
        """Compute batches of several sizes up to the largest one. The engine is ready then."""
        sizes = {1 << i for i in range(self._max_batch.bit_length())} | {self._max_batch}
        for classifier in self._classifiers.values():
            photo = _black(classifier.spec.preprocessing)
            for size in sorted(sizes):
                self._threads.submit(classifier.score, to_batch([photo] * size)).result()
        self.ready = True

    async def predict(
        self, model: str, pixels: Pixels | Floats, *, topk: int, embeddings: bool
    ) -> Prediction:
        """Classify a photo, see :class:`~snzoo.serve.engine.Engine`."""
        loop = asyncio.get_running_loop()
        item = Item(pixels, topk, embeddings, loop.time(), loop.create_future())
        self._waiting[model].append(item)
        self._send(loop)
        return await item.answer

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start batches while a thread is free and photos wait that need not wait for others."""
        while self._free and (name := self._next_model()):
            queue = self._waiting[name]
            due = queue[0].since + self._max_wait
            if len(queue) < self._max_batch and self._coming() and loop.time() < due:
                loop.call_at(due, self._send, loop)
                return
            share = -(-len(queue) // self._free)
            taken = [queue.popleft() for _ in range(min(share, self._max_batch))]
            items = [item for item in taken if not item.answer.done()]  # the client may have gone
            if items:
                self._start(name, items, loop)

    def _start(self, name: str, items: list[Item], loop: asyncio.AbstractEventLoop) -> None:
        self._free -= 1
        for item in items:
            self._metrics.waiting.observe(loop.time() - item.since)
        task = loop.run_in_executor(self._threads, self._compute, name, items)
        task.add_done_callback(lambda done: self._answer(done, items, loop))

    def _next_model(self) -> str | None:
        """Return the model whose photo has waited longest, or None if no photo waits."""
        waiting = [(queue[0].since, name) for name, queue in self._waiting.items() if queue]
        return min(waiting)[1] if waiting else None

    def _compute(self, name: str, items: Sequence[Item]) -> list[Prediction | SnzooError]:
        """Return the prediction of each photo. This runs in a thread."""
        start = time.perf_counter()
        classifier = self._classifiers[name]
        found = classifier.score(
            to_batch([item.pixels for item in items]),
            topk=max(item.topk for item in items),
            embeddings=any(item.embeddings for item in items),
        )
        scores = Scores(
            found.probabilities.cpu(),
            found.indices.cpu(),
            None if found.embeddings is None else found.embeddings.cpu(),
        )
        self._metrics.batch_sizes.labels(name).observe(len(items))
        self._metrics.inference.observe(time.perf_counter() - start)
        return [_pick(classifier, scores, i, item) for i, item in enumerate(items)]

    def _answer(
        self,
        done: asyncio.Future[list[Prediction | SnzooError]],
        items: Sequence[Item],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._free += 1
        error = done.exception()
        results = [error] * len(items) if error else done.result()
        for item, result in zip(items, results, strict=True):
            if item.answer.done():  # the client has gone
                continue
            if isinstance(result, Prediction):
                item.answer.set_result(result)
            elif result is not None:
                item.answer.set_exception(result)
        self._send(loop)


def _pick(classifier: Classifier, scores: Scores, i: int, item: Item) -> Prediction | SnzooError:
    """Return the prediction of photo i of a batch, or the error that it alone has."""
    rows = slice(i, i + 1)
    mine = Scores(
        scores.probabilities[rows, : item.topk],
        scores.indices[rows, : item.topk],
        scores.embeddings[rows] if item.embeddings and scores.embeddings is not None else None,
    )
    try:
        return next(classifier.describe(mine, [""]))
    except SnzooError as error:
        return error


def _black(preprocessing: Preprocessing) -> Pixels | Floats:
    shape = (preprocessing.crop, preprocessing.crop, 3)
    if pixel_dtype(preprocessing) is np.uint8:
        return np.zeros(shape, np.uint8)
    return np.zeros(shape, np.float32)
