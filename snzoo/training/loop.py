"""The loop over epochs and steps: train, validate, save, and stop when asked to."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from snzoo.data.training_batches import TrainingBatch, read_training_batches, shuffle
from snzoo.errors import DataError, FileError, NonFiniteError, SnzooError
from snzoo.nn import set_radius
from snzoo.processes import Processes
from snzoo.recipes import learning_rate, sparse_radius
from snzoo.share import save_pretrained
from snzoo.training.config import TrainingConfig
from snzoo.training.face_validation import FaceValidation, validate_faces
from snzoo.training.log import RunLog
from snzoo.training.plan import Plan
from snzoo.training.progress import Progress
from snzoo.training.signals import StopSignals
from snzoo.training.state import Meter, Position, average_buffers, save_state
from snzoo.training.step import Stepper, split_step
from snzoo.training.validation import (
    Validation,
    make_augmentation,
    set_batch_average,
    validate,
)

Report = Callable[[str], None]
LARGE = 10_000  # elements of a tensor that may be stored in float16


class Loop:
    """A run from its position to its end.

    Args:
        plan, config, stepper, position, log, processes: What to run, and where.
        identity: What a run that continues this one must have in common with it.
        workers: The number of threads that read photos.
        show: Called with a line for each epoch.
        warn: Called with a message for each problem that does not stop the run.
        progress: Show a progress bar if stderr is a terminal.
    """

    def __init__(
        self,
        plan: Plan,
        config: TrainingConfig,
        stepper: Stepper,
        position: Position,
        log: RunLog,
        processes: Processes,
        *,
        identity: dict[str, Any],
        workers: int,
        show: Report,
        warn: Report,
        progress: bool,
    ) -> None:
        self.plan, self.config, self.stepper, self.position = plan, config, stepper, position
        self.log, self.processes, self.workers = log, processes, workers
        self.show, self.warn = show, warn
        self.folder = Path(config.output)
        self._skipped: set[str] = set()
        self._labels = torch.tensor(plan.train.labels)
        self._saved = self._resumed = time.monotonic()
        self._before = position.seconds
        self._identity = identity
        self._signals = StopSignals()
        self._progress = Progress(plan, position, log, processes, bar=progress)

    def run(self) -> None:
        """Train until the last epoch is validated.

        Raises:
            KeyboardInterrupt: a signal came; the state was saved.
            NonFiniteError: the loss or a weight is not finite.
            DataError: a photo cannot be read, and photos are not to be skipped.
            DeviceError: the photos of a pass do not fit into the memory.
            FileError: a result cannot be written.
        """
        epochs, steps = self.plan.recipe.epochs, self.plan.steps_per_epoch
        try:
            with self._signals:
                while self.position.validated < epochs:
                    if self.position.step < steps * (self.position.validated + 1):
                        self._train_epoch()
                    self._finish_epoch()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"stopped after step {self.position.step} of {self.plan.steps}; the same command "
                "with --resume continues"
            ) from None
        finally:
            self._progress.close()
        self.log.write("finished", self.position.step)

    def _train_epoch(self) -> None:
        """Run the steps of the current epoch that are left."""
        recipe, epoch, steps = self.plan.recipe, self.position.validated, self.plan.steps_per_epoch
        order = self._choose_images(epoch)
        size = recipe.batch_size
        first = self.position.step - epoch * steps
        if first == 0:
            self.position.meter = Meter()
        images = [order[i * size : (i + 1) * size] for i in range(first, steps)]
        passes = [split_step(group, recipe, self.processes) for group in images]
        batches: Any = read_training_batches(
            self.plan.train,
            make_augmentation(recipe, epoch=epoch),
            [group for groups in passes for group in groups],
            seed=self.plan.seed,
            epoch=epoch,
            workers=self.workers,
        )
        self.stepper.model.train()
        self._progress.begin_epoch()
        with closing(self._drop_errors(batches)) as readable:
            for group, groups in zip(images, passes, strict=True):
                step = self.position.step
                rate = learning_rate(recipe, step, steps)
                if (radius := sparse_radius(recipe, step, steps)) is not None:
                    set_radius(self.stepper.model, radius)
                figures = self.stepper.run(
                    islice(readable, len(groups)),
                    self._labels,
                    step=step,
                    images=len(group),
                    rate=rate,
                )
                self._progress.add(step, rate, figures)
                self.position.step += 1
                # A GPU computes one step while the next one is prepared.
                self._settle(keep=1 if self.stepper.device.type == "cuda" else 0)
            self._settle(keep=0)
        if not self.position.meter.images:
            raise DataError(f"no training photo can be read: {self.plan.train.description}")

    def _choose_images(self, epoch: int) -> list[int]:
        """Return the images of an epoch in their order: all, or a part of those of a pass."""
        passed, part = divmod(epoch, self.plan.recipe.epochs_per_pass)
        count = self.plan.images_per_epoch
        order = shuffle(len(self.plan.train), seed=self.plan.seed, epoch=passed)
        return order[part * count : (part + 1) * count].tolist()

    def _drop_errors(
        self, batches: Generator[TrainingBatch, None, None]
    ) -> Generator[TrainingBatch, None, None]:
        with closing(batches):  # its threads end with it
            for batch in batches:
                for index, error in batch.errors.items():
                    self._handle_error(self.plan.train.locate(index), error)
                yield batch

    def _handle_error(self, photo: str, error: SnzooError) -> None:
        """Raise the error of a photo, or name the photo once."""
        if self.config.on_error == "fail":
            raise type(error)(f"{error}; --on-error skip leaves it out") from None
        if photo not in self._skipped:
            self._skipped.add(photo)
            self.warn(f"left out: {error}")
            self.log.write("skipped", self.position.step, photo=photo, reason=str(error))

    def _settle(self, *, keep: int) -> None:
        """Read the figures of finished steps, and save or stop if it is time."""
        due = time.monotonic() - self._saved > 60 * self.config.save_minutes
        asked = self._signals.received, due and not self.processes.rank
        stop, save = self._progress.settle(*asked, keep=keep)
        if stop or save:
            self._progress.settle()
            self._save()
        if stop:
            raise KeyboardInterrupt

    def _finish_epoch(self) -> None:
        """Validate after an epoch, and save the best network and the state."""
        self._save()
        with self._signals.immediate():
            network = self.stepper.averaged_network
            self._set_statistics(network)
            check = validate_faces if self.plan.spec.network.is_face else validate
            found = check(
                network,
                self.plan,
                self.stepper.device,
                self.processes,
                workers=self.workers,
                channels_last=self.config.channels_last,
                on_error=self._handle_error,
            )
            best = found.correct >= self.position.best and self._save_best(network.state_dict())
        self._report_epoch(found, best=best)
        self._save()

    def _set_statistics(self, network: nn.Module) -> None:
        average_buffers(self.stepper, self.processes)
        if self.plan.recipe.statistics == "batch":
            set_batch_average(
                network,
                self.plan,
                self.processes,
                epoch=self.position.validated,
                workers=self.workers,
                on_error=self._handle_error,
            )

    def _report_epoch(self, found: Validation | FaceValidation, *, best: bool) -> None:
        """Log an epoch, and move the position behind it."""
        position, meter = self.position, self.position.meter
        position.validated += 1
        if best:
            position.best, position.best_images = found.correct, found.cases
            position.best_epoch = position.validated
        self.log.write(
            "epoch",
            position.step,
            epoch=position.validated,
            train_loss=meter.mean_loss,
            train_top1=meter.top1,
            **found.log(),
            best=best,
            seconds=self._seconds(),
        )
        epochs, loss = self.plan.recipe.epochs, f"loss {meter.mean_loss:.3f}"
        self.show(f"epoch {position.validated}/{epochs}: {loss}, validation {found}")
        self._before, self._resumed = 0.0, time.monotonic()

    def _save_best(self, state: dict[str, Tensor]) -> bool:
        """Write the best network, and return whether it was written."""
        if self.processes.rank:
            return True
        tensors = {
            name: value.float() if value.dtype == torch.float64 else value
            for name, value in state.items()
        }
        if self.config.half:  # gates, scales and statistics are small and stay exact
            tensors = {k: v.half() if v.numel() > LARGE else v for k, v in tensors.items()}
        best, recipe = self.folder / "best.safetensors", self.plan.recipe
        try:
            save_pretrained(self.stepper.network, best, state_dict=tensors, recipe=recipe)
        except (OSError, SnzooError) as error:
            self._go_on(error)
            return False
        return True

    def _go_on(self, error: Exception) -> None:
        """Warn that a file can't be written, or raise the error at the end of the run."""
        if self.position.step == self.plan.steps:
            raise error
        self.warn(f"{error}; the training goes on")

    def _save(self) -> None:
        """Save the state. If it can't be written, the old one stays, and the training goes on."""
        weights = (p for group in self.stepper.optimizer.param_groups for p in group["params"])
        if not all(bool(p.isfinite().all()) for p in weights):
            raise NonFiniteError(
                f"a weight is not finite after step {self.position.step}; begin a new run with a "
                "smaller --lr, or --clip-norm 1"
            )
        self.position.seconds = self._seconds()
        try:
            save_state(
                self.folder / "last.pt",
                self.stepper,
                self.position,
                self._identity,
                self.processes,
            )
        except FileError as error:
            self._go_on(error)
        self._saved = time.monotonic()

    def _seconds(self) -> float:
        """Return the time of the current epoch, without interruptions."""
        return self._before + time.monotonic() - self._resumed
