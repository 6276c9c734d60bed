"""``snzoo inspect``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from snzoo.cli.common import check_survives, path
from snzoo.errors import printable
from snzoo.gates import KINDS, LayerGates, average, no_gates, read_gates
from snzoo.registry import list_models
from snzoo.spec import ModelSpec

Model = tuple[str, list[LayerGates]]

CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar", ".h5", ".hdf5")
BAR = 14  # characters; with the names of a ResNet-50, lines stay below 80
# The chart's colors, in the palette of 256 that all terminals have.
COLORS = {"IN": 214, "LN": 36, "BN": 31}
LETTERS = {"IN": "I", "LN": "L", "BN": "B"}
LEGEND = {"IN": "IN instance norm", "LN": "LN layer norm", "BN": "BN batch norm"}


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "how much of IN, LN and BN each Switchable Normalization layer mixes"
    parser = commands.add_parser("inspect", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("models", nargs="+", metavar="NAME|FILE", help="zoo name, or checkpoint of any SN network")
    add("--json", action="store_true", help="print JSON")
    add(
        "--output",
        type=path,
        metavar="FILE",
        help="draw them too, to FILE.svg, .png or .html (needs matplotlib)",
    )


def run(args: argparse.Namespace) -> int:
    if args.output:
        _check_output(args)
    models = [(printable(model), _read(model)) for model in args.models]
    if args.output:
        from snzoo.gates.chart import save_chart

        save_chart(args.output, models)
    if args.json:
        print(json.dumps([_document(*model) for model in models], indent=2))
    else:
        color = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print("\n\n".join(_text(*model, color=color) for model in models))
        print(f"\n{_legend(models, color=color)}")
    return 0


def _check_output(args: argparse.Namespace) -> None:
    """What can be refused before the work begins."""
    from snzoo.gates.chart import check_output

    check_output(args.output)
    for model in args.models:
        check_survives(args.output, Path(model))


def _read(model: str) -> list[LayerGates]:
    """The gates of a checkpoint, a file or a folder that holds it, or of a zoo name's weights."""
    from snzoo.weights import fetch_weights, read_state_dict, weights_of

    names_file = os.path.basename(model) != model or model.lower().endswith(CHECKPOINTS)
    if os.path.isfile(model) or (
        names_file and not model.startswith("hf-hub:") and not os.path.isdir(model)
    ):
        return read_gates(read_state_dict(Path(model)), where=model)
    entry = ModelSpec.find(model)
    if entry.weights:
        file = weights_of(entry.weights)
        return read_gates(read_state_dict(file), where=file)
    if entry.file and entry.name not in list_models(norm="sn"):  # spares the download
        raise no_gates(entry.name)
    weights = fetch_weights(entry, entry.layout)
    return read_gates(read_state_dict(weights), where=weights)


def _document(name: str, layers: Sequence[LayerGates]) -> dict[str, Any]:
    return {
        "model": name,
        "layers": [{"name": layer.name} | _figures(layer) for layer in layers],
        "average": _figures(average(layers)),
    }


def _figures(layer: LayerGates) -> dict[str, Any]:
    return {
        "kinds": list(layer.kinds),
        "mean": [round(share, 6) for share in layer.mean],
        "var": [round(share, 6) for share in layer.var],
    }


def _text(name: str, layers: Sequence[LayerGates], *, color: bool) -> str:
    """A line a layer: its name, and for mean and variance a bar and the shares in percent."""
    rows = [*layers, average(layers)]
    kinds, width = rows[-1].kinds, max(len(row.name) for row in rows)
    figures = "".join(f"{kind:>4}" for kind in kinds)
    lines = [f"{name}: {len(layers)} SN layers, shares in percent"]
    lines.append(f"  {'':<{width}} {'mean':<{BAR}}{figures}  {'variance':<{BAR}}{figures}")
    for row in rows:
        halves = [_half(row.shares(which), kinds, color=color) for which in ("mean", "var")]
        lines.append(f"  {row.name:<{width}} {'  '.join(halves)}".rstrip())
    return "\n".join(lines)


def _half(shares: dict[str, float], kinds: Sequence[str], *, color: bool) -> str:
    bar, total, end = "", 0.0, 0
    for kind, share in shares.items():
        total, start = total + share, end
        end = round(BAR * total)  # of the sum, so that all bars are as long
        bar += _paint(kind, end - start, color=color)
    figures = (f"{100 * shares[kind]:4.0f}" if kind in shares else f"{'-':>4}" for kind in kinds)
    return bar + "".join(figures)


def _paint(kind: str, length: int, *, color: bool) -> str:
    """Letters where there is no color: pipes, and people, can tell them apart."""
    if not color or not length:
        return LETTERS[kind] * length
    return f"\033[38;5;{COLORS[kind]}m{'█' * length}\033[0m"


def _legend(models: Sequence[Model], *, color: bool) -> str:
    kinds = [kind for kind in KINDS if any(kind in layer.kinds for _, ls in models for layer in ls)]
    return "   ".join(f"{_paint(kind, 3, color=color)} {LEGEND[kind]}" for kind in kinds)
