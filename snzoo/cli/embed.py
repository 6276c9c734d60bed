"""``snzoo embed``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from snzoo.cli.common import MODEL, WEIGHTS, add_device_option, path, positive
from snzoo.cli.output import show
from snzoo.errors import ArgumentError


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "write the embeddings of aligned photos of faces"
    parser = commands.add_parser("embed", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("photos", nargs="+", metavar="PHOTO", help="file, folder or http(s) URL")
    add("--model", metavar="NAME", help=MODEL)
    add("--weights", type=path, metavar="FILE", help=WEIGHTS)
    about = "file to write: FILE.npz or FILE.parquet, with the names and the embeddings"
    add("--output", type=path, metavar="FILE", required=True, help=about)
    add_device_option(parser)
    about = "photos in a batch (default: 16 on a CPU, else 128)"
    add("--batch-size", type=positive, metavar="N", help=about)
    about = "number of threads that decode (default: the number of cores)"
    add("--workers", type=positive, metavar="N", help=about)
    about = "do not add the embedding of the mirrored photo"
    add("--no-flip", dest="flip", action="store_false", help=about)
    about = "ignore the EXIF orientation, as the published evaluations do"
    add("--no-upright", dest="upright", action="store_false", help=about)


def run(args: argparse.Namespace) -> int:
    if args.model is None and args.weights is None:
        raise ArgumentError("which model? name a face network: --model NAME, or --weights FILE")

    import torch

    from snzoo.data.sources import PhotoList
    from snzoo.faces.embedding import check_embeds, embed
    from snzoo.faces.files import check_output, save_embeddings
    from snzoo.inference.network import choose_device, default_batch_size
    from snzoo.inference.predict import list_photos
    from snzoo.spec import ModelSpec

    spec = ModelSpec.find(args.model, weights=args.weights)
    check_embeds(spec)
    photos = PhotoList(list_photos(args.photos))
    inputs = [Path(photo) for photo in args.photos]
    check_output(args.output, [*inputs, *([spec.weights] if spec.weights else [])])
    device = torch.device(choose_device(args.device))
    rows = embed(
        spec,
        photos.photos,
        batch_size=args.batch_size or default_batch_size(device),
        flip=args.flip,
        device=device,
        workers=args.workers,
        upright=args.upright,
    )
    names = [photos.locate(i) for i in range(len(photos))]
    save_embeddings(args.output, names, rows)
    show(f"{len(rows):,} embeddings of {rows.shape[1]} numbers: {args.output}")
    return 0
