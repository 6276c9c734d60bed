"""Train small face networks on generated faces, with SN and with batch norm, 4 images a step.

python benchmarks/faces.py --runs RUNS --real FOLDER --output benchmarks/results/NAME.json

The same command continues where it was stopped. The photos of the test are evaluated at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import harness
import torch
from generated_faces import write_people
from harness import Document, Row

import snzoo
from snzoo.errors import SnzooError
from snzoo.evaluation import evaluate_faces
from snzoo.faces.tables import format_markdown, tabulate_verification
from snzoo.faces.verification import Verification
from snzoo.report.run_log import read_run
from snzoo.typed_json import convert

# Folder, people, photos of each, seed: another seed draws other people.
SETS = (("generated/train", 1000, 10, 0), ("generated/val", 60, 6, 1), ("test", 200, 6, 2))
NORMS = ("sn", "bn")
RECIPE = shlex.split(
    "--batch-size 4 --images-per-gpu 4 --epochs-per-pass 1 --schedule cosine --warmup-epochs 1 "
    "--norm-momentum 0.99 --head cosface --head-scale 32 --head-margin 0.2 --lr 0.05 --clip-norm 5 "
    "--workers 1"
)


def main() -> int | str:
    people = (None, "use so few people in each set, for a trial")
    parser = harness.make_parser(__doc__, rounds=None, epochs=(16, "epochs"), people=people)
    add = parser.add_argument
    add("--runs", type=Path, required=True, metavar="FOLDER", help="a folder for photos and runs")
    add("--real", type=Path, metavar="FOLDER", help="also evaluate on these pairs")
    args = parser.parse_args()
    return harness.run_benchmark(lambda: measure(args), markdown, args.output)


def measure(args: argparse.Namespace) -> Document:
    """Return the figures of both networks, which are trained unless they are in ``args.runs``."""
    if args.real and not args.real.exists():
        raise SnzooError(f"{args.real} does not exist; name pairs of faces: --real")
    for name, people, photos, seed in SETS:
        if not (args.runs / name).exists():
            harness.say(f"drawing {name}")
            people = min(people, args.people or people)
            write_people(args.runs / name, people=people, photos=photos, seed=seed)
    commands = {norm: training_command(norm, args) for norm in NORMS}
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # both at once, with a thread each
    running = [subprocess.Popen(command, env=environment) for command in commands.values()]
    if any([process.wait() for process in running]):
        raise SnzooError("a training failed; the same command continues it")
    sets = {"generated": args.runs / "test", "real": args.real}
    return {
        "title": "Face networks of 18 layers, 8 channels wide, 4 images a step",
        "options": {norm: " ".join(command[5:-3]) for norm, command in commands.items()},
        "sets": SETS,
        "measurements": [
            row for name, path in sets.items() if path for row in evaluate(name, path, args.runs)
        ],
    }


def training_command(norm: str, args: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "snzoo", "train", str(args.runs / "generated")]
    command += ["--model", f"face_resnet18_{norm}", "--width", "8", "--epochs", str(args.epochs)]
    return [*command, *RECIPE, "--output", str(args.runs / norm), "--resume"]


def evaluate(name: str, path: Path, runs: Path) -> list[Row]:
    """Return the figures of the trained networks, and of the same with their random weights."""
    rows = []
    for norm in NORMS:
        run = read_run(runs / norm)
        torch.manual_seed(0)
        untrained = snzoo.create_model(f"face_resnet18_{norm}", width=8)
        for trained in (True, False):
            model = runs / norm / "best.safetensors" if trained else untrained
            results = evaluate_faces(model, path)
            rows.append(
                {
                    "set": name,
                    "norm": norm.upper(),
                    "trained": trained,
                    "pairs": results.data.pairs,
                    "accuracy_pairs": results.data.accuracy_pairs,
                    "best_epoch": run.best.epoch if trained and run.best else None,
                    "seconds": sum(epoch.seconds for epoch in run.epochs) if trained else None,
                    "verification": json.loads(json.dumps(asdict(results.models[0].verification))),
                }
            )
    return rows


def markdown(document: Document) -> str:
    """Return the document as Markdown."""
    blocks = []
    for name, rows in harness.group(document["measurements"], lambda row: row["set"]).items():
        figures = {
            row["norm"] + ("" if row["trained"] else ", untrained"): convert(
                row["verification"], Verification, name
            )
            for row in rows
        }
        minutes = ", ".join(
            f"{row['norm']} {row['seconds'] / 60:.0f} minutes, best epoch {row['best_epoch']}"
            for row in rows
            if row["trained"]
        )
        text = (
            f"{rows[0]['pairs']:,} pairs; the accuracy is that of "
            f"{rows[0]['accuracy_pairs']:,}, half of them genuine. {minutes}."
        )
        table = format_markdown(tabulate_verification(figures))
        blocks += [[f"## Faces: {name}"], table, [text]]
    return harness.page(document, [], *blocks)


if __name__ == "__main__":
    sys.exit(main())
