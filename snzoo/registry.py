"""List models, return what is known of a model, and create networks."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack, overload

from snzoo.errors import ArgumentError, UnexpectedArgumentError, UnknownModelError
from snzoo.models.architectures import ARCHITECTURES, NORMS, NetworkOptions
from snzoo.spec import ModelSpec, describe_unknown, zoo_names

if TYPE_CHECKING:
    from snzoo.models.build import AnyResNet
    from snzoo.models.features import FeatureExtractor


def list_models(
    filter: str | Sequence[str] = "*",
    *,
    exclude_filters: str | Sequence[str] = (),
    norm: str | None = None,
    pretrained: bool = False,
) -> list[str]:
    """Return the names of models.

    The models of the manifest come first, in its order, and then the bare architectures.

    Args:
        filter: One or several shell wildcards, e.g. ``resnet50*_sn_*``, or ``face_*`` for the face
            networks. A name must match one of them; default: all names.
        exclude_filters: One or several wildcards. A name must match none of them; default: none.
        norm: The norm of the models, ``sn``, ``ssn`` (sparse SN), ``syncsn`` (synchronized SN),
            ``bn`` or ``gn``; default: any.
        pretrained: Whether to return only models with published weights; default: False.

    Raises:
        ManifestError: the manifest cannot be read.
        ArgumentError: there is no such norm.

    >>> list_models("resnet101*", pretrained=True)
    ['resnet101v2_sn_8x32', 'resnet101v1_sn_8x32']
    """
    if norm is not None and norm not in NORMS:
        raise ArgumentError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")

    def fits(name: str) -> bool:
        if not _matches(name, filter) or _matches(name, exclude_filters):
            return False
        if not norm and not pretrained:
            return True
        spec = get_info(name)
        if pretrained and spec.file is None:
            return False
        architecture = ARCHITECTURES.get(spec.architecture)
        return norm is None or (architecture is not None and architecture.norm == norm)

    return [name for name in zoo_names() if fits(name)]


def _matches(name: str, filters: str | Sequence[str]) -> bool:
    patterns = [filters] if isinstance(filters, str) else filters
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def get_info(name: str) -> ModelSpec:
    """Return the spec of a model, or of an architecture without weights.

    Args:
        name: A name of :func:`list_models`.

    Raises:
        UnknownModelError: no model has this name. The message suggests similar names.

    >>> get_info("resnet50v1_sn_8x1").published[0].top1
    75.94
    """
    if name not in zoo_names():
        raise UnknownModelError(describe_unknown(str(name)))
    return ModelSpec.find(name)


@overload
def create_model(
    name: str | os.PathLike[str],
    *,
    pretrained: bool = ...,
    weights: str | Path | None = ...,
    averaged: bool | None = ...,
    features_only: Literal[False] = ...,
    **options: Unpack[NetworkOptions],
) -> AnyResNet: ...
@overload
def create_model(
    name: str | os.PathLike[str],
    *,
    pretrained: bool = ...,
    weights: str | Path | None = ...,
    averaged: bool | None = ...,
    features_only: Literal[True],
    out_indices: Sequence[int] | int | None = ...,
    **options: Unpack[NetworkOptions],
) -> FeatureExtractor: ...
@overload
def create_model(
    name: str | os.PathLike[str],
    *,
    pretrained: bool = ...,
    weights: str | Path | None = ...,
    averaged: bool | None = ...,
    features_only: bool,
    out_indices: Sequence[int] | int | None = ...,
    **options: Unpack[NetworkOptions],
) -> AnyResNet | FeatureExtractor: ...
def create_model(
    name: str | os.PathLike[str],
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    averaged: bool | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | int | None = None,
    **options: Unpack[NetworkOptions],
) -> AnyResNet | FeatureExtractor:
    """Return a new network. Its attribute ``spec`` describes it.

    Args:
        name: A name of :func:`list_models`, such as ``resnet50v1_sn_8x1`` or ``resnet34v2_sn``;
            ``hf-hub:OWNER/NAME[@REVISION]``; ``local-dir:PATH``, or a folder or checkpoint that
            :func:`snzoo.save_pretrained` wrote. A repository, folder or checkpoint is always
            loaded with its weights.
        pretrained: Load the zoo's weights, which are downloaded and verified unless the cache has
            them; default: False.
        weights: A checkpoint, folder or repository to load instead of the zoo's weights. Every
            key and shape must match, and floating-point tensors are converted to float32.
        averaged: True loads averaged weights (EMA, SWA), False loads raw weights, and None loads
            the averaged ones if there are any, else the raw ones. With None, a warning is logged
            if the checkpoint has both. Default: None.
        features_only: Return a :class:`snzoo.models.features.FeatureExtractor`; default: False.
            ``num_classes`` and ``drop_rate`` then have no effect.
        out_indices: The indices of the maps, with ``features_only``; default: the four stages.
        options: See :class:`snzoo.models.architectures.NetworkOptions`. If the weights have
            another ``num_classes``, ``fc`` is new. If they have another ``in_chans``, the stem is
            adapted.

    Returns:
        The network or feature extractor, in training mode, in float32, on the CPU. A face network
        returns embeddings (N, 512) of length 1, see
        :class:`snzoo.models.face_resnet.FaceResNet`.

    Raises:
        UnknownModelError: no model has this name.
        UnexpectedArgumentError: an option is unknown.
        ArgumentError: the value of an argument is not allowed.
        CheckpointError, ChecksumError, DownloadError, CacheError: the weights cannot be loaded.
    """
    if not isinstance(pretrained, bool):
        raise UnexpectedArgumentError(
            f"pretrained must be True or False, got {pretrained!r}; a checkpoint is weights=..."
        )
    if pretrained and weights is not None:
        raise ArgumentError("weights come from the zoo (pretrained) or from a file, not from both")
    if out_indices is not None and not features_only:
        raise ArgumentError("out_indices needs features_only=True")
    spec = ModelSpec.find(name, weights=weights)
    has_weights = pretrained or spec.weights is not None
    if averaged is not None and spec.weights is None:
        raise ArgumentError("averaged needs a checkpoint: weights=...")
    if not features_only:
        if has_weights:
            return spec.load(averaged=averaged, **options)
        return spec.build(**options)
    from snzoo.models.features import FeatureExtractor, take_indices

    indices = take_indices((1, 2, 3, 4) if out_indices is None else out_indices)
    options.pop("num_classes", None)
    options.pop("drop_rate", None)
    if has_weights:
        network = spec.load(averaged=averaged, out_indices=indices, **options)
    else:
        network = spec.build(**options)
    return FeatureExtractor(network, indices)
