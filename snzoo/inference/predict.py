"""Predict the classes of photos, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from snzoo.data import find_images
from snzoo.data.decode import Photo
from snzoo.data.inputs import is_path, list_items
from snzoo.inference.classifier import Prediction
from snzoo.inference.outcomes import OnError, PredictionOptions, iter_outcomes
from snzoo.inference.transform import Model


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
        images: one or several of: a path, a folder (the images in it and below it), an http(s) URL,
            a tar, a zip, a parquet file or a list, the content of an image file (bytes), a PIL
            image, an RGB array (H, W, 3) of uint8. :func:`~snzoo.data.inputs.iter_chunks` has all
            forms.
        topk: number of classes for each photo (at most all).
        embeddings: return the pooled features of each photo too.
        batch_size: number of photos in a batch (default: 16 on a CPU, else 128).
        device: the device for the computation (default: the device of the network; for a name,
            CUDA if available).
        workers: number of threads that decode (default: the number of cores).
        upright: turn photos as their EXIF orientation says.
        on_error: what to do if a photo, or an archive or a folder of photos, cannot be read:
            ``"raise"``, ``"skip"`` (leave it out), or a function that is called with the error
            before the photo is left out.

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
    options = PredictionOptions(topk, embeddings, batch_size, workers, upright, on_error)
    for outcome in iter_outcomes(model, images, device=device, options=options):
        yield from outcome.predictions


def list_photos(images: Photo | Iterable[Photo]) -> list[Photo]:
    """Return photos one by one: folders are replaced by the images in them and below them.

    Raises:
        DataError: a folder has no image.
        ArgumentError: a name is empty.
    """
    photos: list[Photo] = []
    for item in list_items(images):
        photos += find_images(Path(item), recursive=True) if is_path(item) else [item]
    return photos
