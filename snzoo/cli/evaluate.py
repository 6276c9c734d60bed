"""``snzoo eval``."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from snzoo.cli import tables
from snzoo.cli.common import MODEL, WEIGHTS, add_device_option, path, points, positive
from snzoo.cli.output import show, warn
from snzoo.errors import ArgumentError
from snzoo.evaluation import EvaluationConfig
from snzoo.evaluation.config import CHOICES

if TYPE_CHECKING:
    from snzoo.evaluation import Results
    from snzoo.evaluation.face_results import FaceResults

# The options that go with --faces, and what every command has
FOR_FACES = {
    "faces",
    "models",
    "weights",
    "device",
    "batch_size",
    "workers",
    "json",
    "debug",
    "run",
}


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "measure top-1 and top-5 on labeled images, next to the published figures"
    parser = commands.add_parser("eval", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    _add_what(parser.add_argument_group("what"))
    _add_how(parser.add_argument_group("how"))
    add = parser.add_argument_group("output").add_argument
    add("--json", type=path, metavar="FILE", help="write the results to FILE (see: snzoo report)")
    about = "write the classes of every image to FILE.csv, .ndjson or .parquet"
    add("--predictions", type=path, metavar="FILE", help=about)


def _add_what(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    about = f"{MODEL}; several names, or wildcards, share one pass (default: the demo network)"
    add("--model", dest="models", nargs="+", metavar="NAME", help=about)
    add("--weights", type=path, metavar="FILE", help=WEIGHTS)
    about = (
        "labeled images: class folders (wnids for ImageNet), flat validation files, an archive of "
        "these, parquet shards, or a list of 'path index' lines; docs/evaluation.md has all forms "
        "(default: the bundled demo photos)"
    )
    add("--data", "--imagenet", type=path, metavar="PATH", help=about)
    about = (
        "pairs of faces, for face networks: a .bin file of insightface, or a folder with pairs.txt "
        "or with one folder of photos for each person; docs/faces.md"
    )
    add("--faces", type=path, metavar="PATH", help=about)
    about = "present: add the accuracy when only the classes that occur in the data compete"
    add("--classes", choices=CHOICES["classes"], help=about)
    add("--labels", choices=CHOICES["labels"], help="real: add the accuracy by the ReaL labels")
    about = "fail: stop at an image that cannot be read (default); skip: report it and leave it out"
    add("--on-error", choices=CHOICES["on_error"], help=about)
    about = "exit with status 1 if a figure differs from the published one"
    add("--check", action="store_true", help=about)
    about = (
        "allowed difference of figures on the published images, percentage points (default: 0.05)"
    )
    add("--tolerance", type=points, metavar="POINTS", help=about)


def _add_how(group: argparse._ArgumentGroup) -> None:
    add_device_option(group)
    add = group.add_argument
    about = "images in a batch (default: 16 on a CPU, else 128)"
    add("--batch-size", type=positive, metavar="N", help=about)
    about = "number of threads that decode (default: the number of cores)"
    add("--workers", type=positive, metavar="N", help=about)
    add("--precision", choices=CHOICES["precision"], help="arithmetic (default: fp32)")
    add("--compile", action="store_true", help="use torch.compile")
    add("--channels-last", action="store_true", help="use the channels-last memory format")
    about = "fast: decode JPEG at a reduced size, which gives approximate pixels (default: exact)"
    add("--decode", choices=CHOICES["decode"], help=about)
    about = "continue an interrupted run of the same command"
    add("--resume", action="store_true", help=about)


def run(args: argparse.Namespace) -> int:
    if args.faces is not None:
        return _run_faces(args)
    given = {name: value for name, value in vars(args).items() if value is not None}
    names = {field.name for field in dataclasses.fields(EvaluationConfig)} & given.keys()
    config = EvaluationConfig(**{name: given[name] for name in names})

    from snzoo.evaluation import run_evaluation
    from snzoo.evaluation.summary import find_disagreements

    problems: list[str] = []

    def show_results(results: Results) -> None:
        models = results.models
        subject = models[0].name if len(models) == 1 else f"{len(models)} models"
        show(f"{subject} on {results.data.description} ({results.run.device})")
        for line in tables.format_results(results):
            show(line)
        if config.check:
            problems.extend(find_disagreements(results, config.tolerance))

    run_evaluation(config, show=show_results, report=warn, progress=True)
    for problem in problems:
        warn(f"check failed: {problem}")
    return 1 if problems else 0


def _run_faces(args: argparse.Namespace) -> int:
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    if unfit := sorted(given - FOR_FACES):
        raise ArgumentError(f"--{unfit[0].replace('_', '-')} does not go with --faces")

    from snzoo.evaluation import evaluate_faces
    from snzoo.faces.tables import format_text, tabulate_verification

    def show_results(results: FaceResults) -> None:
        data = results.data
        where = f"{data.pairs:,} pairs of {data.photos:,} photos ({data.name})"
        show(f"{where}, {results.run.device}")
        show(*format_text(tabulate_verification(results.figures())))
        if data.accuracy_pairs < data.pairs:
            show(
                f"The accuracy is that of {data.accuracy_pairs:,} pairs, half of them genuine; the "
                "other figures are those of all pairs."
            )

    evaluate_faces(
        args.models or [],
        args.faces,
        weights=args.weights,
        device=args.device,
        batch_size=args.batch_size,
        workers=args.workers,
        json=args.json,
        show=show_results,
        progress=True,
    )
    return 0
