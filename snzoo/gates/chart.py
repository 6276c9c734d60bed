"""The gates of networks as one chart: a bar of stacked shares a layer (extra ``[plots]``).

After the figure of Luo et al., ICLR 2019 (arXiv 1806.10779) with the ratios that each layer
learned: a panel for the mean and one for the variance.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from io import BytesIO, StringIO
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snzoo.errors import SnzooError, printable
from snzoo.files import check_writable, write_atomically
from snzoo.gates.shares import KINDS, LayerGates, average

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Model = tuple[str, Sequence[LayerGates]]  # its name, its layers

SUFFIXES = (".svg", ".png", ".html")
# Okabe and Ito's colors, which color-blind people tell apart; these differ in lightness too.
COLORS = {"IN": "#E69F00", "LN": "#009E73", "BN": "#0072B2"}
TITLES = {"IN": "instance norm (IN)", "LN": "layer norm (LN)", "BN": "batch norm (BN)"}
PANELS = {"mean": "mean", "var": "variance"}
INK, MUTED = "#222222", "#666666"

# Inches. Bars are as wide as the lines of their names are high, up to 120 of them.
PITCH, LEFT, RIGHT, NARROWEST, WIDEST = 0.105, 0.65, 0.15, 7.5, 13.4
LEGEND, HEAD, PANEL, BETWEEN, BELOW, FOOT = 0.32, 0.5, 1.3, 0.12, 0.2, 0.15
CHARACTER, LINE = 0.056, 0.1  # of SMALL text
SMALL, MEDIUM, LARGE = 6.5, 8, 10  # points
GAP, FEWEST = 0.7, 12  # bars: between stages and before the average; how many have room
LONGEST = 36  # characters of a name, of which the last are shown


def check_output(path: Path) -> None:
    """Raises SnzooError where no chart can be written to ``path``, before any other work."""
    if path.suffix.lower() not in SUFFIXES:
        raise SnzooError(f"{path}: name the chart {', '.join(SUFFIXES)}, by what to draw")
    check_writable(path)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise SnzooError(
            "charts need matplotlib: pip install matplotlib (or the extra snzoo[plots])"
        ) from None


def save_chart(path: Path, models: Sequence[Model]) -> None:
    """Draw the gates of ``models`` side by side to path.svg, .png or .html.

    The page has no script and loads nothing; its tables hold the figures that are drawn.
    The same gates give the same SVG and page, byte for byte, with the same matplotlib.

    Raises:
        SnzooError: another ending, no matplotlib, or ``path`` can't be written.
    """
    check_output(path)
    kind = path.suffix.lower()
    with _own_settings():
        figure = draw(models)
        if kind == ".png":
            content = _png(figure)
        else:
            svg = _svg(figure, _title(models))
            content = (svg if kind == ".svg" else _page(svg, models)).encode()
    with write_atomically(path) as partial:
        partial.write_bytes(content)


@contextmanager
def _own_settings() -> Iterator[None]:
    """matplotlib as it comes, whatever the user's settings are, which stand again afterwards."""
    from matplotlib import rc_context, rcdefaults, rcParams

    # A name in a script that the font lacks is no reason for warnings.
    with rc_context(), warnings.catch_warnings(action="ignore", category=UserWarning):
        rcdefaults()
        rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "snzoo"})  # text; the same ids
        yield


def draw(models: Sequence[Model]) -> Figure:
    """The chart; matplotlib's figures and settings are left alone."""
    from matplotlib.figure import Figure

    columns = [_Column(name, layers) for name, layers in models]
    narrowest = NARROWEST / min(len(columns), 2)
    plots = [min(max(PITCH * column.span, narrowest), WIDEST) for column in columns]
    width = sum(LEFT + plot for plot in plots) + RIGHT
    names = max(column.names_height(plot) for column, plot in zip(columns, plots, strict=True))
    height = LEGEND + HEAD + 2 * PANEL + BETWEEN + names + BELOW + FOOT
    figure = Figure(figsize=(width, height), facecolor="white")
    x = LEFT
    for i, (column, plot) in enumerate(zip(columns, plots, strict=True)):
        for j, which in enumerate(PANELS):
            bottom = height - LEGEND - HEAD - PANEL - j * (PANEL + BETWEEN)
            axes = figure.add_axes((x / width, bottom / height, plot / width, PANEL / height))
            column.draw_bars(axes, which, prefix=f"{i}-{which}")
            if j == 0:
                column.draw_heads(axes, plot)
        column.draw_names(axes, plot)
        axes.set_xlabel("layers in the order of depth", fontsize=MEDIUM, color=INK)
        x += plot + LEFT
    _draw_legend(figure, columns)
    return figure


