"""``snzoo report``."""

from __future__ import annotations

import argparse
from typing import Any

from snzoo.cli.common import path
from snzoo.errors import SnzooError
from snzoo.manifest import load_manifest


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "one HTML page of what snzoo eval --json wrote"
    parser = commands.add_parser("report", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    parser.add_argument("results", type=path, metavar="RESULTS", help="of snzoo eval --json")
    parser.add_argument(
        "--output", type=path, metavar="FILE", help="(default: RESULTS with the ending .html)"
    )


def run(args: argparse.Namespace) -> int:
    from snzoo.evaluation.results import read_results
    from snzoo.files import write_atomically
    from snzoo.report.page import make_page
    from snzoo.report.thumbnails import find_thumbnails

    results = read_results(args.results)
    output = args.output or args.results.with_suffix(".html")
    if output.resolve() == args.results.resolve():
        raise SnzooError(f"{output} holds the results; name another file: --output FILE")
    page = make_page(results, find_thumbnails(results, load_manifest().demo))
    with write_atomically(output) as partial:
        partial.write_text(page, encoding="utf-8")
    print(output)
    return 0
