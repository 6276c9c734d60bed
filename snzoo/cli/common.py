"""Options and checks that commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from snzoo.errors import SnzooError
from snzoo.manifest import Photos, load_manifest
from snzoo.registry import get_info, list_models
from snzoo.spec import ModelSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snzoo.manifest import Entry
    from snzoo.models.resnet import ResNet


WILD = set("*?[")
MODEL = "name of the zoo or of an architecture, folder, or hf-hub:OWNER/NAME"
WEIGHTS = "this checkpoint, or a folder, not the zoo's"


def positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def path(text: str) -> Path:
    if not text:  # Path("") would be the current folder
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(text)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="NAME", help=f"{MODEL} (default: the demo's)")
    add("--weights", type=path, metavar="FILE", help=WEIGHTS)


def add_device_option(parser: argparse._ActionsContainer) -> None:
    about = "cpu, cuda, ... (default: cuda where there is one)"
    parser.add_argument("--device", metavar="DEVICE", help=about)


def choose_entry(args: argparse.Namespace, name: str | None) -> ModelSpec:
    """What ``name`` and ``--weights`` are, the demo where neither is given.

    ``args.weights`` is then the file or folder on this machine that brings the weights.
    """
    if name is None and not args.weights:
        name = demo().model
    spec = ModelSpec.find(name, weights=args.weights)
    args.weights = spec.weights
    return spec


def check_classifies_photos(entry: Entry, args: argparse.Namespace) -> None:
    """Raises SnzooError where the network has no classes, or its input is no RGB image."""
    name = args.weights or entry.name
    if not entry.num_classes:
        raise SnzooError(f"{name} has no classes: it is a backbone alone")
    channels = entry.arguments.get("in_chans", 3)
    if channels != 3:
        raise SnzooError(f"{name} takes images of {channels} channels, not photos")


def check_survives(output: Path, weights: Path | None) -> None:
    """Raises SnzooError where writing ``output`` would replace the weights that are read."""
    from snzoo.weights.folder import FILES

    inside = [weights / name for name in FILES] if weights else []
    if weights and output.resolve() in [file.resolve() for file in (weights, *inside)]:
        raise SnzooError(f"{output} is not overwritten: it is an input; name another file")


def expand_names(patterns: Sequence[str]) -> list[ModelSpec]:
    """Names as they are; wildcards stand for the networks with weights, of one set of classes.

    Those classes are the ones of the plain names, or else ImageNet's; networks of others
    that a wildcard fits too are left out.

    Raises:
        SnzooError: a wildcard fits none, plain names have different classes, or one is not of
            the zoo.
    """
    entries = {name: get_info(name) for name in patterns if not WILD & set(name)}
    classes = {entry.classes for entry in entries.values()}
    if len(classes) > 1:
        raise SnzooError(f"{', '.join(entries)} have different classes: evaluate them one by one")
    for pattern in patterns:
        if pattern in entries:
            continue
        found = [get_info(name) for name in list_models(pattern, pretrained=True)]
        found = [entry for entry in found if entry.file and entry.file.is_readable]
        if not found:
            raise SnzooError(
                f"no model with weights fits {pattern!r}; see: snzoo list --pretrained"
            )
        if not classes:
            all_classes = [entry.classes for entry in found]
            classes = {"imagenet-1k" if "imagenet-1k" in all_classes else all_classes[0]}
        entries |= {entry.name: entry for entry in found if entry.classes in classes}
    return list(entries.values())


def load_model(args: argparse.Namespace, entry: ModelSpec) -> ResNet:
    return entry.load()


def demo() -> Photos:
    """The manifest's demo; raises SnzooError where another manifest has none."""
    photos = load_manifest().demo
    if photos is None:
        raise SnzooError("this manifest has no demo: name a model with --model")
    return photos
