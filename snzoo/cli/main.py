"""The parser of the command line, its exit status, and its error messages."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from snzoo.cli import (
    cache,
    convert,
    embed,
    evaluate,
    export,
    inspect,
    predict,
    report,
    serve,
    train,
    zoo,
)
from snzoo.cli.output import redirect_warnings, show_traceback, warn
from snzoo.errors import SnzooError


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """Refuse unknown arguments here, so that the error names the command that has no such."""
        namespace, unknown = super().parse_known_args(*args, **options)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        warn(f"{message} (see: {self.prog} --help)", program=self.prog)
        self.exit(2)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; ``args.run(args)`` runs the parsed command."""
    parser = _Parser(
        prog="snzoo",
        description="Model zoo and exact evaluation for Switchable Normalization networks.",
        epilog="Environment: SNZOO_HOME (cache folder), SNZOO_OFFLINE=1, SNZOO_REQUIRE_CHECKSUM=1, "
        "SNZOO_MANIFEST (another manifest).",
    )
    parser.add_argument("--version", action="version", version=_version())
    about = "show the traceback of errors"
    parser.add_argument("--debug", action="store_true", help=about)
    debug = argparse.ArgumentParser(add_help=False)  # the option may follow the command's name
    debug.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=about)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    modules = (zoo, inspect, evaluate, train, report, predict, serve, embed, export, convert, cache)
    for module in modules:
        module.add_commands(commands, parents=[debug])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the arguments of the command line (default: those of this process).

    Returns:
        The exit status: 0, 1 after an error, 130 after an interrupt. A wrong command line
        raises ``SystemExit(2)``.
    """
    _prepare_streams()
    args = build_parser().parse_args(arguments)
    try:
        with redirect_warnings():
            status: int = args.run(args) or 0
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # e.g. snzoo list | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        warn(str(error) or "interrupted")
        return 130
    except Exception as error:
        if args.debug:
            show_traceback()
        else:
            warn(_explain(error))
        return 1


def _prepare_streams() -> None:
    """Discard output to closed streams; print "?" for characters that the encoding lacks."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _explain(error: Exception) -> str:
    if isinstance(error, SnzooError):
        return str(error)
    return f"{type(error).__name__}: {error} (--debug shows where)"


def _version() -> str:
    try:
        return version("snzoo")
    except PackageNotFoundError:  # a checkout that is not installed
        return "not installed"