def _draw_legend(figure: Figure, columns: Sequence[_Column]) -> None:
    from matplotlib.patches import Patch

    kinds = [kind for kind in KINDS if any(kind in c.layers[-1].kinds for c in columns)]
    width, height = figure.get_size_inches()
    figure.legend(
        handles=[Patch(color=COLORS[kind], label=TITLES[kind]) for kind in kinds],
        loc="upper left",
        bbox_to_anchor=(LEFT / width, 1 - 0.1 / height),
        borderaxespad=0,
        borderpad=0,
        ncols=len(kinds),
        frameon=False,
        fontsize=MEDIUM,
        labelcolor=INK,
    )


class _Column:
    """A model's two panels: its layers and their average, with gaps around stages."""

    def __init__(self, name: str, layers: Sequence[LayerGates]) -> None:
        self.name = _last(printable(name), 2 * LONGEST)
        self.layers = [*layers, average(layers)]
        self.names = [printable(layer.name) for layer in self.layers]
        self.stages: list[tuple[str, list[int]]] = []
        for stage, members in groupby(range(len(layers)), lambda i: _stage(self.names[i])):
            self.stages.append((stage, list(members)))
        groups = [*(members for _, members in self.stages), [len(layers)]]
        self.places = [i + GAP * g for g, members in enumerate(groups) for i in members]
        self.span = max(self.places[-1] + 1, FEWEST)

    def names_height(self, plot: float) -> float:
        return CHARACTER * max(map(len, self._names(plot)))

    def draw_bars(self, axes: Axes, which: str, *, prefix: str) -> None:
        """Each bar has an id in the SVG: ``prefix``, the layer's number and the kind."""
        bottoms = [0.0] * len(self.layers)
        for kind in KINDS:
            shares = [layer.shares(which).get(kind, 0.0) for layer in self.layers]
            bars = axes.bar(self.places, shares, 0.86, bottoms, color=COLORS[kind], clip_on=False)
            for i, bar in enumerate(bars):
                bar.set_gid(f"{prefix}-{i}-{kind}")
            bottoms = [a + b for a, b in zip(bottoms, shares, strict=True)]
        axes.set(xlim=(-0.5, self.span - 0.5), ylim=(0, 1), xticks=[])
        axes.set_yticks([0, 0.5, 1], labels=["0", "0.5", "1"], fontsize=MEDIUM, color=INK)
        axes.set_ylabel(f"share of the {PANELS[which]}", fontsize=MEDIUM, color=INK)
        axes.tick_params(length=2, pad=2, color=MUTED)
        for spine in axes.spines.values():
            spine.set_visible(False)

    def draw_heads(self, axes: Axes, plot: float) -> None:
        """The model's name, and the stages' below it, over the upper panel."""
        over = axes.get_xaxis_transform()  # x in bars, y in panels
        text: dict[str, Any] = {"transform": over, "parse_math": False, "color": INK}
        y = 1 + 0.3 / PANEL
        axes.text(-0.43, y, self.name, fontsize=LARGE, fontweight="bold", **text)
        for stage, members in self._marked(plot):
            first, last = self.places[members[0]] - 0.43, self.places[members[-1]] + 0.43
            line: dict[str, Any] = {"color": MUTED, "linewidth": 0.6, "clip_on": False}
            axes.plot([first, last], [1 + 0.06 / PANEL] * 2, transform=over, **line)
            middle = (first + last) / 2
            axes.text(middle, 1 + 0.1 / PANEL, stage, fontsize=MEDIUM, ha="center", **text)

    def draw_names(self, axes: Axes, plot: float) -> None:
        """As many names as there is room for, counted from the average."""
        step = ceil(LINE / (plot / self.span))
        kept = range(len(self.layers) - 1, -1, -step)
        names = self._names(plot)
        axes.set_xticks(
            [self.places[i] for i in kept],
            labels=[names[i] for i in kept],
            rotation=90,
            fontsize=SMALL,
            color=INK,
            parse_math=False,
        )

    def _marked(self, plot: float) -> Iterator[tuple[str, list[int]]]:
        """The stages whose name has room over their bars."""
        for stage, members in self.stages:
            if stage and len(stage) * 1.25 * CHARACTER <= len(members) * plot / self.span:
                yield stage, members

    def _names(self, plot: float) -> list[str]:
        """Of layers, without the stage where that is written over them."""
        names = list(self.names)
        for stage, members in self._marked(plot):
            for i in members:
                names[i] = names[i].removeprefix(f"{stage}.")
        return [_last(name, LONGEST) for name in names]


