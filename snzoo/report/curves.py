"""Line charts as inline SVG, in the style of :mod:`snzoo.report.charts`.

The lines of a run have its color and its dashes, so that color is not the only difference. A line
is drawn in a box that is stretched to the width of the page; the width of its stroke stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil

from snzoo.report.charts import labels, levels, place, ticks
from snzoo.report.markup import escape

HUES, DASHES = 6, 5  # of style.css; 30 runs differ, since the numbers have no common divisor
WIDTH, HEIGHT = 1000, 180  # of the box; HEIGHT is in pixels too
MOST_POINTS = 300  # of a line
MOST_DOTS = 60  # a longer line has no dots, which would overlap

Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """A line of the run with the number ``run`` from 0; validation is drawn strong, with dots."""

    run: int
    points: Sequence[Point]
    strong: bool = False


def style_of(run: int) -> str:
    """Return the classes of style.css for the color and the dashes of a run."""
    return f"hue-{run % HUES} dash-{run % DASHES}"


def line_chart(curves: Sequence[Curve], *, label: str, zero: bool = False) -> str:
    """Return a chart of curves over epochs.

    Args:
        curves: the curves; at least one has a point.
        label: the description for screen readers, as text.
        zero: begin the vertical axis at 0, with ticks for values as small as learning rates.
    """
    curves = [Curve(c.run, thin(c.points), c.strong) for c in curves if c.points]
    xs, ys = ([point[i] for curve in curves for point in curve.points] for i in (0, 1))
    across = ticks([0, max(xs)], whole=True)
    up = ticks([0, max(ys)], most=5, least=1e-9) if zero else ticks(ys, most=5)
    return draw(curves, across, up, label=label, numbers=labels(across, unit=""))


def draw(
    curves: Sequence[Curve],
    across: Sequence[float],
    up: Sequence[float],
    *,
    label: str,
    numbers: str,
) -> str:
    """Return a chart of curves between two axes.

    Args:
        curves: the curves; each has a point.
        across: the ticks of the horizontal axis.
        up: the ticks of the vertical axis.
        label: the description for screen readers, as text.
        numbers: the numbers of the horizontal axis, as HTML.
    """
    paths = "".join(_path(curve, across, up) for curve in curves)
    dots = "".join(_dots(curve, across, up) for curve in curves)
    box = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" height="{HEIGHT}" preserveAspectRatio="none">'
    body = (
        f'<svg class="curves" height="{HEIGHT}">{levels(up, HEIGHT)}{box}{paths}</svg>{dots}</svg>'
    )
    plot = f'<div class="plot tall" role="img" aria-label="{escape(label)}">'
    return f"{plot}{body}{numbers}</div>"


def sample(run: int, *, strong: bool = False, plain: bool = False) -> str:
    """Return a short line for a legend; a plain one has no color and no dashes."""
    style = "" if plain else f" {style_of(run)}"
    width = " strong" if strong else ""
    line = f'<line class="curve{width}{style}" x2="100%" y1="50%" y2="50%"/>'
    dot = f'<circle class="dot{style}" cx="50%" cy="50%" r="3"/>' if strong and plain else ""
    return f"<svg>{line}{dot}</svg>"


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Return a legend of samples (HTML) and what they stand for (text)."""
    spans = (f"<span>{mark} <span>{escape(text)}</span></span>" for mark, text in entries)
    return f'<p class="legend">{"".join(spans)}</p>\n'


def thin(points: Sequence[Point]) -> list[Point]:
    """Return at most ``MOST_POINTS`` points: the means of as many neighbors as necessary."""
    size = ceil(len(points) / MOST_POINTS)
    if size <= 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(_mean([x for x, _ in group]), _mean([y for _, y in group])) for group in groups]


def _mean(values: Sequence[float]) -> float:
    return sum(value / len(values) for value in values)  # the sum itself could overflow


def _path(curve: Curve, across: Sequence[float], up: Sequence[float]) -> str:
    places = (
        f"{WIDTH * (x - across[0]) / (across[-1] - across[0]):.1f} {_height(y, up):.2f}"
        for x, y in curve.points
    )
    width = " strong" if curve.strong else ""
    return f'<path class="curve{width} {style_of(curve.run)}" d="M{"L".join(places)}"/>'


def _dots(curve: Curve, across: Sequence[float], up: Sequence[float]) -> str:
    """Return a dot for each point of a strong curve, and for a point that no line would show."""
    if len(curve.points) > (MOST_DOTS if curve.strong else 1):
        return ""
    style = f'class="dot {style_of(curve.run)}"'
    return "".join(
        f'<circle {style} cx="{place(x, across)}" cy="{_height(y, up):.2f}" r="3"/>'
        for x, y in curve.points
    )


def _height(value: float, axis: Sequence[float]) -> float:
    """Return the distance from the top of the box."""
    return HEIGHT * (axis[-1] - value) / (axis[-1] - axis[0])
