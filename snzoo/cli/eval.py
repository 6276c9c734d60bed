"""``snzoo eval``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snzoo.errors import SnzooError

if TYPE_CHECKING:
    from snzoo.evaluate import Evaluation
    from snzoo.manifest import Entry

DEMO = "resnet18v1_sn_clothing"


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "top-1 and top-5 on labelled images, beside the published figures"
    parser = commands.add_parser("eval", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    parser.add_argument("--model", default=DEMO, metavar="NAME", help=f"({DEMO})")
    add_model_options(parser)
    parser.add_argument(
        "--imagenet",
        type=Path,
        metavar="PATH",
        help="class folders (wnids), the flat validation files or a part of them, or a list "
        "file of 'path index' lines (default: the bundled demo photos)",
    )
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="(64)")
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="decoding threads (one a core)"
    )
    parser.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="stop at an image that can't be read (default), or report it and go on",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", type=Path, metavar="FILE", help="this file, not the zoo's")
    parser.add_argument("--device", metavar="DEVICE", help="cpu, cuda, … (cuda where there is one)")


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def run(args: argparse.Namespace) -> int:
    from snzoo.data.demo import demo_samples
    from snzoo.data.samples import find_samples
    from snzoo.evaluate import as_json, evaluate
    from snzoo.registry import create_model, describe

    if args.json and not args.json.resolve().parent.is_dir():
        raise SnzooError(f"can't write {args.json}: its folder does not exist")
    entry = describe(args.model, args.weights)
    if args.imagenet is None and args.model != DEMO:
        raise SnzooError(
            f"which images? name them: snzoo eval --model {args.model} --imagenet PATH"
        )
    samples = (
        demo_samples() if args.imagenet is None else find_samples(args.imagenet, entry.classes)
    )
    device = choose_device(args.device)
    model = create_model(args.model, pretrained=args.weights is None, weights=args.weights)
    print(f"{entry.name} on {samples.description} ({device})", file=sys.stderr)
    evaluation = evaluate(
        model,
        samples,
        entry.preprocessing,
        device=device,
        batch_size=args.batch_size,
        workers=args.workers,
        on_error=args.on_error,
        report_error=lambda message: print(f"snzoo: {message}", file=sys.stderr),
        progress=True,
    )
    print(_table(evaluation, entry))
    if args.json:
        document = _provenance(args, entry, samples.description, device) | as_json(
            evaluation, entry
        )
        args.json.write_text(
            json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
    return 0


def choose_device(name: str | None) -> str:
    """``name``, checked, or CUDA where there is one."""
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise SnzooError(f"device {name!r} can't be used: {str(error).splitlines()[0]}") from None
    return name


def _table(evaluation: Evaluation, entry: Entry) -> str:
    from snzoo.evaluate import as_json

    document = as_json(evaluation, entry)
    lines = ["         correct    accuracy   95 % interval     published"]
    for name, title in (("top1", "top-1"), ("top5", "top-5")):
        row = document[name]
        low, high = row["interval95"]
        counts = f"{row['correct']}/{document['images']}"
        line = f"{title}  {counts:>11}  {row['percent']:7.2f} %  [{low:6.2f}, {high:6.2f}]"
        if row["published"] is not None:
            word = {True: "agrees", False: "differs"}[row["agrees"]]
            line += f"  {row['published']:7.2f} % ({word})"
        lines.append(line)
    if document["published_images"] not in (None, document["images"]):
        lines.append(
            f"published on {document['published_images']:,} images of "
            f"{document['published_dataset']}: 'agrees' means within the interval"
        )
    if evaluation.errors:
        lines.append(f"left out, could not be read: {len(evaluation.errors)} images")
    lines.append(f"{evaluation.images_per_second:.1f} images/s")
    return "\n".join(lines)


def _provenance(
    args: argparse.Namespace, entry: Entry, description: str, device: str
) -> dict[str, Any]:
    import PIL
    import torch

    return {
        "model": entry.name,
        "architecture": entry.architecture,
        "weights": str(args.weights) if args.weights else None,
        "data": description,
        "path": str(args.imagenet) if args.imagenet else None,
        "preprocessing": entry.preprocessing.as_dict(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "versions": {"torch": torch.__version__, "pillow": PIL.__version__},
    }
