"""``snzoo report``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from snzoo.cli.common import path
from snzoo.cli.output import show
from snzoo.errors import ArgumentError
from snzoo.manifest import load_manifest


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "write the results of snzoo eval --json, or training runs, as one HTML page"
    parser = commands.add_parser("report", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    add = parser.add_argument
    about = "file that snzoo eval --json wrote, or folders that snzoo train wrote"
    add("paths", type=path, nargs="+", metavar="PATH", help=about)
    about = "file to write (default: the results with the suffix .html, or report.html in the run)"
    add("--output", type=path, metavar="FILE", help=about)
    about = "the evaluated images; the page shows thumbnails of those that models confuse"
    add("--images", type=path, metavar="PATH", help=about)


def run(args: argparse.Namespace) -> int:
    first, *others = args.paths
    if all(path.is_dir() for path in args.paths):
        return _report_runs(args)
    if others:
        file = next(path for path in args.paths if not path.is_dir())
        raise ArgumentError(f"{file} is no folder; name one file of results, or only run folders")
    return _report_results(first, args)


def _report_results(file: Path, args: argparse.Namespace) -> int:
    from snzoo.evaluation.face_results import is_of_faces, parse_face_results
    from snzoo.evaluation.results import naming_file, parse_results, read_document
    from snzoo.report.faces import make_face_report
    from snzoo.report.page import make_report
    from snzoo.report.thumbnails import find_thumbnails

    document = read_document(file)
    of_faces = is_of_faces(document)
    if of_faces and args.images:
        raise ArgumentError("--images is for classifiers; leave it out")
    output = args.output or file.with_suffix(".html")
    _check_output(output, [file], "the results")
    with naming_file(file):
        if of_faces:
            return _write(output, make_face_report(parse_face_results(document)))
        results = parse_results(document)
    thumbnails = find_thumbnails(results, images=args.images, demo=load_manifest().demo)
    return _write(output, make_report(results, thumbnails))


def _report_runs(args: argparse.Namespace) -> int:
    from snzoo.report.curves import DASHES, HUES
    from snzoo.report.run_log import FILES, read_run
    from snzoo.report.runs import make_run_report

    folders: list[Path] = args.paths
    if args.images:
        raise ArgumentError("--images goes with the results of snzoo eval, not with run folders")
    if len(folders) > HUES * DASHES:
        raise ArgumentError(f"name at most {HUES * DASHES} runs, got {len(folders)}")
    if len(folders) > 1 and args.output is None:
        raise ArgumentError("the page of several runs needs a name: --output FILE")
    output = args.output or folders[0] / "report.html"
    _check_output(
        output, [folder / name for folder in folders for name in FILES], "a part of a run"
    )
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = list(map(str, folders))
    runs = list(zip(names, map(read_run, folders), strict=True))
    return _write(output, make_run_report(runs))


def _check_output(output: Path, inputs: Iterable[Path], what: str) -> None:
    from snzoo.data import is_image

    if output.resolve() in [file.resolve() for file in inputs]:
        raise ArgumentError(f"{output} holds {what}; name another file: --output FILE")
    if is_image(output.name):
        raise ArgumentError(f"{output} is not overwritten: it is named like a photo")


def _write(output: Path, page: str) -> int:
    from snzoo.files import write_atomically

    with write_atomically(output) as partial:
        partial.write_text(page, encoding="utf-8")
    show(str(output))
    return 0
