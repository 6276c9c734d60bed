"""What ``snzoo eval --json`` writes, parsed strictly into frozen dataclasses.

A document may come from anyone, so every field is checked before a word of it is shown,
and lists are bounded, so that a small document can't ask for a huge page.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from snzoo.errors import ManifestError, SnzooError
from snzoo.manifest import Preprocessing
from snzoo.typed_json import convert

LARGEST = 32 << 20  # bytes; 50,000 messages and a dozen models of 1,000 classes stay below
MOST_MODELS, MOST_PAIRS, MOST_EXAMPLES = 100, 20, 3


@dataclass(frozen=True)
class Data:
    """The images: ``path`` is None for the bundled demo photos."""

    path: str | None
    description: str
    dataset: str | None
    images: int
    classes: Literal["imagenet-1k"] | tuple[str, ...]


@dataclass(frozen=True)
class Pixels:
    """How image files became pixels; ``exact``: as the reference transform does."""

    exact: bool
    decoder: str
    resize: str


@dataclass(frozen=True)
class Run:
    """Where and how fast; ``seconds`` of decoding and inference together."""

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
    """Percent, its 95 % interval, and the published figure beside it."""

    correct: int
    percent: float
    interval95: tuple[float, float]
    published: float | None
    agrees: bool | None

    def __post_init__(self) -> None:
        low, high = self.interval95
        _check(0 <= low <= self.percent <= high <= 100, "0 <= low <= percent <= high <= 100")
        _check(self.published is None or 0 <= self.published <= 100, "0 <= published <= 100")
        _check((self.agrees is None) == (self.published is None), "agrees goes with published")


@dataclass(frozen=True)
class Real:
    """Accuracy by the ReaL labels, on the ``images`` that have one."""

    correct: int
    percent: float
    interval95: tuple[float, float]
    images: int

    def __post_init__(self) -> None:
        low, high = self.interval95
        _check(0 <= low <= self.percent <= high <= 100, "0 <= low <= percent <= high <= 100")
        _check(0 <= self.correct <= self.images, "0 <= correct <= images")


@dataclass(frozen=True)
class ClassCount:
    """``top1`` and ``top5`` of the ``images`` of one class are right."""

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
    """``count`` images of one class were taken for another; ``examples`` names some of them."""

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
    """The figures of one model; ``calibration_error`` from 0 to 1, over 15 bins."""

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
    real: Real | None = None

    def __post_init__(self) -> None:
        counts = (0, self.top1.correct, self.top5.correct, self.images)
        _check(list(counts) == sorted(counts), "0 <= top1.correct <= top5.correct <= images")
        _check(self.images >= 1, "images >= 1")
        for a in (self.top1, self.top5):
            _check(abs(a.percent - 100 * a.correct / self.images) < 0.01, "percent as counted")
        _check(0 <= self.calibration_error <= 1, "0 <= calibration_error <= 1")
        _check(len(self.confused) <= MOST_PAIRS, f"at most {MOST_PAIRS} confused pairs")


@dataclass(frozen=True)
class Results:
    """The whole document; ``errors`` are the messages of images left out."""

    schema_version: Literal[1]
    data: Data
    pixels: Pixels
    run: Run
    versions: dict[str, str]
    errors: tuple[str, ...]
    models: tuple[Model, ...]

    def __post_init__(self) -> None:
        _check(1 <= len(self.models) <= MOST_MODELS, f"1 to {MOST_MODELS} models")


def _check(holds: bool, rule: str) -> None:
    if not holds:
        raise ManifestError(f"must be: {rule}")


def read_results(path: Path) -> Results:
    """Read and check a document of ``snzoo eval --json``.

    Raises:
        SnzooError: it can't be read, is too large, is not JSON, or a field is missing,
            unknown, of the wrong type or out of its range.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for without end
            raise SnzooError(f"can't read {path}: not a regular file")
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise SnzooError(f"can't read {path}: {error.strerror}") from None
    if len(content) > LARGEST:
        raise SnzooError(f"{path} is larger than {LARGEST >> 20} MiB: no results of snzoo eval")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SnzooError(f"{path} is not JSON: {error}; make it: snzoo eval --json FILE") from None
    try:
        return parse_results(document)
    except ManifestError as error:
        reason = str(error)
        reason = reason if len(reason) <= 300 else f"{reason[:300]} …"
        raise SnzooError(f"{path} is not what snzoo eval --json writes: {reason}") from None


def parse_results(document: Any) -> Results:
    """JSON values → :class:`Results`; raises ManifestError naming the field."""
    version = document.get("schema_version") if isinstance(document, dict) else None
    convert(version, Literal[1], "schema_version")
    results: Results = convert(document, Results, "results")
    return results
