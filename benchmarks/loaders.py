"""Measure the input pipeline, from files to normalized float32 batches: snzoo, timm, torchvision.

python benchmarks/loaders.py PATH --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import sys

from harness import Document, run_benchmark
from jobs import Job
from pipelines import format_pipelines, make_pipeline_parser, measure_pipelines


def main() -> int | str:
    args = make_pipeline_parser(__doc__, images=2000).parse_args()

    def measure() -> Document:
        base = Job("batches", "snzoo", device="cpu")
        return {"title": "The input pipeline"} | measure_pipelines(args, base, args.batch_size)

    return run_benchmark(measure, format_pipelines, args.output)


if __name__ == "__main__":
    sys.exit(main())
