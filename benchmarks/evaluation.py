"""Whole evaluations, folder → counts: snzoo's own and the loops of timm and torchvision.

python benchmarks/evaluation.py PATH --model resnet18v1_bn --output benchmarks/results/NAME.json

snzoo runs as `snzoo eval` does by default; the others as timm's validate.py and torchvision's
reference script for classification, over the same network.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jobs import Job
from photos import Photos
from rounds import Row
from session import conclude, options, run

import snzoo
from snzoo.errors import SnzooError


def main() -> int | str:
    parser = options(__doc__.partition("\n")[0], images=1000)
    parser.add_argument("--model", required=True, metavar="NAME", help="see: snzoo list")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="its checkpoint, else random")
    parser.add_argument("--device", metavar="NAME", help="else CUDA where there is one")
    args = parser.parse_args()
    network = {
        "model": args.model,
        "weights": args.weights and str(args.weights.resolve()),
        "device": args.device,
    }

    def ours(photos: Photos) -> list[Job]:
        return [Job("evaluate", "snzoo", str(photos.timed), str(photos.warm), **network)]

    try:
        snzoo.get_info(args.model)
        document = run(args, ours=ours)
        counts = counted(document["measurements"])
        weights = args.weights.name if args.weights else "random weights"
        device = document["measurements"][0]["device"]
        about = {"about": f"; {args.model} ({weights}) on {device}", "counts": counts}
        conclude({"title": "Whole evaluations"} | document | about, args.output)
    except SnzooError as error:
        return f"evaluation.py: {error}"
    return 0


def counted(rows: Sequence[Row]) -> dict[str, list[list[int]]]:
    """Contender → the different (images, top-1, top-5) of its evaluations: one, if all agree."""
    found: dict[str, set[tuple[int, int, int]]] = {}
    for row in rows:
        if "top1" in row:
            counts = row["images"], row["top1"], row["top5"]
            found.setdefault(row["contender"], set()).add(counts)
    return {name: sorted(map(list, counts)) for name, counts in found.items()}


if __name__ == "__main__":
    sys.exit(main())
