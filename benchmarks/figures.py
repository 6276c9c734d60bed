"""Ratios of measurements of the same round, and tables of these ratios."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from statistics import median

import harness
from harness import Document, Row

PARTS = {
    "layers": "Layers, inference",
    "layers-training": "Layers, training (forward and backward)",
    "networks": "Networks, inference",
    "networks-training": "Networks, training (forward and backward)",
}


def compare(rows: Sequence[Row], copy_rate: float | None, itemsize: int) -> list[Row]:
    """Return milliseconds, snzoo's speed relative to the others, and the roofline of each case.

    ``speed`` has the median, the least and the greatest ratio of measurements of one round.
    ``roofline`` is for the inference of a layer, which must read x for the statistics, read x again
    and write y. It is the time that these bytes take at ``copy_rate`` (bytes/s), as a share of the
    measured time.
    """
    found = []
    for row in rows:
        times = row["seconds"]
        ours = times["snzoo"]
        figures: Row = {key: row[key] for key in ("part", "label", "shape", "layout")} | {
            "milliseconds": {name: round(1000 * median(each), 4) for name, each in times.items()},
            "speed": {
                name: harness.spread(harness.divide(theirs, ours))
                for name, theirs in times.items()
                if name != "snzoo"
            },
        }
        if copy_rate and row["part"] == "layers":
            least = 3 * prod(row["shape"]) * itemsize / copy_rate
            figures["roofline"] = round(least / median(ours), 4)
        found.append(figures)
    return found


def markdown(document: Document) -> str:
    """Return the document as Markdown, without the single rounds."""
    device = "".join(f", {name} {value}" for name, value in document["device"].items())
    about = [f"{document['precision']}{device}; rounds: {document['rounds']}."]
    if document["copy_gb_per_s"]:
        about.append(f"Copying moves {document['copy_gb_per_s']:.1f} GB/s, read and written.")
    blocks = []
    for part, figures in harness.group(document["comparisons"], lambda row: row["part"]).items():
        blocks += [[f"## {PARTS[part]}"], harness.table(*_speeds(figures))]
    if document["memory"]:
        blocks += [["## Memory, MiB (× textbook's)"], harness.table(*_memory(document["memory"]))]
    return harness.page(document, about, *blocks)


def _speeds(figures: Sequence[Row]) -> list[list[str]]:
    """Return rows of snzoo's milliseconds and its speed relative to each of the others."""
    others = [*figures[0]["speed"]]
    roofline = "roofline" in figures[0]
    head = ["", "batch", "layout", "snzoo, ms", *(f"speed to {name}" for name in others)]
    rows = [head + ["of roofline"] * roofline]
    for row in figures:
        speeds = [harness.show_spread(row["speed"][name]) for name in others]
        share = [f"{row['roofline']:.0%}"] if roofline else []
        rows.append([*_case(row), f"{row['milliseconds']['snzoo']:,.2f}", *speeds, *share])
    return rows


def _memory(rows: Sequence[Row]) -> list[list[str]]:
    kinds = {"kept_bytes": "kept for backward", "training_peak_bytes": "peak, training"}
    kinds["inference_peak_bytes"] = "peak, inference"
    textbook = {tuple(_case(row)): row for row in rows if row["contender"] == "textbook"}
    found = [["", "batch", "layout", "", *kinds.values()]]
    for row in rows:
        base = textbook[tuple(_case(row))]
        cells = [f"{row[kind] / 2**20:,.1f} (× {row[kind] / base[kind]:.2f})" for kind in kinds]
        found.append([*_case(row), row["contender"], *cells])
    return found


def _case(row: Row) -> list[str]:
    return [row["label"], str(row["shape"][0]), row["layout"]]
