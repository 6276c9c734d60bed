"""Add up and report the figures of finished steps."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import NamedTuple

from tqdm import tqdm

from snzoo.errors import NonFiniteError
from snzoo.processes import Processes
from snzoo.training.devices import Figures
from snzoo.training.log import RunLog
from snzoo.training.plan import Plan
from snzoo.training.state import Meter, Position

LOG_SECONDS = 10.0  # the least time between two lines of steps in the log, except at an epoch's end


class _Step(NamedTuple):
    number: int
    rate: float
    figures: Figures


class Progress:
    """The figures of the steps of all processes, in the log and in a progress bar.

    Args:
        plan, position, log, processes: What runs, and where.
        bar: Show a progress bar if stderr is a terminal.
    """

    def __init__(
        self, plan: Plan, position: Position, log: RunLog, processes: Processes, *, bar: bool
    ) -> None:
        self.plan, self.position, self.log, self.processes = plan, position, log, processes
        self._steps: deque[_Step] = deque()
        self._recent, self._logged = Meter(), time.monotonic()
        self._bar = tqdm(
            total=plan.steps,
            initial=position.step,
            unit="step",
            dynamic_ncols=True,
            disable=None if bar else True,
        )

    def begin_epoch(self) -> None:
        self._logged = time.monotonic()
        epoch, epochs = self.position.validated + 1, self.plan.recipe.epochs
        self._bar.set_description(f"epoch {epoch}/{epochs}")

    def close(self) -> None:
        self._bar.close()

    def add(self, number: int, rate: float, figures: Figures) -> None:
        """Add a step, which the device may still be computing."""
        self._steps.append(_Step(number, rate, figures))

    def settle(self, *requests: bool, keep: int = 0) -> list[bool]:
        """Read the figures of steps; return for each request whether a process made it.

        All processes must call this function equally often.

        Args:
            requests: What this process asks the others for.
            keep: The number of steps that may still run on the device.

        Raises:
            NonFiniteError: the loss of a step is not finite.
        """
        made = [False] * len(requests)
        while len(self._steps) > keep:
            step = self._steps.popleft()
            values = [*step.figures.read(), step.figures.images, *map(float, requests)]
            loss, correct, images, *counts = self.processes.add(values)
            made = [before or count > 0 for before, count in zip(made, counts, strict=True)]
            if not math.isfinite(loss):
                raise NonFiniteError(
                    f"the loss is {loss} in step {step.number + 1}, at the learning rate "
                    f"{step.rate:.4g}; begin a new run with a smaller --lr, a longer "
                    "--warmup-epochs, or --clip-norm 1"
                )
            for meter in (self.position.meter, self._recent):
                meter.add(int(images), loss, int(correct))
            self._report(step)
        return made

    def _report(self, step: _Step) -> None:
        self._bar.update()
        done, now = step.number + 1, time.monotonic()
        seconds = now - self._logged
        if seconds < LOG_SECONDS and done % self.plan.steps_per_epoch:
            return
        speed = self._recent.images / max(seconds, 1e-9)
        loss = self._recent.mean_loss
        self._bar.set_postfix_str(f"loss {loss:.3f}, lr {step.rate:.3g}, {speed:.0f} images/s")
        epoch = done / self.plan.steps_per_epoch
        self.log.write("step", done, epoch=epoch, loss=loss, lr=step.rate, images_per_second=speed)
        self._recent, self._logged = Meter(), now
