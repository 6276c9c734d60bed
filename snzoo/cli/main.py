"""The parser, and how errors reach people."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from snzoo.cli import cache, evaluate, export, inspect, predict, report, zoo
from snzoo.errors import SnzooError, printable


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (see: {self.prog} --help)\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="snzoo",
        description="Model zoo and exact evaluation for Switchable Normalization networks.",
        epilog="Environment: SNZOO_HOME (cache folder), SNZOO_OFFLINE=1, SNZOO_REQUIRE_CHECKSUM=1, "
        "SNZOO_MANIFEST (another manifest).",
    )
    parser.add_argument("--version", action="version", version=_version())
    about = "show the traceback of an error"
    parser.add_argument("--debug", action="store_true", help=about)
    debug = argparse.ArgumentParser(add_help=False)  # after the command's name it works too
    debug.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=about)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for module in (zoo, inspect, evaluate, report, predict, export, cache):
        module.add_commands(commands, parents=[debug])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 after an error, 2 after a wrong command line."""
    _prepare_streams()
    args = build_parser().parse_args(arguments)
    # Pillow warns of broken EXIF and the like, which changes no pixel; for people, it is noise.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        status: int = args.run(args) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # e.g. snzoo list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        print(f"snzoo: {str(error) or 'interrupted'}", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        print(f"snzoo: {_explain(error)}", file=sys.stderr)
        return 1


def _prepare_streams() -> None:
    """Closed streams swallow what is written; terminals show "?" for what they can't show."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _explain(error: Exception) -> str:
    message = printable(" ".join(str(error).split()))
    if isinstance(error, SnzooError):
        return message
    return f"{type(error).__name__}: {message} (--debug shows where)"


def _version() -> str:
    try:
        return version("snzoo")
    except PackageNotFoundError:  # a plain checkout
        return "not installed"
