"""``snzoo predict``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from snzoo.cli.common import add_device_option, add_model_options, choose_entry, positive
from snzoo.cli.output import show, show_json, warn

if TYPE_CHECKING:
    from snzoo.inference import Prediction

BAR = 24  # characters that stand for a probability of 1


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "print the most probable classes of images"
    parser = commands.add_parser("predict", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="file, folder or http(s) URL")
    add_model_options(parser)
    add_device_option(parser)
    about = "images in a batch (default: 16 on a CPU, else 128)"
    add("--batch-size", type=positive, metavar="N", help=about)
    about = "number of threads that decode (default: the number of cores)"
    add("--workers", type=positive, metavar="N", help=about)
    add("--topk", type=positive, default=5, metavar="K", help="classes per image (default: 5)")
    about = "ignore the EXIF orientation, as the published evaluations do"
    add("--no-upright", dest="upright", action="store_false", help=about)
    add("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from snzoo.inference import iter_predictions

    errors: list[Exception] = []

    def on_error(error: Exception) -> None:
        errors.append(error)
        warn(str(error))

    predictions = iter_predictions(
        choose_entry(args, args.model),
        args.images,
        topk=args.topk,
        batch_size=args.batch_size,
        device=args.device,
        workers=args.workers,
        upright=args.upright,
        on_error=on_error,
    )
    if args.json:
        show_json([_document(prediction) for prediction in predictions])
    else:
        bars = sys.stdout.isatty()
        for prediction in predictions:
            for line in _lines(prediction, bars=bars):
                show(line)
    return 1 if errors else 0


def _lines(prediction: Prediction, *, bars: bool) -> Iterator[str]:
    yield prediction.source
    width = max(map(len, prediction.names))
    for name, probability in zip(prediction.names, prediction.probabilities, strict=True):
        bar = "█" * round(BAR * probability) if bars else ""
        yield f"  {name:<{width}}  {100 * probability:6.2f} %  {bar}".rstrip()


def _document(prediction: Prediction) -> dict[str, Any]:
    ranked = zip(prediction.names, prediction.indices, prediction.probabilities, strict=True)
    return {
        "source": prediction.source,
        "classes": [
            {"name": name, "index": index, "probability": round(probability, 6)}
            for name, index, probability in ranked
        ],
    }
