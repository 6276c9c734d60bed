"""Networks to folders and to the Hugging Face hub, and so back by ``snzoo.create_model``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snzoo.errors import SnzooError
from snzoo.manifest import parse_description
from snzoo.registry import get_info

if TYPE_CHECKING:
    from snzoo.manifest import Entry
    from snzoo.models.resnet import ResNet


def save_pretrained(
    model: ResNet, folder: str | Path, *, classes: Sequence[str] | None = None
) -> None:
    """Write ``model.safetensors``, ``config.json`` and a model card ``README.md``.

    ``snzoo.create_model(FOLDER)`` gives the network again.

    Args:
        model: what ``snzoo.create_model`` gave, finetuned or not.
        folder: made where there is none; other files in it are left alone.
        classes: their names, where the network's are not those of its entry.

    Raises:
        SnzooError: the classes are unknown, or the folder can't be written.
    """
    from snzoo.weights import save_folder

    description = _describe(model, classes)
    save_folder(Path(folder), model.state_dict(), description, _card(description))


def push_to_hub(
    model: ResNet,
    repo: str,
    *,
    classes: Sequence[str] | None = None,
    private: bool = False,
    message: str = "A network of snzoo",
) -> str:
    """:func:`save_pretrained` into the repository ``OWNER/NAME`` of the Hugging Face hub.

    It is made where there is none. Needs the extra ``hub`` and a login
    (``hf auth login``, or ``HF_TOKEN``).

    Returns:
        The repository's address.

    Raises:
        SnzooError: as :func:`save_pretrained`, or the hub refuses.
    """
    from snzoo.weights.hub import upload_folder

    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, classes=classes)
        return upload_folder(Path(folder), repo, private=private, message=message)


def _describe(model: ResNet, classes: Sequence[str] | None) -> dict[str, Any]:
    entry: Entry | None = model.entry
    if entry is None or not hasattr(model, "num_classes"):
        raise SnzooError("only a classifier that snzoo.create_model made can be saved so")
    named = entry.classes if classes is None else list(classes)
    count = entry.num_classes if classes is None else len(named)
    if count != model.num_classes:
        raise SnzooError(
            f"the network has {model.num_classes} classes, but {count} names are known; "
            "name them: classes=[...]"
        )
    description = {
        "library_name": "snzoo",
        "model": entry.name,
        "architecture": entry.architecture,
        "arguments": entry.arguments,
        "classes": named,
        "preprocessing": entry.preprocessing.as_dict(),
    }
    # As JSON gives it back; raises where nobody could read it.
    as_read: dict[str, Any] = json.loads(json.dumps(description))
    parse_description(as_read, "classes")
    return as_read


def _card(description: dict[str, Any]) -> str:
    """The hub's metadata, and what a reader must know to use the network."""
    base = get_info(description["model"])
    licence = f"license: {base.licence.lower()}\n" if base.file and base.licence else ""
    of_base = f"the zoo's `{base.name}`" if base.file else f"`{base.name}`"
    classes = description["classes"]
    names = "ImageNet's 1,000" if isinstance(classes, str) else ", ".join(classes) or "none"
    recipe = ", ".join(f"{key} {value}" for key, value in description["preprocessing"].items())
    arguments = ", ".join(f"{key} {value}" for key, value in description["arguments"].items())
    lines = [
        f"A network of snzoo, made from {of_base} ({base.architecture}"
        f"{f'; {arguments}' if arguments else ''}).",
        f"Classes: {names}.",
        f"Preprocessing: {recipe}; the shorter side is resized, bilinear and antialiased.",
    ]
    if base.file:
        lines.append(
            f"Origin of {of_base}: {base.provenance} Licence of its weights: "
            f"{base.licence or 'not stated'}."
        )
    head = f"---\nlibrary_name: snzoo\npipeline_tag: image-classification\n{licence}---\n"
    usage = (
        "```python\nimport snzoo\n\n"
        'model = snzoo.create_model("hf-hub:OWNER/NAME")  # or this folder\n```\n'
    )
    return "\n".join([head, f"# {base.name}\n", *(f"{line}\n" for line in lines), usage])
