"""Save a network to a file, a folder or the Hugging Face hub, for ``snzoo.create_model``."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snzoo.errors import ArgumentError, CheckpointError, UnexpectedArgumentError
from snzoo.manifest import parse_description
from snzoo.spec import HUB, ModelSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

    from snzoo.recipes import Recipe

CLASSES_ON_CARD = 100  # config.json has the names of all classes


def save_pretrained(
    model: nn.Module,
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    state_dict: Mapping[str, Tensor] | None = None,
    recipe: Recipe | None = None,
) -> None:
    """Save a network so that ``snzoo.create_model(path)`` creates it again.

    If ``path`` ends in ``.safetensors``, one file with weights and description is written.
    Otherwise ``path`` is a folder for ``model.safetensors``, ``config.json`` and a model card
    ``README.md``.

    If the model was created by the name of a zoo model, the card names the origin and the license
    of the zoo's weights. A network that is trained from scratch should therefore be created by the
    name of its architecture.

    If the parameters are sharded (FSDP's ``fully_shard``), every process must call this function.
    It gathers the parameters, and the process of rank 0 writes them.

    Args:
        model: The network that ``snzoo.create_model`` returned, finetuned or not.
        path: The path of the file or the folder. A folder is created if it does not exist. Other
            files in it, and a ``README.md`` that a user wrote or edited, are not changed.
        classes: The names of the classes; default: those of the zoo model or the checkpoint. They
            are required after ``reset_classifier``, unless the network has no classifier.
        state_dict: The tensors to save, e.g. averaged weights, or weights in float16, which are
            loaded as float32; default: those of the model.
        recipe: The recipe of the training, which is stored in the description.

    Raises:
        UnexpectedArgumentError: ``model`` is a wrapper, or does not come from ``create_model``.
        ArgumentError: the names of the classes are unknown.
        CheckpointError: the network was changed since it was created, or a file cannot be written.
    """
    if not os.fspath(path):  # Path("") would be the current folder
        raise ArgumentError("the path must not be empty; the current folder is '.'")
    path = Path(path)
    spec, description = _describe(model, classes, recipe)
    tensors = _gather(_state_dict(model, spec) if state_dict is None else state_dict)
    if tensors is not None:
        _save(path, tensors, spec, description, source=path.name or "FOLDER")


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    *,
    classes: Sequence[str] | None = None,
    private: bool = False,
    commit_message: str = "Upload a network of snzoo",
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Save a network to a repository of the Hugging Face hub, as one commit.

    ``snzoo.create_model("hf-hub:OWNER/NAME")`` creates the network again. This function needs the
    extra ``hub``.

    Args:
        model, classes: See :func:`save_pretrained`.
        repo_id: The repository, as ``OWNER/NAME``. It is created if it does not exist. Its other
            files, and a model card that a user wrote or edited, are not changed.
        private: Create a private repository; default: False. If True, an existing repository must
            be private.
        commit_message: The message of the commit.
        token: The access token; default: the token of ``hf auth login`` or ``HF_TOKEN``.
        revision: The branch; default: the main branch.

    Returns:
        The address of the repository; an empty string in processes that do not upload.

    Raises:
        DownloadError: the hub cannot be reached, or refuses the upload.
        OfflineError: ``SNZOO_OFFLINE=1`` or ``HF_HUB_OFFLINE=1``.
        ArgumentError: ``repo_id`` is malformed, or the repository is public although ``private``
            is set. See also the errors of :func:`save_pretrained`.
        MissingPackageError: huggingface_hub is not installed.
    """
    from snzoo.weights.hub import upload_folder

    with tempfile.TemporaryDirectory() as name:
        spec, description = _describe(model, classes)
        tensors = _gather(_state_dict(model, spec))
        if tensors is None:  # another process uploads
            return ""
        _save(Path(name), tensors, spec, description, source=HUB + repo_id)
        return upload_folder(
            Path(name),
            repo_id,
            private=private,
            commit_message=commit_message,
            token=token,
            revision=revision,
        )


def _save(
    path: Path,
    tensors: Mapping[str, Tensor],
    spec: ModelSpec,
    description: dict[str, Any],
    *,
    source: str,
) -> None:
    from snzoo.weights import conform_state_dict, save_description, save_folder

    if any(value.is_meta for value in tensors.values()):
        raise CheckpointError("the network is on the meta device, so it has no weights to save")
    # This raises an error if the network was changed since it was created.
    state = conform_state_dict(tensors, spec.layout(), where="the network to save")
    state = {k: v.to(tensors[k].dtype) if k in tensors else v for k, v in state.items()}
    if path.suffix == ".safetensors":
        save_description(path, state, description)
    else:
        save_folder(path, state, description, model_card(spec, source))


def _state_dict(model: nn.Module, spec: ModelSpec) -> dict[str, Tensor]:
    from snzoo.nn import SparseSwitchNorm2d

    if spec.network.norm == "ssn" and not any(
        isinstance(module, SparseSwitchNorm2d) for module in model.modules()
    ):
        raise CheckpointError(
            "the network was simplified by snzoo.nn.simplify, so it is for inference only; save "
            "it before that"
        )
    return model.state_dict()


def _gather(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Return the state dict with whole tensors, or None in a process that must not write."""
    if not any(hasattr(value, "full_tensor") for value in state.values()):  # no DTensor
        return dict(state)
    from torch import distributed

    whole = {
        key: value.full_tensor() if hasattr(value, "full_tensor") else value
        for key, value in state.items()
    }
    return whole if distributed.get_rank() == 0 else None


def _describe(
    model: nn.Module, classes: Sequence[str] | None, recipe: Recipe | None = None
) -> tuple[ModelSpec, dict[str, Any]]:
    """Return the spec of a network, and its description as a JSON document."""
    from snzoo.models.face_resnet import FaceResNet
    from snzoo.models.resnet import ResNet

    spec = model.spec if isinstance(model, (ResNet, FaceResNet)) else None
    if not isinstance(model, (ResNet, FaceResNet)) or not isinstance(spec, ModelSpec):
        raise UnexpectedArgumentError(
            "pass the network that snzoo.create_model returned, not a wrapper such as "
            f"DistributedDataParallel (its .module) or Sequential, got {type(model).__name__}"
        )
    if isinstance(classes, str):
        raise UnexpectedArgumentError(f"classes must be a list of names, got {classes!r}")
    named = spec.classes if classes is None and model.num_classes else tuple(classes or ())
    spec = dataclasses.replace(spec, classes=named)
    if spec.num_classes != model.num_classes:
        raise ArgumentError(
            f"the network has {model.num_classes} classes, but {spec.num_classes} names are "
            "known; name them: classes=[...]"
        )
    if isinstance(model, ResNet):
        _check_head(model)
    description = {
        "model": spec.name,
        "arguments": spec.arguments,
        "classes": spec.classes,
        "preprocessing": spec.preprocessing.as_dict(),
    }
    if spec.origin is not None:
        description["origin"] = spec.origin
    if recipe is not None:
        description["recipe"] = dataclasses.asdict(recipe)
    document: dict[str, Any] = json.loads(json.dumps(description))
    parse_description(document, "the description")  # raises if create_model could not read it
    return spec, document


def _check_head(model: Any) -> None:
    """Raise an error if the classifier of a network is not a single linear layer."""
    from torch import nn

    if not isinstance(model.fc, (nn.Linear, nn.Identity)):
        raise CheckpointError(
            f"fc is a {type(model.fc).__name__}; only a head of one nn.Linear can be saved: call "
            "model.reset_classifier(N) and use drop_rate=... of create_model for dropout, or save "
            "model.state_dict() yourself"
        )


def model_card(spec: ModelSpec, source: str) -> str:
    """Return a model card in Markdown, which begins with the metadata for the hub.

    Args:
        spec: The spec of the network.
        source: The argument for ``snzoo.create_model`` in the example on the card.
    """
    task = "image-classification" if spec.classes else "image-feature-extraction"
    metadata = ["---", "library_name: snzoo", f"pipeline_tag: {task}", *_license_line(spec), "---"]
    sections = [
        "\n".join(metadata),
        f"# A {spec.architecture} of snzoo",
        f"Created as `{spec.name}` with the arguments `{json.dumps(spec.arguments)}`.",
        _origin_section(spec),
        f"```python\nimport snzoo\n\nmodel = snzoo.create_model({json.dumps(source)}).eval()\n```",
        spec.preprocessing.describe(),
        _classes_section(spec),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _license_line(spec: ModelSpec) -> list[str]:
    """Return the license as a line of the hub's metadata, or [] if there is none."""
    if not (spec.file or spec.origin) or not spec.license:
        return []
    known = re.fullmatch(r"[a-z0-9][a-z0-9.-]*", spec.license.lower())
    return [f"license: {spec.license.lower() if known else 'other'}"]


def _origin_section(spec: ModelSpec) -> str:
    """Return the origin and the license of the zoo's weights, or "" if there are none."""
    name = spec.origin or (spec.name if spec.file else None)
    if name is None:
        return ""
    provenance = ModelSpec.find(name).provenance  # spec.provenance may be that of a checkpoint
    which = f"of `{name}`, converted to another norm" if spec.origin else "of that name"
    return (
        f"The zoo's weights {which}: {provenance} Their license: "
        f"{spec.license or 'not stated'}. It also binds networks that were finetuned from them."
    )


def _classes_section(spec: ModelSpec) -> str:
    """Return the section of the model card on the classes."""
    if isinstance(spec.classes, str):
        return "Classes: the 1,000 of ImageNet-1k."
    if spec.is_face:
        return "No classes: the network returns embeddings of faces, of length 1."
    if not spec.classes:
        return "No classes: the network returns the mean of its last map."
    # Indented lines are code, so no name can be markup. Names are printable, so each is one line.
    lines = [f"    {name}" for name in spec.classes[:CLASSES_ON_CARD]]
    more = len(spec.classes) - CLASSES_ON_CARD
    return "\n".join(
        [f"Classes ({len(spec.classes)}):", "", *lines]
        + ([f"\nand {more} more, in config.json."] if more > 0 else [])
    )
