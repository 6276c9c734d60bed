"""Train with few images a step: batch norm, group norm, and SN with and without batch statistics.

python benchmarks/small_batches.py DATA --runs RUNS --output benchmarks/results/NAME.json

DATA has train/, validation/ and test/. The same command continues where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import harness
from harness import Document, Row
from small_batches_summary import STATISTICS, markdown, save_plot, summarize

import snzoo
from snzoo.environment import require_packages
from snzoo.errors import CheckpointError, NonFiniteError, SnzooError
from snzoo.files import write_json
from snzoo.gates import load_gates
from snzoo.gates.shares import average
from snzoo.report.run_log import read_run

MSRA_EPOCHS, MSRA_CROP = 1, 112  # of finetuning
IMAGES = 32  # the images a step that the learning rates are for
# The options of snzoo.train for each norm, from random weights.
NORMS: dict[str, dict[str, Any]] = {
    "BN": {"model": "resnet18v1_bn"},
    "GN": {"model": "resnet18v1_gn"},
    "SN": {"model": "resnet18v1_sn"},
    "SN without BN": {"model": "resnet18v1_sn", "using_bn": False},
}
SHARES = (0.9, 0.99)  # of BN, in the converted networks


@dataclass(frozen=True)
class Run:
    """A training run: from random weights (``scratch``) or from those of MSRA (``finetuning``)."""

    experiment: str
    norm: str
    images: int  # per step
    seed: int

    @property
    def name(self) -> str:
        return f"{self.experiment}-{self.norm}-{self.images}-{self.seed}".lower().replace(" ", "-")


def main() -> int | str:
    args = parse_arguments()
    try:
        return harness.run_benchmark(lambda: measure(args), markdown, args.output)
    except KeyboardInterrupt:
        return "small_batches.py: stopped; the same command continues the runs"


def parse_arguments() -> argparse.Namespace:
    parser = harness.make_parser(
        __doc__,
        rounds=None,
        images=([32, 8, 4, 2], "images a step"),
        seeds=(3, "runs of each configuration"),
        epochs=(12, "epochs from random weights"),
        width=(16, "channels of the stem"),
        crop=(64, "pixels from random weights"),
        jobs=(harness.cores(), "runs at a time, with a thread each"),
    )
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="a folder with train/, validation/ and test/")
    add("--runs", type=Path, required=True, metavar="FOLDER", help="a folder for the runs")
    add("--norms", nargs="+", choices=NORMS, default=[*NORMS], help="norms from random weights")
    add("--msra", type=Path, metavar="FILE", help="also finetune the network of MSRA in this file")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> Document:
    """Return the document of all runs, which are trained unless they are in ``args.runs``.

    The test photos are looked at after the last run.
    """
    if args.output:
        require_packages("matplotlib", extra="plots", purpose="drawing the plot")
    check_paths(args)
    runs = {run: options_of(run, args) for run in plan_runs(args)}
    folders = {args.runs / run.name: options for run, options in runs.items()}
    for folder, options in folders.items():
        check_options(folder, options)
    train_all({f: options for f, options in folders.items() if find_end(f) is None}, args.jobs)
    for experiment in dict.fromkeys(run.experiment for run in runs):
        evaluate_runs([args.runs / run.name for run in runs if run.experiment == experiment], args)
    rows = [collect_figures(run, args.runs / run.name) for run in runs]
    settings = {name: getattr(args, name) for name in ("epochs", "width", "crop", "seeds")}
    document = {
        "title": "Few images a step",
        "settings": settings | {"msra_epochs": MSRA_EPOCHS, "msra_crop": MSRA_CROP},
        "options": {run.name: drop_folders(options) for run, options in runs.items()},
        "summary": summarize(rows),
        "measurements": rows,
    }
    if args.output:
        save_plot(document, args.output.with_suffix(".svg"))
    return document


def check_paths(args: argparse.Namespace) -> None:
    """Check what is needed after hours of training, and make the folder of the runs."""
    if not (args.data / "test").is_dir():
        raise SnzooError(f"{args.data / 'test'} is not a folder; DATA must have the test photos")
    if args.msra and not args.msra.is_file():
        raise SnzooError(f"{args.msra} is not a file; name the weights of MSRA: --msra")
    try:
        args.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SnzooError(f"can't make the folder {args.runs}: {error.strerror}") from None


def drop_folders(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the names of their files and folders, without the machine's paths."""
    paths = ("data", "weights")
    return {k: Path(v).name if v and k in paths else v for k, v in options.items()}


def plan_runs(args: argparse.Namespace) -> Iterator[Run]:
    """Yield the runs of each experiment, one seed after the other: early results have all norms."""
    for seed in range(args.seeds):
        for images in args.images:
            for norm in args.norms:
                yield Run("scratch", norm, images, seed)
    for seed in range(args.seeds) if args.msra else ():
        for norm in ("BN", "frozen BN", *(f"SN {share}" for share in SHARES)):
            yield Run("finetuning", norm, 2, seed)


