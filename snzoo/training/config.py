"""The options of a training run, apart from the recipe. This module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from snzoo.errors import ArgumentError
from snzoo.recipes import Recipe

Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp64"]
OnError = Literal["fail", "skip"]
CHOICES: dict[str, tuple[str, ...]] = {
    "precision": get_args(Precision),
    "on_error": get_args(OnError),
}
IMAGENET = "imagenet-1k"


@dataclass(frozen=True)
class TrainingConfig:
    """All options of :func:`snzoo.train` and ``snzoo train``, with their defaults.

    Attributes:
        data: The folder that holds the training and the validation photos; see
            :func:`snzoo.data.splits.find_split`.
        validation: The validation photos, if they are elsewhere.
        classes: ``"imagenet-1k"``, or the names of the classes in the order of the labels.
            Default: the classes that the training photos name.
        model: A name that :func:`snzoo.create_model` accepts. Default: the network of the recipe.
        pretrained: Start from the zoo's weights.
        weights: A checkpoint or folder to start from.
        recipe: A recipe, or its name: a model of the zoo, or one of the manifest's ``recipes``.
            Default: the model's own recipe if the weights are random and it has one, else
            ``finetune``.
        overrides: Values of the recipe that are replaced; see :class:`snzoo.recipes.Recipe`.
        width: The number of channels of the network's stem. Default: the model's.
        using_bn: Whether SN mixes in batch statistics. Default: as the model does.
        output: The folder of the run.
        resume: Continue the run in ``output``, if there is one.
        seed: The seed of the initial weights, the order of photos, crops and dropout.
        device: The device. Default: CUDA if available, else the CPU.
        workers: The number of threads that read photos. Default: the number of cores.
        precision: The precision of the arithmetic. The weights are float32, or float64 with
            ``"fp64"``.
        compile: Use ``torch.compile``.
        channels_last: Use the channels-last memory format.
        sync_norm: Compute batch statistics over the processes of a run on several devices.
        on_error: With ``"skip"``, photos that cannot be read are left out.
        save_minutes: The time between two checkpoints within an epoch, in minutes.
        half: Store large weights of ``best.safetensors`` in float16.
        tensorboard: Write event files for TensorBoard too.

    Raises:
        ArgumentError: an option has a value that is not allowed.
    """

    data: str | Path
    validation: str | Path | None = None
    classes: str | tuple[str, ...] | None = None
    model: str | Path | None = None
    pretrained: bool = False
    weights: str | Path | None = None
    recipe: str | Recipe | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    width: int | None = None
    using_bn: bool | None = None
    output: str | Path = "run"
    resume: bool = False
    seed: int = 0
    device: str | None = None
    workers: int | None = None
    precision: Precision = "fp32"
    compile: bool = False
    channels_last: bool = False
    sync_norm: bool = False
    on_error: OnError = "fail"
    save_minutes: float = 10.0
    half: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ArgumentError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if self.workers is not None and not (type(self.workers) is int and self.workers >= 1):
            raise ArgumentError(f"workers must be a whole number from 1, got {self.workers!r}")
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 63:
            raise ArgumentError(f"seed must be a whole number from 0 below 2^63, got {self.seed!r}")
        if not 0 <= self.save_minutes < math.inf:
            raise ArgumentError(f"save_minutes must be a number from 0, got {self.save_minutes!r}")
        if self.pretrained and self.weights is not None:
            raise ArgumentError("weights come from the zoo (pretrained) or from a file, not both")
        if not str(self.output):  # Path("") would be the current folder
            raise ArgumentError("output must not be empty; name a folder for the run")
