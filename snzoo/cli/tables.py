"""The figures of an evaluation as text."""

from __future__ import annotations

from typing import Any

TITLES = {"top1": "top-1", "top5": "top-5"}


def figures(document: dict[str, Any]) -> str:
    """One network: counts and intervals; several: a table of measured beside published."""
    models = document["models"]
    lines = _single(models[0]) if len(models) == 1 else _several(models)
    lines += [f"{m['name']}: ReaL top-1 {_real(m['real'])}" for m in models if "real" in m]
    if document["errors"]:
        lines.append(f"left out, could not be read: {len(document['errors'])} images")
    if not document["pixels"]["exact"]:
        lines.append("approximate pixels (--decode fast): not comparable with published figures")
    lines.append(f"{document['run']['images_per_second']:.1f} images/s")
    return "\n".join(lines)


def disagreements(document: dict[str, Any], tolerance: float) -> list[str]:
    """What ``--check`` finds wrong, a line each."""
    found = [f"{len(document['errors'])} images were left out"] if document["errors"] else []
    for model in document["models"]:
        for key, title in TITLES.items():
            row = model[key]
            if row["agrees"] is None:
                found.append(f"{model['name']}: no published {title} to check against")
            elif not row["agrees"]:
                low, high = row["interval95"]
                allowed = (
                    f"by more than {tolerance:g} points"
                    if model["same_images"]
                    else f"and lies outside [{low:.2f}, {high:.2f}]"
                )
                found.append(
                    f"{model['name']}: {title} is {row['percent']:.2f} %, published "
                    f"{row['published']:.2f} %: differs {allowed}"
                )
    return found


def _single(model: dict[str, Any]) -> list[str]:
    lines = ["         correct    accuracy   95 % interval     published"]
    for key, title in TITLES.items():
        row = model[key]
        low, high = row["interval95"]
        counts = f"{row['correct']}/{model['images']}"
        line = f"{title}  {counts:>11}  {row['percent']:7.2f} %  [{low:6.2f}, {high:6.2f}]"
        if row["published"] is not None:
            line += f"  {row['published']:7.2f} % ({_verdict(model, row)})"
        lines.append(line)
    return lines + _note([model])


def _several(models: list[dict[str, Any]]) -> list[str]:
    width = max(len(model["name"]) for model in models)
    lines = [f"{'':<{width}}  top-1  published            top-5  published"]
    for model in models:
        cells = [f"{model['name']:<{width}}"]
        for key in TITLES:
            row = model[key]
            published = ""
            if row["published"] is not None:
                published = f"{row['published']:5.2f} ({_verdict(model, row)})"
            cells.append(f"{row['percent']:5.2f}  {published:<18}")
        lines.append("  ".join(cells).rstrip())
    return lines + _note(models)


def _verdict(model: dict[str, Any], row: dict[str, Any]) -> str:
    words = ("differs", "agrees") if model["same_images"] else ("outside", "inside")
    return words[row["agrees"]]


def _note(models: list[dict[str, Any]]) -> list[str]:
    others = sorted(
        {m["published_on"] for m in models if m["published_on"] and not m["same_images"]}
    )
    return [
        f"published on {where}; these are not known to be the same: inside or outside the interval"
        for where in others
    ]


def _real(row: dict[str, Any]) -> str:
    low, high = row["interval95"]
    return f"{row['correct']}/{row['images']} = {row['percent']:.2f} % [{low:.2f}, {high:.2f}]"
