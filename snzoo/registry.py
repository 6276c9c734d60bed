"""Names → entries → networks: list, look up, create.

torch is imported only where a network or a checkpoint is wanted, so that listing stays cheap.
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import inspect
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snzoo.errors import CheckpointError, SnzooError, UnknownModelError
from snzoo.manifest import Entry, load_manifest, parse_description
from snzoo.models.architectures import ARCHITECTURES, NORMS, Architecture

if TYPE_CHECKING:
    from torch import Tensor

    from snzoo.models.build import ResNet


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
    if pretrained:
        names = [name for name, entry in models.items() if entry.file]
    else:
        names = list(dict.fromkeys([*models, *ARCHITECTURES]))
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
        parameters=None,
        classes="imagenet-1k",
        preprocessing=manifest.preprocessing["imagenet"],
        file=None,
        published=(),
        training=None,
        licence=None,
        provenance="An architecture without published weights.",
    )


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    **arguments: Any,
) -> ResNet:
    """A network by zoo name (``resnet50v1_sn_8x1``) or architecture name (``resnet34v2_sn``).

    Args:
        name: see :func:`list_models`.
        pretrained: load the zoo's weights, downloading and verifying them where the
            cache does not hold them.
        weights: load this file instead, strictly: every key, no other, every shape.
        num_classes: logits (default: the entry's). Where weights with another number
            are loaded, the backbone keeps them and ``fc`` is new.
        arguments: of :func:`snzoo.models.build.build`: ``in_chans`` (3), ``width`` (64),
            ``drop_rate``, ``using_bn``, …; they override those of the entry.

    Returns:
        The network in training mode, float32, on the CPU.

    Raises:
        UnknownModelError: no such name.
        CheckpointError, ChecksumError, DownloadError, CacheError: the weights can't be had.
        SnzooError: an argument does not apply to this architecture.
    """
    if pretrained and weights is not None:
        raise SnzooError("weights come from the zoo (pretrained) or from a file, not from both")
    if not pretrained and weights is None:
        return _build(get_info(name), num_classes, arguments)

    import torch

    from snzoo.models.build import check_sizes
    from snzoo.weights import match, obtain, read_state

    if num_classes is not None:
        check_sizes(num_classes=num_classes)  # of the new head, if the file's is another
    entry = describe(name, weights)
    path = obtain(entry, partial(layout_of, entry)) if weights is None else Path(weights)
    state = read_state(path)
    head = state.get("fc.weight") if num_classes else None  # if new, the old one must still fit
    classes = len(head) if head is not None and head.ndim == 2 else None
    with torch.device("meta"):  # neither memory nor random numbers for what the file brings
        model = _build(entry, classes, arguments)
    model.load_state_dict(match(state, model.state_dict(), where=path), assign=True)
    if num_classes not in (None, model.fc.out_features):
        model.fc = torch.nn.Linear(model.fc.in_features, num_classes)
    return model


def describe(name: str | None, weights: str | Path | None = None) -> Entry:
    """The entry of ``name``, or what the checkpoint ``weights`` says of itself.

    Checkpoints of ``examples/finetune.py`` name their model, classes, preprocessing and
    arguments. Others say nothing, and leave the entry of ``name`` as it is.

    Raises:
        UnknownModelError: no such name.
        CheckpointError, ManifestError: the checkpoint can't be read, is of another
            network, or names none where ``name`` is None.
    """
    if name is not None and weights is None:
        return get_info(name)
    from snzoo.weights import read_description

    document = read_description(weights) if weights is not None else None
    if document is None and name is not None:
        return get_info(name)
    if document is None:
        raise CheckpointError(f"{weights} does not say of which model it is; name one: --model")
    found = parse_description(document, str(weights))
    base = get_info(found.model)
    if name is not None and get_info(name).architecture != base.architecture:
        raise CheckpointError(f"{weights} was made from {found.model}, not from {name}")
    return dataclasses.replace(
        base,
        arguments=base.arguments | found.arguments,
        classes=found.classes,
        preprocessing=found.preprocessing,
        published=(),
        provenance=f"Finetuned: {weights}",
    )


def layout_of(entry: Entry) -> dict[str, Tensor]:
    """Key → meta tensor of the published state dict."""
    import torch

    with torch.device("meta"):
        return dict(_build(entry, None, {}).state_dict())


def _build(entry: Entry, num_classes: int | None, arguments: dict[str, Any]) -> ResNet:
    from snzoo.models.build import build

    merged = {"num_classes": entry.num_classes, **entry.arguments, **arguments}
    if num_classes is not None:
        merged["num_classes"] = num_classes
    known = set(inspect.signature(build).parameters) - {"architecture"}
    if unknown := sorted(set(merged) - known):
        raise SnzooError(
            f"{entry.name} takes no argument {unknown[0]!r}, but {', '.join(sorted(known))}"
        )
    return build(_architecture(entry), **merged)


def _architecture(entry: Entry) -> Architecture:
    try:
        return ARCHITECTURES[entry.architecture]
    except KeyError:
        message = _unknown(entry.architecture, list(ARCHITECTURES))
        raise UnknownModelError(f"{entry.name}: {message}") from None


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "see: snzoo list"
    return f"no model named {name!r}; {hint}"
