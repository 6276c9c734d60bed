"""Options and checks that commands share."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from snzoo.errors import ArgumentError
from snzoo.manifest import load_demo
from snzoo.spec import ModelSpec

MODEL = "name of the zoo or of an architecture, folder, or hf-hub:OWNER/NAME"
WEIGHTS = "checkpoint or folder to load instead of the zoo's weights"


def positive(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text!r}")
    return int(text)


def points(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 100, got {text!r}")
    return value


def path(text: str) -> Path:
    if not text:  # Path("") would be the current folder
        raise argparse.ArgumentTypeError("must not be empty")
    return Path(text)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", metavar="NAME", help=f"{MODEL} (default: the demo network)")
    add("--weights", type=path, metavar="FILE", help=WEIGHTS)


def add_device_option(parser: argparse._ActionsContainer) -> None:
    about = "cpu, cuda, ... (default: cuda if available)"
    parser.add_argument("--device", metavar="DEVICE", help=about)


def choose_entry(args: argparse.Namespace, name: str | None) -> ModelSpec:
    """Return the spec for ``name`` and ``--weights``, by default that of the demo network.

    ``args.weights`` is set to the local file or folder that the weights are loaded from.
    """
    if name is None and not args.weights:
        name = load_demo().model
    spec = ModelSpec.find(name, weights=args.weights)
    args.weights = spec.weights
    return spec


def check_survives(output: Path, weights: Path | None) -> None:
    """Check that writing ``output`` does not replace the weights that are read.

    Raises:
        ArgumentError: ``output`` is the file of the weights, or one in their folder.
    """
    from snzoo.weights.folder import FILES

    inside = [weights / name for name in FILES] if weights else []
    if weights and output.resolve() in [file.resolve() for file in (weights, *inside)]:
        raise ArgumentError(f"{output} is not overwritten: it is an input; name another file")
