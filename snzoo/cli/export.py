"""``snzoo export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from snzoo.cli.common import add_model_options, check_survives, choose_entry, load_model, path
from snzoo.errors import SnzooError
from snzoo.spec import HUB


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "a network as one ONNX or PyTorch (.pt2) file, checked against the original"
    parser = commands.add_parser("export", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    add = parser.add_argument
    add_model_options(parser)
    add("--format", choices=("onnx", "pt2"), help="(default: what the ending of --output says)")
    add(
        "--output",
        type=path,
        metavar="FILE",
        help="(default: NAME.onnx, NAME.pt2)",
    )


def run(args: argparse.Namespace) -> int:
    from snzoo.export import BATCH_SIZES, check_output, export

    if not (args.format or args.output):
        raise SnzooError("which format? snzoo export --format onnx, or --format pt2")
    typed = str(args.weights or args.model or "")
    entry = choose_entry(args, args.model)
    output = args.output or Path(f"{short_name(typed) or entry.name}.{args.format}")
    format = check_output(output, args.format)
    check_survives(output, args.weights)
    parity = export(load_model(args, entry), output, entry=entry, format=format)
    batches = ", ".join(map(str, BATCH_SIZES))
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, batch {batches}: {parity}")
    return 0


def short_name(source: str) -> str:
    """The name of a model, a file or a folder, or that of a repository."""
    if source.startswith(HUB):
        return source.partition("/")[2].partition("@")[0]
    path = Path(source)
    return path.resolve().name if source and path.is_dir() else path.stem
