"""The input pipeline, file → normalized float32 batch on the CPU: snzoo, timm and torchvision.

python benchmarks/loaders.py PATH --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import sys
from dataclasses import replace

from jobs import Job
from photos import Photos
from session import conclude, options, run

from snzoo.errors import SnzooError


def main() -> int | str:
    args = options(__doc__.partition("\n")[0], images=2000).parse_args()

    def ours(photos: Photos) -> list[Job]:
        base = Job("load", "snzoo", str(photos.timed), str(photos.warm), device="cpu")
        return [replace(base, batch_size=size) for size in args.batch_size]

    try:
        conclude({"title": "The input pipeline"} | run(args, ours=ours), args.output)
    except SnzooError as error:
        return f"loaders.py: {error}"
    return 0


if __name__ == "__main__":
    sys.exit(main())
