"""Run measurements in a fresh process, and read the memory of the process and its children.

This module does not import torch, because a large parent would share memory with its children.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from snzoo.errors import SnzooError

CHILD = Path(__file__).parent / "child.py"
PERIOD = 0.05  # seconds between two readings of the memory


@dataclass(frozen=True)
class Job:
    """The work of a fresh process; ``folder`` has class folders, ``warm`` a few of their photos.

    If ``workers`` or ``batch_size`` is None, the contender uses its own default. ``model`` and
    ``weights`` are for ``evaluate``. ``device`` None means CUDA if available. The process itself
    sets ``preprocessing``.
    """

    task: Literal["pixels", "load", "evaluate", "training-pixels", "train"]
    contender: str
    folder: str
    warm: str
    workers: int | None = None
    batch_size: int | None = None
    model: str | None = None
    weights: str | None = None
    device: Any = None
    preprocessing: Any = None

    @property
    def configuration(self) -> tuple[str, int | None, int | None]:
        return self.contender, self.workers, self.batch_size


def describe(contender: str, workers: int | None, batch_size: int | None) -> str:
    parts = [f"{workers} workers"] if workers else []
    parts += [f"batch {batch_size}"] if batch_size else []
    return f"{contender} ({', '.join(parts) or 'its defaults'})"


def run_job(job: Job) -> dict[str, Any]:
    """Return the result of ``job``, or ``{"absent": reason}`` if its library can't be imported.

    Raises:
        SnzooError: the job failed; the message has the last line of its stderr.
    """
    return _run(job, watch=False)[0]


def peak_memory(job: Job) -> float:
    """Return the largest sum of PSS over the processes of ``job`` in MiB, read every 50 ms.

    PSS counts a page that k processes share as 1/k in each, so that the sum counts it once.
    Reading it costs up to a fifth of a core, because the kernel walks all page tables, so such a
    run is not timed.
    """
    return _run(job, watch=True)[1]


def _run(job: Job, *, watch: bool) -> tuple[dict[str, Any], float]:
    command = [sys.executable, str(CHILD), json.dumps(asdict(job))]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        # The process gets its own session, so that the id of the session finds all its children.
        with subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True) as process:
            try:
                peak = _watch(process) if watch else 0.0
                process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # Ctrl-C does not reach another session
                raise
        lines = [_lines(file) for file in (out, err)]
    if process.returncode:
        reason = lines[1][-1] if lines[1] else f"exit status {process.returncode}"
        raise SnzooError(f"{describe(*job.configuration)}, {job.task}: {reason}")
    result: dict[str, Any] = json.loads(lines[0][-1])
    return result, peak


def _lines(file: Any) -> list[str]:
    file.seek(0)
    return [line for line in file.read().splitlines() if line.strip()]


def _watch(process: subprocess.Popen[bytes]) -> float:
    peak = 0
    while process.poll() is None:
        peak = max(peak, session_pss(process.pid))
        time.sleep(PERIOD)
    return peak / 1024


def session_pss(session: int) -> int:
    """Return the current PSS of all processes of a session in KiB."""
    total = 0
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                stat = Path("/proc", name, "stat").read_text()
                if int(stat.rpartition(")")[2].split()[3]) == session:
                    total += _pss(Path("/proc", name, "smaps_rollup").read_text())
            except OSError:  # the process has ended meanwhile
                continue
    return total


def _pss(rollup: str) -> int:
    return next((int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:"), 0)
