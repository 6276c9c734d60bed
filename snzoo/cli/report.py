"""``snzoo report``."""

from __future__ import annotations

import argparse
from typing import Any

from snzoo.cli.common import path
from snzoo.cli.output import show
from snzoo.errors import ArgumentError
from snzoo.manifest import load_manifest


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "write the results of snzoo eval --json as one HTML page"
    parser = commands.add_parser("report", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("results", type=path, metavar="RESULTS", help="file that snzoo eval --json wrote")
    about = "file to write (default: RESULTS with the suffix .html)"
    add("--output", type=path, metavar="FILE", help=about)
    about = "the evaluated images; the page shows thumbnails of those that models confuse"
    add("--images", type=path, metavar="PATH", help=about)


def run(args: argparse.Namespace) -> int:
    from snzoo.data import is_image
    from snzoo.evaluation.results import read_results
    from snzoo.files import write_atomically
    from snzoo.report.page import make_report
    from snzoo.report.thumbnails import find_thumbnails

    results = read_results(args.results)
    output = args.output or args.results.with_suffix(".html")
    if output.resolve() == args.results.resolve():
        raise ArgumentError(f"{output} holds the results; name another file: --output FILE")
    if is_image(output.name):
        raise ArgumentError(f"{output} is not overwritten: it is named like a photo")
    thumbnails = find_thumbnails(results, images=args.images, demo=load_manifest().demo)
    page = make_report(results, thumbnails)
    with write_atomically(output) as partial:
        partial.write_text(page, encoding="utf-8")
    show(str(output))
    return 0
