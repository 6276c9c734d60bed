"""A share of trials with its interval, as the figures of faces report it."""

from dataclasses import dataclass
from typing import Self

from snzoo.intervals import wilson_interval


@dataclass(frozen=True)
class Rate:
    """The share of ``hits`` among ``trials`` in percent, with the 95 % Wilson score interval.

    The interval takes the trials as independent. Trials that share photos or people are not, so
    for them it is too narrow.
    """

    hits: int
    trials: int
    percent: float
    interval95: tuple[float, float]

    @classmethod
    def count(cls, hits: int, trials: int) -> Self:
        """Return the rate of ``hits`` of ``trials`` (at least 1)."""
        return cls(hits, trials, 100 * hits / trials, wilson_interval(hits, trials))
