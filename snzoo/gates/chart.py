"""A chart of the gates of networks: a bar of stacked shares for each layer (extra ``plots``).

One panel shows the mean and one the variance, as in the figure of Luo et al., ICLR 2019
(arXiv 1806.10779), with the ratios that each layer learned.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, StringIO
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snzoo.environment import require_packages
from snzoo.errors import ArgumentError, printable
from snzoo.files import check_writable, write_atomically
from snzoo.gates.shares import STATS, LayerGates, average
from snzoo.report.markup import escape, make_page, scrolling

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Model = tuple[str, Sequence[LayerGates]]  # its name and its layers

SUFFIXES = (".svg", ".png", ".html")
PANELS = {"mean": "mean", "var": "variance"}
INK, MUTED = "#222222", "#666666"

# Lengths in inches. PITCH is the width of a bar, about the height of the name below it; in a plot
# that is as wide as WIDEST, bars become narrower.
PITCH, LEFT, RIGHT, NARROWEST, WIDEST = 0.105, 0.65, 0.15, 7.5, 13.4
LEGEND, HEAD, PANEL, BETWEEN, BELOW, FOOT = 0.32, 0.5, 1.3, 0.12, 0.2, 0.15
CHARACTER, LINE = 0.056, 0.1  # width of a character and height of a line of SMALL text
SMALL, MEDIUM, LARGE = 6.5, 8, 10  # font sizes in points
GAP, FEWEST = 0.7, 12  # in bars: the gap around stages; the least width of a plot
LONGEST = 36  # the most characters of a name; of a longer name, the end is shown


def check_output(path: Path) -> None:
    """Check that a chart can be written to ``path``, before any other work.

    Raises:
        ArgumentError: the suffix is none of .svg, .png and .html.
        FileError: the file cannot be written.
        MissingPackageError: matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ArgumentError(f"{path}: the suffix of a chart must be one of {', '.join(SUFFIXES)}")
    check_writable(path)
    require_packages("matplotlib", extra="plots", purpose="drawing charts")


def save_chart(path: str | Path, models: Sequence[Model]) -> None:
    """Draw the gates of ``models`` side by side to ``path``: .svg, .png or .html.

    The HTML page has no script and loads nothing; its tables hold the figures that are drawn.
    The same gates and the same matplotlib give the same SVG and page, byte for byte.

    Args:
        path: the file to write.
        models: pairs of a name and the layers that :func:`snzoo.gates.load_gates` returns.

    Raises:
        ArgumentError, FileError, MissingPackageError: see :func:`check_output`.
    """
    path = Path(path)
    check_output(path)
    kind = path.suffix.lower()
    with _default_settings():
        figure = draw(models)
        if kind == ".png":
            content = _to_png(figure)
        else:
            svg = _to_svg(figure, _title(models))
            content = (svg if kind == ".svg" else _page(svg, models)).encode()
    with write_atomically(path) as partial:
        partial.write_bytes(content)


@contextmanager
def _default_settings() -> Iterator[None]:
    """Use matplotlib's default settings in the block instead of the user's."""
    from matplotlib import rc_context, rcdefaults, rcParams

    # matplotlib warns about characters that its font lacks.
    with rc_context(), warnings.catch_warnings(action="ignore", category=UserWarning):
        rcdefaults()
        rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "snzoo"})  # text; fixed ids
        yield


def draw(models: Sequence[Model]) -> Figure:
    """Return the chart. It does not change the state of pyplot."""
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

    used = [stat for stat in STATS if any(stat in c.layers[-1].stats for c in columns)]
    width, height = figure.get_size_inches()
    figure.legend(
        handles=[
            Patch(color=STATS[stat].color, label=f"{STATS[stat].title} ({stat})") for stat in used
        ],
        loc="upper left",
        bbox_to_anchor=(LEFT / width, 1 - 0.1 / height),
        borderaxespad=0,
        borderpad=0,
        ncols=len(used),
        frameon=False,
        fontsize=MEDIUM,
        labelcolor=INK,
    )


