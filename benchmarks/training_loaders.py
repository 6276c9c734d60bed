"""Measure the input pipeline of training, with random crops and flips: snzoo, timm, torchvision.

python benchmarks/training_loaders.py PATH --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import sys

from harness import Document, run_benchmark
from jobs import Job
from pipelines import format_pipelines, make_pipeline_parser, measure_pipelines

from snzoo.errors import ArgumentError


def main() -> int | str:
    args = make_pipeline_parser(__doc__, images=2048).parse_args()

    def measure() -> Document:
        for size in args.batch_size:
            if args.images % size:
                raise ArgumentError(
                    f"--images {args.images} is no multiple of --batch-size {size}; timm leaves "
                    "out a smaller batch"
                )
        base = Job("batches", "snzoo", training=True, device="cpu")
        measured = measure_pipelines(args, base, args.batch_size)
        return {"title": "The input pipeline of training"} | measured

    return run_benchmark(measure, format_pipelines, args.output)


if __name__ == "__main__":
    sys.exit(main())
