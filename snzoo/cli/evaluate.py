"""``snzoo eval``."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from snzoo.cli.common import (
    add_model_options,
    choose_entry,
    demo,
    load_model,
    path,
    positive,
)
from snzoo.errors import SnzooError

if TYPE_CHECKING:
    from snzoo.data.samples import Samples
    from snzoo.manifest import Entry


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "top-1 and top-5 on labelled images, beside the published figures"
    parser = commands.add_parser("eval", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    add_model_options(parser)
    parser.add_argument(
        "--imagenet",
        type=path,
        metavar="PATH",
        help="class folders (wnids), the flat validation files or a part of them, or a list "
        "file of 'path index' lines (default: the bundled demo photos)",
    )
    parser.add_argument(
        "--batch-size", type=positive, metavar="N", help="(16 on the CPU, 128 elsewhere)"
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="decoding threads")
    parser.add_argument(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="stop at an image that can't be read (default), or report it and go on",
    )
    parser.add_argument("--json", type=path, metavar="FILE", help="write the figures to FILE")


def run(args: argparse.Namespace) -> int:
    from snzoo.evaluate import as_json, choose_device, evaluate
    from snzoo.weights.cache import save_json

    _check_choice(args)
    entry = choose_entry(args)
    samples = _find_samples(args, entry)
    device = choose_device(args.device)
    evaluation = evaluate(
        load_model(args, entry),
        samples,
        entry.preprocessing,
        device=device,
        batch_size=args.batch_size,
        workers=args.workers,
        on_error=args.on_error,
        report_error=lambda message: print(f"snzoo: {message}", file=sys.stderr),
        progress=True,
    )
    figures = as_json(evaluation, entry, samples)
    print(f"{entry.name} on {samples.description} ({device})")
    print(_table(figures))
    if args.json:
        save_json(args.json, _provenance(args, entry, samples, device) | figures)
    return 0


def _check_choice(args: argparse.Namespace) -> None:
    """What can be refused before the work begins."""
    if args.imagenet and args.model is None and not args.weights:
        raise SnzooError(f"which model? snzoo eval --model NAME --imagenet {args.imagenet}")
    if args.json:
        special = args.json.exists() and not args.json.is_file()  # a device, a pipe or a folder
        target = args.json if special else args.json.resolve().parent
        if args.json.is_dir() or not target.exists() or not os.access(target, os.W_OK):
            raise SnzooError(f"can't write {args.json}: name a file in a folder that you may write")


def _find_samples(args: argparse.Namespace, entry: Entry) -> Samples:
    from snzoo.data.demo import demo_samples
    from snzoo.data.samples import find_samples

    if args.imagenet:
        return find_samples(args.imagenet, entry.classes)
    if args.weights or entry.name != demo().model:
        raise SnzooError(f"which images? snzoo eval --model {entry.name} --imagenet PATH")
    return demo_samples(demo(), entry.classes)


def _table(figures: dict[str, Any]) -> str:
    lines = ["         correct    accuracy   95 % interval     published"]
    for name, title in (("top1", "top-1"), ("top5", "top-5")):
        row = figures[name]
        low, high = row["interval95"]
        counts = f"{row['correct']}/{figures['images']}"
        line = f"{title}  {counts:>11}  {row['percent']:7.2f} %  [{low:6.2f}, {high:6.2f}]"
        if row["published"] is not None:
            words = ("differs", "agrees") if figures["same_images"] else ("outside", "inside")
            line += f"  {row['published']:7.2f} % ({words[row['agrees']]})"
        lines.append(line)
    if figures["published_on"] and not figures["same_images"]:
        lines.append(
            f"published on {figures['published_on']}, not on these: inside or outside the interval"
        )
    if figures["errors"]:
        lines.append(f"left out, could not be read: {len(figures['errors'])} images")
    lines.append(f"{figures['images_per_second']:.1f} images/s")
    return "\n".join(lines)


def _provenance(
    args: argparse.Namespace, entry: Entry, samples: Samples, device: str
) -> dict[str, Any]:
    import PIL
    import torch

    return {
        "model": entry.name,
        "architecture": entry.architecture,
        "weights": str(args.weights) if args.weights else None,
        "data": samples.description,
        "path": str(args.imagenet) if args.imagenet else None,
        "preprocessing": entry.preprocessing.as_dict(),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        "versions": {"torch": torch.__version__, "pillow": PIL.__version__},
    }
