"""Measure the input pipeline, from files to normalized float32 batches: snzoo, timm, torchvision.

python benchmarks/loaders.py PATH --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import sys
from dataclasses import replace

from harness import Document, run_benchmark
from jobs import Job
from photos import Photos
from pipelines import format_pipelines, make_pipeline_parser, measure_pipelines


def main() -> int | str:
    args = make_pipeline_parser(__doc__, images=2000).parse_args()

    def ours(photos: Photos) -> list[Job]:
        base = Job("load", "snzoo", str(photos.timed), str(photos.warm), device="cpu")
        return [replace(base, batch_size=size) for size in args.batch_size]

    def measure() -> Document:
        return {"title": "The input pipeline"} | measure_pipelines(args, ours=ours)

    return run_benchmark(measure, format_pipelines, args.output)


if __name__ == "__main__":
    sys.exit(main())
