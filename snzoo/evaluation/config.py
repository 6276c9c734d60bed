"""The options of an evaluation. This module does not import torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from snzoo.errors import ArgumentError
from snzoo.evaluation.results import TOLERANCE

if TYPE_CHECKING:
    from snzoo.data.samples import Samples
    from snzoo.inference.transform import Model

Classes = Literal["all", "present"]
Labels = Literal["original", "real"]
OnError = Literal["fail", "skip"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Decode = Literal["exact", "fast"]
CHOICES: dict[str, tuple[str, ...]] = {
    "classes": get_args(Classes),
    "labels": get_args(Labels),
    "on_error": get_args(OnError),
    "precision": get_args(Precision),
    "decode": get_args(Decode),
}
# A run resumes a record only if it would compute the same classes. The identity of a run consists
# of the content of models, weights and data, and of all options but these, which change no class.
NOT_IN_IDENTITY = frozenset(
    {"models", "weights", "data"}  # in the identity by their content
    | {"device"}  # by its name
    | {"batch_size"}  # by its value, default or not
    | {"labels", "on_error", "check", "tolerance", "workers", "resume", "json", "predictions"}
)


@dataclass(frozen=True)
class EvaluationConfig:
    """All options of :func:`snzoo.evaluate` and ``snzoo eval``, with their defaults.

    Attributes:
        models: One or several networks of :func:`snzoo.create_model`, or names, folders,
            checkpoints or ``hf-hub:OWNER/NAME``. A wildcard means all networks with weights whose
            names match. Default: the demo network.
        weights: A checkpoint or folder to load instead of the zoo's weights, for a single model.
        data: The labeled images: a path (see :func:`snzoo.data.samples.find_samples`) or
            ``Samples``. Default: the bundled demo photos.
        classes: With ``"present"``, the results also have the accuracy when only the classes that
            occur in the data compete.
        labels: With ``"real"``, the results also have the accuracy by the ReaL labels.
        on_error: With ``"skip"``, images that cannot be read are left out.
        check: Refuse to begin if a model has no published figures, or if the pixels would be
            approximate; see :func:`snzoo.evaluation.summary.find_disagreements`.
        tolerance: Percentage points by which figures may differ from those published for the same
            images.
        device: The device for the computation. Default: CUDA if available, else the CPU.
        batch_size: Number of images in a batch. Default: 16 on a CPU, else 128.
        workers: Number of threads that decode. Default: the number of cores.
        precision: ``"tf32"``, ``"bf16"`` and ``"fp16"`` are faster and less exact.
        compile: Use ``torch.compile``.
        channels_last: Use the channels-last memory format.
        decode: With ``"fast"``, JPEG is decoded at a reduced size, which gives approximate pixels.
        resume: Continue an interrupted run with the same options.
        json: Write the results to this file.
        predictions: Write the five most probable classes of each image to this file: ``.csv``,
            ``.ndjson`` or ``.parquet``.

    Raises:
        ArgumentError: an option has a value that is not allowed.
    """

    models: Model | Sequence[Model] = ()
    weights: str | Path | None = None
    data: str | Path | Samples | None = None
    classes: Classes = "all"
    labels: Labels = "original"
    on_error: OnError = "fail"
    check: bool = False
    tolerance: float = TOLERANCE
    device: str | None = None
    batch_size: int | None = None
    workers: int | None = None
    precision: Precision = "fp32"
    compile: bool = False
    channels_last: bool = False
    decode: Decode = "exact"
    resume: bool = False
    json: str | Path | None = None
    predictions: str | Path | None = None

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ArgumentError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        for name in ("batch_size", "workers"):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value >= 1):
                raise ArgumentError(f"{name} must be a whole number from 1, got {value!r}")
        if not 0 <= self.tolerance <= 100:
            raise ArgumentError(f"tolerance must be from 0 to 100 points, got {self.tolerance!r}")
        if self.check and self.decode == "fast":
            raise ArgumentError(
                "--decode fast gives other pixels than --check compares with; leave one out"
            )

    def identity(self) -> dict[str, Any]:
        """Return the options that affect the classes; they are a part of the identity of a run."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in NOT_IN_IDENTITY
        }
