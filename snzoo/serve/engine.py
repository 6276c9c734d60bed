"""What the HTTP application needs of the networks behind it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from snzoo.data.decode import Pixels
from snzoo.data.loops import Floats
from snzoo.errors import ArgumentError
from snzoo.gates import read_gates
from snzoo.inference.classifier import Classifier, Prediction, load_classifier
from snzoo.inference.computation import check_names
from snzoo.manifest import load_demo
from snzoo.models.architectures import SWITCH_NORMS
from snzoo.preprocessing import Preprocessing
from snzoo.serve.types import GateShares, ModelInfo
from snzoo.spec import ModelSpec


@dataclass(frozen=True)
class ServedModel:
    """A model as the application knows it: its description, and how its photos are prepared."""

    info: ModelInfo
    preprocessing: Preprocessing


class Engine(Protocol):
    """Networks that classify pixels. The application calls it from one event loop.

    :class:`~snzoo.serve.batching.LocalEngine` computes in this process.
    """

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """The models by name, in the order in which they answer."""

    @property
    def ready(self) -> bool:
        """Whether the networks are loaded and warm."""

    async def predict(
        self, model: str, pixels: Pixels | Floats, *, topk: int, embeddings: bool
    ) -> Prediction:
        """Classify a photo.

        If the caller is cancelled, work that has not begun is dropped.

        Args:
            model: a name of ``models``.
            pixels: RGB (H, W, 3) of :func:`~snzoo.data.pixels.load_pixels`.
            topk: number of classes (at most all).
            embeddings: return the embedding too.

        Raises:
            QueueFullError: too much work waits already.
            SnzooError: the photo cannot be classified.
        """


def load_classifiers(
    models: Sequence[str] = (),
    *,
    weights: str | os.PathLike[str] | None = None,
    device: str | None = None,
) -> dict[str, Classifier]:
    """Return classifiers with their weights, by the names under which they are served.

    A model of the zoo is served under its name, and a folder, a file or a repository under the
    last part of its path.

    Args:
        models: names, folders, checkpoints or repositories (default: the demo network).
        weights: a checkpoint to load instead of the zoo's weights, for a single model.
        device: see :func:`~snzoo.inference.classifier.load_classifier`.

    Raises:
        ArgumentError: two models have the same name, or ``weights`` are for several models.
        SnzooError: see :func:`~snzoo.inference.classifier.load_classifier`.
    """
    if weights and len(models) > 1:
        raise ArgumentError("weights are for one model; name the other checkpoints as models")
    names: list[str | None] = list(models) or [None if weights else load_demo().model]
    path = None if weights is None else os.fspath(weights)
    specs = [ModelSpec.find(name, weights=path) for name in names]
    check_names(specs)
    return {spec.called: load_classifier(spec, device=device) for spec in specs}


def describe_classifier(name: str, classifier: Classifier) -> ServedModel:
    """Return the description of a loaded model that is served under ``name``."""
    spec, model = classifier.spec, classifier.network.model
    gates = None
    if spec.network.norm in SWITCH_NORMS:
        gates = [
            GateShares(
                layer=gate.name, stats=list(gate.stats), mean=list(gate.mean), var=list(gate.var)
            )
            for gate in read_gates(model.state_dict(), where=name)
        ]
    info = ModelInfo(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        classes=model.num_classes,
        input=spec.preprocessing.crop,
        license=spec.license,
        gates=gates,
    )
    return ServedModel(info, spec.preprocessing)


def to_batch(pixels: Sequence[Pixels | Floats]) -> torch.Tensor:
    """Return the pixels (H, W, 3) of n photos as a tensor (n, 3, H, W), as networks take it."""
    return torch.stack([torch.from_numpy(photo) for photo in pixels]).permute(0, 3, 1, 2)
