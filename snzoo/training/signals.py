"""Stop a run at the end of a step when the user or the system asks for it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class StopSignals:
    """A context in which signals set ``received`` instead of ending the process.

    The signals are SIGINT (Ctrl-C), SIGTERM, and SIGHUP (the terminal is closed).

    A second signal ends the process as usual. Under torchrun, further signals have no effect,
    because torchrun and the terminal may both send one. Outside the main thread, Python delivers
    no signals, so the context does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.received = False
        self._immediate = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._stop) for number in self.SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore()

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Raise KeyboardInterrupt when a signal comes or has come: nothing has to be saved."""
        if self.received:
            raise KeyboardInterrupt
        self._immediate = True
        try:
            yield
        finally:
            self._immediate = False

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if "LOCAL_WORLD_SIZE" not in os.environ:
            self._restore()
        if self._immediate:
            raise KeyboardInterrupt

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
