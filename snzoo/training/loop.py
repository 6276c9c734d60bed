"""The loop over epochs and steps: train, validate, save, and stop when asked to."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from snzoo.data.training_batches import TrainingBatch, read_training_batches, shuffle
from snzoo.errors import FileError, NonFiniteError, SnzooError
from snzoo.processes import Processes
from snzoo.recipes import learning_rate
from snzoo.share import save_pretrained
from snzoo.training.config import TrainingConfig
from snzoo.training.log import RunLog
from snzoo.training.plan import Plan
from snzoo.training.signals import StopSignals
from snzoo.training.state import Meter, Position, average_buffers, save_state
from snzoo.training.step import Stepper, split_step
from snzoo.training.validation import make_augmentation, set_batch_average, validate

Report = Callable[[str], None]
LOG_SECONDS = 10.0  # the least time between two lines of steps in the log
LARGE = 10_000  # elements of a tensor that may be stored in float16


class _Pending(NamedTuple):
    """A step whose loss may still be computed on the device."""

    step: int
    images: int
    rate: float
    loss: Tensor
    correct: Tensor


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
        self._pending: deque[_Pending] = deque()
        self._recent, self._logged = Meter(), time.monotonic()
        self._saved = self._resumed = time.monotonic()
        self._before = position.seconds
        self._identity = identity
        self._signals = StopSignals()
        self._bar = tqdm(
            total=plan.steps,
            initial=position.step,
            unit="step",
            dynamic_ncols=True,
            disable=None if progress else True,
        )

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
        with self._signals, self._bar:
            while self.position.validated < epochs:
                if self.position.step < steps * (self.position.validated + 1):
                    self._train_epoch()
                self._finish_epoch()
        self.log.write("finished", self.position.step)

    def _train_epoch(self) -> None:
        """Run the steps of the current epoch that are left."""
        recipe, epoch, steps = self.plan.recipe, self.position.validated, self.plan.steps_per_epoch
        order = shuffle(len(self.plan.train), seed=self.plan.seed, epoch=epoch).tolist()
        size = recipe.batch_size
        first = self.position.step - epoch * steps
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
        self._bar.set_description(f"epoch {epoch + 1}/{recipe.epochs}")
        with closing(self._drop_errors(batches)) as readable:
            for group, groups in zip(images, passes, strict=True):
                step = self.position.step
                rate = learning_rate(recipe, step, steps)
                loss, correct = self.stepper.run(
                    islice(readable, len(groups)),
                    self._labels,
                    step=step,
                    images=len(group),
                    rate=rate,
                )
                self._pending.append(_Pending(step, len(group), rate, loss, correct))
                self.position.step += 1
                # A GPU computes one step while the next one is prepared.
                self._settle(keep=1 if loss.is_cuda else 0)
            self._settle(keep=0)

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
            raise error
        if photo not in self._skipped:
            self._skipped.add(photo)
            self.warn(f"left out: {error}")
            self.log.write("skipped", self.position.step, photo=photo, reason=str(error))

    def _settle(self, *, keep: int) -> None:
        """Add up the figures of finished steps, and save or stop if it is time.

        Args:
            keep: The number of steps that may still run on the device.
        """
        save = stop = False
        while len(self._pending) > keep:
            done = self._pending.popleft()
            due = time.monotonic() - self._saved > 60 * self.config.save_minutes
            asked = [self._signals.received, due and not self.processes.rank]
            figures = [float(done.loss), float(done.correct)]
            loss, correct, signals, dues = self.processes.add([*figures, *map(float, asked)])
            if not torch.tensor(loss).isfinite():
                raise NonFiniteError(
                    f"the loss is {loss} at step {done.step} with the learning rate "
                    f"{done.rate:.4g}; try a smaller --lr, a longer --warmup-epochs, or "
                    "--clip-norm 1"
                )
            for meter in (self.position.meter, self._recent):
                meter.add(done.images, loss, int(correct))
            save, stop = save or dues > 0, stop or signals > 0
            self._report_step(done)
        if (save or stop) and self._pending:
            self._settle(keep=0)
        if save or stop:
            self._save()
        if stop:
            raise KeyboardInterrupt(
                f"stopped after step {self.position.step} of {self.plan.steps}; the same command "
                "with --resume continues"
            )

    def _report_step(self, done: _Pending) -> None:
        self._bar.update()
        now = time.monotonic()
        seconds = now - self._logged
        ends_epoch = (done.step + 1) % self.plan.steps_per_epoch == 0
        if seconds < LOG_SECONDS and not ends_epoch:
            return
        speed = self._recent.images / max(seconds, 1e-9)
        loss = self._recent.mean_loss
        self._bar.set_postfix_str(f"loss {loss:.3f}, lr {done.rate:.3g}, {speed:.0f} images/s")
        self.log.write(
            "step",
            done.step + 1,
            epoch=(done.step + 1) / self.plan.steps_per_epoch,
            loss=loss,
            lr=done.rate,
            images_per_second=speed,
        )
        self._recent, self._logged = Meter(), now

    def _finish_epoch(self) -> None:
        """Validate after an epoch, and save the best network and the state."""
        self._set_statistics()
        self._save()
        self._signals.immediate = True  # nothing is lost if the validation is interrupted
        validated = self.stepper.average.module if self.stepper.average else self.stepper.model
        found = validate(
            validated,
            self.plan,
            self.stepper.device,
            self.processes,
            workers=self.workers,
            channels_last=self.config.channels_last,
            on_error=self._handle_error,
        )
        position = self.position
        position.validated += 1
        best = found.top1 >= position.best
        if best:
            position.best, position.best_epoch = found.top1, position.validated
            self._save_best(validated.state_dict())
        self._signals.immediate = False
        meter, epochs = position.meter, self.plan.recipe.epochs
        self.log.write(
            "epoch",
            position.step,
            epoch=position.validated,
            train_loss=meter.mean_loss,
            train_top1=meter.top1,
            validation=found._asdict(),
            best=best,
            seconds=self._seconds(),
        )
        self._before, self._resumed = 0.0, time.monotonic()
        loss = f"loss {meter.mean_loss:.3f}"
        self.show(f"epoch {position.validated}/{epochs}: {loss}, validation {found}")
        position.meter = Meter()
        self._logged = time.monotonic()
        self._save()

    def _set_statistics(self) -> None:
        average_buffers(self.stepper, self.processes)
        if self.plan.recipe.statistics == "batch":
            for network in (self.stepper.model, self.stepper.average):
                if network is not None:
                    epoch = self.position.validated
                    set_batch_average(network, self.plan, epoch, workers=self.workers)

    def _save_best(self, state: dict[str, Tensor]) -> None:
        if self.processes.rank:
            return
        tensors = {
            name: value.float() if value.dtype == torch.float64 else value
            for name, value in state.items()
        }
        if self.config.half:  # gates, scales and statistics are small and stay exact
            tensors = {k: v.half() if v.numel() > LARGE else v for k, v in tensors.items()}
        best = self.folder / "best.safetensors"
        recipe = self.plan.recipe
        save_pretrained(self.stepper.model, best, state_dict=tensors, recipe=recipe)

    def _save(self) -> None:
        """Save the state. If it can't be written, the old one stays, and the training goes on."""
        weights = (p for group in self.stepper.optimizer.param_groups for p in group["params"])
        if not all(bool(p.isfinite().all()) for p in weights):
            raise NonFiniteError(
                f"a weight is not finite after step {self.position.step}; try a smaller --lr, or "
                "--clip-norm 1"
            )
        self.position.seconds = self._seconds()
        path, identity = self.folder / "last.pt", self._identity
        try:
            save_state(path, self.stepper, self.position, identity, self.processes)
        except FileError as error:
            if self.position.validated == self.plan.recipe.epochs:
                raise
            self.warn(f"{error}; the training goes on from the state in memory")
        self._saved = time.monotonic()

    def _seconds(self) -> float:
        """Return the time of the current epoch, without interruptions."""
        return self._before + time.monotonic() - self._resumed
