"""Resolve what a training run does, and check it before any work is done."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snzoo.data.sources import Files
from snzoo.data.splits import find_classes, find_split, find_splits
from snzoo.errors import ArgumentError, CheckpointError, suggest
from snzoo.manifest import load_manifest
from snzoo.recipes import Recipe
from snzoo.spec import ModelSpec
from snzoo.training.config import TrainingConfig
from snzoo.training.face_pairs import find_pairs

if TYPE_CHECKING:
    from snzoo.data.samples import Samples
    from snzoo.faces.pairs import FacePairs
    from snzoo.models.build import AnyResNet


# Values of a recipe that concern the gates of SN, and what leaves them alone.
NEEDS_SN = {"gate_lr_factor": 1.0, "gate_clip_norm": None}


@dataclass(frozen=True)
class Plan:
    """What a run does, apart from where it runs.

    Attributes:
        spec: The network to train, with the classes and the preprocessing of the run.
        has_weights: Whether the run starts from weights, not from random numbers.
        recipe: The recipe, in which ``crop`` and ``resize`` are numbers.
        recipe_name: The name of the recipe before values were replaced.
        train: The photos to train with.
        validation: The photos to validate with; for a face network, pairs of photos.
        seed: The seed of all random numbers.
        classes: The classes of the training photos. A face network has none itself.
    """

    spec: ModelSpec
    has_weights: bool
    recipe: Recipe
    recipe_name: str
    train: Samples
    validation: Samples | FacePairs
    seed: int
    classes: str | tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return 1000 if isinstance(self.classes, str) else len(self.classes)

    @property
    def images_per_epoch(self) -> int:
        return len(self.train) // self.recipe.epochs_per_pass

    @property
    def steps_per_epoch(self) -> int:
        images, size = self.images_per_epoch, self.recipe.batch_size
        return images // size if self.recipe.drop_last else -(-images // size)

    @property
    def steps(self) -> int:
        """The number of optimizer steps of the whole run."""
        return self.recipe.epochs * self.steps_per_epoch

    def create_network(self, *, load: bool = True) -> AnyResNet:
        """Return the network at the start of the run, on the CPU, in training mode.

        Args:
            load: Load the weights that the run starts from, if there are any.

        Raises:
            ArgumentError: the recipe does not fit the network.
            CheckpointError, ChecksumError, DownloadError: the weights cannot be loaded.
        """
        load = load and self.has_weights
        model = (self.spec.load if load else self.spec.build)(**self._options())
        self._adapt(model)
        return model

    def check_network(self) -> None:
        """Raise an error if the recipe does not fit the network. No weights are loaded.

        Raises:
            ArgumentError: the recipe does not fit; the message names the value.
        """
        import torch

        with torch.device("meta"):
            self._adapt(self.spec.build(**self._options()))

    def _options(self) -> dict[str, Any]:
        """Return the options of the network that the recipe sets."""
        options: dict[str, Any] = {}
        if not self.spec.network.is_face:
            options["num_classes"] = self.spec.num_classes
        if self.recipe.drop_rate is not None:
            options["drop_rate"] = self.recipe.drop_rate
        if self.recipe.last_gamma is not None and not self.has_weights:  # it concerns the start
            options["last_gamma"] = self.recipe.last_gamma
        return options

    def _adapt(self, model: AnyResNet) -> None:
        """Set what the recipe says about the layers of a network."""
        from snzoo.nn.switchnorm import SwitchNorm

        recipe = self.recipe
        layers = [module for module in model.modules() if isinstance(module, SwitchNorm)]
        for name, default in NEEDS_SN.items():
            if getattr(recipe, name) != default and not layers:
                raise ArgumentError(f"{name} is for Switchable Normalization; {self.name} has none")
        if recipe.final_radius is not None and self.spec.network.norm != "ssn":
            raise ArgumentError(f"final_radius is for sparse SN; {self.name} has none")
        starts_dense = self.spec.network.norm == "ssn" and not self.has_weights
        if starts_dense and recipe.final_radius is None:
            raise ArgumentError(
                "final_radius is None: sparse SN would stay at the radius 0, where no share is "
                "pushed to 0; 1 is the published value"
            )
        if recipe.decay == "all" and recipe.gate_lr_factor != 1:
            raise ArgumentError("gate_lr_factor needs decay=weights or decay=not_gates")
        if recipe.decay != "weights" and recipe.layer_decay != 1:
            raise ArgumentError("layer_decay needs decay=weights")
        if recipe.norm_momentum is not None:
            self._set_momentum(model, recipe.norm_momentum)
        model.freeze(recipe.freeze)
        if recipe.statistics == "frozen":
            self._freeze_statistics(model)
        tracking = [layer for layer in layers if layer.training and layer.running_mean is not None]
        if recipe.statistics == "batch" and not tracking:
            raise ArgumentError(f"statistics=batch needs SN with batch statistics, not {self.name}")
        if model.spec is not None:
            model.spec = dataclasses.replace(self.spec, arguments=model.spec.arguments)

    def _set_momentum(self, model: AnyResNet, kept: float) -> None:
        """Set the share of the running statistics that a step keeps."""
        from snzoo.nn.convert import BatchNorm
        from snzoo.nn.switchnorm import SwitchNorm

        batch_norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
        switch_norms = [module for module in model.modules() if isinstance(module, SwitchNorm)]
        if not batch_norms and not switch_norms:
            raise ArgumentError(f"norm_momentum: {self.name} has no running statistics")
        for norm in switch_norms:
            norm.momentum = kept
        for batch_norm in batch_norms:
            batch_norm.momentum = 1 - kept

    def _freeze_statistics(self, model: AnyResNet) -> None:
        if not self.has_weights:
            raise ArgumentError("statistics=frozen needs weights: --pretrained, or --weights FILE")
        if not any(name.endswith("running_mean") for name, _ in model.named_buffers()):
            raise ArgumentError(f"statistics=frozen: {self.name} has no running statistics")
        model.freeze_statistics()

    @property
    def name(self) -> str:
        return self.spec.name

    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the run that it continues."""
        return {
            "model": self.spec.name,
            "starts from weights": self.has_weights,
            "arguments": dict(self.spec.arguments),
            "seed": self.seed,
            **{f"recipe.{name}": value for name, value in dataclasses.asdict(self.recipe).items()},
            "classes": _digest(self.classes),
            "training photos": _digest_photos(self.train),
            "validation photos": _digest_validation(self.validation),
        }


