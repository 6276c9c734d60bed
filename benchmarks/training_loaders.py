"""Measure the input pipeline of training, with random crops and flips: snzoo, timm, torchvision.

python benchmarks/training_loaders.py PATH --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import sys
from dataclasses import replace

from harness import Document, run_benchmark
from jobs import Job
from photos import Photos
from pipelines import format_pipelines, make_pipeline_parser, measure_pipelines

from snzoo.errors import ArgumentError


def main() -> int | str:
    args = make_pipeline_parser(__doc__, images=2048).parse_args()

    def ours(photos: Photos) -> list[Job]:
        base = Job("train", "snzoo", str(photos.timed), str(photos.warm), device="cpu")
        return [replace(base, batch_size=size) for size in args.batch_size]

    def measure() -> Document:
        for size in args.batch_size:
            if args.images % size:
                raise ArgumentError(
                    f"--images {args.images} is no multiple of --batch-size {size}; timm leaves "
                    "out a smaller batch"
                )
        return {"title": "The input pipeline of training"} | measure_pipelines(args, ours=ours)

    return run_benchmark(measure, format_pipelines, args.output)


if __name__ == "__main__":
    sys.exit(main())
