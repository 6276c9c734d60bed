"""The results of an evaluation on pairs of faces: what ``snzoo eval --faces --json`` writes."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from snzoo.errors import ManifestError
from snzoo.evaluation.results import MOST_MODELS, naming_file, read_document
from snzoo.faces.verification import MOST_POINTS, Verification
from snzoo.typed_json import convert


@dataclass(frozen=True)
class FaceData:
    """The verification set. ``accuracy_pairs`` are those that the accuracy over folds is of.

    If a set does not have equally many genuine and impostor pairs, they are a part of it that has.
    """

    path: str
    name: str
    photos: int
    pairs: int
    accuracy_pairs: int


@dataclass(frozen=True)
class FaceModel:
    """The figures of one model; ``weights`` is None for the zoo's weights."""

    name: str
    architecture: str
    weights: str | None
    verification: Verification

    def __post_init__(self) -> None:
        found = self.verification
        shares = [found.equal_error_rate, found.auc, *(v for point in found.roc for v in point)]
        _check(all(0 <= share <= 1 for share in shares), "0 <= shares <= 1")
        _check(2 <= len(found.roc) <= MOST_POINTS, f"2 to {MOST_POINTS} points of the ROC curve")
        _check(list(found.roc) == sorted(found.roc), "points of the ROC curve in ascending order")
        _check(found.roc[-1] == (1, 1), "a ROC curve that ends at (1, 1)")


@dataclass(frozen=True)
class FaceRun:
    """The settings and the speed; ``seconds`` is the time of decoding and inference together."""

    device: str
    batch_size: int
    workers: int
    seconds: float


@dataclass(frozen=True)
class FaceResults:
    """The results of an evaluation on pairs of faces."""

    data: FaceData
    run: FaceRun
    versions: dict[str, str]
    models: tuple[FaceModel, ...]
    kind: Literal["faces"] = "faces"

    def __post_init__(self) -> None:
        _check(1 <= len(self.models) <= MOST_MODELS, f"1 to {MOST_MODELS} models")

    def figures(self) -> dict[str, Verification]:
        """Return the figures by the names of the models. Models of one name are numbered."""
        names = [model.name for model in self.models]
        return {
            f"{name} ({i})" if names.count(name) > 1 else name: model.verification
            for i, (name, model) in enumerate(zip(names, self.models, strict=True), 1)
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON document, which :func:`read_face_results` reads."""
        return {"kind": self.kind} | dataclasses.asdict(self)


def _check(holds: bool, rule: str) -> None:
    if not holds:
        raise ManifestError(f"must be: {rule}")


def is_of_faces(document: Any) -> bool:
    """Return whether a JSON document is of faces; see ``results.read_document``."""
    return isinstance(document, dict) and document.get("kind") == "faces"


def read_face_results(path: str | Path) -> FaceResults:
    """Return the checked results of a file that ``snzoo eval --faces --json`` wrote.

    Raises:
        FileError: the file cannot be read, or is too large.
        ManifestError: the file is not JSON, or a field is missing, unknown, of the wrong type or
            out of its range.
    """
    document = read_document(path)
    with naming_file(path):
        return parse_face_results(document)


def parse_face_results(document: Any) -> FaceResults:
    """Return the checked results of a JSON document.

    Raises:
        ManifestError: a field is wrong; the message names it.
    """
    results: FaceResults = convert(document, FaceResults, "results")
    return results
