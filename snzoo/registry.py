"""Names → entries → networks: list, look up, create.

torch is imported only where a network or a checkpoint is wanted, so that listing stays cheap.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import inspect
import os
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from snzoo.errors import CheckpointError, SnzooError, UnknownModelError
from snzoo.manifest import Entry, load_manifest, parse_description
from snzoo.models.architectures import ARCHITECTURES, NORMS, Architecture

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from snzoo.models.resnet import FeaturePyramid, ResNet

HUB = "hf-hub:"


def list_models(
    pattern: str = "*", *, norm: str | None = None, pretrained: bool = False
) -> list[str]:
    """Names of the zoo's models, in the manifest's order, then of the bare architectures.

    Args:
        pattern: shell wildcard, e.g. ``resnet50*_sn_*``.
        norm: ``sn``, ``bn`` or ``gn``.
        pretrained: only models that have published weights.

    Raises:
        ManifestError: the manifest can't be read.
        SnzooError: there is no such norm.

    >>> list_models("resnet101*", pretrained=True)
    ['resnet101v2_sn_8x32', 'resnet101v1_sn_8x32']
    """
    if norm not in (None, *NORMS):
        raise SnzooError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
    models = load_manifest().models
    names = [name for name, entry in models.items() if entry.file] if pretrained else _names()
    return [
        name
        for name in names
        if fnmatch.fnmatchcase(name, pattern) and norm in (None, _architecture(get_info(name)).norm)
    ]


def get_info(name: str) -> Entry:
    """The entry of a zoo name, or of an architecture name (an entry without weights).

    Raises:
        UnknownModelError: no such name; the message suggests the nearest.

    >>> get_info("resnet50v1_sn_8x1").published[0].top1
    75.94
    """
    manifest = load_manifest()
    if name in manifest.models:
        return manifest.models[name]
    if name not in ARCHITECTURES:
        raise UnknownModelError(_unknown(name, [*manifest.models, *ARCHITECTURES]))
    return Entry(
        name=name,
        architecture=name,
        arguments={},
        num_params=None,
        classes="imagenet-1k",
        preprocessing=manifest.preprocessing["imagenet"],
        file=None,
        published=(),
        training=None,
        license=None,
        provenance="An architecture without published weights.",
    )


@overload
def create_model(
    name: str | Path, *, features_only: Literal[False] = ..., **arguments: Any
) -> ResNet: ...
@overload
def create_model(
    name: str | Path, *, features_only: Literal[True], **arguments: Any
) -> FeaturePyramid: ...
def create_model(
    name: str | Path,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    features_only: bool = False,
    **arguments: Any,
) -> ResNet | FeaturePyramid:
    """A network by zoo name (``resnet50v1_sn_8x1``) or architecture name (``resnet34v2_sn``).

    Args:
        name: see :func:`list_models`. Or a folder that :func:`snzoo.save_pretrained` made, or
            ``hf-hub:OWNER/NAME[@REVISION]`` on the Hugging Face hub: their weights are loaded.
        pretrained: load the zoo's weights, downloading and verifying them where the
            cache does not hold them.
        weights: load this file (or such a folder or repository) instead, strictly: every key,
            no other, every shape.
        features_only: a :class:`snzoo.models.resnet.FeaturePyramid` instead of a classifier.
        num_classes: logits (default: the entry's; 0: none). Where weights with another
            number are loaded, the backbone keeps them and ``fc`` is new.
        in_chans: input channels (3). Weights for another number are adapted
            (:func:`snzoo.weights.stem.adapt_input`).
        out_indices: with ``features_only``, the maps (1 to 4, the stages; 0 is the stem).
        arguments: the others of :func:`snzoo.models.build.build` and ``build_pyramid``:
            ``width`` (64), ``output_stride`` (32), ``drop_rate``, ``using_bn``, …; they
            override those of the entry. None stands for the default.

    Returns:
        The network in training mode, float32, on the CPU.

    Raises:
        UnknownModelError: no such name.
        CheckpointError, ChecksumError, DownloadError, CacheError: the weights can't be had.
        SnzooError: an argument does not apply to this architecture.
    """
    if pretrained and weights is not None:
        raise SnzooError("weights come from the zoo (pretrained) or from a file, not from both")
    arguments = {
        # numpy's whole numbers too, which JSON would not take
        key: int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value
        for key, value in arguments.items()
        if value is not None
    }
    known, source = resolve(os.fspath(name), weights)
    entry = describe(known, source)
    if pretrained or source is not None:
        model = _load(entry, source, arguments, features_only)
    else:
        model = _build(entry, arguments, features_only)
    of_this_use = ("num_classes", "out_indices")  # rather than of the network
    kept = {key: value for key, value in arguments.items() if key not in of_this_use}
    model.entry = dataclasses.replace(model.entry or entry, arguments=entry.arguments | kept)
    return model


def _load(
    entry: Entry, source: Path | None, arguments: dict[str, Any], features_only: bool
) -> ResNet | FeaturePyramid:
    """The network with the weights of a file or folder, or with the zoo's."""
    import torch

    from snzoo.models.resnet import ResNet
    from snzoo.weights import adapt_input, match, obtain, read_state, weights_of

    with torch.device("meta"):  # neither memory nor random numbers for what the file brings
        model = whole = _build(entry, arguments, features_only)
    path = weights_of(source) if source else obtain(entry, partial(layout_of, entry))
    state = read_state(path)
    # The file must fit the whole network, but for sizes that were asked for, or a pyramid lacks.
    free = {*arguments, "num_classes"} if features_only else set(arguments)
    sizes = {size: n for size, n in _sizes(state).items() if size in free}
    kept = {key: value for key, value in arguments.items() if key != "out_indices"}
    own = features_only and state.keys() == model.state_dict().keys()  # saved from a pyramid
    if own:
        kept, sizes = arguments, {size: n for size, n in sizes.items() if size != "num_classes"}
    if features_only or sizes:
        with torch.device("meta"):
            whole = _build(entry, kept | sizes, features_only=own)
    state = match(state, whole.state_dict(), where=path)
    state["conv1.weight"] = adapt_input(state["conv1.weight"], model.conv1.in_channels)
    new_head = sizes.get("num_classes") not in (None, arguments.get("num_classes"))
    wanted = [key for key in model.state_dict() if not (new_head and key.startswith("fc."))]
    model.load_state_dict({key: state[key] for key in wanted}, strict=not new_head, assign=True)
    model.entry = entry
    if isinstance(model, ResNet) and new_head:
        model.reset_classifier(arguments["num_classes"])
    return model


def _sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Of the network that a state dict is of; without any ``fc``, it has no classes."""
    places = {"num_classes": ("fc.weight", 0), "in_chans": ("conv1.weight", 1)}
    sizes = {
        size: state[key].shape[dim]
        for size, (key, dim) in places.items()
        if key in state and state[key].ndim > dim
    }
    return sizes if any(key.startswith("fc.") for key in state) else {"num_classes": 0, **sizes}


def resolve(name: str | None, weights: str | Path | None = None) -> tuple[str | None, Path | None]:
    """A name of the zoo or None, and the file or folder that brings the weights or None.

    ``name`` may be a folder or a repository of the Hugging Face hub itself, and ``weights``
    too; what is on the hub is downloaded.

    Raises:
        DownloadError, CheckpointError: the hub does not give it.
    """
    source = weights
    if name is not None and name not in _names() and _is_source(name):
        if weights is not None:
            raise SnzooError(f"{name} brings its own weights: name it or {weights}, not both")
        name, source = None, name
    if source is None:
        return name, None
    if not str(source).startswith(HUB):
        return name, Path(source)
    from snzoo.weights.hub import download_folder

    return name, download_folder(str(source))


def _is_source(name: str) -> bool:
    # Something with a separator is no name, so that the error speaks of a file.
    return name.startswith(HUB) or os.sep in name or (name != "" and os.path.exists(name))


def describe(name: str | None, weights: str | Path | None = None) -> Entry:
    """The entry of ``name``, or what the checkpoint ``weights`` says of itself.

    Checkpoints of ``examples/finetune.py``, and folders of :func:`snzoo.save_pretrained`, name
    their model, classes, preprocessing and arguments. Other files say nothing, and leave the
    entry of ``name`` as it is.

    Raises:
        UnknownModelError: no such name.
        CheckpointError, ManifestError: the checkpoint can't be read, is of another
            network, or names none where ``name`` is None.
    """
    name, source = resolve(name, weights)
    if name is not None and source is None:
        return get_info(name)
    from snzoo.weights import description_of

    document = None if source is None else description_of(source)
    if document is None and name is not None:
        return get_info(name)
    if document is None:
        raise CheckpointError(f"{source} does not say of which model it is; name one: --model")
    found = parse_description(document, str(source))
    base = get_info(found.model)
    if name is not None and get_info(name).architecture != base.architecture:
        raise CheckpointError(f"{source} was made from {found.model}, not from {name}")
    return dataclasses.replace(
        base,
        arguments=base.arguments | found.arguments,
        classes=found.classes,
        preprocessing=found.preprocessing,
        published=(),
        provenance=f"Finetuned: {source}",
    )


def layout_of(entry: Entry) -> dict[str, Tensor]:
    """Key → meta tensor of the published state dict."""
    import torch

    with torch.device("meta"):
        return dict(_build(entry, {}).state_dict())


def _build(
    entry: Entry, arguments: dict[str, Any], features_only: bool = False
) -> ResNet | FeaturePyramid:
    from snzoo.models.build import backbone_arguments, build, build_pyramid

    own = {"num_classes": entry.num_classes, **entry.arguments}
    if features_only:
        own = {key: value for key, value in own.items() if key not in ("num_classes", "drop_rate")}
    make = build_pyramid if features_only else build
    known = {*inspect.signature(make).parameters, *inspect.signature(backbone_arguments).parameters}
    known -= {"architecture", "backbone"}
    if unknown := sorted({*own, *arguments} - known):
        what = f"{entry.name} with features_only" if features_only else entry.name
        raise SnzooError(f"{what} takes no argument {unknown[0]!r}, but {', '.join(sorted(known))}")
    return make(_architecture(entry), **own | arguments)


def _architecture(entry: Entry) -> Architecture:
    try:
        return ARCHITECTURES[entry.architecture]
    except KeyError:
        message = _unknown(entry.architecture, list(ARCHITECTURES))
        raise UnknownModelError(f"{entry.name}: {message}") from None


def _names() -> list[str]:
    return list(dict.fromkeys([*load_manifest().models, *ARCHITECTURES]))


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "see: snzoo list"
    return f"no model named {name!r}; {hint}"
