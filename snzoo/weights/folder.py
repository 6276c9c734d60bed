"""A network as a folder, in the form of the Hugging Face hub.

``model.safetensors`` has the weights, ``config.json`` what they are the weights of, and
``README.md`` the model card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from snzoo.errors import CheckpointError
from snzoo.weights.checkpoint import DESCRIPTION, read_description

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LARGEST_CONFIG = 1 << 20  # bytes; a thousand class names take some 20 kB


def weights_of(source: Path) -> Path:
    """The weights file of a folder; any other path as it is."""
    return source / WEIGHTS if source.is_dir() else source


def description_of(source: str | Path) -> dict[str, Any] | None:
    """What a folder or a checkpoint says of itself (not checked); None: nothing.

    Raises:
        CheckpointError: it can't be read, or a folder's two files contradict each other.
    """
    source = Path(source)
    if not source.is_dir():
        return read_description(source)
    config = _read_config(source / CONFIG)
    written = read_description(source / WEIGHTS) or {}
    for field in config.keys() & written.keys():
        if config[field] != written[field]:
            raise CheckpointError(
                f"{source}: {CONFIG} and {WEIGHTS} differ in {field!r}; save the network again"
            )
    return config


def _read_config(path: Path) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            config = json.loads(file.read(LARGEST_CONFIG))
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not an object")
    return config


def save_folder(
    folder: Path, state: Mapping[str, Tensor], description: Mapping[str, Any], card: str
) -> None:
    """Write the three files, each whole or not at all; other files there are left alone.

    Raises:
        CheckpointError: the folder can't be made or written.
    """
    text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
    metadata = {DESCRIPTION: json.dumps(description), "format": "pt"}
    tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
    partial = folder / f"{WEIGHTS}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, partial, metadata)
            partial.chmod(folder.stat().st_mode & 0o666)  # safetensors makes it private
            partial.replace(folder / WEIGHTS)
            for name, content in ((CONFIG, text), (CARD, card)):
                partial.write_text(content, encoding="utf-8")
                partial.replace(folder / name)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise CheckpointError(f"can't write {folder}: {error.strerror}") from None
