"""Rows of seconds → ratios of the same round, and tables of them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from statistics import median

from report import Document, elsewhere, heading
from rounds import Row

PARTS = {
    "layers": "Layers, inference",
    "layers-training": "Layers, training (forward and backward)",
    "networks": "Networks, inference",
    "networks-training": "Networks, training (forward and backward)",
}
Table = list[list[str]]


def compare(rows: Sequence[Row], copy_rate: float | None, itemsize: int) -> list[Row]:
    """Of each case: milliseconds, snzoo's speed as multiples of the others', and its roofline.

    A ratio is of two measurements of the same round; ``speed`` has the median, the least and the
    most of them. ``roofline`` is of a layer's inference: the time in which the bytes that must
    move, x read for the statistics, read again and y written, would move at ``copy_rate``
    (bytes/s), as a share of the time taken.
    """
    found = []
    for row in rows:
        times = row["seconds"]
        ours = times["snzoo"]
        figures: Row = {key: row[key] for key in ("part", "label", "shape", "layout")} | {
            "milliseconds": {name: round(1000 * median(each), 4) for name, each in times.items()},
            "speed": {
                name: _spread([b / a for a, b in zip(ours, theirs, strict=True)])
                for name, theirs in times.items()
                if name != "snzoo"
            },
        }
        if copy_rate and row["part"] == "layers":
            least = 3 * prod(row["shape"]) * itemsize / copy_rate
            figures["roofline"] = round(least / median(ours), 4)
        found.append(figures)
    return found


def _spread(ratios: list[float]) -> Row:
    values = {"median": median(ratios), "least": min(ratios), "most": max(ratios)}
    return {name: round(value, 4) for name, value in values.items()}


def markdown(document: Document) -> str:
    """The document for people; everything but the single rounds is in it."""
    about = "".join(f", {name} {value}" for name, value in document["device"].items())
    lines = [
        *heading(document),
        f"{document['precision']}{about}; rounds: {document['rounds']}.",
        *([elsewhere(document)] if document["measurements"] else []),
    ]
    if document["copy_gb_per_s"]:
        lines.append(f"Copying moves {document['copy_gb_per_s']:.1f} GB/s, read and written.")
    for part, title in PARTS.items():
        figures = [row for row in document["comparisons"] if row["part"] == part]
        if figures:
            lines += ["", f"## {title}", "", *_table(_speeds(figures))]
    if document["memory"]:
        lines += ["", "## Memory, MiB (× textbook's)", "", *_table(_memory(document["memory"]))]
    return "\n".join(lines) + "\n"


def _speeds(figures: Sequence[Row]) -> Table:
    """snzoo's milliseconds, and its speed to each of the others'."""
    others = [*figures[0]["speed"]]
    roofline = "roofline" in figures[0]
    head = ["", "batch", "layout", "snzoo, ms", *(f"speed to {name}" for name in others)]
    table = [head + ["of roofline"] * roofline]
    for row in figures:
        speeds = (row["speed"][name] for name in others)
        cells = [f"{s['median']:.2f} ({s['least']:.2f} … {s['most']:.2f})" for s in speeds]
        cells = [*_case(row), f"{row['milliseconds']['snzoo']:,.2f}", *cells]
        table.append([*cells, f"{row['roofline']:.0%}"] if roofline else cells)
    return table


def _memory(rows: Sequence[Row]) -> Table:
    kinds = {
        "kept_bytes": "kept for backward",
        "training_peak_bytes": "peak, training",
        "inference_peak_bytes": "peak, inference",
    }
    textbook = {tuple(_case(row)): row for row in rows if row["contender"] == "textbook"}
    table = [["", "batch", "layout", "", *kinds.values()]]
    for row in rows:
        base = textbook[tuple(_case(row))]
        cells = [f"{row[kind] / 2**20:,.1f} (× {row[kind] / base[kind]:.2f})" for kind in kinds]
        table.append([*_case(row), row["contender"], *cells])
    return table


def _case(row: Row) -> list[str]:
    return [row["label"], str(row["shape"][0]), row["layout"]]


def _table(table: Table) -> list[str]:
    first, *rest = (f"| {' | '.join(cells)} |" for cells in table)
    return [first, "| --- |" + " ---: |" * (len(table[0]) - 1), *rest]
