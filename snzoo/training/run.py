"""Run a training: from a configuration to a folder with the best network and all its figures."""

from __future__ import annotations

import dataclasses
import difflib
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from snzoo.data.photos import check_photos
from snzoo.errors import ArgumentError, FileError, UnexpectedArgumentError, first_line
from snzoo.evaluation.summary import versions
from snzoo.files import write_json
from snzoo.inference.network import choose_device, float32_precision, local_cores
from snzoo.processes import Processes, join, local_device
from snzoo.training.config import TrainingConfig
from snzoo.training.log import RunLog
from snzoo.training.loop import Loop, Report
from snzoo.training.plan import Plan, make_plan
from snzoo.training.state import Position, read_state, restore_state
from snzoo.training.step import Stepper

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
    """

    best: Path
    top1: float
    correct: int
    images: int
    epoch: int


def train(data: str | Path, **options: Any) -> TrainingResult:
    """Train or finetune a network on a folder of photos.

    The run is written to a folder: ``best.safetensors`` for :func:`snzoo.create_model`, the
    resolved recipe ``recipe.json``, the figures ``log.ndjson``, and the state ``last.pt``, from
    which an interrupted run continues with ``resume=True``. If torchrun started several processes,
    all of them must call this function.

    Args:
        data: The folder that holds the training and the validation photos, in any layout of
            :func:`snzoo.data.splits.find_split`.
        options: The other fields of :class:`~snzoo.training.TrainingConfig`, such as ``model``,
            ``pretrained``, ``output`` and ``seed``, and values of the recipe (see
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
    from snzoo.recipes import Recipe

    own = [field.name for field in dataclasses.fields(TrainingConfig) if field.name != "overrides"]
    values = [field.name for field in dataclasses.fields(Recipe)]
    if unknown := sorted(set(options) - set(own) - set(values)):
        near = difflib.get_close_matches(unknown[0], own + values, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(own + values)}"
        raise UnexpectedArgumentError(f"train takes no argument {unknown[0]!r}; {hint}")
    overrides = {name: options.pop(name) for name in values if name in options}
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
) -> TrainingResult | None:
    """Run the training that ``config`` describes; see :func:`train`.

    Args:
        config: The options.
        show: Called with a line for each epoch, in the first process.
        warn: Called with a message for each photo that is left out, and for other problems.
        progress: Show a progress bar if stderr is a terminal.
        prepare: Called with the plan before any work. If it returns False, the run ends there,
            and the function returns None.
    """
    folder = Path(config.output)
    _check_folder(folder, resume=config.resume)
    plan = make_plan(config)
    device = torch.device(choose_device(local_device(config.device)))
    check_device(config, device, plan)
    if not prepare(plan):
        return None
    identity = plan.identity() | {"precision": config.precision, "sync_norm": config.sync_norm}
    with (
        join(str(device)) as processes,
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        float32_precision(device, tf32=config.precision == "tf32"),
    ):
        workers = config.workers or local_cores()
        state = None
        if config.resume and (folder / "last.pt").exists():
            state = read_state(folder / "last.pt", identity)
        elif config.on_error == "fail" and len(plan.train) <= CHECKED and not processes.rank:
            check_photos(plan.train, workers=workers)
        torch.manual_seed(config.seed)
        stepper = _make_stepper(plan, config, device, processes)
        position = restore_state(state, stepper, processes) if state else Position()
        if config.resume and not state and not processes.rank:
            warn(f"{folder} holds no state to continue from: the run starts at the beginning")
        log = _open_folder(folder, plan, config, processes, position)
        loop = Loop(
            plan,
            config,
            stepper,
            position,
            log,
            processes,
            identity=identity,
            workers=workers,
            show=show if not processes.rank else lambda message: None,
            warn=warn,
            progress=progress and not processes.rank,
        )
        return _finish(loop, folder)


def check_device(config: TrainingConfig, device: torch.device, plan: Plan) -> None:
    """Raise an error if the device cannot do what the options ask for.

    Raises:
        ArgumentError: the device lacks the precision or the synchronized norm.
    """
    if config.precision == "tf32" and device.type != "cuda":
        raise ArgumentError(f"precision tf32 needs a CUDA device, not {device}; use fp32")
    if config.sync_norm and plan.spec.network.norm == "gn":
        raise ArgumentError(f"sync_norm: {plan.name} has no batch statistics to synchronize")
    if config.sync_norm and plan.spec.network.norm == "bn" and device.type != "cuda":
        raise ArgumentError(f"sync_norm: batch norm can't be synchronized on {device}; SN can")


def _make_stepper(
    plan: Plan, config: TrainingConfig, device: torch.device, processes: Processes
) -> Stepper:
    from snzoo.nn import convert_sync_switchnorm

    model: Any = plan.create_network()
    if config.sync_norm and processes.count > 1:
        spec = model.spec
        convert: Any = torch.nn.SyncBatchNorm.convert_sync_batchnorm
        model = convert(convert_sync_switchnorm(model))
        model.spec = spec
    return Stepper(model, plan.recipe, config, device, processes, plan.seed)


def _check_folder(folder: Path, *, resume: bool) -> None:
    """Raise an error if the folder of the run cannot be used."""
    if (folder / "last.pt").exists() and not resume:
        raise ArgumentError(
            f"{folder} holds a run: continue it with --resume, or name another folder: --output"
        )
    if folder.exists() and not folder.is_dir():
        raise FileError(f"{folder} is a file; name a folder for the run: --output")


def _open_folder(
    folder: Path, plan: Plan, config: TrainingConfig, processes: Processes, position: Position
) -> RunLog:
    """Return the log of a run, after its folder is made and the recipe is written."""
    if processes.rank:
        return RunLog(None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"can't make the folder {folder}: {first_line(error)}") from None
    log = RunLog(folder, tensorboard=config.tensorboard)
    log.truncate(position.step if position.step else -1)
    if position.step:
        log.write("resumed", position.step)
    write_json(folder / "recipe.json", describe_run(plan, config, processes))
    return log


def describe_run(plan: Plan, config: TrainingConfig, processes: Processes) -> dict[str, Any]:
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
        "classes": plan.spec.classes,
        "train": {"description": plan.train.description, "images": len(plan.train)},
        "validation": {
            "description": plan.validation.description,
            "images": len(plan.validation),
        },
        "steps_per_epoch": plan.steps_per_epoch,
        "versions": versions(),
        "command": shlex.join(sys.argv),
    }


def _finish(loop: Loop, folder: Path) -> TrainingResult:
    """Run the loop, and return the result of the run."""
    try:
        loop.run()
    finally:
        loop.log.close()
    position, images = loop.position, len(loop.plan.validation)
    return TrainingResult(
        best=folder / "best.safetensors",
        top1=100 * position.best / images,
        correct=position.best,
        images=images,
        epoch=position.best_epoch,
    )
