"""Turn a photo into the input tensor of a network."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from snzoo.data.decode import Photo
from snzoo.data.pixels import load_pixels, normalize
from snzoo.errors import ArgumentError, UnexpectedArgumentError
from snzoo.preprocessing import Preprocessing
from snzoo.spec import ModelSpec

Model = str | os.PathLike[str] | ModelSpec | nn.Module


@dataclass(frozen=True, repr=False)
class Transform:
    """A callable that turns a photo into a normalized float32 tensor (3, crop, crop).

    The pixels and the arithmetic are, bit by bit, those of torchvision's ``Resize``,
    ``CenterCrop``, ``ToTensor`` and ``Normalize`` on a PIL image, unless the network has another
    rule of resizing (:class:`~snzoo.preprocessing.Preprocessing`). The tensor has the channel
    order and scale that the network was trained with. The transform can be pickled and serves as
    the ``transform`` of a data set.

    Attributes:
        preprocessing: sizes in pixels, channel order, scale, mean, std and rule of resizing.
        upright: whether photos are turned upright by their EXIF orientation.
    """

    preprocessing: Preprocessing
    upright: bool = True

    def __call__(self, photo: Photo) -> Tensor:
        """Return the tensor (3, crop, crop) of one photo.

        Args:
            photo: a path, the content of an image file (bytes), a PIL image, or an RGB array
                (H, W, 3) of uint8, which has no orientation.

        Raises:
            DataError: the photo cannot be read.
            UnexpectedArgumentError: ``photo`` has another type.
        """
        pixels = torch.tensor(load_pixels(photo, self.preprocessing, upright=self.upright))
        return normalize(pixels.permute(2, 0, 1)[None], self.preprocessing)[0]

    def __repr__(self) -> str:
        names = [field.name for field in fields(self.preprocessing)]
        values = zip(names, astuple(self.preprocessing), strict=True)
        steps = ", ".join(f"{name}={value!r}" for name, value in values)
        return f"Transform({steps}, upright={self.upright})"


def create_transform(
    model: Model | Preprocessing,
    *,
    resize: int | None = None,
    crop: int | None = None,
    upright: bool = True,
) -> Transform:
    """Return the transform from a photo to the input of a network.

    Args:
        model: a network of :func:`snzoo.create_model`, a name that the function accepts, a
            ``ModelSpec``, or a ``Preprocessing``. The weights of a name of the zoo are not loaded.
        resize: shorter side after resizing, in pixels (default: the model's; if only ``crop`` is
            given, the ratio of the two is kept).
        crop: side of the square that is cropped from the center, in pixels (default: the
            model's).
        upright: turn photos upright by their EXIF orientation. The published evaluations and
            ``snzoo eval`` do not turn photos.

    Raises:
        UnknownModelError: no model has this name.
        UnexpectedArgumentError: ``model`` has another type, or does not say what its input is.
        ArgumentError: the network does not take RGB photos.

    >>> create_transform("resnet50v1_bn_msra").preprocessing.channel_order
    'BGR'
    """
    preprocessing = model
    if not isinstance(model, Preprocessing):
        spec = find_spec(model)
        check_takes_photos(spec)
        preprocessing = spec.preprocessing
    assert isinstance(preprocessing, Preprocessing)
    return Transform(preprocessing.replace(resize=resize, crop=crop), upright=upright)


def list_given_models(models: Model | Iterable[Model]) -> list[Model]:
    """Return one or several models as a list."""
    if isinstance(models, (str, os.PathLike, ModelSpec, nn.Module)):
        return [models]
    return list(models)


def find_spec(model: Any) -> ModelSpec:
    """Return the spec of a network or a name; a spec is returned unchanged.

    Raises:
        UnknownModelError: no model has this name.
        UnexpectedArgumentError: ``model`` has another type, or is a network without a spec.
    """
    if isinstance(model, ModelSpec):
        return model
    if isinstance(model, (str, os.PathLike)):
        return ModelSpec.find(model)
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise UnexpectedArgumentError(
            f"expected a network of snzoo.create_model or a name, got {type(model).__name__}, "
            "which does not say what its input and its classes are"
        )
    return spec


def check_takes_photos(spec: ModelSpec) -> None:
    """Check that the input of a network is an RGB image.

    Raises:
        ArgumentError: the input has another number of channels.
    """
    channels = spec.arguments.get("in_chans", 3)
    if channels != 3:
        raise ArgumentError(
            f"{spec.weights or spec.name} takes images of {channels} channels, not photos"
        )