def options_of(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of ``snzoo.train``. The rate is proportional to the images of a step."""
    if run.experiment == "scratch":
        options = NORMS[run.norm] | {"width": args.width, "weight_decay": 0.0005}
        lr, epochs, crop = 0.05, args.epochs, args.crop
    else:
        lr, epochs, crop = 0.01, MSRA_EPOCHS, MSRA_CROP
        options = {"freeze": 2, "weights": str(args.msra), "model": "resnet50v1_bn_msra"}
        if run.norm.startswith("SN"):
            start = convert_start(args, float(run.norm.split()[1]))
            options |= {"weights": str(start), "model": None}
        elif run.norm == "frozen BN":
            options |= {"statistics": "frozen"}
    return options | {
        "data": str(args.data),
        "recipe": "finetune",
        "lr": lr * run.images / IMAGES,
        "batch_size": run.images,
        "epochs": epochs,
        "crop": crop,
        "resize": crop * 8 // 7,
        "seed": run.seed,
    }


def convert_start(args: argparse.Namespace, share: float) -> Path:
    """Return the file of the network of MSRA with SN and a share of BN, and write it if needed."""
    with open(args.msra, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder: Path = args.runs
    path = folder / f"start-{share}-{digest[:8]}.safetensors"
    if not path.exists():
        model = snzoo.create_model("resnet50v1_bn_msra", weights=args.msra)
        snzoo.nn.convert_to_switchnorm(model, share=share)
        snzoo.save_pretrained(model, path)
    return path


def check_options(folder: Path, options: dict[str, Any]) -> None:
    """Check that a run that has begun has the options that it began with."""
    path = options_file(folder)
    if not path.exists() or not folder.exists():
        return
    before = json.loads(path.read_text())
    for name in sorted(before | options):
        if before.get(name) != options.get(name):
            raise SnzooError(
                f"{folder.name} began with {name} {before.get(name)}, not {options.get(name)}; "
                "name another folder: --runs"
            )


def options_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")


def train_all(runs: dict[Path, dict[str, Any]], jobs: int) -> None:
    """Train the runs, ``jobs`` at a time. After Ctrl-C or an error, no further run is begun."""
    # Fresh processes, because a thread of PyTorch does not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, context, max_tasks_per_child=1)
    left, ended = iter(runs.items()), count(1)
    try:
        # A pool that has more tasks than processes starts one of them even when it shuts down.
        running = {pool.submit(train, *run) for run in islice(left, jobs)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                harness.say(f"{next(ended)} of {len(runs)}: {future.result().name}")
            running |= {pool.submit(train, *run) for run in islice(left, len(done))}
    finally:
        pool.shutdown()


def train(folder: Path, options: dict[str, Any]) -> Path:
    """Train with one thread, or continue a run that was stopped.

    A run whose loss is not finite ends there.
    """
    import torch

    torch.set_num_threads(1)
    write_json(options_file(folder), options)
    try:
        snzoo.train(**options, output=folder, resume=True, workers=1, device="cpu")
    except NonFiniteError as error:
        write_json(folder / "diverged.json", {"reason": str(error)})
    return folder


def find_end(folder: Path) -> str | None:
    """Return how a run ended (``finished`` or ``diverged``), or None if it has not."""
    if (folder / "diverged.json").exists():
        return "diverged"
    begun = (folder / "recipe.json").exists()
    return "finished" if begun and read_run(folder).finished else None


def evaluate_runs(folders: list[Path], args: argparse.Namespace) -> None:
    """Evaluate the test photos once, in one pass for all runs, and remember the counts."""
    trained = [folder for folder in folders if (folder / "best.safetensors").exists()]
    new = [folder for folder in trained if not (folder / "test.json").exists()]
    found = snzoo.evaluate(new, args.data / "test").models if new else ()
    for folder, model in zip(new, found, strict=True):
        figures = {"test": model.top1.correct, "test_images": model.top1.images}
        write_json(folder / "test.json", figures)


def collect_figures(run: Run, folder: Path) -> Row:
    """Return the figures of a run."""
    epochs = read_run(folder).epochs
    row = asdict(run) | {
        "end": find_end(folder),
        "validation": [epoch.validation.top1 for epoch in epochs if epoch.validation],
        "train_top1": [round(epoch.train_top1, 2) for epoch in epochs],
        "train_loss": [round(epoch.train_loss, 4) for epoch in epochs],
        "seconds": round(sum(epoch.seconds for epoch in epochs), 1),
    }
    if not epochs:  # it diverged in the first epoch
        return row | {"test": 0, "test_images": None, "gates": None}
    row |= json.loads((folder / "test.json").read_text())
    return row | {"gates": read_gates(folder)}


def read_gates(folder: Path) -> dict[str, Any] | None:
    """Return the average shares of a network with SN: {"mean": {"IN": …}, "var": …}."""
    try:
        mixed = average(load_gates(folder / "best.safetensors"))
    except CheckpointError:  # no SN
        return None
    return {
        which: {name: round(share, 4) for name, share in mixed.shares(which).items()}
        for which in STATISTICS
    }


if __name__ == "__main__":
    sys.exit(main())
