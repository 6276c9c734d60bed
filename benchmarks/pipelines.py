"""Rounds of snzoo and its peers over the same photos, for the loaders and the evaluation."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import harness
from harness import Document, Row
from jobs import Configuration, Job, peak_memory, run_job
from photos import linked

from snzoo.errors import SnzooError

PEERS = ("timm", "torchvision")


def make_pipeline_parser(description: str | None, *, images: int) -> argparse.ArgumentParser:
    parser = harness.make_parser(
        description,
        images=(images, "number of photos; fewer are repeated"),
        workers=([2, 4], "numbers of workers of the peers' loaders"),
        batch_size=([32, 256], "batch sizes of the loaders"),
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="a folder of class folders")
    return parser


def measure_pipelines(args: argparse.Namespace, base: Job, sizes: Sequence[int | None]) -> Document:
    """Measure snzoo with each batch size of ``sizes``, and the peers in all configurations.

    Args:
        args: the options of :func:`make_pipeline_parser`.
        base: snzoo's work; this function names the folders.
    """
    with linked(args.path, args.images) as photos:
        base = replace(base, folder=photos.timed, warm=photos.warm)
        pixels = compare_pixels(base)
        absent = pixels.pop("absent")
        peers = [peer for peer in PEERS if peer not in absent]
        jobs = [replace(base, batch_size=size) for size in sizes]
        jobs += [
            replace(base, contender=peer, workers=workers, batch_size=size)
            for peer in peers
            for workers in args.workers
            for size in args.batch_size
        ]
        jobs = list(dict.fromkeys(jobs))  # a size that was given twice is measured once
        ceiling = Job("batches", "decode", photos.timed, photos.warm, workers=harness.cores())
        rows = harness.measure_in_turns(
            [*jobs, ceiling], args.rounds, lambda job: job.configuration._asdict() | run_job(job)
        )
        check_images(rows, args.images)
        memory = [
            job.configuration._asdict() | {"peak_mib": round(peak_memory(job), 1)} for job in jobs
        ]
    return {
        "photos": photos.description,
        "rounds": args.rounds,
        "absent": absent,
        "pixels": pixels,
        "summary": summarize(rows, memory),
        "comparisons": [compare(rows, memory, "snzoo", name) for name in (*peers, "decode")],
        "memory": memory,
        "measurements": rows,
    }


def _configuration(row: Row) -> Configuration:
    return Configuration(*(row[name] for name in Configuration._fields))


def compare_pixels(base: Job) -> Document:
    """Return for how many photos each contender has torchvision's pixels.

    They read all the links, as in the measurement, because their number may determine how snzoo
    resizes. In training, torchvision uses the random numbers of snzoo. ``absent`` says why a peer
    is left out. ``agree`` is None if torchvision is absent.
    """
    found, absent = {}, {}
    for contender in ("snzoo", *PEERS):
        result = run_job(replace(base, task="pixels", contender=contender))
        if "absent" in result:
            absent[contender] = result["absent"]
            harness.say(f"{contender} is absent and left out: {result['absent']}")
        elif result:  # timm's random crops can't be compared
            found[contender] = result
    if "snzoo" in absent:
        raise SnzooError(f"snzoo can't be measured: {absent['snzoo']}")
    reference = found.pop("torchvision", None)
    agree = reference and {
        name: sum(digests.get(file) == expected for file, expected in reference.items())
        for name, digests in found.items()
    }
    pixels = {"absent": absent, "photos": len(reference or found["snzoo"]), "agree": agree}
    check_pixels(pixels)
    return pixels


def check_pixels(pixels: Document) -> None:
    agree, photos = pixels["agree"], pixels["photos"]
    if agree and agree["snzoo"] != photos:
        raise SnzooError(
            f"snzoo's pixels are torchvision's on {agree['snzoo']} of {photos} photos only; "
            "nothing was timed"
        )


def check_images(rows: Sequence[Row], images: int) -> None:
    for row in rows:
        if row["images"] != images:
            raise SnzooError(f"{row['contender']} gave {row['images']} of {images} images")


def summarize(rows: Sequence[Row], memory: Sequence[Row]) -> list[Row]:
    """Return images/s and peak memory (None if not measured) of each configuration."""
    peaks = {_configuration(row): row["peak_mib"] for row in memory}
    return [
        configuration._asdict()
        | harness.spread(rates, digits=2)
        | {"peak_mib": peaks.get(configuration)}
        for configuration, rates in _rates(rows).items()
    ]


def compare(rows: Sequence[Row], memory: Sequence[Row], ours: str, theirs: str) -> Row:
    """Return the ratios of ``ours`` to ``theirs``, each in its configuration of best median."""
    rates, peaks = _rates(rows), {_configuration(row): row["peak_mib"] for row in memory}
    a, b = (
        max((c for c in rates if c.contender == name), key=lambda c: median(rates[c]))
        for name in (ours, theirs)
    )
    ratios = harness.divide(rates[a], rates[b])
    return {
        "ours": str(a),
        "theirs": str(b),
        "ratios": [round(ratio, 4) for ratio in ratios],
        **harness.spread(ratios),
        "memory_ratio": round(peaks[a] / peaks[b], 4) if b in peaks else None,
    }


def _rates(rows: Sequence[Row]) -> dict[Configuration, list[float]]:
    """Return the images/s of each configuration in the order of the rounds."""
    groups = harness.group(sorted(rows, key=lambda row: int(row["round"])), _configuration)
    return {which: [row["images_per_second"] for row in found] for which, found in groups.items()}


def format_pipelines(document: Document) -> str:
    """Return the document as Markdown, without the single rounds."""
    rates = [["", "workers", "batch", "images/s, median", "least … most", "peak memory, MiB"]]
    for row in document["summary"]:
        batch_size = "–" if row["contender"] == "decode" else row["batch_size"] or "default"
        peak = f"{row['peak_mib']:,.0f}" if row["peak_mib"] else "–"
        cells = [row["contender"], str(row["workers"] or "default"), str(batch_size)]
        cells += [f"{row['median']:,.1f}", f"{row['least']:,.1f} … {row['most']:,.1f}", peak]
        rates.append(cells)
    ratios = [["best configurations", "ratio, median", "least … most", "peak memory"]]
    for row in document["comparisons"]:
        memory = f"× {row['memory_ratio']:.2f}" if row["memory_ratio"] else "–"
        extremes = f"{row['least']:.3f} … {row['most']:.3f}"
        both = f"{row['ours']} : {row['theirs']}"
        ratios.append([both, f"{row['median']:.3f}", extremes, memory])
    agree, photos = document["pixels"]["agree"], document["pixels"]["photos"]
    text = "Pixels were not checked: torchvision, the reference, is absent."
    if agree is not None:
        shares = ", ".join(f"{name} on {count:,}" for name, count in agree.items())
        text = f"Pixels identical with torchvision's: {shares} of {photos:,}."
    counts = [
        [name, str(top1), str(top5), str(images)]
        for name, found in document.get("counts", {}).items()
        for images, top1, top5 in found
    ]
    about = f"{document['photos']}; rounds: {document['rounds']}{document.get('about', '')}."
    return harness.page(
        document,
        [about, *(f"{n} is absent and left out: {why}." for n, why in document["absent"].items())],
        *(harness.table(*rates), harness.table(*ratios), [text]),
        *([harness.table(["counts", "top-1", "top-5", "of"], *counts)] if counts else []),
    )
