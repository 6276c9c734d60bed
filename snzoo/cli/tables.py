"""The figures of an evaluation as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from snzoo.evaluation.results import Accuracy, Model, Results


def format_results(results: Results) -> list[str]:
    """Return the lines to print: counts and intervals of one model, or a table of several."""
    models = results.models
    lines = _single(models[0]) if len(models) == 1 else _several(models)
    lines += _note(models)
    for model in models:
        if model.real:
            lines.append(f"{model.name}: ReaL top-1 {_counts(model.real)}")
        if present := model.present:
            lines.append(
                f"{model.name}, among the {present.classes} classes present: "
                f"top-1 {_counts(present.top1)}, top-5 {_counts(present.top5)}"
            )
    if results.errors:
        lines.append(f"left out, could not be read: {len(results.errors)} images")
    if not results.pixels.exact:
        lines.append("approximate pixels (--decode fast): not comparable with published figures")
    return [*lines, f"{results.run.images_per_second:.1f} images/s"]


def _rows(model: Model) -> tuple[tuple[str, Accuracy], ...]:
    return ("top-1", model.top1), ("top-5", model.top5)


def _single(model: Model) -> list[str]:
    lines = ["         correct    accuracy   95 % interval     published"]
    for title, row in _rows(model):
        low, high = row.interval95
        counts = f"{row.correct}/{row.images}"
        line = f"{title}  {counts:>11}  {row.percent:7.2f} %  [{low:6.2f}, {high:6.2f}]"
        if row.published is not None:
            line += f"  {row.published:7.2f} % ({_verdict(model, row)})"
        lines.append(line)
    return lines


def _several(models: Sequence[Model]) -> list[str]:
    width = max(len(model.name) for model in models)
    lines = [f"{'':<{width}}  top-1  published            top-5  published"]
    for model in models:
        cells = [f"{model.name:<{width}}"]
        for _, row in _rows(model):
            published = ""
            if row.published is not None:
                published = f"{row.published:5.2f} ({_verdict(model, row)})"
            cells.append(f"{row.percent:5.2f}  {published:<18}")
        lines.append("  ".join(cells).rstrip())
    return lines


def _verdict(model: Model, row: Accuracy) -> str:
    words = ("differs", "agrees") if model.same_images else ("outside", "inside")
    return words[bool(row.agrees)]


def _note(models: Sequence[Model]) -> list[str]:
    others = sorted({m.published_on for m in models if m.published_on and not m.same_images})
    return [
        f"published on {where}, which are not known to be these images: "
        "inside or outside the interval"
        for where in others
    ]


def _counts(row: Accuracy) -> str:
    low, high = row.interval95
    return f"{row.correct}/{row.images} = {row.percent:.2f} % [{low:.2f}, {high:.2f}]"
