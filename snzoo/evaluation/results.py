"""The results of an evaluation: the schema of ``snzoo eval --json``, written and read.

A file may come from an untrusted source. Every field is therefore checked when it is read, and the
length of lists is limited, so that a small file cannot lead to a huge page.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from snzoo.errors import ManifestError
from snzoo.files import read_bounded
from snzoo.intervals import wilson_interval
from snzoo.preprocessing import Preprocessing
from snzoo.typed_json import convert

LARGEST = 32 << 20  # bytes; more than 50,000 messages and a dozen models of 1,000 classes take
MOST_MODELS, MOST_PAIRS, MOST_EXAMPLES = 100, 20, 3
TOLERANCE = 0.05  # percentage points that libraries may differ by on the same images


@dataclass(frozen=True)
class Data:
    """The evaluated images; ``path`` is None for the bundled photos and for data without a path."""

    path: str | None
    description: str
    dataset: str | None
    images: int
    classes: Literal["imagenet-1k"] | tuple[str, ...]


@dataclass(frozen=True)
class Pixels:
    """The packages that decoded and resized the images; ``exact`` means the reference's pixels."""

    exact: bool
    decoder: str
    resize: str


@dataclass(frozen=True)
class Run:
    """The settings and the speed; ``seconds`` is the time of decoding and inference together."""

    device: str
    precision: str
    batch_size: int
    compile: bool
    channels_last: bool
    threads: int
    processes: int
    workers: int
    seconds: float
    images_per_second: float
    resumed: bool

    def __post_init__(self) -> None:
        _check(self.seconds >= 0 and self.images_per_second >= 0, "negative time or throughput")


@dataclass(frozen=True)
class Accuracy:
    """The share of ``correct`` among ``images`` in percent, with the 95 % Wilson score interval.

    ``published`` is the figure to compare with, or None. ``agrees`` says whether the figure is
    within the tolerance (if published for the same images) or within the interval (if for others).
    """

    correct: int
    images: int
    percent: float
    interval95: tuple[float, float]
    published: float | None = None
    agrees: bool | None = None

    def __post_init__(self) -> None:
        low, high = self.interval95
        _check(0 <= self.correct <= self.images and self.images >= 1, "0 <= correct <= images")
        _check(0 <= low <= self.percent <= high <= 100, "0 <= low <= percent <= high <= 100")
        counted = 100 * self.correct / self.images
        _check(abs(self.percent - counted) < 0.01, "percent as counted")
        _check(self.published is None or 0 <= self.published <= 100, "0 <= published <= 100")
        _check((self.agrees is None) == (self.published is None), "agrees goes with published")

    @classmethod
    def count(cls, correct: int, images: int) -> "Accuracy":
        """Return the accuracy for ``correct`` of ``images``, rounded to four decimals."""
        low, high = wilson_interval(correct, images)
        percent = round(100 * (correct / images), 4)
        return cls(correct, images, percent, (round(low, 4), round(high, 4)))

    def compare(
        self, published: float | None, *, same_images: bool, tolerance: float = TOLERANCE
    ) -> "Accuracy":
        """Return this accuracy, compared with a published figure in percent."""
        if published is None:
            return self
        low, high = self.interval95
        near = abs(100 * self.correct / self.images - published) <= tolerance + 1e-9  # rounding
        agrees = near if same_images else low <= published <= high
        return dataclasses.replace(self, published=published, agrees=agrees)


@dataclass(frozen=True)
class Present:
    """The accuracy when only the classes in the data compete; ``classes`` is their number."""

    classes: int
    top1: Accuracy
    top5: Accuracy


@dataclass(frozen=True)
class ClassCount:
    """The number of ``images`` of a class, and how many rank it first or among the first five."""

    index: int
    name: str
    images: int
    top1: int
    top5: int

    def __post_init__(self) -> None:
        _check(0 <= self.top1 <= self.top5 <= self.images, "0 <= top1 <= top5 <= images")
        _check(self.images >= 1, "images >= 1")

    @property
    def percent(self) -> float:
        return 100 * self.top1 / self.images


