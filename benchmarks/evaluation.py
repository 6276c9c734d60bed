"""Measure whole evaluations, from the folder to the counts: snzoo, timm and torchvision.

python benchmarks/evaluation.py PATH --model resnet18v1_bn --output benchmarks/results/NAME.json

snzoo runs with the defaults of `snzoo eval`. The others run the loops of timm's validate.py and of
torchvision's reference script for classification, over the same network.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from harness import Document, Row, group, run_benchmark
from jobs import Job
from pipelines import format_pipelines, make_pipeline_parser, measure_pipelines

import snzoo


def main() -> int | str:
    parser = make_pipeline_parser(__doc__, images=1000)
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="see: snzoo list")
    add("--weights", type=Path, metavar="FILE", help="checkpoint; otherwise weights are random")
    add("--device", metavar="NAME", help="default: CUDA if available")
    args = parser.parse_args()

    def measure() -> Document:
        snzoo.get_info(args.model)
        weights = args.weights and str(args.weights.resolve())
        base = Job("evaluate", "snzoo", model=args.model, weights=weights, device=args.device)
        document = measure_pipelines(args, base, [None])
        rows = document["measurements"]
        network = f"{args.model} ({args.weights.name if weights else 'random weights'})"
        return {
            "title": "Whole evaluations",
            **document,
            "about": f"; {network} on {rows[0]['device']}",
            "counts": find_counts(rows),
        }

    return run_benchmark(measure, format_pipelines, args.output)


def find_counts(rows: Sequence[Row]) -> dict[str, list[list[int]]]:
    """Return the different (images, top-1, top-5) of each contender; one, if all rounds agree."""
    counted = group((row for row in rows if "top1" in row), lambda row: row["contender"])
    return {
        name: sorted(map(list, {(row["images"], row["top1"], row["top5"]) for row in found}))
        for name, found in counted.items()
    }


if __name__ == "__main__":
    sys.exit(main())
