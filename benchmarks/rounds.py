"""Rounds in which every configuration is measured once, and the figures they give.

A measurement is a row: ``{"round", "contender", "workers", "batch_size", "images_per_second",
…}``. A configuration is ``(contender, workers, batch_size)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any, TypeVar

from jobs import Job, cores_elsewhere, describe, peak_memory, run_job
from photos import Photos

from snzoo.errors import SnzooError

Row = dict[str, Any]
Configuration = tuple[str, int | None, int | None]
Say = Callable[[str], None]
T = TypeVar("T")


def compare_pixels(
    photos: Photos, contenders: Sequence[str], base: Job, say: Say
) -> dict[str, Any]:
    """``absent``: contender → why; ``agree``: contender → photos with torchvision's pixels.

    snzoo reads all the links, as in the measurement: it may choose its way by their number.
    ``agree`` is None where torchvision is absent.

    Raises:
        SnzooError: snzoo itself is absent.
    """
    found: dict[str, Any] = {}
    absent: dict[str, str] = {}
    for contender in contenders:
        folder = photos.timed if contender == "snzoo" else photos.each
        result = run_job(
            replace(base, task="pixels", contender=contender, folder=str(folder), workers=None)
        )
        if set(result) == {"absent"}:
            absent[contender] = result["absent"]
            say(f"{contender} is absent and left out: {result['absent']}")
        else:
            found[contender] = result
    if "snzoo" in absent:
        raise SnzooError(f"snzoo can't be measured: {absent['snzoo']}")
    reference = found.get("torchvision")
    agree = reference and {
        name: sum(digests.get(file) == expected for file, expected in reference.items())
        for name, digests in found.items()
        if name != "torchvision"
    }
    return {"absent": absent, "photos": len(reference or found["snzoo"]), "agree": agree}


def measure(jobs: Sequence[Job], rounds: int, say: Say) -> list[Row]:
    """Every job once a round, one after the other, each round beginning with another one."""
    rows = []
    for number in range(rounds):
        for job in rotated(jobs, number):
            result, elsewhere = cores_elsewhere(partial(run_job, job))
            row = _columns(job) | {"round": number + 1} | result
            row["cores_elsewhere"] = round(elsewhere, 3)
            say(
                f"round {number + 1} of {rounds}: {describe(*job.configuration)}: "
                f"{row['images_per_second']:.1f} images/s"
            )
            rows.append(row)
    return rows


def measure_memory(jobs: Sequence[Job], say: Say) -> list[Row]:
    rows = []
    for job in jobs:
        rows.append(_columns(job) | {"peak_mib": round(peak_memory(job), 1)})
        say(f"memory: {describe(*job.configuration)}: {rows[-1]['peak_mib']:.0f} MiB")
    return rows


def rotated(turns: Sequence[T], number: int) -> list[T]:
    start = number % len(turns)
    return [*turns[start:], *turns[:start]]


def grid(base: Job, peer: str, workers: Sequence[int], batch_sizes: Sequence[int]) -> list[Job]:
    """What ``base`` does, by ``peer``, with every number of workers and every batch size."""
    return [
        replace(base, contender=peer, workers=number, batch_size=size)
        for number in workers
        for size in batch_sizes
    ]


def summarize(rows: Sequence[Row], memory: Sequence[Row]) -> list[Row]:
    """Median, least and most images/s, and the peak memory, of every configuration.

    The memory is None where it was not measured.
    """
    peaks = {_configuration(row): row["peak_mib"] for row in memory}
    return [
        dict(zip(("contender", "workers", "batch_size"), configuration, strict=True))
        | {
            "median": round(median(rates), 2),
            "least": round(min(rates), 2),
            "most": round(max(rates), 2),
            "peak_mib": peaks.get(configuration),
        }
        for configuration, rates in _rates(rows).items()
    ]


def compare(rows: Sequence[Row], memory: Sequence[Row], ours: str, theirs: str) -> Row:
    """``ours`` to ``theirs``, each in its best configuration, round by round.

    The best configuration is the one with the highest median images/s; the ratio of a round is
    that of its two measurements in it; the memory is that of the two configurations.
    """
    rates, peaks = _rates(rows), {_configuration(row): row["peak_mib"] for row in memory}
    best = [
        max((c for c in rates if c[0] == name), key=lambda c: median(rates[c]))
        for name in (ours, theirs)
    ]
    ratios = [mine / other for mine, other in zip(rates[best[0]], rates[best[1]], strict=True)]
    return {
        "ours": describe(*best[0]),
        "theirs": describe(*best[1]),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "median": round(median(ratios), 4),
        "least": round(min(ratios), 4),
        "most": round(max(ratios), 4),
        "memory_ratio": round(peaks[best[0]] / peaks[best[1]], 4) if best[1] in peaks else None,
    }


def _columns(job: Job) -> Row:
    return {"contender": job.contender, "workers": job.workers, "batch_size": job.batch_size}


def _configuration(row: Row) -> Configuration:
    return row["contender"], row["workers"], row["batch_size"]


def _rates(rows: Sequence[Row]) -> dict[Configuration, list[float]]:
    """Images/s of every configuration, in the order of the rounds."""
    rates: dict[Configuration, list[float]] = {}
    for row in sorted(rows, key=lambda row: int(row["round"])):
        rates.setdefault(_configuration(row), []).append(row["images_per_second"])
    return rates
