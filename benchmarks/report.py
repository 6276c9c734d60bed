"""The record of a benchmark: where it ran, as JSON, and its tables, as Markdown."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from snzoo.errors import SnzooError

PACKAGES = ("snzoo", "torch", "torchvision", "timm", "pillow", "simplejpeg", "numba", "numpy")
Document = dict[str, Any]


def circumstances() -> Document:
    """Date, machine and versions; a package that is not installed has None."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "cores": cores(),
            "memory_gib": round(
                os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1
            ),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
    }


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def markdown(document: Document) -> str:
    """The document for people; everything but the single rounds is in it."""
    lines = [
        *heading(document),
        f"{document['photos']}; rounds: {document['rounds']}{document.get('about', '')}.",
        elsewhere(document),
        *(f"{name} is absent and left out: {why}." for name, why in document["absent"].items()),
        "",
        *_rates(document),
        "",
        *_ratios(document),
        "",
        *_agreement(document),
    ]
    return "\n".join(lines) + "\n"


def heading(document: Document) -> list[str]:
    machine = document["machine"]
    versions = [f"{name} {v}" for name, v in document["versions"].items() if v]
    return [
        f"# {document['title']}",
        "",
        f"{document['date'][:10]}, {machine['cpu']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; {', '.join(versions)}.",
    ]


def elsewhere(document: Document) -> str:
    cores = [row["cores_elsewhere"] for row in document["measurements"]]
    return (
        f"Cores at other work during a measurement: {median(cores):.2f} in the median, "
        f"{max(cores):.2f} at most."
    )


def check_output(path: Path | None) -> None:
    """What can be refused before the work begins.

    Raises:
        SnzooError: ``path`` is no .json file in a folder that may be written.
    """
    if path and (path.suffix != ".json" or not os.access(path.resolve().parent, os.W_OK)):
        raise SnzooError(f"can't write {path}: name a .json file in a folder that you may write")


def save(path: Path, document: Document, text: str) -> None:
    """``path``, and the document for people beside it as .md."""
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(text, encoding="utf-8")


def _rates(document: Document) -> list[str]:
    rows = [
        "| | workers | batch | images/s, median | least … most | peak memory, MiB |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in document["summary"]:
        workers, batch_size = (row[key] or "default" for key in ("workers", "batch_size"))
        peak = f"{row['peak_mib']:,.0f}" if row["peak_mib"] else "–"
        if row["contender"] == "decode":
            batch_size = "–"
        rows.append(
            f"| {row['contender']} | {workers} | {batch_size} | {row['median']:,.1f} "
            f"| {row['least']:,.1f} … {row['most']:,.1f} | {peak} |"
        )
    return rows


def _ratios(document: Document) -> list[str]:
    rows = [
        "| best configurations | ratio, median | least … most | peak memory |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in document["comparisons"]:
        memory = f"× {row['memory_ratio']:.2f}" if row["memory_ratio"] else "–"
        rows.append(
            f"| {row['ours']} : {row['theirs']} | {row['median']:.3f} "
            f"| {row['least']:.3f} … {row['most']:.3f} | {memory} |"
        )
    return rows


def _agreement(document: Document) -> list[str]:
    pixels = document["pixels"]
    if pixels["agree"] is None:
        lines = ["Pixels were not checked: torchvision, the reference, is absent."]
    else:
        found = (f"{name} on {count:,}" for name, count in pixels["agree"].items())
        lines = [
            f"Pixels identical with torchvision's: {', '.join(found)} of {pixels['photos']:,}."
        ]
    counts = document.get("counts", {})
    if counts:
        lines += ["", "| counts | top-1 | top-5 | of |", "| --- | ---: | ---: | ---: |"]
    for name, found in counts.items():
        lines += [f"| {name} | {top1} | {top5} | {images} |" for images, top1, top5 in found]
    return lines


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
