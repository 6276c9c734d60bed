"""The state of a run: all that a resumed run needs, in one file that is replaced atomically."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from snzoo.errors import ArgumentError, CheckpointError, FileError, first_line
from snzoo.files import atomic_path
from snzoo.processes import Processes
from snzoo.training.step import Stepper

FORMAT = 1
PARTS = {"format", "identity", "position", "model", "buffers", "optimizer", "scaler", "average"}


@dataclass
class Meter:
    """Sums over the images of all processes: losses and correct answers."""

    images: int = 0
    loss: float = 0.0
    correct: int = 0

    def add(self, images: int, loss: float, correct: int) -> None:
        self.images += images
        self.loss += loss
        self.correct += correct

    @property
    def mean_loss(self) -> float:
        return self.loss / max(1, self.images)

    @property
    def top1(self) -> float:
        """The share of correct answers, in percent."""
        return 100 * self.correct / max(1, self.images)


@dataclass
class Position:
    """Where a run is, and what it has measured so far.

    The seed of the run and ``step`` determine all random numbers that follow: the order of the
    photos, crops, and dropout. No state of a generator has to be kept.

    Attributes:
        step: The number of finished optimizer steps.
        validated: The number of epochs after which the network was validated.
        best: The largest number of correct validation photos.
        best_images: The number of photos of that validation.
        best_epoch: The epoch that reached it, from 1.
        seconds: The time of the current epoch so far, in seconds.
        meter: The training figures of the current epoch, or of the last one after its end.
    """

    step: int = 0
    validated: int = 0
    best: int = -1
    best_images: int = 0
    best_epoch: int = 0
    seconds: float = 0.0
    meter: Meter = field(default_factory=Meter)


def save_state(
    path: Path,
    stepper: Stepper,
    position: Position,
    identity: dict[str, Any],
    processes: Processes,
) -> None:
    """Write the state of a run to ``path``. All processes must call this function.

    Running statistics differ between processes unless they are synchronized, so those of each
    process are kept.

    Raises:
        FileError: the file cannot be written; the old file is unchanged.
    """
    buffers = processes.gather({name: b.cpu() for name, b in _buffers(stepper)})
    if processes.rank:
        return
    state = {
        "format": FORMAT,
        "identity": identity,
        "position": dataclasses.asdict(position),
        "model": stepper.model.state_dict(),
        "buffers": buffers,
        "optimizer": stepper.optimizer.state_dict(),
        "scaler": stepper.scaler.state_dict(),
        "average": stepper.average.state_dict() if stepper.average else None,
    }
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.save(state, file)  # given a path, it refuses the name of a hidden file
    except OSError as error:
        raise FileError(f"can't write {path}: {first_line(error)}") from None
    except RuntimeError:  # of PyTorch's writer, on a full disk
        raise FileError(f"can't write {path}: the disk is full, or files have a limit") from None


def read_state(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Return the state in a file, after a check that it belongs to this run.

    Raises:
        CheckpointError: the file cannot be read.
        ArgumentError: the run in the file differs from this one; the message says in what.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        known = isinstance(state, dict) and state.keys() == PARTS and state["format"] == FORMAT
        before = dict(state["identity"]) if known else {}
        Position(**state["position"] if known else {})
    except Exception:  # damaged files raise exceptions of many types
        known = False
    if not known:
        raise _damaged(path)
    for name in identity | before:
        old, new = before.get(name), identity.get(name)
        if old != new:
            change = f"changed from {old!r} to {new!r}" if len(f"{old}{new}") < 100 else "changed"
            raise ArgumentError(
                f"can't resume {path.parent}: {name} {change}; use the options and the data of "
                "that run, or another folder: --output"
            )
    return state


def _damaged(path: Path) -> CheckpointError:
    return CheckpointError(
        f"can't resume from {path}: it is damaged, or no state of this version of snzoo; name "
        "another folder: --output"
    )


def restore_state(
    state: dict[str, Any], stepper: Stepper, processes: Processes, *, path: Path
) -> Position:
    """Restore what :func:`save_state` wrote; return the position.

    With another number of processes, running statistics are averaged over those of the file.

    Args:
        path: The path of the file, for errors.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        return _restore(state, stepper, processes)
    except Exception:  # damaged files raise exceptions of many types
        raise _damaged(path) from None


def _restore(state: dict[str, Any], stepper: Stepper, processes: Processes) -> Position:
    stepper.model.load_state_dict(state["model"])
    if stepper.average is not None:
        stepper.average.load_state_dict(state["average"])
    buffers = state["buffers"]
    own = buffers[processes.rank] if len(buffers) == processes.count else _mean(buffers)
    for name, buffer in _buffers(stepper):
        buffer.copy_(own[name])
    stepper.optimizer.load_state_dict(state["optimizer"])
    stepper.scaler.load_state_dict(state["scaler"])
    values = dict(state["position"])
    if not 0 <= values["validated"] <= stepper.recipe.epochs or values["step"] < 0:
        raise ValueError("it has an impossible position")
    return Position(**values | {"meter": Meter(**values["meter"])})


def average_buffers(stepper: Stepper, processes: Processes) -> None:
    """Replace the running statistics by their averages over the processes."""
    if processes.count > 1:
        mean = _mean(processes.gather({name: b.cpu() for name, b in _buffers(stepper)}))
        for name, buffer in _buffers(stepper):
            buffer.copy_(mean[name])


def _buffers(stepper: Stepper) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the names and buffers of the network and of its moving average."""
    yield from stepper.model.named_buffers()
    if stepper.average is not None:
        yield from stepper.average.named_buffers(prefix="average")


def _mean(buffers: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the averages of floating-point buffers; counts are the same in all processes."""
    names = buffers[0]
    stacked = {name: torch.stack([own[name] for own in buffers]) for name in names}
    return {
        name: values.mean(0) if values.is_floating_point() else values[0]
        for name, values in stacked.items()
    }
