"""``snzoo export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from snzoo.cli.common import add_model_options, check_survives, choose_entry, path
from snzoo.cli.output import show
from snzoo.errors import ArgumentError
from snzoo.spec import HUB, LOCAL


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "write a network as one ONNX or PyTorch (.pt2) file, checked against the original"
    parser = commands.add_parser("export", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    add = parser.add_argument
    add_model_options(parser)
    add(
        "--format", choices=("onnx", "pt2"), help="file format (default: by the suffix of --output)"
    )
    add(
        "--output", type=path, metavar="FILE", help="file to write (default: NAME.onnx or NAME.pt2)"
    )
    about = "allow images of any height and width from 33 pixels"
    add("--dynamic-size", action="store_true", help=about)


def run(args: argparse.Namespace) -> int:
    from snzoo.export import BATCH_SIZES, check_output, choose_format, export

    if not (args.format or args.output):
        raise ArgumentError("which format? snzoo export --format onnx, or --format pt2")
    typed = str(args.weights or args.model or "")
    spec = choose_entry(args, args.model)
    output = args.output or Path(f"{short_name(typed) or spec.name}.{args.format}")
    format = choose_format(output, args.format)
    check_output(output, format)
    check_survives(output, args.weights)
    model = spec.load()
    parity = export(model, output, format=format, dynamic_size=args.dynamic_size)
    batches = ", ".join(map(str, BATCH_SIZES))
    show(f"{output}: {output.stat().st_size / 1e6:.1f} MB, batch {batches}: {parity}")
    return 0


def short_name(source: str) -> str:
    """Return the name of a model without its folder, suffix and owner."""
    if source.startswith(HUB):
        return source.partition("/")[2].partition("@")[0]
    path = Path(source.removeprefix(LOCAL))
    return path.resolve().name if source and path.is_dir() else path.stem
