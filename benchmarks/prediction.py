"""Measure the commands `snzoo predict FOLDER --output FILE`, and `snzoo eval`, on the same photos.

python benchmarks/prediction.py PATH --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import harness
from harness import Document, Row
from photos import linked

from snzoo.errors import SnzooError


def main() -> int | str:
    parser = harness.make_parser(__doc__)
    add = parser.add_argument
    add("path", type=Path, metavar="PATH", help="a folder of class folders of photos")
    add(
        "--images",
        type=harness.positive,
        default=1000,
        metavar="N",
        help="number of photos; fewer are repeated",
    )
    add("--model", default="resnet18v1_sn_clothing", help="model with the classes of the folders")
    add("--weights", type=Path, metavar="FILE", help="checkpoint instead of the zoo's")
    args = parser.parse_args()
    options = ["--model", args.model]
    options += ["--weights", str(args.weights.resolve())] if args.weights else []

    def measure() -> Document:
        with linked(args.path, args.images) as photos, TemporaryDirectory() as folder:
            predict = ["predict", str(photos.timed)]
            commands = {
                "eval": ["eval", "--data", str(photos.timed)],
                "predict": predict,
                "predict --output": [*predict, "--output", str(Path(folder, "x.csv"))],
            }

            def run(name: str) -> Row:
                seconds = run_command([*commands[name], *options])
                return {
                    "contender": name,
                    "seconds": seconds,
                    "images_per_second": round(args.images / seconds, 2),
                }

            for name in commands:  # not timed; this brings files into the page cache
                run(name)
            rows = harness.measure_in_turns(
                [*commands], args.rounds, run, lambda row: f"{row['contender']}: {row['seconds']} s"
            )
        return {
            "title": "Predictions and evaluations",
            "photos": photos.description,
            "model": args.model,
            "rounds": args.rounds,
            "comparison": compare(rows),
            "measurements": rows,
        }

    return harness.run_benchmark(measure, markdown, args.output)


def run_command(arguments: list[str]) -> float:
    """Return the seconds of one command of snzoo, from the start to the end of its process."""
    start = time.perf_counter()
    command = [sys.executable, "-P", "-m", "snzoo", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SnzooError((done.stderr.splitlines() or [f"exit status {done.returncode}"])[-1])
    return round(time.perf_counter() - start, 4)


def compare(rows: list[Row]) -> Row:
    """Return the seconds and images/s of each command, and its speed against that of eval."""
    rows = sorted(rows, key=lambda row: int(row["round"]))
    names = sorted({row["contender"] for row in rows})
    seconds = {name: [row["seconds"] for row in rows if row["contender"] == name] for name in names}
    rates = {
        f"{name}, images/s": [row["images_per_second"] for row in rows if row["contender"] == name]
        for name in seconds
    }
    ratios = {
        f"speed of {name}": harness.divide(seconds["eval"], values)
        for name, values in seconds.items()
        if name != "eval"
    }
    return {name: harness.spread(each) for name, each in (seconds | rates | ratios).items()}


def markdown(document: Document) -> str:
    """Return the document as Markdown, without the single rounds."""
    shown = [[name, harness.show_spread(row, 3)] for name, row in document["comparison"].items()]
    lines = [
        *harness.heading(document),
        f"{document['photos']}; {document['model']}; rounds: {document['rounds']}.",
        *harness.describe_elsewhere(document),
        *(
            "",
            *harness.table(
                ["", "seconds of the command, images/s, or ratio to eval in a round"], *shown
            ),
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
