"""A face network with the head of its loss, as it is trained."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from snzoo.errors import ArgumentError
from snzoo.faces.heads import ArcFace, CosFace, MarginHead
from snzoo.models.architectures import Architecture
from snzoo.models.build import AnyResNet
from snzoo.models.face_resnet import SIDE, FaceResNet
from snzoo.recipes import Recipe


class FaceClassifier(nn.Module):
    """A face network and a head: images (N, 3, 112, 112) and labels (N,) to logits (N, classes).

    Args:
        network: The network, whose outputs are embeddings.
        head: The head.
    """

    def __init__(self, network: FaceResNet, head: MarginHead) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the logits, with the margin on those of ``labels``."""
        logits: Tensor = self.head(self.network(x), labels)
        return logits


def network_of(model: nn.Module) -> Any:
    """Return the network that a :class:`FaceClassifier` holds, or ``model`` if it is none."""
    return model.network if isinstance(model, FaceClassifier) else model


def add_head(model: AnyResNet, recipe: Recipe, classes: int) -> AnyResNet | FaceClassifier:
    """Return the network with the head that the recipe names, or as it is with ``linear``."""
    if recipe.head == "linear":
        return model
    assert isinstance(model, FaceResNet)
    options: dict[str, Any] = {"scale": recipe.head_scale, "margin": recipe.head_margin}
    sizes = model.embedding_size, classes
    if recipe.head == "cosface":
        return FaceClassifier(model, CosFace(*sizes, **options))
    published = recipe.head == "arcface_published"
    return FaceClassifier(model, ArcFace(*sizes, published=published, **options))


def check_head(architecture: Architecture, recipe: Recipe) -> None:
    """Raise an error if the head of a recipe, or another value, does not fit the network.

    Raises:
        ArgumentError: the message names the value.
    """
    name = architecture.name
    if architecture.is_face == (recipe.head == "linear"):
        fits = "arcface, cosface or arcface_published" if architecture.is_face else "linear"
        raise ArgumentError(f"head {recipe.head} does not fit {name}; it takes {fits}")
    if not architecture.is_face:
        return
    if recipe.crop != SIDE:
        raise ArgumentError(f"crop must be {SIDE}, the input of {name}, got {recipe.crop}")
    if recipe.mixup:
        raise ArgumentError("mixup mixes two labels, but a margin is for one; leave it out")
    if not recipe.drop_last:
        raise ArgumentError(
            "drop_last must be true: the last batch may have one image only, "
            f"which the last norm of {name} can't normalize"
        )
