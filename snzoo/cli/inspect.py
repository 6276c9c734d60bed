"""``snzoo inspect``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snzoo.cli.common import check_survives, path
from snzoo.cli.output import Painted, show, show_json, wants_color
from snzoo.gates.shares import STATS, LayerGates, average

Model = tuple[str, list[LayerGates]]
Parts = list[str | Painted]  # the parts of a line

BAR = 14  # characters; lines for a ResNet-50 have fewer than 80


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "show the shares of IN, LN and BN in each Switchable Normalization layer"
    parser = commands.add_parser("inspect", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("models", nargs="+", metavar="NAME|FILE", help="zoo name, or checkpoint of any SN network")
    add("--json", action="store_true", help="print JSON")
    about = "also draw the shares to FILE.svg, .png or .html (needs matplotlib)"
    add("--output", type=path, metavar="FILE", help=about)


def run(args: argparse.Namespace) -> int:
    from snzoo.gates import load_gates
    from snzoo.gates.chart import check_output, save_chart

    if args.output:
        check_output(args.output)
        for model in args.models:
            check_survives(args.output, Path(model))
    models = [(model, load_gates(model)) for model in args.models]
    if args.output:
        save_chart(args.output, models)
    if args.json:
        show_json([_document(*model) for model in models])
    else:
        color = wants_color()
        for model in models:
            show(*_table(*model, color=color), "")
        show(_legend(models, color=color))
    return 0


def _document(name: str, layers: Sequence[LayerGates]) -> dict[str, Any]:
    return {
        "model": name,
        "layers": [
            {"name": layer.name} | _figures(layer) | {"locked": list(layer.locked)}
            for layer in layers
        ],
        "average": _figures(average(layers)),
    }


def _figures(layer: LayerGates) -> dict[str, Any]:
    return {
        "stats": list(layer.stats),
        "mean": [round(share, 6) for share in layer.mean],
        "var": [round(share, 6) for share in layer.var],
    }


def _table(name: str, layers: Sequence[LayerGates], *, color: bool) -> list[str | Parts]:
    """Return a line for each layer: its name, with a bar and percentages for mean and variance."""
    rows = [*layers, average(layers)]
    stats, width = rows[-1].stats, max(len(row.name) for row in rows)
    heads = "".join(f"{stat:>4}" for stat in stats)
    lines: list[str | Parts] = [f"{name}: {len(layers)} SN layers, shares in percent"]
    lines.append(f"  {'':<{width}} {'mean':<{BAR}}{heads}  {'variance':<{BAR}}{heads}")
    for row in rows:
        mean, var = (_bar(row.shares(which), stats, color=color) for which in ("mean", "var"))
        lock = "*" if "mean" in row.locked else " "
        end = ["*"] if "var" in row.locked else []
        lines.append([f"  {row.name:<{width}} ", *mean, f"{lock} ", *var, *end])
    locked = [sum(which in layer.locked for layer in layers) for which in ("mean", "var")]
    if any(locked):
        means, variances = (f"{count} of {len(layers)}" for count in locked)
        lines.append(f"  * locked by sparse SN: {means} means, {variances} variances")
    return lines


def _bar(shares: dict[str, float], stats: Sequence[str], *, color: bool) -> Parts:
    parts: Parts = []
    total, end = 0.0, 0
    for stat, share in shares.items():
        total, start = total + share, end
        end = round(BAR * total)  # the sum is rounded, so that all bars have the same length
        parts.append(_paint(stat, end - start, color=color))
    figures = (f"{100 * shares[stat]:4.0f}" if stat in shares else f"{'-':>4}" for stat in stats)
    return [*parts, "".join(figures)]


def _paint(stat: str, length: int, *, color: bool) -> str | Painted:
    """Return a part of a bar; without color, it consists of the first letter of the norm."""
    if not color or not length:
        return stat[0] * length
    return Painted("█" * length, STATS[stat].terminal_color)


def _legend(models: Sequence[Model], *, color: bool) -> Parts:
    used = [stat for stat in STATS if any(stat in layer.stats for _, ls in models for layer in ls)]
    parts: Parts = []
    for stat in used:
        gap = "   " if parts else ""
        parts += [gap, _paint(stat, 3, color=color), f" {stat} {STATS[stat].title}"]
    return parts
