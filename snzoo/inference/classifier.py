"""A network that classifies photos: from a photo to its pixels, from pixels to named classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snzoo.data.imagenet import names_of
from snzoo.errors import ArgumentError
from snzoo.inference.network import Network, check_finite, choose_device, rank_classes
from snzoo.inference.transform import Model, check_takes_photos, find_spec
from snzoo.spec import ModelSpec


@dataclass(frozen=True)
class Prediction:
    """The k most probable classes of a photo, most probable first.

    Attributes:
        source: the path or URL of the photo, or ``image N`` for the N-th one in memory.
        names: the names of the classes.
        indices: the indices of the classes in the logits.
        probabilities: the softmax of the logits of the classes.
        embedding: the pooled last map (D,) in float32, the input of the network's last layer, or
            None if it was not asked for.
    """

    source: str
    names: tuple[str, ...]
    indices: tuple[int, ...]
    probabilities: tuple[float, ...]
    embedding: NDArray[np.float32] | None = field(default=None, compare=False)


class Scores(NamedTuple):
    """The k most probable classes of n photos, (n, k) each, and embeddings (n, D) or None."""

    probabilities: Tensor
    indices: Tensor
    embeddings: Tensor | None


class Classifier:
    """A network that classifies photos, with the names of its classes.

    Args:
        spec: the description of the network.
        network: the network, on its device.

    Raises:
        ArgumentError: the network is not a classifier of photos.
    """

    def __init__(self, spec: ModelSpec, network: Network) -> None:
        check_classifies_photos(spec, network.model)
        self.spec = spec
        self.network = network
        self.names: Sequence[str] = names_of(spec.classes)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def num_classes(self) -> int:
        return getattr(self.network.model, "num_classes", 0) or self.spec.num_classes

    def score(self, pixels: Tensor, *, topk: int = 5, embeddings: bool = False) -> Scores:
        """Return the most probable classes of RGB pixels (N, 3, H, W), on the network's device.

        Args:
            pixels: see :meth:`~snzoo.inference.network.Network.predict_logits`.
            topk: number of classes for each photo (at most all).
            embeddings: return embeddings too.

        Raises:
            DeviceError: see :meth:`~snzoo.inference.network.Network.predict_logits`.
            ArgumentError: the network has no embeddings, or not one logit for each class.
        """
        found: Tensor | None = None
        if embeddings:
            logits, found = self.network.predict_embeddings(pixels)
        else:
            logits = self.network.predict_logits(pixels)
        if self.names and logits.shape[1] != len(self.names):
            raise ArgumentError(
                f"{self.name} returns {logits.shape[1]} logits for {len(self.names)} classes; "
                "create it with num_classes, or call reset_classifier"
            )
        return Scores(*rank_classes(logits, topk), found)

    def describe(self, scores: Scores, sources: Sequence[str]) -> Iterator[Prediction]:
        """Yield the prediction of each photo.

        Args:
            scores: the scores of n photos, on the CPU.
            sources: the names of the n photos.

        Raises:
            NonFiniteError: the network returned logits that are not finite.
        """
        check_finite(scores.probabilities, self.name)
        found = [None] * len(sources) if scores.embeddings is None else scores.embeddings.numpy()
        rows = zip(
            sources, scores.probabilities.tolist(), scores.indices.tolist(), found, strict=True
        )
        for source, probabilities, indices, embedding in rows:
            names = (self.names[i] if self.names else f"class {i}" for i in indices)
            yield Prediction(source, tuple(names), tuple(indices), tuple(probabilities), embedding)


def check_classifies_photos(spec: ModelSpec, model: object = None) -> None:
    """Check that the network that ``spec`` describes has classes and takes RGB images.

    Raises:
        ArgumentError: the network has no classes, or takes other images.
    """
    if not getattr(model, "num_classes", spec.num_classes):
        name = spec.weights or spec.name
        kind = (
            "a face network, which returns embeddings"
            if spec.is_face
            else "a backbone without a classifier"
        )
        raise ArgumentError(f"{name} has no classes: it is {kind}")
    check_takes_photos(spec)


def load_classifier(
    model: Model, *, device: str | torch.device | None = None, **options: Any
) -> Classifier:
    """Return the classifier of a name, a folder, a checkpoint or a spec, with its weights.

    Args:
        model: see :func:`snzoo.predict`. A network is moved to the device.
        device: the device for the computation (default: CUDA if available).
        options: the other options of :class:`~snzoo.inference.network.Network`.

    Raises:
        UnknownModelError, CheckpointError, ChecksumError: see :func:`snzoo.create_model`.
        ArgumentError: the network is not a classifier of photos.
        DeviceError: the device cannot be used.
    """
    spec = find_spec(model)
    check_classifies_photos(spec, model)
    there = choose_device(None if device is None else str(device))
    loaded = model if isinstance(model, nn.Module) else spec.load()
    return Classifier(
        spec, Network(loaded, spec.preprocessing, name=spec.name, device=there, **options)
    )


@contextmanager
def prepare_network(
    model: Model, spec: ModelSpec, device: str | torch.device | None
) -> Iterator[Network]:
    """Yield the network, loaded by its name; restore the mode and device of a given network."""
    if isinstance(model, nn.Module):
        with borrow(model, device) as there:
            yield Network(model, spec.preprocessing, name=spec.name, device=there)
    else:
        there = torch.device(choose_device(None if device is None else str(device)))
        yield Network(spec.load(), spec.preprocessing, name=spec.name, device=there)


@contextmanager
def borrow(model: nn.Module, device: str | torch.device | None = None) -> Iterator[torch.device]:
    """Yield the device to use; at the end, restore the network's mode, device and memory format.

    Args:
        device: the device to use (default: the device of the first parameter).
    """
    modes = {module: module.training for module in model.modules()}
    strides = {parameter: parameter.stride() for parameter in model.parameters()}
    first = next(model.parameters(), torch.empty(0))
    home = first.device
    there = home if device is None else torch.device(choose_device(str(device)))
    try:
        yield there
    finally:
        for module, training in modes.items():
            module.training = training
        if there != home:
            model.to(home)
        for parameter, stride in strides.items():
            if parameter.stride() != stride:  # it was changed to channels-last
                like = parameter.data
                parameter.data = like.new_empty_strided(like.shape, stride).copy_(like)