def _stage(name: str) -> str:
    """``layer1`` of ``layer1.0.sn1``: what comes before a block's number, or ""."""
    found = re.match(r"(.+?)\.[0-9]+\.", name)
    return found[1] if found else ""


def _last(text: str, most: int) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _png(figure: Figure) -> bytes:
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return stream.getvalue()


def _svg(figure: Figure, title: str) -> str:
    """One image to screen readers, called ``title``."""
    stream = StringIO()
    nothing = dict.fromkeys(["Date", "Creator", "Format", "Type"])
    figure.savefig(stream, format="svg", metadata=nothing)
    return stream.getvalue().replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def _title(models: Sequence[Model]) -> str:
    names = ", ".join(printable(name) for name, _ in models)
    return f"Shares of instance, layer and batch norm in each layer of {names}"


POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
body { margin: 2rem auto; padding: 0 1rem; max-width: 80rem; background: #fff; color: #222;
  font: 16px/1.5 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.4rem; line-height: 1.3; overflow-wrap: anywhere; }
figure { margin: 1rem 0; overflow-x: auto; }
svg { display: block; }
table { border-collapse: collapse; margin: 2rem 0; font-size: .9rem; }
caption { text-align: left; font-weight: 650; overflow-wrap: anywhere; }
th, td { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid #ddd; }
tbody th, thead tr:first-child th:first-child { text-align: left; font-weight: inherit; }
"""


def _page(svg: str, models: Sequence[Model]) -> str:
    title = escape(_title(models))
    tables = "".join(_table(name, layers) for name, layers in models)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f"<figure>\n{svg[svg.index('<svg') :]}</figure>\n{tables}</body>\n</html>\n"
    )


def _table(name: str, layers: Sequence[LayerGates]) -> str:
    kinds = average(layers).kinds
    group = f'<th scope="colgroup" colspan="{len(kinds)}">'
    head = "".join(f"{group}{panel}, %</th>" for panel in PANELS.values())
    row = "".join(f'<th scope="col">{kind}</th>' for kind in kinds) * len(PANELS)
    head = f'<tr><th rowspan="2" scope="col">layer</th>{head}</tr>\n<tr>{row}</tr>'
    body = []
    for layer in [*layers, average(layers)]:
        shares = [layer.shares(which).get(kind) for which in PANELS for kind in kinds]
        cells = "".join(f"<td>{'–' if s is None else f'{100 * s:.1f}'}</td>" for s in shares)
        body.append(f'<tr><th scope="row">{escape(printable(layer.name))}</th>{cells}</tr>')
    return (
        f"<table>\n<caption>{escape(printable(name))}</caption>\n"
        f"<thead>\n{head}\n</thead>\n<tbody>\n" + "\n".join(body) + "\n</tbody>\n</table>\n"
    )
