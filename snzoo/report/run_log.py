"""The reader of a run folder: the settings and the log that ``snzoo train`` writes.

A folder may come from an untrusted source. Every field that the report shows is therefore checked,
and sizes are limited. Fields and events with unknown names are left out, so that a later version
may add some. The run may still be writing: a last line that is cut off is left out too.
"""

import json
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn, get_args

from snzoo.errors import ManifestError
from snzoo.files import read_bounded
from snzoo.typed_json import convert

FILES = ("recipe.json", "log.ndjson", "best.safetensors", "last.pt")
LARGEST_RECIPE, LARGEST_LOG = 8 << 20, 64 << 20  # bytes; 60 MB are half a million lines
MOST_FIELDS = 200  # of a recipe
MOST = 10**12  # the largest count; float32 ends at 3.4e38

Scalar = bool | int | float | str | None


@dataclass(frozen=True)
class Split:
    """The images to train or validate with."""

    description: str
    images: int

    def __post_init__(self) -> None:
        _check(0 <= self.images <= MOST, "0 <= images <= 1e12")


@dataclass(frozen=True)
class Settings:
    """The settings of a run; ``recipe`` has its fields in the order of the file."""

    model: str
    recipe: dict[str, Scalar | tuple[Scalar, ...]]
    seed: int
    processes: int
    train: Split
    validation: Split | None = None
    versions: dict[str, str] | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        _check(len(self.recipe) <= MOST_FIELDS, f"at most {MOST_FIELDS} fields of the recipe")

    @property
    def epochs(self) -> int | None:
        """The number of epochs that the recipe asks for, or None if it does not say."""
        epochs = self.recipe.get("epochs")
        return epochs if type(epochs) is int else None


@dataclass(frozen=True)
class Step:
    """The mean ``loss`` since the last such line; ``step`` counts finished optimizer steps."""

    step: int
    epoch: float
    loss: float
    lr: float
    images_per_second: float

    def __post_init__(self) -> None:
        _check(0 <= self.step <= MOST and 0 <= self.epoch <= MOST, "0 <= step, epoch <= 1e12")
        _check(0 <= self.loss < 1e39 and 0 <= self.lr < 1e39, "0 <= loss, lr < 1e39")
        _check(0 <= self.images_per_second <= MOST, "0 <= images_per_second <= 1e12")


@dataclass(frozen=True)
class Validation:
    """The counts of right images among the first 1 and 5 classes, and the mean loss."""

    images: int
    top1: int
    top5: int
    loss: float

    noun = "images"

    @property
    def score(self) -> tuple[int, int]:
        """The number of right images, and of all images."""
        return self.top1, self.images

    def __post_init__(self) -> None:
        counts = (0, self.top1, self.top5, self.images, MOST)
        _check(list(counts) == sorted(counts), "0 <= top1 <= top5 <= images <= 1e12")
        _check(self.images >= 1 and 0 <= self.loss < 1e39, "images >= 1, 0 <= loss < 1e39")


@dataclass(frozen=True)
class Pairs:
    """The counts of all pairs of faces and of the right ones; the rate is from 0 to 1."""

    pairs: int
    correct: int
    equal_error_rate: float

    noun = "pairs"

    @property
    def score(self) -> tuple[int, int]:
        """The number of right pairs, and of all pairs."""
        return self.correct, self.pairs

    def __post_init__(self) -> None:
        _check(0 <= self.correct <= self.pairs <= MOST, "0 <= correct <= pairs <= 1e12")
        _check(self.pairs >= 1, "pairs >= 1")
        _check(0 <= self.equal_error_rate <= 1, "0 <= equal_error_rate <= 1")


@dataclass(frozen=True)
class Epoch:
    """The figures after ``epoch`` epochs; ``train_top1`` is in percent."""

    epoch: int
    step: int
    train_loss: float
    train_top1: float
    seconds: float
    best: bool
    validation: Validation | None = None
    pairs: Pairs | None = None

    @property
    def found(self) -> Validation | Pairs | None:
        """The figures of the validation."""
        return self.validation or self.pairs

    def __post_init__(self) -> None:
        _check(0 <= self.step <= MOST and 0 <= self.epoch <= MOST, "0 <= step, epoch <= 1e12")
        _check(0 <= self.train_loss < 1e39, "0 <= train_loss < 1e39")
        _check(0 <= self.train_top1 <= 100, "0 <= train_top1 <= 100")
        _check(0 <= self.seconds <= MOST, "0 <= seconds <= 1e12")


@dataclass(frozen=True)
class Skipped:
    """A photo that could not be read."""

    photo: str
    reason: str


