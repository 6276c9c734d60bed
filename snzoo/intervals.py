"""Confidence intervals of proportions."""

from math import sqrt


def wilson_interval(hits: int, trials: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of ``hits`` of ``trials`` (at least 1), in percent."""
    z, n, p = 1.96, trials, hits / trials
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * max(0.0, center - half), 100 * min(1.0, center + half)
