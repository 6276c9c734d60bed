"""Heads that train face networks: logits are scaled cosines, with a margin on the label's class."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from snzoo.errors import ArgumentError, suggest


class Margin(NamedTuple):
    """What a head does to the cosine of a label; see :func:`add_margin`."""

    angular: float = 0.0  # is added to the angle, in radians
    additive: float = 0.0  # is subtracted from the cosine
    threshold: float = -math.inf  # cosines up to it get the penalty instead of the angular margin
    penalty: float = 0.0  # is subtracted from the cosine


def add_margin(cosine: Tensor, labels: Tensor, margin: Margin) -> Tensor:
    """Return cosines (N, classes) with a margin on the class of each row's label.

    There, cos θ becomes cos(θ + angular) - additive where cos θ > threshold, and
    cos θ - penalty - additive elsewhere. A row whose label is negative keeps its cosines.

    Values and gradients are finite for every cosine, also where rounding puts one above 1. The
    derivative of sin θ by cos θ has no bound near the ends; at the ends and beyond, it is 0.

    Half precision is widened to float32: near cos²θ = 1, bfloat16 rounds by up to 1/512, which
    is a tenth of 1 - cos²θ at θ = 8°.
    """
    cosine = cosine.to(torch.promote_types(cosine.dtype, torch.float32))
    index = labels.clamp_min(0)[:, None]
    target = cosine.gather(1, index)
    sine = (1 - target * target).clamp_min(torch.finfo(target.dtype).tiny).sqrt()
    moved = target * math.cos(margin.angular) - sine * math.sin(margin.angular)
    moved = torch.where(target > margin.threshold, moved, target - margin.penalty) - margin.additive
    moved = torch.where(labels[:, None] >= 0, moved, target)
    return cosine.scatter(1, index, moved)


class MarginHead(nn.Module):
    """The base of the heads; :class:`ArcFace` describes the arguments."""

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        scale: float,
        margin: Margin,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if features < 1 or classes < 1:
            raise ArgumentError(
                f"features and classes must be at least 1, got {features} and {classes}"
            )
        if not 0 < scale < math.inf:
            raise ArgumentError(f"scale must be a positive number, got {scale}")
        self.features, self.classes = features, classes
        self.scale, self.margin = scale, margin
        self.weight = nn.Parameter(torch.empty(classes, features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the class centers from U(-1/√features, 1/√features), as published."""
        bound = self.features**-0.5
        nn.init.uniform_(self.weight, -bound, bound, generator=generator)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (N, classes), to be given to the cross entropy.

        Raises:
            ArgumentError: a shape or dtype is wrong, or a label on the CPU is out of range.
        """
        check_batch(embeddings, labels, features=self.features, classes=self.classes)
        return self.compute_logits(embeddings, self.weight, labels)

    def compute_logits(self, embeddings: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Return the logits (N, K) of the classes whose centers are the rows of ``weight``."""
        cosine = F.linear(normalize(embeddings, weight.dtype), normalize(weight, weight.dtype))
        return add_margin(cosine, labels, self.margin) * self.scale

    def extra_repr(self) -> str:
        return f"{self.features}, {self.classes}, scale={self.scale:g}, margin={self.margin}"


class ArcFace(MarginHead):
    """ArcFace: the logit of a label is scale · cos(θ + margin) (Deng et al., arXiv 1801.07698).

    θ is the angle between an embedding and the center of its class, and the logits of the other
    classes are scale · cos θ. Train with ``cross_entropy(head(embeddings, labels), labels)``.
    ``weight`` (classes, features) has a class center in each row.

    The head normalizes embeddings and centers, so only their directions count; embeddings that
    are normalized already stay as they are. The product of the two follows autocast. Everything
    after it, and the logits, are float32, or float64 if the weight is, see :func:`add_margin`.

    Beyond θ = π - margin, cos(θ + margin) rises again, and its gradient would turn an embedding
    away from its class. ``fallback`` says what takes its place there.

    Args:
        features: Length of an embedding.
        classes: Number of classes.
        scale: Factor of the cosines, s.
        margin: Angular margin m in radians, from 0 to π/2.
        fallback: ``"linear"``: cos θ - m·sin m, so that the logit falls over all angles.
            ``"easy"``: the margin is for θ < π/2 only, and cos θ is left alone elsewhere.
            ``"none"``: cos(θ + m) for all angles.
        published: Whether the head has the threshold of the published code of SN, which compares
            scale · cos θ with cos(π - m). With the defaults, ``"linear"`` then begins at
            θ = 90.8° instead of 151.4°, and the logit rises by 15.2 there.
        device: Device of the weight.
        dtype: Dtype of the weight.

    Raises:
        ArgumentError: an argument is out of range.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        scale: float = 64.0,
        margin: float = 0.5,
        fallback: str = "linear",
        published: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 <= margin <= math.pi / 2:
            raise ArgumentError(f"margin must be from 0 to π/2 radians, got {margin}")
        fallbacks = {
            "linear": (-math.cos(margin), margin * math.sin(margin)),
            "easy": (0.0, 0.0),
            "none": (-math.inf, 0.0),
        }
        if fallback not in fallbacks:
            raise ArgumentError(f"unknown fallback {fallback!r}; {suggest(fallback, fallbacks)}")
        threshold, penalty = fallbacks[fallback]
        if published:
            threshold /= scale
        options = Margin(angular=margin, threshold=threshold, penalty=penalty)
        super().__init__(features, classes, scale=scale, margin=options, device=device, dtype=dtype)


class CosFace(MarginHead):
    """CosFace: the logit of a label is scale · (cos θ - margin) (Wang et al., arXiv 1801.09414).

    All else is as in :class:`ArcFace`.

    Args:
        features: Length of an embedding.
        classes: Number of classes.
        scale: Factor of the cosines, s.
        margin: Margin m that is subtracted from the cosine, at least 0.
        device: Device of the weight.
        dtype: Dtype of the weight.

    Raises:
        ArgumentError: an argument is out of range.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        scale: float = 64.0,
        margin: float = 0.4,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0 <= margin < math.inf:
            raise ArgumentError(f"margin must be a number of at least 0, got {margin}")
        options = Margin(additive=margin)
        super().__init__(features, classes, scale=scale, margin=options, device=device, dtype=dtype)


def normalize(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rows of L2 norm 1 in ``dtype``; squares would overflow in float16."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32))).to(dtype)


def check_batch(embeddings: Tensor, labels: Tensor, *, features: int, classes: int) -> None:
    """Raise ArgumentError for embeddings or labels that do not fit a head.

    The values of labels are checked on the CPU only: elsewhere, each step would wait for them.
    """
    if embeddings.shape[1:] != (features,) or not embeddings.is_floating_point():
        raise ArgumentError(
            f"embeddings must be floating-point numbers of shape (N, {features}), "
            f"got {embeddings.dtype} {tuple(embeddings.shape)}"
        )
    if labels.shape != embeddings.shape[:1] or labels.dtype != torch.int64:
        raise ArgumentError(
            f"labels must be torch.int64 of shape ({len(embeddings)},), "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or not len(labels):
        return
    low, high = (int(bound) for bound in labels.aminmax())
    if low < 0 or high >= classes:
        raise ArgumentError(
            f"labels must be from 0 to {classes - 1}, got {low if low < 0 else high}: "
            "number the classes from 0, or make a head with more classes"
        )
