"""What both benchmarks do: options, photos, pixels, rounds, memory, report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs import Job
from photos import Photos, linked
from report import Document, check_output, circumstances, cores, markdown, save
from rounds import Row, compare, compare_pixels, grid, measure, measure_memory, summarize

from snzoo.errors import SnzooError

PEERS = ("timm", "torchvision")


def options(description: str, *, images: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("path", type=Path, metavar="PATH", help="a folder of class folders of photos")
    add("--images", type=positive, default=images, metavar="N", help="repeated to so many")
    add("--rounds", type=positive, default=5, metavar="R", help="measurements of each")
    many: Any = {"type": positive, "nargs": "+"}
    add("--workers", **many, default=[2, 4], metavar="W", help="of the peers' loaders, each")
    add("--batch-size", **many, default=[32, 256], metavar="B", help="of the loaders, each")
    add("--output", type=Path, metavar="FILE", help="write FILE.json, and FILE.md beside it")
    return parser


def run(args: argparse.Namespace, *, ours: Callable[[Photos], Sequence[Job]]) -> Document:
    """Measure the configurations ``ours`` of snzoo against the peers' that do the same task.

    Raises:
        SnzooError: the photos or the output can't be used, snzoo's pixels differ from the
            reference, or a measurement failed.
    """
    check_output(args.output)
    with linked(args.path, args.images) as photos:
        jobs = [*ours(photos)]
        pixels = compare_pixels(photos, ("snzoo", *PEERS), jobs[0], say)
        absent = pixels.pop("absent")
        _check_pixels(pixels)
        for peer in PEERS:
            if peer not in absent:
                jobs += grid(jobs[0], peer, args.workers, args.batch_size)
        jobs = list(dict.fromkeys(jobs))  # a size that was given twice is measured once
        ceiling = Job("load", "decode", str(photos.timed), str(photos.warm), workers=cores())
        rows = measure([*jobs, ceiling], args.rounds, say)
        _check_images(rows, args.images)
        memory = measure_memory(jobs, say)
    others = [peer for peer in PEERS if peer not in absent]
    return circumstances() | {
        "photos": photos.description,
        "rounds": args.rounds,
        "absent": absent,
        "pixels": pixels,
        "summary": summarize(rows, memory),
        "comparisons": [compare(rows, memory, "snzoo", name) for name in (*others, "decode")],
        "memory": memory,
        "measurements": rows,
    }


def conclude(document: Document, output: Path | None) -> None:
    text = markdown(document)
    print(text, end="")
    if output:
        save(output, document, text)


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _check_pixels(pixels: dict[str, Any]) -> None:
    agree, photos = pixels["agree"], pixels["photos"]
    if agree and agree["snzoo"] != photos:
        raise SnzooError(
            f"snzoo's pixels are torchvision's on {agree['snzoo']} of {photos} photos only; "
            "nothing was timed"
        )


def _check_images(rows: Sequence[Row], images: int) -> None:
    for row in rows:
        if row["images"] != images:
            raise SnzooError(f"{row['contender']} gave {row['images']} of {images} images")


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
