"""Classify photos by several networks, in one pass over the photos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from snzoo.data.batches import read_batches
from snzoo.data.decode import Photo
from snzoo.data.inputs import Chunk, iter_chunks
from snzoo.errors import ArgumentError, SnzooError
from snzoo.inference.classifier import (
    Classifier,
    Prediction,
    Scores,
    check_classifies_photos,
    prepare_network,
)
from snzoo.inference.computation import choose_shared_device, find_shared_preprocessing
from snzoo.inference.network import default_batch_size, iter_ranked, local_cores, resize_device
from snzoo.inference.transform import Model, find_spec, list_given_models

BATCHES = 64  # batches in a chunk, which is the unit of resuming
OnError = Literal["raise", "skip"] | Callable[[SnzooError], object]


@dataclass(frozen=True)
class PredictionOptions:
    """The options of a prediction.

    Attributes:
        topk: number of classes for each photo (at most all).
        embeddings: return the pooled features of each photo too.
        batch_size: number of photos in a batch (default: 16 on a CPU, else 128).
        workers: number of threads that decode (default: the number of cores).
        upright: turn photos as their EXIF orientation says.
        on_error: what to do if a photo cannot be read: ``"raise"``, ``"skip"`` (go on), or a
            function that is called with the error.

    Raises:
        ArgumentError: an option has a wrong value.
    """

    topk: int = 5
    embeddings: bool = False
    batch_size: int | None = None
    workers: int | None = None
    upright: bool = True
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        for name in ("topk", "batch_size", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"{name} must be a whole number from 1, got {value!r}")
        if not callable(self.on_error) and self.on_error not in ("raise", "skip"):
            raise ArgumentError(
                f"on_error must be 'raise', 'skip' or a function, got {self.on_error!r}"
            )

    def handle(self, error: SnzooError) -> None:
        """Deal with the error of a photo as ``on_error`` says."""
        if self.on_error == "raise":
            raise error
        if callable(self.on_error):
            self.on_error(error)


@dataclass(frozen=True)
class Outcome:
    """What became of a photo.

    Attributes:
        source: the path or URL of the photo, or ``image N`` for the N-th one in memory.
        predictions: the prediction of each network, in their order; none if the photo could not be
            read.
        error: the reason why the photo could not be read, or None.
    """

    source: str
    predictions: tuple[Prediction, ...]
    error: SnzooError | None = None


def iter_outcomes(
    models: Model | Sequence[Model],
    inputs: Photo | Iterable[Photo],
    *,
    device: str | torch.device | None = None,
    options: PredictionOptions,
) -> Iterator[Outcome]:
    """Yield what became of each photo, in their order.

    Args:
        models: one or several models, which take pixels of the same size; see
            :func:`snzoo.predict`.
        inputs: see :func:`~snzoo.data.inputs.iter_chunks`.
        device: the device for the computation (default: the device of the first network; for
            names, CUDA if available).
        options: the options.

    Raises:
        ArgumentError: the networks take pixels of different sizes, or a network is not a
            classifier of photos.
        DataError, DownloadError: a photo cannot be read, if ``options`` say so.
        UnknownModelError, CheckpointError, DeviceError, NonFiniteError: see :func:`snzoo.predict`.
    """
    with open_classifiers(models, device) as classifiers:
        for chunk in iter_chunks(inputs, count_photos(classifiers, options)):
            yield from classify(classifiers, chunk, options)


@contextmanager
def open_classifiers(
    models: Model | Sequence[Model], device: str | torch.device | None = None
) -> Iterator[list[Classifier]]:
    """Yield the classifiers of models; restore the modes and devices of given networks.

    Raises:
        ArgumentError: see :func:`iter_outcomes`.
    """
    models = list_given_models(models)
    if not models:
        raise ArgumentError("name at least one model")
    specs = [find_spec(model) for model in models]
    for spec, model in zip(specs, models, strict=True):
        check_classifies_photos(spec, model)
    shared = choose_shared_device(device, models)
    with ExitStack() as stack:
        classifiers = [
            Classifier(spec, stack.enter_context(prepare_network(model, spec, shared)))
            for spec, model in zip(specs, models, strict=True)
        ]
        find_shared_preprocessing([classifier.network for classifier in classifiers])
        yield classifiers


def count_photos(classifiers: Sequence[Classifier], options: PredictionOptions) -> int:
    """Return the number of photos in a chunk, which the batch size alone determines."""
    device = classifiers[0].network.device
    return BATCHES * (options.batch_size or default_batch_size(device))


def classify(
    classifiers: Sequence[Classifier], chunk: Chunk, options: PredictionOptions
) -> Iterator[Outcome]:
    """Yield what became of each photo of a chunk, in their order.

    Raises:
        DataError, DownloadError, DeviceError, NonFiniteError: see :func:`iter_outcomes`.
    """
    network = classifiers[0].network

    def score(pixels: Tensor) -> list[Scores]:
        return [
            classifier.score(pixels, topk=options.topk, embeddings=options.embeddings)
            for classifier in classifiers
        ]

    batches = read_batches(
        chunk,
        network.preprocessing,
        batch_size=options.batch_size or default_batch_size(network.device),
        workers=options.workers or local_cores(),
        expected=chunk.start + len(chunk),
        resize_on=resize_device(network.device),
        upright=options.upright,
    )
    for batch, scored in iter_ranked(batches, score):
        sources = [chunk.locate(i) for i in batch.indices]
        described = (
            classifier.describe(scores, sources)
            for classifier, scores in zip(classifiers, scored, strict=bool(scored))
        )
        predictions = zip(*described, strict=True)
        for i in sorted({*batch.indices, *batch.errors}):
            if i in batch.errors:
                options.handle(batch.errors[i])
                yield Outcome(chunk.locate(i), (), batch.errors[i])
            else:
                of_photo = next(predictions)
                yield Outcome(of_photo[0].source, of_photo)