def make_plan(config: TrainingConfig) -> Plan:
    """Return the plan of a run.

    Raises:
        ArgumentError: the options do not go together, or the recipe does not fit.
        DataError: the photos are not found, or cannot be labeled.
        UnknownModelError, CheckpointError: there is no such model or recipe.
    """
    from snzoo.training.face_classifier import check_head

    spec, has_weights = _choose_network(config)
    recipe_name, recipe = _choose_recipe(config, spec, has_weights=has_weights)
    if spec.name in load_manifest().models and not has_weights:
        # The result does not come from the zoo's weights, so their license does not apply.
        spec = dataclasses.replace(
            spec, name=spec.architecture, file=None, license=None, num_params=None, training=None
        )
    recipe = _replace_values(recipe, config.overrides)
    # Random crops are resized as Pillow does, so validation and the trained network do the same.
    preprocessing = spec.preprocessing.replace(
        resize=recipe.resize, crop=recipe.crop, resampling="pillow-bilinear"
    )
    recipe = recipe.replace(resize=preprocessing.resize, crop=preprocessing.crop)
    check_head(spec.network, recipe)
    classes: Any = find_classes(config.data) if config.classes is None else config.classes
    is_face = spec.network.is_face
    train: Samples
    validation: Samples | FacePairs
    if is_face:
        train = find_split(config.data, "train", classes)
        validation = find_pairs(config.data, config.validation)
    else:
        train, validation = find_splits(config.data, classes, validation=config.validation)
    images = len(train) // recipe.epochs_per_pass
    if recipe.batch_size > images:
        where = "training set" if images == len(train) else "part of the training set in an epoch,"
        raise ArgumentError(
            f"batch_size {recipe.batch_size} is larger than the {where} of {images} "
            f"photos; choose at most {images}: --batch-size"
        )
    spec = dataclasses.replace(
        spec,
        classes=() if is_face else classes,
        preprocessing=preprocessing,
        recipe=recipe,
        published=(),
    )
    plan = Plan(spec, has_weights, recipe, recipe_name, train, validation, config.seed, classes)
    plan.check_network()
    return plan


