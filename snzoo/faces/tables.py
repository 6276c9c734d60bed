"""The figures of faces as tables of text: a row for each figure, and a column for each model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from snzoo.errors import printable

if TYPE_CHECKING:
    from snzoo.faces.identification import Identification
    from snzoo.faces.rates import Rate
    from snzoo.faces.verification import FoldTar, TarAtFar, Verification

Table = list[list[str]]  # the first row has the heads
MISSING = "–"


def tabulate_verification(results: Mapping[str, Verification]) -> Table:
    """Return the figures of verification by the names of models."""
    return _tabulate({name: _verification_figures(figures) for name, figures in results.items()})


def tabulate_identification(results: Mapping[str, Identification]) -> Table:
    """Return the figures of identification by the names of models."""
    return _tabulate({name: _identification_figures(figures) for name, figures in results.items()})


def format_text(table: Table) -> list[str]:
    """Return the lines of a table with aligned columns."""
    table = [[printable(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]


def format_markdown(table: Table) -> list[str]:
    """Return the lines of a Markdown table."""
    head, *rows = ([printable(cell).replace("|", r"\|") for cell in row] for row in table)
    rule = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(row)} |" for row in [head, rule, *rows]]


def _tabulate(columns: Mapping[str, Mapping[str, str]]) -> Table:
    titles = dict.fromkeys(title for column in columns.values() for title in column)
    rows = [[title, *(c.get(title, MISSING) for c in columns.values())] for title in titles]
    return [["", *columns], *rows]


def _verification_figures(figures: Verification) -> dict[str, str]:
    accuracy = figures.accuracy
    return {
        "genuine pairs": f"{figures.genuine:,}",
        "impostor pairs": f"{figures.impostors:,}",
        f"accuracy over {len(accuracy.folds)} folds, %": _deviation(accuracy.percent, accuracy.std),
        **{f"TAR at FAR {_short(t.far)}, %": _tar(t) for t in figures.tar_at_far},
        "TAR at FAR 1e-3 over folds (insightface), %": _fold_tar(figures.fold_tar),
        "equal error rate, %": f"{100 * figures.equal_error_rate:.2f}",
        "area under the ROC curve": f"{figures.auc:.6f}",
    }


def _identification_figures(figures: Identification) -> dict[str, str]:
    trials = figures.rates[0].rate.trials
    return {
        "protocol": figures.protocol,
        "probes": f"{figures.probes:,}",
        "gallery": f"{figures.gallery:,}",
        "distractors": f"{figures.distractors:,}",
        "trials": f"{trials:,}",
        **{f"rank-{r.rank}, %": _rate(r.rate) for r in figures.rates},
    }


def _rate(rate: Rate) -> str:
    low, high = rate.interval95
    return f"{rate.percent:.2f} [{low:.2f}, {high:.2f}]"


def _deviation(mean: float, std: float) -> str:
    return f"{mean:.2f} ± {std:.2f}"


def _tar(figure: TarAtFar) -> str:
    return "not measurable" if figure.tar is None else _rate(figure.tar)


def _fold_tar(figure: FoldTar | None) -> str:
    if figure is None:
        return "not measurable"
    return f"{_deviation(figure.percent, figure.std)} (FAR {_short(figure.far)})"


def _short(value: float) -> str:
    """Return a number in short scientific notation, e.g. ``1e-3``."""
    mantissa, exponent = f"{value:.2e}".split("e")
    short = mantissa.rstrip("0").rstrip(".")
    return f"{short}e{int(exponent)}" if value else "0"
