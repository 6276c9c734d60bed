"""``snzoo eval``."""

from __future__ import annotations

import argparse
import math
import os
import sys
from typing import TYPE_CHECKING, Any

from snzoo.cli import tables
from snzoo.cli.common import (
    MODEL,
    WEIGHTS,
    WILD,
    add_device_option,
    check_classifies_photos,
    check_survives,
    choose_entry,
    demo,
    expand_names,
    load_model,
    path,
    positive,
)
from snzoo.errors import SnzooError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snzoo.data.samples import Samples
    from snzoo.evaluation import Evaluation, Network
    from snzoo.evaluation.processes import Processes
    from snzoo.evaluation.records import Journal
    from snzoo.manifest import Entry


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "top-1 and top-5 on labeled images, beside the published figures"
    parser = commands.add_parser("eval", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    add = parser.add_argument_group("what").add_argument
    add(
        "--model",
        nargs="+",
        metavar="NAME",
        help=f"{MODEL}; several names, or wildcards, are evaluated in one pass (the demo's)",
    )
    add("--weights", type=path, metavar="FILE", help=WEIGHTS)
    add(
        "--imagenet",
        type=path,
        metavar="PATH",
        help="the images: class folders (wnids), flat validation files, a folder with val/, a "
        "tar of these, LOC_val_solution.csv, parquet shards, or a list file of 'path index' "
        "lines (default: the bundled demo photos)",
    )
    add("--labels", choices=["original", "real"], default="original", help="real: ReaL too")
    add(
        "--on-error",
        choices=["fail", "skip"],
        default="fail",
        help="stop at an image that can't be read (default), or report it and go on",
    )
    add("--check", action="store_true", help="exit with 1 where a figure isn't the published one")
    add(
        "--tolerance",
        type=points,
        default=0.05,
        metavar="POINTS",
        help="percent by which figures on the published images may differ (0.05)",
    )
    how = parser.add_argument_group("how")
    add_device_option(how)
    add = how.add_argument
    add("--batch-size", type=positive, metavar="N", help="(16 on the CPU, 128 elsewhere)")
    add("--workers", type=positive, metavar="N", help="decoding threads (the processor's cores)")
    add("--precision", choices=["fp32", "tf32", "bf16", "fp16"], default="fp32")
    add("--compile", action="store_true", help="with torch.compile")
    add("--channels-last", action="store_true", help="activations in that memory format")
    add(
        "--decode",
        choices=["exact", "fast"],
        default="exact",
        help="fast: JPEG at a reduced size, which are not the reference's pixels",
    )
    add("--resume", action="store_true", help="go on where the same command was interrupted")
    add = parser.add_argument_group("output").add_argument
    add("--json", type=path, metavar="FILE", help="write all figures to FILE (see: snzoo report)")
    add(
        "--predictions",
        type=path,
        metavar="FILE",
        help="write the best classes of every image to FILE.csv, .ndjson or .parquet",
    )


def points(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 100, got {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    from snzoo.evaluation.network import choose_device
    from snzoo.evaluation.processes import join, local_device

    _check_outputs(args)
    entries = _choose_entries(args)
    _check_inputs_survive(args)
    if args.check and args.decode == "fast":
        raise SnzooError(
            "--decode fast gives other pixels than --check compares with; leave one out"
        )
    if args.check and not all(entry.published for entry in entries):
        names = ", ".join(entry.name for entry in entries if not entry.published)
        raise SnzooError(f"no published figures of {names} to check against")
    device = choose_device(local_device(args.device))
    with join(device) as processes:
        return _run(args, entries, device, processes)


def _run(
    args: argparse.Namespace, entries: Sequence[Entry], device: str, processes: Processes
) -> int:
    from snzoo.data.imagenet import real_labels_of
    from snzoo.evaluation import evaluate
    from snzoo.evaluation.results import as_document, describe_pixels

    samples = _find_samples(args, entries)
    real = real_labels_of(samples.names) if args.labels == "real" else None
    networks = _networks(args, entries, device)
    settings = _settings(args, device, processes)
    journal = _journal(args, networks, samples, settings, processes)
    evaluation = evaluate(
        networks,
        samples,
        batch_size=settings["batch_size"],
        workers=settings["workers"],
        approximate=args.decode == "fast",
        on_error=args.on_error,
        report=lambda message: print(f"snzoo: {message}", file=sys.stderr),
        progress=processes.rank == 0,
        processes=processes,
        journal=journal,
    )
    status = 0
    if processes.rank == 0:
        document = as_document(
            evaluation,
            entries,
            path=args.imagenet,
            weights=args.weights,
            run=settings,
            pixels=describe_pixels(len(samples), device, approximate=args.decode == "fast"),
            real=real,
            tolerance=args.tolerance,
        )
        status = _report(args, entries, evaluation, document)
    processes.gather(None)  # the figures are written
    if processes.local_rank == 0:
        journal.remove()
    return status


def _report(
    args: argparse.Namespace,
    entries: Sequence[Entry],
    evaluation: Evaluation,
    document: dict[str, Any],
) -> int:
    """Print and write what was asked for; 1 where ``--check`` finds a disagreement."""
    from snzoo.evaluation.predictions import save_predictions
    from snzoo.files import write_json

    names = [entry.name for entry in entries]
    data, run = document["data"], document["run"]
    subject = names[0] if len(names) == 1 else f"{len(names)} networks"
    print(f"{subject} on {data['description']} ({run['device']})")
    print(tables.figures(document))
    if args.json:
        write_json(args.json, document)
    if args.predictions:
        save_predictions(args.predictions, evaluation, names)
    problems = tables.disagreements(document, args.tolerance) if args.check else []
    for problem in problems:
        print(f"snzoo: check failed: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _check_outputs(args: argparse.Namespace) -> None:
    """What can be refused before the work begins."""
    from snzoo.evaluation.predictions import check_suffix

    if args.imagenet and args.model is None and not args.weights:
        raise SnzooError(f"which model? snzoo eval --model NAME --imagenet {args.imagenet}")
    for output in (args.json, args.predictions):
        if output:
            special = output.exists() and not output.is_file()  # a device, a pipe or a folder
            target = output if special else output.resolve().parent
            if output.is_dir() or not target.exists() or not os.access(target, os.W_OK):
                raise SnzooError(
                    f"can't write {output}: name a file in a folder that you may write"
                )
    if args.predictions:
        check_suffix(args.predictions)
    if args.json and args.predictions and args.json.resolve() == args.predictions.resolve():
        raise SnzooError(f"--json and --predictions both name {args.json}; name two files")


def _check_inputs_survive(args: argparse.Namespace) -> None:
    from snzoo.data import is_image

    for output in filter(None, (args.json, args.predictions)):
        check_survives(output, args.weights)
        same = args.imagenet and output.resolve() == args.imagenet.resolve()
        if same or is_image(output.name):
            raise SnzooError(
                f"{output} is not overwritten: it is an input, or named like one; name another file"
            )


def _choose_entries(args: argparse.Namespace) -> list[Entry]:
    if args.weights and args.model and len(args.model) > 1:
        raise SnzooError(f"{args.weights} is the checkpoint of one network: name one model")
    names = args.model or [None]
    if args.weights or (len(names) == 1 and not WILD & set(names[0] or "")):
        entry = choose_entry(args, names[0])
        check_classifies_photos(entry, args)
        return [entry]
    return expand_names(names)


def _find_samples(args: argparse.Namespace, entries: Sequence[Entry]) -> Samples:
    from snzoo.data.demo import demo_samples
    from snzoo.data.samples import find_samples

    first = entries[0]
    if args.imagenet:
        return find_samples(args.imagenet, first.classes)
    if args.weights or [entry.name for entry in entries] != [demo().model]:
        raise SnzooError(f"which images? snzoo eval --model {first.name} --imagenet PATH")
    return demo_samples(demo(), first.classes)


def _networks(args: argparse.Namespace, entries: Sequence[Entry], device: str) -> list[Network]:
    from snzoo.evaluation import Network

    return [
        Network(
            load_model(args, entry),
            entry.preprocessing,
            name=entry.name,
            device=device,
            precision=args.precision,
            compile=args.compile,
            channels_last=args.channels_last,
        )
        for entry in entries
    ]


def _settings(args: argparse.Namespace, device: str, processes: Processes) -> dict[str, Any]:
    import torch

    from snzoo.evaluation.processes import local_cores
    from snzoo.evaluation.results import device_name
    from snzoo.evaluation.run import default_batch_size

    return {
        "device": device_name(device),
        "precision": args.precision,
        "batch_size": args.batch_size or default_batch_size(torch.device(device)),
        "compile": args.compile,
        "channels_last": args.channels_last,
        "threads": torch.get_num_threads(),
        "processes": processes.count,
        "workers": args.workers or local_cores(),
    }


def _journal(
    args: argparse.Namespace,
    networks: Sequence[Network],
    samples: Samples,
    settings: dict[str, Any],
    processes: Processes,
) -> Journal:
    """Where this run is recorded. What an earlier one recorded stays, for ``--resume``."""
    from snzoo.evaluation.records import Journal, digest_of, run_folder
    from snzoo.evaluation.results import versions

    identity = {
        "networks": [network.digest() for network in networks],
        "samples": digest_of(samples),
        "decode": args.decode,
        "versions": versions(),
        **{key: value for key, value in settings.items() if key not in ("processes", "workers")},
    }
    journal = Journal(run_folder(identity), resume=args.resume)
    begun = any(processes.gather(journal.exists()))  # before any of them writes
    if args.resume and not begun and processes.rank == 0:
        print("snzoo: no record of such a run; it begins anew", file=sys.stderr)
    return journal
