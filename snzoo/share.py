"""Networks to folders and to the Hugging Face hub, and so back by ``snzoo.create_model``."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snzoo.errors import SnzooError
from snzoo.manifest import parse_description
from snzoo.registry import HUB, get_info, layout_of

if TYPE_CHECKING:
    from snzoo.manifest import Entry
    from snzoo.models.resnet import ResNet

SHOWN = 100  # classes on the card; all are in the configuration


def save_pretrained(
    model: ResNet, folder: str | Path, *, classes: Sequence[str] | None = None
) -> None:
    """Write ``model.safetensors``, ``config.json`` and a model card ``README.md``.

    ``snzoo.create_model(FOLDER)`` gives the network again. The card names the origin and the
    license of the zoo's weights where ``model`` was created by the name of a zoo model: create
    what is trained from random weights by the name of its architecture.

    Args:
        model: what ``snzoo.create_model`` gave, finetuned or not.
        folder: made where there is none; other files in it are left alone, and a ``README.md``
            that people wrote or edited.
        classes: their names, where the network's are not those that its zoo model or folder
            has, as after ``reset_classifier``. A network without a classifier needs none.

    Raises:
        SnzooError: the names of the classes are unknown, the network is none of
            ``create_model`` or was changed since, or the folder can't be written.
    """
    if not os.fspath(folder):  # Path("") would be the current folder
        raise SnzooError("folder must not be empty; the current one is '.'")
    _save(model, Path(folder), classes, source="FOLDER")


def push_to_hub(
    model: ResNet,
    repo: str,
    *,
    classes: Sequence[str] | None = None,
    private: bool = False,
    message: str = "A network of snzoo",
) -> str:
    """:func:`save_pretrained` into the repository ``OWNER/NAME`` of the Hugging Face hub.

    It is made where there is none. ``snzoo.create_model("hf-hub:OWNER/NAME")`` gives the
    network again. Needs the extra ``hub`` and a login (``hf auth login``, or ``HF_TOKEN``).

    Args:
        model, classes: as in :func:`save_pretrained`.
        repo: its other files stay, and a model card that people wrote or edited.
        private: whether only its owner sees it; one that exists must be so already.
        message: of the commit.

    Returns:
        The repository's address.

    Raises:
        DownloadError: the hub can't be reached, or refuses; OfflineError under
            ``SNZOO_OFFLINE=1``.
        SnzooError: as :func:`save_pretrained`, or the repository is public and shouldn't be.
    """
    from snzoo.weights.hub import upload_folder

    with tempfile.TemporaryDirectory() as name:
        _save(model, Path(name), classes, source=HUB + repo)
        return upload_folder(Path(name), repo, private=private, message=message)


def _save(model: ResNet, folder: Path, classes: Sequence[str] | None, *, source: str) -> None:
    from snzoo.weights import match, save_folder

    entry, description = _describe(model, classes)
    # What was changed since it was created could not be created again.
    state = match(model.state_dict(), layout_of(entry), where="what is to be saved")
    save_folder(folder, state, description, _card(entry, source))


def _describe(model: ResNet, classes: Sequence[str] | None) -> tuple[Entry, dict[str, Any]]:
    """What the network is, and the same as the document to write."""
    from snzoo.models.resnet import ResNet

    entry: Entry | None = model.entry if isinstance(model, ResNet) else None
    if entry is None:
        raise SnzooError(
            "only a classifier that snzoo.create_model made can be saved so, and itself rather "
            f"than what wraps it, got {type(model).__name__}"
        )
    if isinstance(classes, str):
        raise SnzooError(f"classes must be a list of names, got {classes!r}")
    named = entry.classes if classes is None and model.num_classes else tuple(classes or ())
    entry = dataclasses.replace(entry, classes=named)
    if entry.num_classes != model.num_classes:
        raise SnzooError(
            f"the network has {model.num_classes} classes, but {entry.num_classes} names are "
            "known; name them: classes=[...]"
        )
    description = {
        "model": entry.name,
        "arguments": entry.arguments,
        "classes": entry.classes,
        "preprocessing": entry.preprocessing.as_dict(),
    }
    as_read: dict[str, Any] = json.loads(json.dumps(description))
    parse_description(as_read, "the description")  # raises where nobody could read it
    return entry, as_read


def _card(entry: Entry, source: str) -> str:
    """The hub's metadata, and what a reader must know to use the network."""
    task = "image-classification" if entry.classes else "image-feature-extraction"
    arguments = json.dumps(entry.arguments)
    sections = [
        "\n".join(["---", "library_name: snzoo", f"pipeline_tag: {task}", *_license(entry), "---"]),
        f"# A {entry.architecture} of snzoo",
        f"Created as `{entry.name}` with the arguments `{arguments}`.",
        _origin(entry),
        f"```python\nimport snzoo\n\nmodel = snzoo.create_model({json.dumps(source)}).eval()\n```",
        _preprocessing(entry),
        _classes(entry),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _license(entry: Entry) -> list[str]:
    """As the hub spells it: in small letters, or "other"."""
    if not entry.file or not entry.license:
        return []
    known = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", entry.license.lower())
    return [f"license: {entry.license.lower() if known else 'other'}"]


def _origin(entry: Entry) -> str:
    """Of the zoo's weights; what the network was trained on since, nobody told."""
    if not entry.file:
        return ""
    provenance = get_info(entry.name).provenance  # not where this network was loaded from
    return (
        f"The zoo's weights of that name: {provenance} Their license: "
        f"{entry.license or 'not stated'}. What was finetuned from them is bound by it, too."
    )


def _preprocessing(entry: Entry) -> str:
    recipe = entry.preprocessing
    return (
        f"Preprocessing: the shorter side to {recipe.resize} pixels (bilinear, antialiased), the "
        f"central {recipe.crop}×{recipe.crop} pixels, {recipe.channel_order} from 0 to "
        f"{recipe.scale}, minus {list(recipe.mean)}, divided by {list(recipe.std)}."
    )


def _classes(entry: Entry) -> str:
    if isinstance(entry.classes, str):
        return "Classes: the 1,000 of ImageNet-1k."
    if not entry.classes:
        return "No classes: it gives the mean of its last map."
    # Indented, no name can be markup: each is printable, so of one line.
    lines = [f"    {name}" for name in entry.classes[:SHOWN]]
    more = len(entry.classes) - SHOWN
    return "\n".join(
        [f"Classes ({len(entry.classes)}):", "", *lines]
        + ([f"\nand {more} more, in config.json."] if more > 0 else [])
    )
