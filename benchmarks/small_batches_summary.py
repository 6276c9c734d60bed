"""The means, intervals, table and plot of the runs of small_batches.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import harness
from harness import Document, Row

# The quantile 0.975 of Student's t distribution, by degrees of freedom.
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228]
STATISTICS = ("mean", "var")
COLORS = {"BN": "#0072B2", "GN": "#CC79A7", "SN": "#D55E00", "SN without BN": "#E69F00"}


def summarize(rows: Sequence[Row]) -> list[Row]:
    """Return the test accuracy of each configuration: mean, interval and single runs, in percent.

    A run that diverged counts with the best network before, or with 0 if there is none.
    ``to_bn`` is the difference to BN with as many images a step, over runs with the same seeds.
    """
    cells = harness.group(rows, lambda row: (row["experiment"], row["norm"], row["images"]))
    summary = []
    for (experiment, norm, images), found in cells.items():
        tops, of_bn = accuracies(found), accuracies(cells.get((experiment, "BN", images), []))
        differences = [tops[seed] - of_bn[seed] for seed in tops if seed in of_bn and norm != "BN"]
        summary.append(
            {"experiment": experiment, "norm": norm, "images": images}
            | describe([*tops.values()])
            | {"runs": [round(top, 2) for top in tops.values()]}
            | {"diverged": sum(row["end"] == "diverged" for row in found)}
            | {"to_bn": describe(differences) if differences else None}
            | {"gates": average_gates([row["gates"] for row in found if row["gates"]])}
        )
    return summary


def accuracies(rows: Sequence[Row]) -> dict[int, float]:
    """Return the test accuracy by seed, in percent."""
    return {
        row["seed"]: 100 * row["test"] / row["test_images"] if row["test_images"] else 0.0
        for row in rows
    }


def describe(values: Sequence[float]) -> Row:
    """Return the mean, and half its 95 % interval (Student's t; None for a single value)."""
    n, half = len(values), None
    if n > 1:
        half = STUDENT[min(n - 2, len(STUDENT) - 1)] * stdev(values) / math.sqrt(n)
    return {"mean": round(mean(values), 2), "half_interval": half and round(half, 2)}


def average_gates(gates: Sequence[Row]) -> Row | None:
    """Return the average shares of runs with SN."""
    if not gates:
        return None
    return {
        which: {name: round(mean(g[which][name] for g in gates), 3) for name in gates[0][which]}
        for which in STATISTICS
    }


def markdown(document: Document) -> str:
    """Return the document as Markdown, without the single epochs."""
    settings, summary = document["settings"], document["summary"]
    experiments = harness.group(summary, lambda row: row["experiment"])
    text = (
        f"ResNet-18 of width {settings['width']} from random weights: {settings['crop']} pixels, "
        f"{settings['epochs']} epochs, learning rate 0.05 for 32 images and in proportion to the "
        f"images, {settings['seeds']} seeds. Test top-1 in percent of the best epoch by the "
        "validation photos: the mean, and half its 95 % interval over the seeds."
    )
    blocks = [[text], accuracy_table(experiments["scratch"])]
    if "finetuning" in experiments:
        text = (
            "The ResNet-50 of MSRA, finetuned with 2 images a step: "
            f"{settings['msra_crop']} pixels, {settings['msra_epochs']} epoch(s), learning rate "
            "0.01 for 32 images; the stem and two of the four stages are frozen."
        )
        blocks += [[text], finetuning_table(experiments["finetuning"])]
    if any(row["diverged"] for row in summary):
        text = "A run that diverged counts with its best network before, or with 0 if there is none"
        blocks.append([f"{text}."])
    gates = [
        [f"{row['norm']}, {row['images']}", *map(show_gates, row["gates"].values())]
        for row in summary
        if row["gates"]
    ]
    if gates:
        table = harness.table(["norm, images a step", "mean", "variance"], *gates)
        blocks += [["Average shares of IN, LN and BN:"], table]
    return harness.page(document, [], *blocks)


def accuracy_table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a table with a row for each norm, and one for its difference to BN."""
    sizes = sorted({row["images"] for row in rows}, reverse=True)
    table = [["images a step", *map(str, sizes)]]
    for key, title in (("", "{}"), ("to_bn", "{} minus BN")):
        for norm in dict.fromkeys(row["norm"] for row in rows):
            own = {row["images"]: row for row in rows if row["norm"] == norm}
            cells = [show(own.get(size), key) for size in sizes]
            if not key or norm != "BN":
                table.append([title.format(norm), *cells])
    return harness.table(*table)


def finetuning_table(rows: Sequence[Row]) -> list[str]:
    table = [["norm", "test top-1", "minus BN", "single runs"]]
    for row in rows:
        runs = ", ".join(f"{top:.2f}" for top in row["runs"])
        table.append([row["norm"], show(row), show(row, "to_bn"), runs])
    return harness.table(*table)


def show(row: Row | None, key: str = "") -> str:
    found = row[key] if row and key else row
    if not row or not found:
        return "–"
    text = f"{found['mean']:.2f}"
    text += "" if found["half_interval"] is None else f" ± {found['half_interval']:.2f}"
    return text + (f" ({row['diverged']} diverged)" if row["diverged"] and not key else "")


def show_gates(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in shares.items())


def save_plot(document: Document, path: Path) -> None:
    """Draw the accuracy over the images a step: a line for each norm, intervals as bands."""
    import matplotlib
    from matplotlib.figure import Figure

    settings: Any = {"svg.hashsalt": "snzoo", "svg.fonttype": "none", "font.size": 10}
    scratch = [row for row in document["summary"] if row["experiment"] == "scratch"]
    sizes = sorted({row["images"] for row in scratch}, reverse=True)
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axes = figure.subplots()
        for norm, cells in harness.group(scratch, lambda row: row["norm"]).items():
            cells.sort(key=lambda row: sizes.index(row["images"]))
            x, y = [sizes.index(row["images"]) for row in cells], [row["mean"] for row in cells]
            axes.plot(x, y, marker="o", color=COLORS[norm], label=norm)
            half = [row["half_interval"] for row in cells]
            if None not in half:
                low = [max(0.0, v - h) for v, h in zip(y, half, strict=True)]
                high = [min(100.0, v + h) for v, h in zip(y, half, strict=True)]
                axes.fill_between(x, low, high, color=COLORS[norm], alpha=0.15, linewidth=0)
        axes.set_xticks(range(len(sizes)), list(map(str, sizes)))
        axes.set(xlabel="images a step", ylabel="test top-1, %")
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})
