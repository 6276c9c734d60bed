"""Functions that print for the command line.

File names, URLs and the fields of documents may contain terminal escapes. This module makes them
harmless. No other module of the command line prints.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from snzoo.errors import FileError, first_line, printable


class Painted(NamedTuple):
    """Text in a color of the 256-color palette."""

    text: str
    color: int


Line = str | Sequence[str | Painted]


def show(*lines: Line) -> None:
    """Print lines to stdout. Control characters in a line, such as line breaks, are escaped."""
    _print("\n".join(map(_format, lines)))


def show_json(document: Any) -> None:
    """Print a JSON document to stdout, in ASCII; JSON escapes all other characters."""
    _print(json.dumps(document, indent=2))


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:  # e.g. snzoo list | head
        raise
    except OSError as error:
        raise FileError(f"can't write to stdout: {first_line(error)}") from None


def warn(message: str, *, program: str = "snzoo") -> None:
    """Print an error or a warning to stderr, in one line."""
    print(f"{program}: {printable(' '.join(message.split()))}", file=sys.stderr)


def show_traceback() -> None:
    """Print the traceback of the exception that is being handled to stderr."""
    print("\n".join(map(printable, traceback.format_exc().splitlines())), file=sys.stderr)


def wants_color() -> bool:
    """Return whether stdout is a terminal and ``NO_COLOR`` is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


@contextmanager
def redirect_warnings() -> Iterator[None]:
    """Print Python's warnings and snzoo's log messages with :func:`warn`."""
    logger, handler = logging.getLogger("snzoo"), _Handler(logging.WARNING)
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            # Pillow warns about problems such as broken EXIF data, which change no pixel.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.showwarning = lambda message, *_, **__: warn(str(message))
            yield
    finally:
        logger.removeHandler(handler)


class _Handler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        warn(record.getMessage())


def _format(line: Line) -> str:
    parts = [line] if isinstance(line, str) else line
    return "".join(
        f"\033[38;5;{part.color}m{printable(part.text)}\033[0m"
        if isinstance(part, Painted)
        else printable(part)
        for part in parts
    )
