"""``snzoo predict``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from snzoo.cli.common import MODEL, WEIGHTS, add_device_option, choose_entry, path, positive
from snzoo.cli.output import show, show_json, warn
from snzoo.errors import ArgumentError, InputError
from snzoo.spec import ModelSpec

if TYPE_CHECKING:
    from snzoo.inference import Prediction
    from snzoo.inference.bulk import Summary
    from snzoo.inference.outcomes import OnError, PredictionOptions

BAR = 24  # characters that stand for a probability of 1
STDOUT = "-"


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "print or write the most probable classes of images"
    parser = commands.add_parser("predict", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    add = parser.add_argument
    about = (
        "file, folder (with its subfolders, and with links), http(s) URL, tar, zip, parquet or "
        ".rec file, NAME-{0000..0063}.tar, list NAME.txt of paths and URLs, or - for a list on "
        "stdin"
    )
    add("images", nargs="+", metavar="IMAGE", help=about)
    about = f"{MODEL}; may be repeated: several share one pass (default: the demo network)"
    add("--model", dest="models", action="append", metavar="NAME", help=about)
    add("--weights", type=path, metavar="FILE", help=WEIGHTS)
    _add_how(parser.add_argument_group("how"))
    _add_output(parser.add_argument_group("output"))


def _add_how(group: argparse._ArgumentGroup) -> None:
    add_device_option(group)
    add = group.add_argument
    about = "images in a batch (default: 16 on a CPU, else 128)"
    add("--batch-size", type=positive, metavar="N", help=about)
    about = "number of threads that decode (default: the number of cores)"
    add("--workers", type=positive, metavar="N", help=about)
    add("--topk", type=positive, default=5, metavar="K", help="classes per image (default: 5)")
    about = "ignore the EXIF orientation, as the published evaluations do"
    add("--no-upright", dest="upright", action="store_false", help=about)
    about = (
        "fail: stop at an image that cannot be read; skip: exit with status 0 nevertheless "
        "(default: report it, go on, and exit with status 1)"
    )
    add("--on-error", choices=("fail", "skip"), help=about)


def _add_output(group: argparse._ArgumentGroup) -> None:
    add = group.add_mutually_exclusive_group().add_argument
    about = "write to FILE.csv, .ndjson or .parquet; - prints ndjson (default: print text)"
    add("--output", type=path, metavar="FILE", help=about)
    add("--json", action="store_true", help="print JSON")
    add = group.add_argument
    about = "write the pooled features of each image, too"
    add("--embeddings", action="store_true", help=about)
    about = "continue an interrupted run of the same command, which left FILE.partial"
    add("--resume", action="store_true", help=about)


def run(args: argparse.Namespace) -> int:
    from snzoo.inference.outcomes import PredictionOptions

    models = _choose_models(args)
    options = PredictionOptions(
        args.topk, args.embeddings, args.batch_size, args.workers, args.upright, _on_error(args)
    )
    if args.output and str(args.output) != STDOUT:
        summary = _write(args, models, options)
    else:
        summary = _print(args, models, options)
        _warn_of_inputs(args, summary)
    failed = summary.unreadable if args.on_error == "skip" else summary.broken
    return 1 if failed else 0


def _choose_models(args: argparse.Namespace) -> list[ModelSpec]:
    names = args.models or [None]
    if len(names) == 1:
        return [choose_entry(args, names[0])]
    if args.weights:
        raise ArgumentError(f"{args.weights} is the checkpoint of one model: name one model")
    from snzoo.inference.computation import check_names

    specs = [ModelSpec.find(name) for name in names]
    check_names(specs)
    return specs


def _on_error(args: argparse.Namespace) -> OnError:
    return "raise" if args.on_error == "fail" else lambda error: warn(str(error))


def _warn_of_inputs(args: argparse.Namespace, summary: Summary) -> None:
    """Say why the exit status is 1 although broken images are skipped."""
    if (names := summary.unreadable) and args.on_error == "skip":
        more = ", ..." if len(names) > 3 else ""
        count = f"{len(names):,} input{'s' * (len(names) > 1)}"
        warn(f"{count} could not be read: {', '.join(names[:3])}{more}")


def _write(
    args: argparse.Namespace, models: Sequence[ModelSpec], options: PredictionOptions
) -> Summary:
    """Write a file."""
    from snzoo.inference import write_predictions

    def show_summary(summary: Summary) -> None:
        broken = f", {summary.broken:,} of which could not be read" if summary.broken else ""
        images = "image" if summary.photos == 1 else "images"
        show(f"{summary.photos:,} {images}{broken}: {args.output}")
        _warn_of_inputs(args, summary)

    return write_predictions(
        models,
        args.images,
        args.output,
        **vars(options),
        device=args.device,
        resume=args.resume,
        show=show_summary,
        report=warn,
        progress=True,
    )


def _print(
    args: argparse.Namespace, models: Sequence[ModelSpec], options: PredictionOptions
) -> Summary:
    """Print the classes."""
    from snzoo.inference.bulk import Summary
    from snzoo.inference.computation import number_names
    from snzoo.inference.outcomes import iter_outcomes
    from snzoo.inference.tables import format_row, list_columns, make_rows
    from snzoo.processes import is_one_of_several

    if args.resume or is_one_of_several():
        what = "--resume" if args.resume else "torchrun"
        raise ArgumentError(f"{what} needs a file to write: --output FILE")
    if args.embeddings and not (args.output or args.json):
        raise ArgumentError("embeddings are not printed as text: add --output FILE or --json")
    names = number_names(models)
    columns = list_columns([model.num_classes for model in models], options)
    photos, broken, unreadable = 0, 0, list[str]()
    documents, bars = [], sys.stdout.isatty()
    for outcome in iter_outcomes(models, args.images, device=args.device, options=options):
        photos += 1
        broken += outcome.error is not None
        if isinstance(outcome.error, InputError):
            unreadable.append(outcome.source)
        if args.output:
            show(*map(format_row, make_rows(outcome, names, columns)))
            continue
        for name, prediction in zip(names, outcome.predictions, strict=not outcome.error):
            model = name if len(models) > 1 else None
            if args.json:
                documents.append(_document(prediction, model))
            else:
                show(*_lines(prediction, model, bars=bars))
    if args.json:
        show_json(documents)
    return Summary(photos, broken, tuple(unreadable))


def _lines(prediction: Prediction, model: str | None, *, bars: bool) -> Iterator[str]:
    yield f"{model}: {prediction.source}" if model else prediction.source
    width = max(map(len, prediction.names))
    for name, probability in zip(prediction.names, prediction.probabilities, strict=True):
        bar = "█" * round(BAR * probability) if bars else ""
        yield f"  {name:<{width}}  {100 * probability:6.2f} %  {bar}".rstrip()


def _document(prediction: Prediction, model: str | None) -> dict[str, Any]:
    ranked = zip(prediction.names, prediction.indices, prediction.probabilities, strict=True)
    document: dict[str, Any] = {"model": model} if model else {}
    document |= {
        "source": prediction.source,
        "classes": [
            {"name": name, "index": index, "probability": round(probability, 6)}
            for name, index, probability in ranked
        ],
    }
    if prediction.embedding is not None:
        document["embedding"] = prediction.embedding.tolist()
    return document