def _choose_network(config: TrainingConfig) -> tuple[ModelSpec, bool]:
    """Return the network, and whether the run starts from weights."""
    model = config.model
    if model is None and isinstance(config.recipe, str) and config.weights is None:
        model = config.recipe if config.recipe in load_manifest().models else None
    if model is None and config.weights is None:
        raise ArgumentError("name the network to train: --model NAME")
    spec = ModelSpec.find(model, weights=config.weights)
    if config.pretrained and spec.file is None and spec.weights is None:
        raise CheckpointError(f"{spec.name} has no published weights; leave out --pretrained")
    has_weights = config.pretrained or spec.weights is not None
    given = {"width": config.width, "using_bn": config.using_bn}
    given = {name: value for name, value in given.items() if value is not None}
    if "using_bn" in given:
        if spec.network.norm not in ("sn", "syncsn"):
            raise ArgumentError(f"using_bn is for Switchable Normalization; {spec.name} has none")
        if has_weights and given["using_bn"] != spec.arguments.get("using_bn", True):
            raise ArgumentError(
                f"using_bn={given['using_bn']} does not fit the weights; leave it out, or start "
                "from random weights"
            )
    spec = dataclasses.replace(spec, arguments=spec.arguments | given)
    return spec, has_weights


def _choose_recipe(
    config: TrainingConfig, spec: ModelSpec, *, has_weights: bool
) -> tuple[str, Recipe]:
    """Return the name of the recipe and the recipe, without the values that replace its own."""
    if isinstance(config.recipe, Recipe):
        return "given", config.recipe
    manifest = load_manifest()
    recipes = {name: model.recipe for name, model in manifest.models.items() if model.recipe}
    recipes |= manifest.recipes
    usual = "arcface" if spec.network.is_face else "finetune"
    own = spec.name if spec.name in recipes and not has_weights else usual
    name = own if config.recipe is None else config.recipe
    if name not in recipes:
        raise ArgumentError(_describe_missing(name, recipes))
    return name, recipes[name]


def _describe_missing(name: str, recipes: Mapping[str, Recipe]) -> str:
    """Return the message for a name without a recipe."""
    models = load_manifest().models
    if name not in models:
        return f"no recipe named {name!r}; {suggest(name, recipes, otherwise='there are')}"
    network = models[name].architecture
    same = [n for n in recipes if n in models and models[n].architecture == network]
    hint = f"use that of {' or '.join(same)}" if same else f"there are {', '.join(recipes)}"
    return f"no recipe of {name} was published; {hint}"


def _replace_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with other values, and with what follows from them.

    A crop without ``resize`` keeps the ratio of the two, and no pass has more images than a step.
    """
    changed = recipe.replace(**values)
    if "resize" not in values and recipe.crop and recipe.resize and changed.crop:
        changed = changed.replace(resize=round(changed.crop * recipe.resize / recipe.crop))
    if changed.images_per_gpu and changed.images_per_gpu > changed.batch_size:
        changed = changed.replace(images_per_gpu=changed.batch_size)
    return changed


def _digest_photos(samples: Samples) -> str:
    """Return a digest of the names, labels and sizes of photos, wherever they lie."""
    source = samples.source
    sizes: tuple[int, ...] = ()
    if isinstance(source, Files):
        sizes = tuple(os.stat(source.root / name).st_size for name in source.names)
    return _digest((tuple(samples.names), samples.labels, sizes))


def _digest_validation(photos: Samples | FacePairs) -> str:
    from snzoo.data.samples import Samples

    if isinstance(photos, Samples):
        return _digest_photos(photos)
    content: Any
    if isinstance(photos.photos, Samples):
        content = _digest_photos(photos.photos)
    else:  # of a list or a .bin file: names would depend on where they lie
        content = [_count_bytes(photos.photos.read(i)) for i in range(len(photos.photos))]
    columns = photos.first, photos.second, photos.same
    return _digest((content, *(column.tolist() for column in columns)))


def _count_bytes(photo: Any) -> int:
    """Return the size of an encoded photo, or of the file that a path names."""
    return len(photo) if isinstance(photo, bytes) else os.stat(photo).st_size


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
