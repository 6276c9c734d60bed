"""Recipes: all values of a training run, and its learning rates (standard library only).

A recipe is whole: no value is taken from elsewhere, so that it means the same in every version.
What a recipe of an older version lacks is not used.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from snzoo.errors import ArgumentError, ManifestError, suggest
from snzoo.typed_json import convert

_GROUPS = {"optimizer": "optimization", "freeze": "network", "resize": "images"}  # first fields
_POSITIVE = "lr step_factor clip_norm gate_clip_norm head_scale ratio"
_NOT_NEGATIVE = (
    "final_lr power warmup_epochs warmup_lr weight_decay gate_lr_factor color_jitter lighting_std "
    "center_crop_epochs random_crop_epochs mixup head_margin"
)
_COUNTS = (
    "batch_size images_per_gpu epochs epochs_per_pass steps statistics_batches "
    "statistics_batch_size resize crop"
)
_RANGES: list[tuple[str, str, Callable[[float], bool]]] = [
    (_POSITIVE, "greater than 0", lambda value: 0 < value < math.inf),
    (_NOT_NEGATIVE, "at least 0", lambda value: 0 <= value < math.inf),
    (_COUNTS, "at least 1", lambda value: value >= 1),
    ("freeze", "from 0 to 4", lambda value: 0 <= value <= 4),
    ("momentum", "at least 0 and less than 1", lambda value: 0 <= value < 1),
    ("ema_decay", "greater than 0 and less than 1", lambda value: 0 < value < 1),
    (
        "warmup_limit layer_decay scale",
        "greater than 0 and at most 1",
        lambda value: 0 < value <= 1,
    ),
    (
        "drop_rate norm_momentum final_radius flip label_smoothing",
        "from 0 to 1",
        lambda value: 0 <= value <= 1,
    ),
]


@dataclass(frozen=True)
class Recipe:
    """The values of a training run. None stands for the network's own value, or for "not used".

    Attributes:
        optimizer: the optimizer.
        lr: the peak learning rate, for ``batch_size`` images per step.
        batch_size: the images per step of the optimizer, over all processes.
        images_per_gpu: the images in one forward pass of a process, over which BN and SN compute
            their statistics. If None, the process's whole share of the step.
        epochs: the number of epochs.
        epochs_per_pass: the number of epochs in which each photo is shown once. The published
            training of face networks has 2: its epochs are half epochs.
        schedule: how the learning rate falls after the warm-up.
        final_lr: the learning rate at the end of ``cosine`` and ``poly``.
        steps: the epochs, from 0, at whose start ``step`` multiplies the rate by ``step_factor``.
        step_factor: see ``steps``.
        power: the exponent of ``poly``.
        warmup: whether the learning rate rises from ``warmup_lr`` (``linear``) or stays there.
        warmup_epochs: the length of the warm-up. 0 means none.
        warmup_limit: the largest share of all steps that warm up.
        warmup_lr: the learning rate at the start of the warm-up.
        warmup_first_step: 0 gives the first step the rate ``warmup_lr``, as in the published
            recipes. 1 gives it the rate after that, so that no step is lost at the rate 0.
        momentum: the momentum of SGD.
        nesterov: whether the momentum is Nesterov's.
        weight_decay: the weight decay.
        decay: the parameters with weight decay: ``all`` of them, gates too, all but the gates
            (``not_gates``), or the ``weights`` of convolutions and linear layers only, without
            norms, gates and biases.
        gate_lr_factor: the learning rate of SN's gates over that of the other parameters.
        layer_decay: the learning rate of a layer over that of the next one.
        clip_norm: the largest norm of the gradient.
        gate_clip_norm: the largest norm of the gradient of all gates together.
        label_smoothing: the share of the label that is spread over all classes.
        mixup: the parameter of the beta distribution from which the shares of mixup are drawn. 0
            means none.
        ema_decay: the share of the averaged weights that a step keeps.
        freeze: the number of stages that are frozen, with the stem before them.
        head: what makes logits of the network's output. It is ``linear`` for classifiers. For face
            networks it is ``arcface``, ``cosface``, or ``arcface_published``, which has the
            threshold of the published code; see docs/faces.md.
        head_scale: the factor of the cosines in the heads of face networks.
        head_margin: the margin of these heads: an angle in radians for ArcFace, and a difference
            of cosines for CosFace.
        drop_rate: the dropout before the last linear layer.
        last_gamma: whether the scale of the last norm of each block starts at 0.
        norm_momentum: the share of the running statistics of SN and batch norm that a step keeps.
        final_radius: the radius of sparse SN at the end, to which it rises from 0 in proportion to
            the steps.
        statistics: the running statistics in validation: the ``moving`` average of training, or
            the average over ``statistics_batches`` passes (``batch``). ``frozen`` keeps those of
            the start and uses them in training too.
        statistics_batches: the passes of ``batch``.
        statistics_batch_size: the images in each pass of ``batch``, on each GPU.
        resize: the length of the shorter side in validation, in pixels.
        crop: the side of the network's input, in pixels.
        scale: the smallest and the largest share of a photo's area in a random crop.
        ratio: the smallest and the largest width of a random crop over its height.
        flip: the probability that a photo is mirrored.
        color_jitter: the largest change of brightness, contrast and saturation.
        lighting: the color noise: ``published`` has the authors' transposed eigenvectors.
        lighting_std: the standard deviation of its three factors.
        center_crop_epochs: the last epochs, in which photos are resized and cropped in the center.
        random_crop_epochs: the last epochs, in which photos are resized and cropped at random.
        drop_last: whether a last batch that is smaller is left out.
        upright: whether photos are turned by their EXIF orientation.
    """

    optimizer: Literal["sgd"]
    lr: float
    batch_size: int
    images_per_gpu: int | None
    epochs: int
    epochs_per_pass: int = field(default=1, kw_only=True)
    schedule: Literal["cosine", "step", "poly"]
    final_lr: float
    steps: tuple[int, ...]
    step_factor: float
    power: float
    warmup: Literal["linear", "constant"]
    warmup_epochs: float
    warmup_limit: float
    warmup_lr: float
    warmup_first_step: Literal[0, 1]
    momentum: float
    nesterov: bool
    weight_decay: float
    decay: Literal["all", "not_gates", "weights"]
    gate_lr_factor: float
    layer_decay: float
    clip_norm: float | None
    gate_clip_norm: float | None = field(default=None, kw_only=True)
    label_smoothing: float
    mixup: float
    ema_decay: float | None

    freeze: int | None
    head: Literal["linear", "arcface", "cosface", "arcface_published"] = field(
        default="linear", kw_only=True
    )
    head_scale: float = field(default=64.0, kw_only=True)
    head_margin: float = field(default=0.5, kw_only=True)
    drop_rate: float | None
    last_gamma: bool | None
    norm_momentum: float | None
    final_radius: float | None = field(default=None, kw_only=True)
    statistics: Literal["moving", "batch", "frozen"]
    statistics_batches: int
    statistics_batch_size: int

    resize: int | None
    crop: int | None
    scale: tuple[float, float]
    ratio: tuple[float, float]
    flip: float
    color_jitter: tuple[float, float, float]
    lighting: Literal["none", "published", "corrected"]
    lighting_std: float
    center_crop_epochs: int
    random_crop_epochs: int = field(default=0, kw_only=True)
    drop_last: bool
    upright: bool

    def __post_init__(self) -> None:
        for names, allowed, fits in _RANGES:
            for name in names.split():
                value = getattr(self, name)
                for number in value if isinstance(value, tuple) else (value,):
                    if number is not None and not fits(number):
                        raise ManifestError(f"{name} must be {allowed}, got {number!r}")
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high:
                raise ManifestError(f"{name} must be the smallest and the largest value")
        if list(self.steps) != sorted(set(self.steps)):
            raise ManifestError(f"steps must rise, got {list(self.steps)}")
        if self.schedule == "step" and not self.steps:
            raise ManifestError("schedule step needs steps, the epochs at which the rate falls")
        if self.nesterov and not self.momentum:
            raise ManifestError("nesterov needs a momentum greater than 0")
        if self.center_crop_epochs and self.random_crop_epochs:
            raise ManifestError("center_crop_epochs and random_crop_epochs exclude each other")
        if self.crop is not None and self.resize is not None and self.crop > self.resize:
            raise ManifestError(f"crop {self.crop} must be at most resize {self.resize}")

    def in_effect(self) -> dict[str, dict[str, Any]]:
        """Return the values that have an effect, in groups: optimization, network and images.

        Values that are None, and those of another schedule, for example, are left out.
        """
        idle = {
            "final_lr": self.schedule == "step",
            "steps step_factor": self.schedule != "step",
            "power": self.schedule != "poly",
            "warmup warmup_limit warmup_lr warmup_first_step": not self.warmup_epochs,
            "statistics_batches statistics_batch_size": self.statistics != "batch",
            "norm_momentum": self.statistics == "frozen",
            "head head_scale head_margin": self.head == "linear",
            "epochs_per_pass": self.epochs_per_pass == 1,
            "lighting_std": self.lighting == "none",
        }
        left_out = {name for names, is_idle in idle.items() if is_idle for name in names.split()}
        groups: dict[str, dict[str, Any]] = {}
        for name, value in dataclasses.asdict(self).items():
            if name in _GROUPS:
                group = groups.setdefault(_GROUPS[name], {})
            if value is not None and name not in left_out:
                group[name] = value
        return groups

    def replace(self, **values: Any) -> Self:
        """Return the recipe with other values.

        If ``batch_size`` is another and ``lr`` is not given, the learning rates (``lr``,
        ``final_lr`` and ``warmup_lr``) are scaled with it: twice the images, twice the rate.

        Raises:
            ArgumentError: a name is unknown, or a value is not allowed.
        """
        kinds = {field.name: field.type for field in dataclasses.fields(self)}
        for name in values:
            if name not in kinds:
                hint = suggest(name, kinds, otherwise="it has")
                raise ArgumentError(f"a recipe has no value {name!r}; {hint}")
        try:
            values = {
                name: convert(list(value) if isinstance(value, tuple) else value, kinds[name], name)
                for name, value in values.items()
            }
            changed = dataclasses.replace(self, **values)
            if "batch_size" not in values or "lr" in values:
                return changed
            factor = changed.batch_size / self.batch_size
            rates = {name: getattr(self, name) * factor for name in ("lr", "final_lr", "warmup_lr")}
            return dataclasses.replace(self, **rates | values)
        except ManifestError as error:
            raise ArgumentError(str(error)) from None


def sparse_radius(recipe: Recipe, step: int, steps_per_epoch: int) -> float | None:
    """Return the radius of sparse SN in a step of the optimizer, from 0.

    It is ``final_radius · step / steps``, where ``steps`` are those of the whole run. None means
    that the radius of the network stays.
    """
    if recipe.final_radius is None:
        return None
    return recipe.final_radius * step / (recipe.epochs * steps_per_epoch)


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    r"""Return the learning rate of a step.

    With n steps per epoch, M = epochs · n steps in all, W of them warming up, and p =
    (step − W) / (M − W):

    - step < W: ``warmup_lr + (lr − warmup_lr) · (step + warmup_first_step) / W`` (linear), or
      ``warmup_lr`` (constant). W is the smaller one of ``warmup_epochs · n`` and
      ``warmup_limit · M``, rounded down;
    - ``step``: lr · ``step_factor`` for each of ``steps`` up to the epoch, which the warm-up does
      not shift;
    - ``cosine``: ``final_lr + (lr − final_lr) · (1 + cos(π · p)) / 2``;
    - ``poly``: ``final_lr + (lr − final_lr) · (1 − p) ** power``.

    Args:
        recipe: the recipe.
        step: the step of the optimizer, from 0.
        steps_per_epoch: the steps per epoch, n.
    """
    total = recipe.epochs * steps_per_epoch
    warm = min(recipe.warmup_epochs * steps_per_epoch, recipe.warmup_limit * total)
    warm = math.floor(round(warm, 6))  # 0.29 · 100 is 28.999999999999996
    if step < warm:
        if recipe.warmup == "constant":
            return recipe.warmup_lr
        share = (step + recipe.warmup_first_step) / warm
        return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * share
    if recipe.schedule == "step":
        passed = sum(epoch <= step // steps_per_epoch for epoch in recipe.steps)
        return recipe.lr * recipe.step_factor**passed
    done = (step - warm) / max(1, total - warm)
    if recipe.schedule == "cosine":
        left = (1 + math.cos(math.pi * done)) / 2
    else:
        left = (1 - done) ** recipe.power
    return recipe.final_lr + (recipe.lr - recipe.final_lr) * left
