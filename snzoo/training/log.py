"""The log of a run: one JSON object a line, and event files for TensorBoard on request."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path
from typing import Any

from snzoo.errors import first_line
from snzoo.files import write_atomically

logger = logging.getLogger("snzoo")


class RunLog:
    """The log ``log.ndjson`` in the folder of a run.

    A log that cannot be written does not stop the training; a warning is logged once.

    Args:
        folder: The folder of the run, or None: then nothing is written.
        tensorboard: Write event files too.
        purge_step: The step from which TensorBoard forgets what an interrupted run wrote.
    """

    def __init__(
        self, folder: Path | None, *, tensorboard: bool = False, purge_step: int = 0
    ) -> None:
        self.path = folder / "log.ndjson" if folder else None
        self._failed = False
        self._writer: Any = None
        if tensorboard and folder:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=purge_step)

    def truncate(self, step: int, epochs: int) -> None:
        """Remove what an interrupted run wrote after its last state.

        Args:
            step: The number of finished steps in the state.
            epochs: The number of validated epochs in the state.
        """
        if self.path is None:
            return
        kept = []
        with suppress(OSError), open(self.path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with suppress(ValueError, TypeError, KeyError, RecursionError):
                    fields = json.loads(line)
                    late = fields["step"] > step
                    late |= fields["event"] == "epoch" and fields["epoch"] > epochs
                    if step and line.endswith("\n") and not late:
                        kept.append(line)
        with write_atomically(self.path) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def write(self, event: str, step: int, **values: Any) -> None:
        """Append a line after ``step`` finished steps."""
        if self.path is None:
            return
        line = json.dumps({"event": event, "step": step, **values}, ensure_ascii=False)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
            for tag, value in _scalars(event, values):
                if self._writer is not None:
                    self._writer.add_scalar(tag, value, step)
        except OSError as error:
            if not self._failed:
                reason = first_line(error)
                logger.warning("can't write %s: %s; the training goes on", self.path, reason)
            self._failed = True

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def _scalars(event: str, values: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the values for TensorBoard."""
    if event == "step":
        return [("learning_rate", values["lr"]), ("train/loss", values["loss"])]
    if event != "epoch":
        return []
    train = ("train/top1", values["train_top1"])
    if pairs := values.get("pairs"):
        accuracy = 100 * pairs["correct"] / pairs["pairs"]
        rate = 100 * pairs["equal_error_rate"]
        return [train, ("pairs/accuracy", accuracy), ("pairs/equal_error_rate", rate)]
    found = values["validation"]
    share = {k: 100 * found[k] / max(1, found["images"]) for k in ("top1", "top5")}
    return [
        train,
        ("validation/loss", found["loss"]),
        *((f"validation/{k}", value) for k, value in share.items()),
    ]
