"""A network as a folder, in the form of the Hugging Face hub.

``model.safetensors`` has the weights, ``config.json`` what they are the weights of, and
``README.md`` the model card. The configuration stands in the metadata of the weights too, so
that the two can't be mixed up.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from snzoo.errors import CheckpointError
from snzoo.weights.checkpoint import DESCRIPTION, read_description

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (WEIGHTS, CONFIG, CARD)
SIGNATURE = "\n<!-- written by snzoo.save_pretrained, sha256 "
LARGEST_CONFIG = 1 << 20  # characters; a thousand class names take some 20,000


def weights_of(source: Path) -> Path:
    """The weights file of a folder; any other path as it is."""
    return source / WEIGHTS if os.path.isdir(source) else source


def missing_in(folder: Path) -> str | None:
    """The file of a network that is not there, or is no regular file (a pipe, a device)."""
    absent = [name for name in (CONFIG, WEIGHTS) if not os.path.isfile(folder / name)]
    return absent[0] if absent else None


def description_of(source: str | Path) -> dict[str, Any] | None:
    """What a folder or a checkpoint says of itself (not checked); None: nothing.

    Raises:
        CheckpointError: it can't be read, or a folder's two files contradict each other.
    """
    source = Path(source)
    if not os.path.isdir(source):
        return read_description(source)
    if missing := missing_in(source):
        raise CheckpointError(
            f"the folder {source} has no {missing}: it is none of snzoo.save_pretrained"
        )
    config, written = _read_config(source / CONFIG), read_description(source / WEIGHTS)
    if written is None:  # a pickle, perhaps, which a folder has no use for
        raise CheckpointError(f"{source / WEIGHTS} is none of snzoo.save_pretrained")
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
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is no object of at most {LARGEST_CONFIG:,} characters")
    return config


def may_replace(card: Path) -> bool:
    """Whether there is no card, or one as :func:`save_folder` wrote it, which nobody edited."""
    if not card.exists():
        return True
    text = card.read_bytes().decode("utf-8", errors="replace")
    return text == _sign(text.rpartition(SIGNATURE)[0])


def _sign(card: str) -> str:
    """The card with its own digest below, which an edited one does not have."""
    return f"{card}{SIGNATURE}{hashlib.sha256(card.encode()).hexdigest()} -->\n"


def save_folder(
    folder: Path, state: Mapping[str, Tensor], description: Mapping[str, Any], card: str
) -> None:
    """Write the three files, each whole or not at all.

    Other files there are left alone, and a ``README.md`` that people wrote or edited.

    Raises:
        CheckpointError: the folder can't be made or written.
    """
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    metadata = {DESCRIPTION: json.dumps(description), "format": "pt"}
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as name:
            partial = Path(name)
            save_file(tensors, partial / WEIGHTS, metadata)
            (partial / WEIGHTS).chmod(folder.stat().st_mode & 0o666)  # safetensors: private
            (partial / CONFIG).write_text(text, encoding="utf-8")
            (partial / CARD).write_text(_sign(card), encoding="utf-8")
            # All of them are written: from here it is quick.
            for file in FILES if may_replace(folder / CARD) else (WEIGHTS, CONFIG):
                (partial / file).replace(folder / file)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"can't write {folder}: {reason}") from None