@dataclass(frozen=True)
class Resumed:
    """The run went on from its state after ``step`` steps."""

    step: int

    def __post_init__(self) -> None:
        _check(0 <= self.step <= MOST, "0 <= step <= 1e12")


@dataclass(frozen=True)
class Finished:
    """The run has done all its steps."""


EVENTS = {
    "step": Step,
    "epoch": Epoch,
    "skipped": Skipped,
    "resumed": Resumed,
    "finished": Finished,
}


@dataclass(frozen=True)
class Run:
    """A training run as far as it is logged; ``skipped`` names each photo once."""

    settings: Settings
    steps: tuple[Step, ...]
    epochs: tuple[Epoch, ...]
    skipped: tuple[Skipped, ...]
    resumes: tuple[Resumed, ...]
    finished: bool

    @property
    def best(self) -> Epoch | None:
        """The best validated epoch, or None."""
        found = [epoch for epoch in self.epochs if epoch.best and epoch.found]
        return found[-1] if found else None


def read_run(folder: Path) -> Run:
    """Return the checked settings and log of a run folder. A missing log counts as empty.

    Raises:
        FileError: a file cannot be read, or is too large.
        ManifestError: a file is not JSON, or a field is missing, of the wrong type or out of its
            range. The message names the file, the line and the field.
    """
    settings, log = _read_settings(folder / FILES[0]), folder / FILES[1]
    if not log.exists():  # a run that has only begun
        return Run(settings, (), (), (), (), False)
    content = read_bounded(log, limit=LARGEST_LOG, kind="the log of a run")
    *lines, last = content.split(b"\n")
    events = [_parse_line(line, f"{log}, line {i}") for i, line in enumerate(lines, 1)]
    if last and _is_json(last):
        events.append(_parse_line(last, f"{log}, line {len(lines) + 1}"))
    return _replay(settings, events)


def _replay(settings: Settings, events: list[Any]) -> Run:
    """Return the run; a resumed run repeats the steps after its saved state, so these are left out.

    Photos are skipped again in every epoch.
    """
    steps: list[Step] = []
    epochs: list[Epoch] = []
    resumes: list[Resumed] = []
    skipped: dict[str, Skipped] = {}
    finished = False
    for event in events:
        match event:
            case Step():
                steps.append(event)
            case Epoch():
                epochs.append(event)
            case Skipped():
                skipped.setdefault(event.photo, event)
            case Finished():
                finished = True
            case Resumed():
                resumes.append(event)
                finished = False
                while steps and steps[-1].step > event.step:
                    steps.pop()
                while epochs and epochs[-1].step > event.step:
                    epochs.pop()
    kept = tuple(skipped.values())
    return Run(settings, tuple(steps), tuple(epochs), kept, tuple(resumes), finished)


def _read_settings(path: Path) -> Settings:
    if not path.exists():
        raise ManifestError(f"{path.parent} is not a run folder: it has no {path.name}")
    content = read_bounded(path, limit=LARGEST_RECIPE, kind="the recipe of a run")
    settings: Settings = _convert(_load(content, str(path)), Settings, str(path))
    return settings


def _parse_line(line: bytes, where: str) -> Any:
    """Return the event of a line, or None for an unknown event."""
    document = _load(line, where)
    event = document.get("event") if isinstance(document, dict) else None
    if not isinstance(event, str):
        raise ManifestError(f"{where}: must be an object with the name of an event")
    kind = EVENTS.get(event)
    return kind and _convert(document, kind, where)


def _convert(document: Any, kind: Any, where: str) -> Any:
    try:
        return convert(_keep_known(document, kind), kind, kind.__name__.lower())
    except (ManifestError, RecursionError) as error:
        reason = str(error)
        reason = reason if len(reason) <= 300 else f"{reason[:300]} …"
        raise ManifestError(f"{where}: {reason}") from None


def _keep_known(document: Any, kind: Any) -> Any:
    """Return the document without the fields that the dataclass ``kind`` lacks."""
    if not (isinstance(document, dict) and is_dataclass(kind)):
        return document
    kinds = {field.name: (get_args(field.type) or (field.type,))[0] for field in fields(kind)}
    return {key: _keep_known(item, kinds[key]) for key, item in document.items() if key in kinds}


def _load(content: bytes, where: str) -> Any:
    try:
        return json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        reason = str(error) if len(str(error)) <= 300 else "a value is too large"
        raise ManifestError(f"{where} is not JSON: {reason}") from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _is_json(line: bytes) -> bool:
    try:
        _load(line, "")
    except ManifestError:
        return False
    return True


def _check(holds: bool, rule: str) -> None:
    if not holds:
        raise ManifestError(f"must be: {rule}")
