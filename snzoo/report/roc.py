"""The ROC curves of face verification as inline SVG, over a logarithmic false accept rate."""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10

from snzoo.report.charts import labels, ticks
from snzoo.report.curves import Curve, Point, draw, legend, sample

LABEL = (
    "ROC: the true accept rate in percent over the false accept rate on a logarithmic axis, "
    "a line for each model."
)


def roc_chart(curves: Sequence[tuple[str, Sequence[Point]]]) -> str:
    """Return a figure with the ROC curve of each model, and a legend if there are several models.

    A curve begins at its first FAR above 0, because a logarithmic axis has no 0.

    Args:
        curves: at least one pair of a name and points (FAR, TAR) from 0 to 1, ascending, e.g.
            :attr:`snzoo.faces.Verification.roc`. The last point is (1, 1).
    """
    drawn = [
        Curve(i, [(log10(far), 100 * tar) for far, tar in points if far > 0])
        for i, (_, points) in enumerate(curves)
    ]
    first = min(curve.points[0][0] for curve in drawn)
    across = list(range(min(floor(first), -1), 1))
    up = ticks([tar for curve in drawn for _, tar in curve.points], most=5)
    numbers = labels(across, unit="", form=_power)
    chart = draw(drawn, across, up, label=LABEL, numbers=numbers)
    names = legend((sample(i), name) for i, (name, _) in enumerate(curves))
    return (
        f"{names if len(curves) > 1 else ''}<figure>"
        f"<figcaption>True accept rate, %, over false accept rate</figcaption>{chart}</figure>\n"
    )


def _power(exponent: float) -> str:
    return f"1e{exponent:g}" if exponent else "1"
