"""Charts as inline SVG.

Horizontal positions are in percent of the width, so that text and lines keep their size on any
screen. For screen readers, a chart is one image, because tables hold the same figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from snzoo.report.markup import NBSP, escape

BINS = 20
HEIGHT = 140  # of the histogram, in pixels
PUBLISHED = '<path class="published" d="M0-8 8 0 0 8-8 0z"/>'


@dataclass(frozen=True)
class Row:
    """A measured value, its interval and the published value in percent; ``word`` is HTML."""

    name: str
    percent: float
    low: float
    high: float
    published: float | None
    word: str


def dot_plot(rows: Sequence[Row], *, label: str) -> str:
    """Return a chart with a line per row: the interval, a measured dot and a published diamond."""
    values = [value for row in rows for value in (row.low, row.high, row.published)]
    axis = ticks([value for value in values if value is not None])
    grid = "".join(f'<line class="grid" x1="{x}" x2="{x}" y2="100%"/>' for x in _places(axis))
    parts = []
    for row in rows:
        low, dot, high = (place(value, axis) for value in (row.low, row.percent, row.high))
        marks = f'<line class="interval" x1="{low}" x2="{high}" y1="50%" y2="50%"/>'
        marks += f'<circle class="measured" cx="{dot}" cy="50%" r="4"/>'
        if row.published is not None:
            x = place(row.published, axis)
            marks += f'<svg class="at" x="{x}" y="50%">{PUBLISHED}</svg>'
        names = f"<span>{escape(row.name)}</span><span>{row.percent:.2f}{NBSP}% {row.word}</span>"
        parts.append(f'<div class="row">{names}<svg class="line">{grid}{marks}</svg></div>')
    plot = f'<div class="plot" role="img" aria-label="{escape(label)}">'
    return f"{plot}{''.join(parts)}{labels(axis)}</div>"


LEGEND = (
    '<p class="legend"><span><svg><line class="interval" x2="100%" y1="50%" y2="50%"/>'
    '<circle class="measured" cx="50%" cy="50%" r="4"/></svg> measured, 95\u00a0% interval</span>'
    f'<span><svg><svg class="at" x="50%" y="50%">{PUBLISHED}</svg></svg> published</span></p>'
)


def histogram(percents: Sequence[float], *, label: str) -> str:
    """Return a histogram with 20 bins from 0 to 100 %. A value of 100 % is in the last bin."""
    counts = [0] * BINS
    for percent in percents:
        counts[min(int(percent * BINS / 100), BINS - 1)] += 1
    axis = ticks([0, max(counts)], most=4, whole=True)
    top = axis[-1]
    parts = [levels(axis, HEIGHT)]
    for i, count in enumerate(counts):
        height = HEIGHT * count / top
        low, high = (100 * edge // BINS for edge in (i, i + 1))
        parts.append(
            f'<rect class="bar" x="{low + 0.25}%" width="4.5%" y="{HEIGHT - height:.1f}" '
            f'height="{height:.1f}"><title>{low} to {high} %: {count} classes</title></rect>'
        )
    body = f'<svg class="bins" height="{HEIGHT}">{"".join(parts)}</svg>'
    plot = f'<div class="plot tall" role="img" aria-label="{escape(label)}">'
    return f"{plot}{body}{labels([0, 20, 40, 60, 80, 100])}</div>"


def bar(percent: float) -> str:
    """Return a bar for a cell of a table; the next cell has the figure."""
    return (
        '<svg class="cell" aria-hidden="true"><rect class="track" width="100%" height="100%"/>'
        f'<rect class="bar" width="{percent:.2f}%" height="100%"/></svg>'
    )


def levels(axis: Sequence[float], height: float) -> str:
    """Return the lines and numbers of a vertical axis; ``height`` is in pixels."""
    parts = []
    for tick in axis:
        y = height * (axis[-1] - tick) / (axis[-1] - axis[0])
        parts.append(f'<line class="grid" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="-8" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    return "".join(parts)


def ticks(
    values: Sequence[float], *, most: int = 6, whole: bool = False, least: float = 0.1
) -> list[float]:
    """Return at most ``most`` round, evenly spaced numbers that enclose the values.

    Values that are closer than ``least`` count as so far apart.
    """
    low, high = min(values), max(values)
    span = max(high - low, least, 1e-9 * high)  # ticks that are closer could be the same number
    step = 10.0 ** floor(log10(span / most))
    for factor in (1, 2, 5, 10, 20, 50, 100):
        size = max(step * factor, 1.0) if whole else step * factor
        first, last = floor(low / size + 1e-9), ceil(high / size - 1e-9)
        if first == last:  # all values are the same round number
            first, last = max(first - 1, 0), max(first, 1)
        if last - first < most:
            break
    return [round(size * i, 12) for i in range(first, last + 1)]


def place(value: float, axis: Sequence[float]) -> str:
    """Return the horizontal position of a value, in percent of the width."""
    return f"{100 * (value - axis[0]) / (axis[-1] - axis[0]):.2f}%"


def _places(axis: Sequence[float]) -> list[str]:
    return [place(tick, axis) for tick in axis]


def labels(
    axis: Sequence[float], *, unit: str = f"{NBSP}%", form: Callable[[float], str] = "{:g}".format
) -> str:
    """Return the numbers below a plot, written by ``form``; the last one has the unit."""
    anchors = ["start", *["middle"] * (len(axis) - 2), "end"]
    marks = zip(axis, _places(axis), anchors, strict=True)
    texts = [
        f'<text x="{x}" y="14" text-anchor="{at}">{form(tick)}</text>' for tick, x, at in marks
    ]
    texts[-1] = texts[-1].replace("</text>", f"{unit}</text>")
    return f'<svg class="axis">{"".join(texts)}</svg>'