class _Column:
    """The two panels of a model: its layers and their average, with gaps around stages."""

    def __init__(self, name: str, layers: Sequence[LayerGates]) -> None:
        self.name = _shorten(printable(name), 2 * LONGEST)
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
        """Draw a panel. In the SVG, the id of a bar is ``prefix-LAYER_NUMBER-NORM``."""
        bottoms = [0.0] * len(self.layers)
        for name, stat in STATS.items():
            shares = [layer.shares(which).get(name, 0.0) for layer in self.layers]
            bars = axes.bar(self.places, shares, 0.86, bottoms, color=stat.color, clip_on=False)
            for i, bar in enumerate(bars):
                bar.set_gid(f"{prefix}-{i}-{name}")
            bottoms = [a + b for a, b in zip(bottoms, shares, strict=True)]
        axes.set(xlim=(-0.5, self.span - 0.5), ylim=(0, 1), xticks=[])
        axes.set_yticks([0, 0.5, 1], labels=["0", "0.5", "1"], fontsize=MEDIUM, color=INK)
        axes.set_ylabel(f"share of the {PANELS[which]}", fontsize=MEDIUM, color=INK)
        axes.tick_params(length=2, pad=2, color=MUTED)
        for spine in axes.spines.values():
            spine.set_visible(False)

    def draw_heads(self, axes: Axes, plot: float) -> None:
        """Write the names of the model and its stages above the upper panel."""
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
        """Write the names of every n-th layer and of the average, so that they do not overlap."""
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
        """Yield the stages whose name fits above their bars."""
        for stage, members in self.stages:
            if stage and len(stage) * 1.25 * CHARACTER <= len(members) * plot / self.span:
                yield stage, members

    def _names(self, plot: float) -> list[str]:
        """Return the names of layers, without the stage if it is written above the bars."""
        names = list(self.names)
        for stage, members in self._marked(plot):
            for i in members:
                names[i] = names[i].removeprefix(f"{stage}.")
        return [_shorten(name, LONGEST) for name in names]


def _stage(name: str) -> str:
    """Return the part before the number of a block (``layer1`` of ``layer1.0.sn1``), or ""."""
    found = re.match(r"(.+?)\.[0-9]+\.", name)
    return found[1] if found else ""


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _to_png(figure: Figure) -> bytes:
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=150, metadata={"Software": None})
    return stream.getvalue()


def _to_svg(figure: Figure, title: str) -> str:
    """Return the SVG; for screen readers, it is one image with the label ``title``."""
    stream = StringIO()
    nothing = dict.fromkeys(["Date", "Creator", "Format", "Type"])
    figure.savefig(stream, format="svg", metadata=nothing)
    return stream.getvalue().replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def _title(models: Sequence[Model]) -> str:
    names = ", ".join(printable(name) for name, _ in models)
    return f"Shares of instance, layer and batch norm in each layer of {names}"


def _page(svg: str, models: Sequence[Model]) -> str:
    tables = "".join(_table(name, layers) for name, layers in models)
    figure = f'<figure class="paper">\n{svg[svg.index("<svg") :]}</figure>\n'
    footer = "Made by snzoo inspect. Figures are rounded."
    return make_page(_title(models), figure + tables, footer=footer)


def _table(name: str, layers: Sequence[LayerGates]) -> str:
    stats = average(layers).stats
    group = f'<th scope="colgroup" colspan="{len(stats)}">'
    head = "".join(f"{group}{panel}, %</th>" for panel in PANELS.values())
    row = "".join(f'<th scope="col">{stat}</th>' for stat in stats) * len(PANELS)
    head = f'<tr><th rowspan="2" scope="col">layer</th>{head}</tr>\n<tr>{row}</tr>'
    body = []
    for layer in [*layers, average(layers)]:
        shares = [layer.shares(which).get(stat) for which in PANELS for stat in stats]
        cells = "".join(f"<td>{'–' if s is None else f'{100 * s:.1f}'}</td>" for s in shares)
        body.append(f'<tr><th scope="row">{escape(layer.name)}</th>{cells}</tr>\n')
    table = (
        f'<table class="shares"><caption>{escape(name)}</caption>\n'
        f"<thead>\n{head}\n</thead>\n<tbody>\n{''.join(body)}</tbody></table>"
    )
    return f"<section>\n{scrolling(table, label=name)}</section>\n"
