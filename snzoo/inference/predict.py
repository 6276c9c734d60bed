"""Predict the classes of photos, in batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from snzoo.data import find_images
from snzoo.data.batches import read_batches
from snzoo.data.decode import Photo
from snzoo.data.remote import is_url
from snzoo.data.sources import PhotoList
from snzoo.errors import ArgumentError, SnzooError
from snzoo.inference.classifier import (
    Classifier,
    Prediction,
    Scores,
    check_classifies_photos,
    prepare_network,
)
from snzoo.inference.network import (
    default_batch_size,
    iter_ranked,
    local_cores,
    resize_device,
)
from snzoo.inference.transform import Model, find_spec

OnError = Literal["raise", "skip"] | Callable[[SnzooError], object]


def predict(
    model: Model,
    images: Photo | Iterable[Photo],
    *,
    topk: int = 5,
    embeddings: bool = False,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    workers: int | None = None,
    upright: bool = True,
    on_error: OnError = "raise",
) -> list[Prediction]:
    """Classify photos.

    Args:
        model: a network of :func:`snzoo.create_model`, or a name, folder or checkpoint that the
            function accepts; such a network is loaded with its weights.
        images: one or several of: a path, a folder (the images directly in it), an http(s) URL,
            the content of an image file (bytes), a PIL image, an RGB array (H, W, 3) of uint8.
        topk: number of classes for each photo (at most all).
        embeddings: return the pooled features of each photo too.
        batch_size: number of photos in a batch (default: 16 on a CPU, else 128).
        device: the device for the computation (default: the device of the network; for a name,
            CUDA if available).
        workers: number of threads that decode (default: the number of cores).
        upright: turn photos as their EXIF orientation says.
        on_error: what to do if a photo cannot be read: ``"raise"``, ``"skip"`` (leave it out), or
            a function that is called with the error before the photo is left out.

    Returns:
        A prediction for each photo, in the order of the photos. The mode and the device of the
        network are restored.

    Raises:
        DataError, DownloadError: a photo cannot be read.
        UnknownModelError, CheckpointError, ChecksumError: see :func:`snzoo.create_model`.
        UnexpectedArgumentError: the network does not say what its classes are.
        ArgumentError: an option has a wrong value, or the network is not a classifier of photos.
        DeviceError: the device cannot be used, or its memory is too small.
        NonFiniteError: the network returns logits that are not finite.

    >>> predict("resnet18v1_sn_clothing", "photo.jpg")[0].names[0]  # doctest: +SKIP
    'T-shirt'
    """
    return list(
        iter_predictions(
            model,
            images,
            topk=topk,
            embeddings=embeddings,
            batch_size=batch_size,
            device=device,
            workers=workers,
            upright=upright,
            on_error=on_error,
        )
    )


def iter_predictions(
    model: Model,
    images: Photo | Iterable[Photo],
    *,
    topk: int = 5,
    embeddings: bool = False,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    workers: int | None = None,
    upright: bool = True,
    on_error: OnError = "raise",
) -> Iterator[Prediction]:
    """Yield the predictions of :func:`predict` batch by batch, with the same arguments.

    The mode and the device of the network are restored when the iterator ends or is closed.
    """
    for name, value in (("topk", topk), ("batch_size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise ArgumentError(f"{name} must be a whole number from 1, got {value!r}")
    if not callable(on_error) and on_error not in ("raise", "skip"):
        raise ArgumentError(f"on_error must be 'raise', 'skip' or a function, got {on_error!r}")
    photos = PhotoList(list_photos(images))
    spec = find_spec(model)
    check_classifies_photos(spec, model)
    with prepare_network(model, spec, device) as network:
        classifier = Classifier(spec, network)

        def score(pixels: Tensor) -> list[Scores]:
            return [classifier.score(pixels, topk=topk, embeddings=embeddings)]

        batches = read_batches(
            photos,
            spec.preprocessing,
            batch_size=batch_size or default_batch_size(network.device),
            workers=workers or local_cores(),
            resize_on=resize_device(network.device),
            upright=upright,
        )
        for batch, scored in iter_ranked(batches, score):
            sources = map(photos.locate, batch.indices)
            predictions = classifier.describe(scored[0], list(sources)) if scored else iter(())
            for i in sorted({*batch.indices, *batch.errors}):
                if i not in batch.errors:
                    yield next(predictions)
                elif on_error == "raise":
                    raise batch.errors[i]
                elif callable(on_error):
                    on_error(batch.errors[i])


def list_photos(images: Photo | Iterable[Photo]) -> list[Photo]:
    """Return photos one by one: folders are replaced by the images directly in them.

    Raises:
        DataError: a folder has no image.
        ArgumentError: a name is empty.
    """
    single = isinstance(images, (str, bytes, os.PathLike, Image.Image, np.ndarray))
    items: list[Any] = [images] if single else list(images)  # type: ignore[arg-type]
    photos: list[Photo] = []
    for item in items:
        if isinstance(item, str) and not item:
            raise ArgumentError("one of the names is empty; name a file, a folder or a URL")
        if isinstance(item, os.PathLike) or (isinstance(item, str) and not is_url(item)):
            photos += find_images(Path(item))
        else:
            photos.append(item)
    return photos
