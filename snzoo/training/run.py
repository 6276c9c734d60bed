"""Run a training: from a configuration to a folder with the best network and all its figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from snzoo.data.photos import check_photos
from snzoo.errors import ArgumentError, DataError, UnexpectedArgumentError, suggest
from snzoo.inference.computation import versions
from snzoo.inference.network import choose_device, float32_precision, local_cores
from snzoo.models.face_resnet import FaceResNet
from snzoo.nn import convert_sync_switchnorm
from snzoo.processes import Processes, join, local_device
from snzoo.recipes import Recipe
from snzoo.training.config import TrainingConfig
from snzoo.training.face_classifier import add_head
from snzoo.training.folder import check_folder, lock_folder, open_log
from snzoo.training.log import RunLog
from snzoo.training.loop import Loop, Report
from snzoo.training.plan import Plan, make_plan
from snzoo.training.state import Position, read_state, restore_state
from snzoo.training.step import Stepper, split_step

CHECKED = 20_000  # photos; larger sets are not decoded before the training


@dataclass(frozen=True)
class TrainingResult:
    """The end of a run.

    Attributes:
        best: The path of the best network, which :func:`snzoo.create_model` loads.
        top1: The share of validation photos that it classifies correctly, in percent.
        correct: Their number.
        images: The number of validation photos.
        epoch: The epoch after which it was saved, from 1.
        pairs: Whether it is a face network. The three values are then those of pairs of photos.
    """

    best: Path
    top1: float
    correct: int
    images: int
    epoch: int
    pairs: bool = False


def train(data: str | Path, **options: Any) -> TrainingResult:
    """Train or finetune a network on a folder of photos.

    The run is written to a folder: ``best.safetensors`` for :func:`snzoo.create_model`, the
    resolved recipe ``recipe.json``, the figures ``log.ndjson``, and the state ``last.pt``, from
    which an interrupted run continues with ``resume=True``. If torchrun started several processes,
    all of them must call this function.

    Args:
        data: The folder that holds the training and the validation photos, in any layout of
            :func:`snzoo.data.splits.find_split`.
        options: The other fields of :class:`~snzoo.training.config.TrainingConfig`, such as
            ``model``, ``pretrained``, ``output`` and ``seed``, and values of the recipe (see
            :class:`snzoo.recipes.Recipe`), such as ``epochs`` and ``lr``.

    Raises:
        UnexpectedArgumentError: there is no such option.
        ArgumentError: an option has a wrong value, or the options do not go together.
        UnknownModelError, CheckpointError, ChecksumError: see :func:`snzoo.create_model`.
        DataError: the photos cannot be found, labeled or read.
        FileError: the folder cannot be written.
        DeviceError: the device cannot be used, or its memory is too small.
        NonFiniteError: the loss is not finite.

    >>> train("clothes", model="resnet18v1_sn_clothing", pretrained=True)  # doctest: +SKIP
    """
    own = [field.name for field in dataclasses.fields(TrainingConfig) if field.name != "overrides"]
    values = [field.name for field in dataclasses.fields(Recipe)]
    if unknown := sorted(set(options) - set(own) - set(values)):
        hint = suggest(unknown[0], own + values)
        raise UnexpectedArgumentError(f"train takes no argument {unknown[0]!r}; {hint}")
    overrides = {name: options.pop(name) for name in values if name in options}
    if isinstance(options.get("classes"), list):
        options["classes"] = tuple(options["classes"])
    result = run_training(TrainingConfig(data=data, overrides=overrides, **options))
    assert result is not None
    return result


def run_training(
    config: TrainingConfig,
    *,
    show: Report = lambda message: None,
    warn: Report = lambda message: None,
    progress: bool = False,
    prepare: Callable[[Plan], bool] = lambda plan: True,
    command: str | None = None,
) -> TrainingResult | None:
    """Run the training that ``config`` describes; see :func:`train`.

    Args:
        config: The options.
        show: Called with a line for each epoch, in the first process.
        warn: Called with a message for each photo that is left out, and for other problems.
        progress: Show a progress bar if stderr is a terminal.
        prepare: Called with the plan before any work, in the first process. If it returns False,
            the run ends there, and the function returns None.
        command: The command of the run, which ``recipe.json`` records.
    """
    device = torch.device(choose_device(local_device(config.device)))
    with ExitStack() as stack:
        processes = stack.enter_context(join(str(device), timeout=timedelta(hours=2)))
        first = processes.rank == 0
        if first:
            check_folder(config)
        plan = make_plan(config)
        check_processes(plan, config, device, processes)
        if not processes.broadcast(prepare(plan) if first else True):
            return None
        if first:
            stack.enter_context(lock_folder(config))
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        stack.enter_context(float32_precision(device, tf32=config.precision == "tf32"))
        identity = plan.identity()
        identity |= {"precision": config.precision, "sync_norm": config.sync_norm}
        stepper, position = _start(plan, config, device, processes, identity, warn)
        log = RunLog(None)
        if first:
            document = describe_run(plan, config, processes, command)
            log = open_log(config, position, document)
        stack.callback(log.close)
        Loop(
            plan,
            config,
            stepper,
            position,
            log,
            processes,
            identity=identity,
            workers=config.workers or local_cores(),
            show=show if first else lambda message: None,
            warn=warn,
            progress=progress and first,
        ).run()
    return _make_result(plan, config, position)


def _make_result(plan: Plan, config: TrainingConfig, position: Position) -> TrainingResult:
    return TrainingResult(
        best=Path(config.output) / "best.safetensors",
        top1=100 * position.best / max(1, position.best_images),
        correct=position.best,
        images=position.best_images,
        epoch=position.best_epoch,
        pairs=plan.spec.network.is_face,
    )


def _start(
    plan: Plan,
    config: TrainingConfig,
    device: torch.device,
    processes: Processes,
    identity: dict[str, Any],
    warn: Report,
) -> tuple[Stepper, Position]:
    """Return the network and the position of a run, at its beginning or where it was stopped."""
    state, path = None, Path(config.output) / "last.pt"
    if not processes.rank:  # the other machines may not have the folder
        if config.resume and path.exists():
            state = read_state(path, identity)
        elif config.resume:
            warn(f"there is no state {path} to continue from; the run starts at the beginning")
        if state is None:
            _check_photos(plan, config)
    state = processes.broadcast(state)
    torch.default_generator.manual_seed(plan.seed)
    model: Any = plan.create_network(load=state is None)
    if config.sync_norm and processes.count > 1:
        model = _synchronize_norms(model)
    model = add_head(model, plan.recipe, plan.num_classes)
    stepper = Stepper(model, plan.recipe, config, device, processes)
    if not state:
        return stepper, Position()
    position = restore_state(state, stepper, processes, path=path)
    if not processes.broadcast((path.parent / "best.safetensors").exists()) and position.best >= 0:
        if not processes.rank:
            warn(f"{path.parent} has no best.safetensors; the next validation writes it")
        position.best = -1
        position.validated = min(position.validated, plan.recipe.epochs - 1)
    return stepper, position


def _synchronize_norms(model: Any) -> Any:
    """Return the network with synchronized norms. The norm of embeddings stays as it is."""
    if isinstance(model, FaceResNet):
        last, model.output_layer[-1] = model.output_layer[-1], torch.nn.Identity()
    convert: Any = torch.nn.SyncBatchNorm.convert_sync_batchnorm
    model = convert(convert_sync_switchnorm(model))
    if isinstance(model, FaceResNet):
        model.output_layer[-1] = last
    return model


def _check_photos(plan: Plan, config: TrainingConfig) -> None:
    """Raise an error if photos of a set that is not large are damaged, unless they are left out.

    Those of pairs never are, because each pair needs both.
    """
    workers, pairs = config.workers or local_cores(), plan.spec.network.is_face
    found: Any = plan.validation
    if pairs and len(found.photos) <= CHECKED:
        check_photos(found.photos, workers=workers)
    if config.on_error != "fail":
        return
    try:
        for photos in [plan.train] if pairs else [plan.train, found]:
            if len(photos) <= CHECKED:
                check_photos(photos, workers=workers)
    except DataError as error:
        raise DataError(f"{error}; or leave them out: --on-error skip") from None


def check_processes(
    plan: Plan, config: TrainingConfig, device: torch.device, processes: Processes
) -> None:
    """Raise an error if the devices cannot do what the options ask for.

    Raises:
        ArgumentError: the device lacks the precision or the synchronized norm, or a step has
            fewer images than there are processes, or a pass of a face network a single one.
    """
    if config.precision == "tf32" and device.type != "cuda":
        raise ArgumentError(f"precision tf32 needs a CUDA device, not {device}; use fp32")
    if config.sync_norm and plan.recipe.statistics == "frozen":
        raise ArgumentError("sync_norm: statistics=frozen uses no statistics of a batch")
    if config.sync_norm and plan.spec.network.norm == "ssn":
        raise ArgumentError("sync_norm: sparse SN has no synchronized form; leave it out")
    if config.sync_norm and plan.spec.network.norm == "gn":
        raise ArgumentError(f"sync_norm: {plan.name} has no batch statistics to synchronize")
    if config.sync_norm and plan.spec.network.norm == "bn" and device.type != "cuda":
        raise ArgumentError(f"sync_norm: batch norm can't be synchronized on {device}; SN can")
    size, count = plan.recipe.batch_size, processes.count
    if size < count:
        raise ArgumentError(
            f"batch_size {size} gives nothing to do to some of the {count} processes; choose at "
            f"least {count}: --batch-size"
        )
    if not plan.spec.network.is_face:
        return
    ranks = [Processes(rank, count) for rank in range(count)]
    passes = [part for own in ranks for part in split_step(range(size), plan.recipe, own)]
    if min(map(len, passes)) < 2:
        raise ArgumentError(
            f"{plan.name} needs at least 2 images in a forward pass, but a step of {size} has a "
            "pass with 1; change --batch-size or --images-per-gpu"
        )


def describe_run(
    plan: Plan, config: TrainingConfig, processes: Processes, command: str | None
) -> dict[str, Any]:
    """Return the document ``recipe.json``: all that determines a run."""
    return {
        "model": plan.name,
        "architecture": plan.spec.architecture,
        "arguments": dict(plan.spec.arguments),
        "pretrained": config.pretrained,
        "weights": None if config.weights is None else str(config.weights),
        "recipe": dataclasses.asdict(plan.recipe),
        "seed": plan.seed,
        "processes": processes.count,
        "precision": config.precision,
        "sync_norm": config.sync_norm,
        "classes": plan.classes,
        "train": {"description": plan.train.description, "images": len(plan.train)},
        "validation": {
            "description": plan.validation.description,
            "images": len(plan.validation),
        },
        "steps_per_epoch": plan.steps_per_epoch,
        "versions": versions(),
        "command": command,
    }
