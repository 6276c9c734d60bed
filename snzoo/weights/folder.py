"""Read and write a network as a folder, in the form of the Hugging Face hub.

``model.safetensors`` has the weights, ``config.json`` describes the network, and ``README.md`` is
the model card. The metadata of the weights repeat the description, so that files of two folders
cannot be mixed up.
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
LARGEST_CONFIG = 1 << 20  # characters; 1,000 class names have about 20,000


def weights_of(source: Path) -> Path:
    """Return the path of the weights in a folder. Any other path is returned as it is."""
    return source / WEIGHTS if os.path.isdir(source) else source


def missing_in(folder: Path) -> str | None:
    """Return the name of a required file that the folder does not have as a file, or None."""
    absent = [name for name in (CONFIG, WEIGHTS) if not os.path.isfile(folder / name)]
    return absent[0] if absent else None


def description_of(source: str | Path) -> dict[str, Any] | None:
    """Return the description in a folder or a checkpoint, or None if it has none.

    The description is not checked.

    Args:
        source: the path of a folder or of a weights file.

    Raises:
        CheckpointError: a file cannot be read, or two files of the folder contradict each other.
    """
    source = Path(source)
    if not os.path.isdir(source):
        return read_description(source)
    if missing := missing_in(source):
        raise CheckpointError(
            f"the folder {source} has no {missing}: snzoo.save_pretrained did not write it"
        )
    config, written = _read_config(source / CONFIG), read_description(source / WEIGHTS)
    if written is None:  # for example, it is a pickle under this name
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


def _find_foreign_file(folder: Path) -> Path | None:
    """Return a configuration, or weights without one, that :func:`save_folder` did not write."""
    for name, read in ((CONFIG, _read_config), (WEIGHTS, read_description)):
        if (folder / name).exists():
            try:
                own = "preprocessing" in (read(folder / name) or {})
            except CheckpointError:  # damaged
                own = False
            return None if own else folder / name
    return None


def may_replace(card: Path) -> bool:
    """Return whether a card is missing, or is as :func:`save_folder` wrote it."""
    if not card.exists():
        return True
    text = card.read_bytes().decode("utf-8", errors="replace")
    return text == _add_digest(text.rpartition(SIGNATURE)[0])


def _add_digest(card: str) -> str:
    """Return the card with its digest at the end, which reveals later edits."""
    return f"{card}{SIGNATURE}{hashlib.sha256(card.encode()).hexdigest()} -->\n"


def save_description(
    path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]
) -> None:
    """Write the weights and the description of a network to one safetensors file, atomically.

    Raises:
        CheckpointError: the file cannot be written.
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
    """Write the weights, the description and the card of a network to a folder.

    Each file is replaced atomically.

    Other files, and a ``README.md`` that a user wrote or edited, are not changed.

    Raises:
        CheckpointError: the folder cannot be created or written, or holds a configuration or
            weights that :func:`save_folder` did not write.
    """
    if foreign := _find_foreign_file(folder):
        raise CheckpointError(
            f"{foreign} is not overwritten: snzoo.save_pretrained did not write it; name another "
            "folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = FILES if may_replace(folder / CARD) else (WEIGHTS, CONFIG)
        with ExitStack() as stack:  # all files are on the disk before the first is replaced
            # Links are replaced. Those in the hub's cache lead to files that are named by hash.
            temporary = {
                name: stack.enter_context(atomic_path(folder / name, follow_links=False))
                for name in names
            }
            write_safetensors(temporary[WEIGHTS], state, description)
            temporary[CONFIG].write_text(format_json(description), encoding="utf-8")
            if CARD in temporary:
                temporary[CARD].write_text(_add_digest(card), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"can't write {folder}: {first_line(error)}") from None