@dataclass(frozen=True)
class Pair:
    """A confusion of two classes in ``count`` images; ``examples`` has the names of some images."""

    label: int
    label_name: str
    predicted: int
    predicted_name: str
    count: int
    examples: tuple[str, ...]

    def __post_init__(self) -> None:
        _check(self.count >= 1, "count >= 1")
        _check(len(self.examples) <= MOST_EXAMPLES, f"at most {MOST_EXAMPLES} examples")


@dataclass(frozen=True)
class Model:
    """The figures of one model.

    ``calibration_error`` is the expected calibration error over 15 bins, from 0 to 1. ``real`` is
    the top-1 accuracy by the ReaL labels, on the images that have such a label.
    """

    name: str
    architecture: str
    weights: str | None
    preprocessing: Preprocessing
    images: int
    top1: Accuracy
    top5: Accuracy
    published_on: str | None
    same_images: bool
    calibration_error: float
    per_class: tuple[ClassCount, ...]
    confused: tuple[Pair, ...]
    real: Accuracy | None = None
    present: Present | None = None

    def __post_init__(self) -> None:
        counts = (0, self.top1.correct, self.top5.correct, self.images)
        _check(list(counts) == sorted(counts), "0 <= top1.correct <= top5.correct <= images")
        _check(self.images >= 1, "images >= 1")
        of = {self.top1.images, self.top5.images, self.images}
        _check(len(of) == 1, "top1.images = top5.images = images")
        _check(0 <= self.calibration_error <= 1, "0 <= calibration_error <= 1")
        _check(len(self.confused) <= MOST_PAIRS, f"at most {MOST_PAIRS} confused pairs")


@dataclass(frozen=True)
class Results:
    """The results of an evaluation; ``errors`` has the messages of images that were left out."""

    data: Data
    pixels: Pixels
    run: Run
    versions: dict[str, str]
    errors: tuple[str, ...]
    models: tuple[Model, ...]
    schema_version: Literal[2] = 2

    def __post_init__(self) -> None:
        _check(1 <= len(self.models) <= MOST_MODELS, f"1 to {MOST_MODELS} models")

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON document, which :func:`parse_results` reads."""
        return {"schema_version": self.schema_version} | dataclasses.asdict(self)


def _check(holds: bool, rule: str) -> None:
    if not holds:
        raise ManifestError(f"must be: {rule}")


def read_results(path: str | Path) -> Results:
    """Return the checked results of a file that ``snzoo eval --json`` wrote.

    Raises:
        FileError: the file cannot be read, or is too large.
        ManifestError: the file is not JSON, or a field is missing, unknown, of the wrong type or
            out of its range.
    """
    document = read_document(path)
    with naming_file(path):
        return parse_results(document)


def read_document(path: str | Path) -> Any:
    """Return the JSON document of a file of results, unchecked.

    Raises:
        FileError: the file cannot be read, or is too large.
        ManifestError: the file is not JSON.
    """
    content = read_bounded(Path(path), limit=LARGEST, kind="a results file")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        message = f"{path} is not JSON: {error}; make it with: snzoo eval --json FILE"
        raise ManifestError(message) from None


@contextmanager
def naming_file(path: str | Path) -> Iterator[None]:
    """Add the path of the file to the message of a ManifestError, and shorten the message."""
    try:
        yield
    except ManifestError as error:
        reason = str(error)
        reason = reason if len(reason) <= 300 else f"{reason[:300]} …"
        raise ManifestError(f"{path} is not what snzoo eval --json writes: {reason}") from None


def parse_results(document: Any) -> Results:
    """Return the checked results of a JSON document of schema version 1 or 2.

    Raises:
        ManifestError: a field is wrong; the message names it.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    convert(version, Literal[1, 2], "schema_version")
    if version == 1:
        document = _upgrade(document)
    results: Results = convert(document, Results, "results")
    return results


def _upgrade(document: dict[str, Any]) -> dict[str, Any]:
    """Convert a document of version 1 to version 2, which repeats ``images`` in top1 and top5.

    Values of the wrong type are not changed; the checks find them later.
    """

    def upgrade(model: Any) -> Any:
        if not isinstance(model, dict):
            return model
        images = {"images": model.get("images")}
        accuracies = {
            key: images | model[key] for key in ("top1", "top5") if isinstance(model.get(key), dict)
        }
        return model | accuracies

    models = document.get("models")
    models = list(map(upgrade, models)) if isinstance(models, list) else models
    return document | {"schema_version": 2, "models": models}
