"""Fresh processes of Python: what they print, and the memory of them and their children.

This module does not import torch, because a large parent would share memory with its children.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from snzoo.errors import SnzooError

PERIOD = 0.05  # seconds between two looks at a process


def run_python(
    arguments: Sequence[str],
    environment: Mapping[str, str] | None = None,
    watch: Callable[[int], object] | None = None,
) -> str:
    """Return what a fresh process prints; meanwhile call ``watch`` with its session.

    Raises:
        SnzooError: the process failed; the message is the last line of its stderr.
    """
    command, variables = [sys.executable, *arguments], os.environ | (environment or {})
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        # The process gets its own session, so that the id of the session finds all its children.
        with subprocess.Popen(
            command, stdout=out, stderr=err, env=variables, start_new_session=True
        ) as process:
            try:
                while watch and process.poll() is None:
                    watch(process.pid)
                    time.sleep(PERIOD)
                process.wait()
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # Ctrl-C does not reach another session
                raise
        if process.returncode:
            raise SnzooError(last_line(err) or f"exit status {process.returncode}")
        out.seek(0)
        return out.read().decode()


def last_line(file: IO[bytes]) -> str:
    """Return the last line with text of a file, or an empty string."""
    file.seek(0)
    lines = file.read().decode(errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.strip()), "")


def session_mib(session: int, field: str = "Pss") -> float:
    """Return the memory of all processes of a session.

    ``Pss`` counts a page that k processes share as 1/k in each, so that the sum counts it once.
    Reading it costs up to a fifth of a core, because the kernel walks all page tables. ``VmRSS``
    counts the page in each of them, and ``VmHWM`` is the most that it has been in each.
    """
    file, total = "smaps_rollup" if field == "Pss" else "status", 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            if int(stat.rpartition(")")[2].split()[3]) == session:
                lines = (folder / file).read_text().splitlines()
                total += sum(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
        except OSError:  # the process has ended meanwhile
            continue
    return total / 1024
