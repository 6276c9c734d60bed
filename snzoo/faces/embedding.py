"""Embed photos of faces, and compare embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from snzoo.data.batches import read_batches
from snzoo.data.decode import Photo
from snzoo.data.sources import PhotoList, Photos
from snzoo.errors import ArgumentError, NonFiniteError
from snzoo.inference.classifier import prepare_network
from snzoo.inference.network import Network, local_cores, resize_device
from snzoo.inference.predict import list_photos
from snzoo.inference.transform import Model, check_takes_photos, find_spec
from snzoo.spec import ModelSpec

Embeddings = NDArray[np.float32]  # (M, D), rows of length 1


def embed(
    model: Model,
    photos: Photo | Iterable[Photo],
    *,
    batch_size: int = 32,
    flip: bool = True,
    device: str | torch.device | None = None,
    workers: int | None = None,
    upright: bool = True,
) -> Embeddings:
    """Return the embeddings of aligned photos of faces.

    Args:
        model: a network of :func:`snzoo.create_model`, or a name, folder or checkpoint that the
            function accepts; such a network is loaded with its weights.
        photos: one or several of: a path, a folder (the images in it and below it, sorted), an
            http(s) URL, the content of an image file (bytes), a PIL image, an RGB array (H, W, 3)
            of uint8. They show aligned faces, see :func:`snzoo.faces.align`.
        batch_size: number of photos in a batch.
        flip: add the embedding of the mirrored photo, as in the published evaluations.
        device: the device for the computation (default: the device of the network; for a name,
            CUDA if available).
        workers: number of threads that decode (default: the number of cores).
        upright: turn photos as their EXIF orientation says.

    Returns:
        A float32 array (M, D) of M photos in their order, with rows of length 1. D is 512 for the
        face networks of the zoo. The mode and the device of the network are restored.

    Raises:
        DataError, DownloadError: a photo cannot be read; the message names the first one.
        UnknownModelError, CheckpointError, ChecksumError: see :func:`snzoo.create_model`.
        UnexpectedArgumentError: the network does not say what its input is.
        ArgumentError: an option has a wrong value, there are no photos, or the network is a
            classifier or does not take RGB photos.
        DeviceError: the device cannot be used, or its memory is too small.
        NonFiniteError: the network returns embeddings that are not finite.

    >>> left, right = embed("face_resnet50_sn", ["left.png", "right.png"])  # doctest: +SKIP
    >>> similarity(left, right)  # doctest: +SKIP
    """
    listed = PhotoList(list_photos(photos))
    if not len(listed):
        raise ArgumentError("there are no photos to embed")
    spec = find_spec(model)
    check_embeds(spec, model)
    with prepare_network(model, spec, device) as network:
        batches = iter_embeddings(
            network, listed, batch_size=batch_size, flip=flip, workers=workers, upright=upright
        )
        return np.concatenate(list(batches))


def check_embeds(spec: ModelSpec, model: object = None) -> None:
    """Check that the network that ``spec`` describes returns embeddings of RGB images.

    Raises:
        ArgumentError: the network is a classifier, or takes other images.
    """
    check_takes_photos(spec)
    if getattr(model, "num_classes", spec.num_classes):
        raise ArgumentError(f"{spec.name} is a classifier; face networks return embeddings")


def iter_embeddings(
    network: Network,
    photos: Photos,
    *,
    batch_size: int = 32,
    flip: bool = True,
    workers: int | None = None,
    upright: bool = False,
    numbers: Sequence[int] | None = None,
) -> Iterator[Embeddings]:
    """Yield the embeddings of :func:`embed` batch by batch.

    Args:
        network: a network whose outputs (N, D) are embeddings.
        photos: anything with ``__len__``, ``read`` and ``locate``, see
            :func:`~snzoo.data.batches.read_batches`.
        batch_size, flip, workers: see :func:`embed`.
        upright: see :func:`embed`. Evaluations do not turn photos.
        numbers: the numbers of the batches (default: all).

    Raises:
        DataError, DownloadError, ArgumentError, DeviceError, NonFiniteError: see :func:`embed`.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise ArgumentError(f"{name} must be a whole number from 1, got {value!r}")
    batches = read_batches(
        photos,
        network.preprocessing,
        batch_size=batch_size,
        workers=workers or local_cores(),
        numbers=numbers,
        resize_on=resize_device(network.device),
        upright=upright,
    )
    for batch in batches:
        if batch.errors:
            raise batch.errors[min(batch.errors)]
        rows = _embed_pixels(network, batch.pixels, flip=flip)
        if not rows.isfinite().all():
            raise NonFiniteError(
                f"the embeddings of {network.name} are not finite; are these its weights?"
            )
        yield rows.cpu().numpy()


def _embed_pixels(network: Network, pixels: Tensor, *, flip: bool) -> Tensor:
    rows = network.predict_logits(pixels)
    if flip:
        rows = rows + network.predict_logits(pixels.flip(3))
    return F.normalize(rows)


def similarity(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Return the cosine of the angle between embeddings, from -1 to 1.

    Args:
        a, b: embeddings (…, D) of any length but 0. Their leading dimensions broadcast: rows of
            two matrices (M, D) are compared pairwise, and ``similarity(a[:, None], b)`` compares
            all rows of one with all rows of the other.

    Returns:
        A float64 array of the leading dimensions.

    Raises:
        ArgumentError: the shapes do not fit, or an embedding is zero or not finite.

    >>> float(similarity([3, 4], [4, 3]))
    0.96
    """
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    try:
        if first.shape[-1:] != second.shape[-1:]:  # einsum would repeat a single number
            raise ValueError
        products = np.einsum("...d,...d->...", first, second)
    except ValueError:
        raise ArgumentError(
            f"embeddings of the shapes {first.shape} and {second.shape} cannot be compared"
        ) from None
    lengths = [np.linalg.norm(rows, axis=-1) for rows in (first, second)]
    if not all(np.isfinite(norm).all() and norm.all() for norm in lengths):
        raise ArgumentError("an embedding is zero or not finite, so it has no direction")
    cosines: NDArray[np.float64] = np.clip(products / (lengths[0] * lengths[1]), -1, 1)
    return cosines
