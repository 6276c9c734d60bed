"""Options and checks that commands share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from snzoo.errors import SnzooError
from snzoo.manifest import Photos, load_manifest
from snzoo.registry import create_model, describe

if TYPE_CHECKING:
    from snzoo.manifest import Entry
    from snzoo.models.build import ResNet


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
    add("--model", metavar="NAME", help="zoo or architecture name (default: the demo's)")
    add("--weights", type=path, metavar="FILE", help="this checkpoint, not the zoo's")
    add("--device", metavar="DEVICE", help="cpu, cuda, ... (default: cuda where there is one)")


def choose_entry(args: argparse.Namespace) -> Entry:
    """What ``--model`` and ``--weights`` name: the demo where neither is given."""
    name = args.model
    if name is None and not args.weights:
        name = demo().model
    return describe(name, args.weights)


def load_model(args: argparse.Namespace, entry: Entry) -> ResNet:
    return create_model(entry.name, pretrained=args.weights is None, weights=args.weights)


def demo() -> Photos:
    """The manifest's demo; raises SnzooError where another manifest has none."""
    photos = load_manifest().demo
    if photos is None:
        raise SnzooError("this manifest has no demo: name a model with --model")
    return photos
