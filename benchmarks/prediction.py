"""Measure the commands `snzoo predict FOLDER --output FILE`, and `snzoo eval`, on the same photos.

python benchmarks/prediction.py PATH --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import harness
from harness import Document, Row
from photos import linked
from processes import run_python


def main() -> int | str:
    parser = harness.make_parser(
        __doc__,
        images=(1000, "number of photos; fewer are repeated"),
    )
    add = parser.add_argument
    add("path", type=Path, metavar="PATH", help="a folder of class folders of photos")
    add("--model", default="resnet18v1_sn_clothing", help="model with the classes of the folders")
    args = parser.parse_args()

    def measure() -> Document:
        with linked(args.path, args.images) as photos, TemporaryDirectory() as folder:
            commands = {
                "eval": ["eval", "--data", photos.timed],
                "predict": ["predict", photos.timed],
                "predict --output": ["predict", photos.timed, "--output", f"{folder}/x.csv"],
            }

            def run(name: str) -> Row:
                start = time.perf_counter()
                run_python(["-P", "-m", "snzoo", *commands[name], "--model", args.model])
                seconds = round(time.perf_counter() - start, 4)
                rate = round(args.images / seconds, 2)
                return {"contender": name, "seconds": seconds, "images_per_second": rate}

            for name in commands:  # not timed; this brings files into the page cache
                run(name)
            rows = harness.measure_in_turns([*commands], args.rounds, run)
        return {
            "title": "Predictions and evaluations",
            "photos": photos.description,
            "model": args.model,
            "rounds": args.rounds,
            "comparison": compare(rows),
            "measurements": rows,
        }

    return harness.run_benchmark(measure, markdown, args.output)


def compare(rows: list[Row]) -> Row:
    """Return the seconds and images/s of each command, and its speed against that of eval."""
    seconds = harness.by_round(rows, "seconds")
    rates = harness.by_round(rows, "images_per_second")
    values = seconds | {f"{name}, images/s": each for name, each in rates.items()}
    for name in ("predict", "predict --output"):
        values[f"speed of {name}"] = harness.divide(seconds["eval"], seconds[name])
    return harness.spreads(values)


def markdown(document: Document) -> str:
    """Return the document as Markdown, without the single rounds."""
    about = f"{document['photos']}; {document['model']}; rounds: {document['rounds']}."
    head = "seconds of the command, images/s, or ratio to eval in a round"
    return harness.page(document, [about], harness.compare_table(document, head, digits=3))


if __name__ == "__main__":
    sys.exit(main())
