"""``snzoo predict``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from snzoo.cli.common import (
    add_device_option,
    add_model_options,
    check_classifies_photos,
    choose_entry,
    load_model,
    positive,
)
from snzoo.errors import SnzooError

if TYPE_CHECKING:
    from snzoo.predict import Prediction

BAR = 24  # characters of a probability of 1


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "the best classes of images: files, folders, URLs"
    parser = commands.add_parser("predict", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder or http(s) URL")
    add_model_options(parser)
    add_device_option(parser)
    parser.add_argument(
        "--topk", type=positive, default=5, metavar="K", help="classes an image (5)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from snzoo.evaluation import choose_device
    from snzoo.predict import expand, predict

    entry = choose_entry(args, args.model)
    check_classifies_photos(entry, args)
    sources = list(expand(args.images))
    device = choose_device(args.device)
    model = load_model(args, entry)
    predictions, failed = [], 0
    for source in sources:
        try:
            prediction = predict(model, source, entry, topk=args.topk, device=device)
        except SnzooError as error:
            print(f"snzoo: {error}", file=sys.stderr)
            failed += 1
            continue
        predictions.append(prediction)
        if not args.json:
            print(_text(prediction, bars=sys.stdout.isatty()))
    if args.json:
        print(json.dumps([_document(prediction) for prediction in predictions], indent=2))
    return 1 if failed else 0


def _text(prediction: Prediction, *, bars: bool) -> str:
    width = max(map(len, prediction.names))
    lines = [prediction.source]
    for name, probability in zip(prediction.names, prediction.probabilities, strict=True):
        bar = "█" * round(BAR * probability) if bars else ""
        lines.append(f"  {name:<{width}}  {100 * probability:6.2f} %  {bar}".rstrip())
    return "\n".join(lines)


def _document(prediction: Prediction) -> dict[str, Any]:
    ranked = zip(prediction.names, prediction.indices, prediction.probabilities, strict=True)
    return {
        "source": prediction.source,
        "classes": [
            {"name": name, "index": index, "probability": round(probability, 6)}
            for name, index, probability in ranked
        ],
    }
