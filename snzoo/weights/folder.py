"""A network as a folder, in the form of the Hugging Face hub.

``model.safetensors`` has the weights, ``config.json`` says what they are the weights of, and
``README.md`` is the model card. The metadata of the weights repeat the configuration, so that two
folders cannot be mixed up.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from snzoo.errors import CheckpointError, first_line
from snzoo.files import atomic_path, format_json
from snzoo.weights.checkpoint import read_description
from snzoo.weights.safetensors import write_safetensors

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
SIGNATURE = "\n<!-- written by snzoo.save_pretrained, sha256 "
LARGEST_CONFIG = 1 << 20  # characters; a thousand class names take some 20,000


def weights_of(source: Path) -> Path:
    """Return the weights file of a folder; any other path as it is."""
    return source / WEIGHTS if os.path.isdir(source) else source


def missing_in(folder: Path) -> str | None:
    """Return a file that the folder needs but lacks, or that is a pipe or device; else None."""
    absent = [name for name in (CONFIG, WEIGHTS) if not os.path.isfile(folder / name)]
    return absent[0] if absent else None


def description_of(source: str | Path) -> dict[str, Any] | None:
    """Return what a folder or a checkpoint says it is, unchecked; None if it says nothing.

    Raises:
        CheckpointError: it cannot be read, or the two files of a folder contradict each other.
    """
    source = Path(source)
    if not os.path.isdir(source):
        return read_description(source)
    if missing := missing_in(source):
        raise CheckpointError(
            f"the folder {source} has no {missing}: snzoo.save_pretrained did not write it"
        )
    config, written = _read_config(source / CONFIG), read_description(source / WEIGHTS)
    if written is None:  # a pickle, perhaps, which has no place in such a folder
        raise CheckpointError(f"snzoo.save_pretrained did not write {source / WEIGHTS}")
    for field in sorted(config.keys() & written.keys()):
        if config[field] != written[field]:
            raise CheckpointError(
                f"{source}: {CONFIG} and {WEIGHTS} differ in {field!r}; save the network again"
            )
    return config


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(LARGEST_CONFIG + 1)
        config = json.loads(text) if len(text) <= LARGEST_CONFIG else None
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {first_line(error)}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is no object of at most {LARGEST_CONFIG:,} characters")
    return config


def may_replace(card: Path) -> bool:
    """Return whether there is no card, or one that :func:`save_folder` wrote, unedited."""
    if not card.exists():
        return True
    text = card.read_bytes().decode("utf-8", errors="replace")
    return text == _sign(text.rpartition(SIGNATURE)[0])


def _sign(card: str) -> str:
    """Return the card with its own digest at the end, which an edited card does not match."""
    return f"{card}{SIGNATURE}{hashlib.sha256(card.encode()).hexdigest()} -->\n"


def save_description(
    path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Write a safetensors file that says what it is, atomically.

    Raises:
        CheckpointError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            write_safetensors(temporary, state, description)
    except OSError as error:
        raise CheckpointError(f"can't write {path}: {first_line(error)}") from None


def save_folder(
    folder: Path, state: Mapping[str, Tensor], description: Mapping[str, Any], card: str
) -> None:
    """Write the three files, each one whole or not at all.

    Other files, and a ``README.md`` that a user wrote or edited, are left alone.

    Raises:
        CheckpointError: the folder cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = FILES if may_replace(folder / CARD) else (WEIGHTS, CONFIG)
        with ExitStack() as stack:  # all three are on the disk before one is replaced
            # A link is replaced: in the hub's cache, it leads to a file that is named by its hash.
            temporary = {
                name: stack.enter_context(atomic_path(folder / name, follow_links=False))
                for name in names
            }
            write_safetensors(temporary[WEIGHTS], state, description)
            temporary[CONFIG].write_text(format_json(description), encoding="utf-8")
            if CARD in temporary:
                temporary[CARD].write_text(_sign(card), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"can't write {folder}: {first_line(error)}") from None
