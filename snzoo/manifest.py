"""Read the manifest into frozen dataclasses and check it (standard library only).

``weights_manifest.json`` is the only description of the models in the zoo. Users may name another
manifest (``SNZOO_MANIFEST``), so every field is checked. An unknown field is an error, because a
misspelled ``sha265`` would otherwise mean that there is no checksum.
"""

import dataclasses
import json
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from snzoo.entry import Entry, check_class_names, check_hex, stays_inside
from snzoo.errors import ArgumentError, ManifestError
from snzoo.preprocessing import Preprocessing
from snzoo.recipes import Recipe
from snzoo.typed_json import convert, freeze

SCHEMA_VERSION = 5


@dataclass(frozen=True)
class Comparison:
    """The published top-1 accuracy of ResNet-50 with several norms.

    ``settings`` are (GPUs)x(images per GPU). ``top1`` maps each norm to one accuracy per setting.
    """

    description: str
    source: str
    settings: tuple[str, ...]
    top1: dict[str, tuple[float | None, ...]]


@dataclass(frozen=True)
class Photos:
    """The bundled demo: the name of a model, and photos in class folders.

    ``sha256`` is the digest of the whole folder, see :func:`snzoo.data.demo.tree_digest`.
    """

    model: str
    dataset: str
    bundled: str
    images: int
    sha256: str
    license: str
    provenance: str

    def __post_init__(self) -> None:
        if not stays_inside(self.bundled):
            raise ManifestError(f"{self.bundled!r} is not a path inside the package")
        check_hex(self.sha256, 64)


@dataclass(frozen=True)
class Description:
    """The description in a checkpoint.

    Attributes:
        recipe: how the network was trained, if that is known.
        origin: the zoo model whose weights were converted to another norm.
    """

    model: str
    arguments: dict[str, Any]
    classes: Literal["imagenet-1k"] | tuple[str, ...]
    preprocessing: Preprocessing
    recipe: Recipe | None = None
    origin: str | None = None

    def __post_init__(self) -> None:
        if "num_classes" in self.arguments:
            raise ManifestError("arguments.num_classes is that of classes; leave it out")
        object.__setattr__(self, "arguments", freeze(self.arguments))
        check_class_names(self.classes)


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest: preprocessing, models and recipes by name, and more.

    ``recipes`` are those that belong to no model.
    """

    preprocessing: dict[str, Preprocessing]
    models: dict[str, Entry]
    demo: Photos | None
    comparison: Comparison | None
    recipes: dict[str, Recipe]


def default_path() -> Path:
    """Return the path of the manifest.

    It is ``SNZOO_MANIFEST`` if that is set, else the manifest in the package. In a checkout, the
    manifest is next to the package.
    """
    if chosen := os.environ.get("SNZOO_MANIFEST"):
        return Path(chosen)
    package = Path(__file__).parent
    installed = package / "weights_manifest.json"
    return installed if installed.exists() else package.parent / "weights_manifest.json"


def load_manifest(path: Path | None = None) -> Manifest:
    """Return a manifest after checking it.

    Args:
        path: the path of the manifest (default: :func:`default_path`).

    Raises:
        ManifestError: the file can't be read, or a field is missing, unknown or malformed.
    """
    path = path or default_path()
    try:
        stat = path.stat()
    except OSError as error:
        raise ManifestError(f"can't read the manifest {path}: {error.strerror}") from None
    return _load_cached(path, stat.st_mtime_ns, stat.st_size)


def load_demo() -> Photos:
    """Return the demo of the manifest.

    Raises:
        ArgumentError: the manifest has no demo.
    """
    photos = load_manifest().demo
    if photos is None:
        raise ArgumentError("this manifest has no demo: name a model with --model")
    return photos


@cache
def _load_cached(path: Path, mtime_ns: int, size: int) -> Manifest:
    """Return a manifest, which is read again if its modification time or size changed."""
    try:
        return parse_manifest(json.loads(path.read_text(encoding="utf-8")))
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"can't read the manifest {path}: {error}") from None


def parse_manifest(document: Any) -> Manifest:
    """Return the manifest in a JSON document.

    Raises:
        ManifestError: a field is missing, unknown or malformed; the message names it.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
        raise ManifestError(f"schema_version must be {SCHEMA_VERSION} (or 1 to 4, which are older)")
    if version == 1:
        document = _upgrade(document)
    known = {"schema_version", "preprocessing", "models", "recipes", "demo", "comparison"}
    if unknown := set(document) - known:
        raise ManifestError(f"unknown field {sorted(unknown)[0]!r}")
    preprocessing: dict[str, Preprocessing] = convert(
        document.get("preprocessing"), dict[str, Preprocessing], "preprocessing"
    )
    if "imagenet" not in preprocessing:
        raise ManifestError("preprocessing.imagenet, which bare architectures take, is missing")
    models = _parse_models(document)
    recipes: dict[str, Recipe] = convert(document.get("recipes", {}), dict[str, Recipe], "recipes")
    for name in recipes:
        _check_name(name, f"recipes.{name}", "recipe")
        if name in models:
            raise ManifestError(f"recipes.{name}: a model has this name, and its own recipe")
    demo = convert(document.get("demo"), Photos | None, "demo")
    if demo and demo.model not in models:
        raise ManifestError(f"demo.model must be one of the models, got {demo.model!r}")
    comparison = convert(document.get("comparison"), Comparison | None, "comparison")
    return Manifest(preprocessing, models, demo, comparison, recipes)


def _parse_models(document: dict[str, Any]) -> dict[str, Entry]:
    """Return the models of a document whose preprocessing was checked."""
    preprocessing = document["preprocessing"]
    models = {}
    for name, fields in convert(document.get("models"), dict[str, Any], "models").items():
        where = f"models.{name}"
        _check_name(name, where, "model")
        if not isinstance(fields, dict):
            raise ManifestError(f"{where} must be an object")
        if "name" in fields:
            raise ManifestError(f"{where} has an unknown field 'name'")
        if str(fields.get("preprocessing")) not in preprocessing:
            raise ManifestError(f"{where}.preprocessing must be one of {sorted(preprocessing)}")
        values = preprocessing[fields["preprocessing"]]
        models[name] = convert({**fields, "name": name, "preprocessing": values}, Entry, where)
    return models


def _check_name(name: str, where: str, kind: str) -> None:
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise ManifestError(f"{where}: a {kind}'s name is letters, digits and underscores")


def _upgrade(document: dict[str, Any]) -> dict[str, Any]:
    """Return a document of schema version 1 with the field names of version 2."""
    renamed = {"licence": "license", "parameters": "num_params"}

    def rename(fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {renamed.get(name, name): value for name, value in fields.items()}

    models = document.get("models")
    if isinstance(models, dict):
        models = {name: rename(fields) for name, fields in models.items()}
    return {**document, "models": models, "demo": rename(document.get("demo"))}


def parse_description(document: dict[str, Any], where: str) -> Description:
    """Return the description in a JSON document of a checkpoint. Unknown fields are ignored.

    A recipe with unknown or missing fields is left out: another version wrote it, and this one
    could not follow it. The weights can be loaded all the same.

    Args:
        document: the JSON document.
        where: the path of the checkpoint, for errors.

    Raises:
        ManifestError: a field is missing or malformed; the message names it.
    """
    names = {field.name for field in dataclasses.fields(Description)}
    known = {name: value for name, value in document.items() if name in names}
    recipe = known.get("recipe")
    if isinstance(recipe, dict) and set(recipe) != {f.name for f in dataclasses.fields(Recipe)}:
        del known["recipe"]
    description: Description = convert(known, Description, where)
    return description
