"""``snzoo list`` and ``snzoo info``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from snzoo.cli.common import MODEL
from snzoo.cli.output import show, show_json
from snzoo.entry import Entry, File
from snzoo.errors import UnknownModelError
from snzoo.models.architectures import EMBEDDING_SIZE, NORMS
from snzoo.registry import get_info, list_models
from snzoo.spec import ModelSpec

Key = Callable[[Entry], Any]

SORT_KEYS: dict[str, Key] = {
    "name": lambda entry: entry.name,
    "top1": lambda entry: _rank(entry, "top1"),
    "top5": lambda entry: _rank(entry, "top5"),
    "rank1": lambda entry: -entry.identification[0].rank1 if entry.identification else 0.0,
    "params": lambda entry: entry.num_params or float("inf"),
}


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "list the models of the zoo"
    parser = commands.add_parser("list", parents=parents, help=about, description=about)
    parser.set_defaults(run=run_list)
    add = parser.add_argument
    add(
        "patterns",
        nargs="*",
        metavar="PATTERN",
        help="wildcards, e.g. 'resnet50*' (default: all models)",
    )
    add("--exclude", nargs="+", default=[], metavar="PATTERN", help="leave out models that match")
    add("--norm", choices=NORMS, help="only models with this norm")
    add("--pretrained", action="store_true", help="only models with weights")
    add("--sort", choices=list(SORT_KEYS), help="sort key (default: the order of the manifest)")
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--names", action="store_true", help="print one name per line")
    formats.add_argument("--json", action="store_true", help="print JSON")
    formats.add_argument("--markdown", action="store_true", help="print the table of the README")

    about = "show everything that is known about a model"
    parser = commands.add_parser("info", parents=parents, help=about, description=about)
    parser.set_defaults(run=run_info)
    parser.add_argument("name", help=MODEL)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_list(args: argparse.Namespace) -> int:
    names = list_models(
        args.patterns or "*",
        exclude_filters=args.exclude,
        norm=args.norm,
        pretrained=args.pretrained,
    )
    entries = [get_info(name) for name in names]
    if not entries:
        wanted = f" {' '.join(args.patterns)!r}" if args.patterns else ""
        raise UnknownModelError(f"no model matches{wanted} with these filters; see: snzoo list")
    if args.sort:
        entries.sort(key=SORT_KEYS[args.sort])
    if args.json:
        show_json([_row(entry) for entry in entries])
    elif args.names:
        show(*(entry.name for entry in entries))
    elif args.markdown:
        show(*markdown_table(entries))
    else:
        show(*_text_table([_row(entry) for entry in entries]))
    return 0


def run_info(args: argparse.Namespace) -> int:
    spec = ModelSpec.find(args.name)
    if spec.weights is not None:  # these fields describe the zoo's file, not the given one
        spec = replace(spec, num_params=None, training=None, file=None)
    if args.json:
        weights = None if spec.weights is None else str(spec.weights)
        show_json(asdict(replace(spec, weights=None)) | {"weights": weights})
    else:
        lines = [f"  {key:<14} {value}" for key, value in _describe(spec) if value]
        show(spec.name, *lines)
    return 0


def _describe(spec: ModelSpec) -> Iterable[tuple[str, str]]:
    """Yield titles and values; an unknown value may be empty."""
    yield "architecture", spec.architecture
    yield "arguments", _format_pairs(spec.arguments)
    yield "parameters", f"{spec.num_params:,}" if spec.num_params else ""
    yield "classes", spec.classes if isinstance(spec.classes, str) else ", ".join(spec.classes)
    if spec.is_face:
        yield "embeddings", f"{EMBEDDING_SIZE} values of a face, of length 1"
    for r in spec.published:
        figures = f"top-1 {r.top1:.2f}, top-5 {r.top5:.2f} on {r.images:,} images of {r.dataset}"
        yield "published", f"{figures} ({r.source})"
    for face in spec.identification:
        yield "published", f"{face.describe()} ({face.source})"
    yield "preprocessing", _format_pairs(asdict(spec.preprocessing))
    yield "training", _format_pairs(spec.training or {})
    for group, values in (spec.recipe.in_effect() if spec.recipe else {}).items():
        shown = {name: _format_value(value) for name, value in values.items()}
        yield "recipe", f"{group}: {_format_pairs(shown)}"
    yield "weights", str(spec.weights or "")
    if file := spec.file:
        yield "file", file.bundled or file.name or "(name not published)"
        yield from (("url", url) for url in file.urls)
        yield from (("page", page) for page in file.pages)
        checksums = {"sha256": file.sha256, "md5": file.md5}
        found = [f"{name} {value}" for name, value in checksums.items() if value]
        yield "checksum", found[0] if found else "never published"
        yield "size", f"{file.size:,} bytes" if file.size else "never published"
    yield "license", spec.license or "not stated"
    yield "provenance", spec.provenance


def markdown_table(entries: Sequence[Entry]) -> list[str]:
    """Return the lines of the tables in the README: the classifiers, then the face networks."""
    faces = [entry for entry in entries if entry.identification]
    lines = _classifiers_table([entry for entry in entries if not entry.identification])
    return [*lines, *(["", *_faces_table(faces)] if faces else [])]


def _classifiers_table(entries: Sequence[Entry]) -> list[str]:
    lines = ["| name | parameters | top-1 | top-5 | measured on | checksum | weights' license |"]
    lines.append("| --- | ---: | ---: | ---: | --- | --- | --- |")
    for entry in entries:
        row = _row(entry)
        cells = [f"`{row['name']}`", f"{row['num_params']:,}" if row["num_params"] else ""]
        cells += [_figure(row["top1"]), _figure(row["top5"])]
        cells += [row["dataset"] or "", row["checksum"] or ""]
        lines.append(f"| {' | '.join([*cells, row['license'] or 'not stated'])} |")
    return lines


def _faces_table(entries: Sequence[Entry]) -> list[str]:
    lines = ["| name | parameters | rank-1 | measured on | checksum | weights' license |"]
    lines.append("| --- | ---: | ---: | --- | --- | --- |")
    for entry in entries:
        row, found = _row(entry), entry.identification[0]
        cells = [f"`{row['name']}`", f"{row['num_params']:,}" if row["num_params"] else ""]
        measured_on = f"{found.dataset}, {found.distractors:,} distractors"
        cells += [_figure(found.rank1), measured_on, row["checksum"] or ""]
        lines.append(f"| {' | '.join([*cells, row['license'] or 'not stated'])} |")
    return lines


def _row(entry: Entry) -> dict[str, Any]:
    result, file = (entry.published or (None,))[0], entry.file
    found = (entry.identification or (None,))[0]
    first = result or found
    return {
        "name": entry.name,
        "num_params": entry.num_params,
        "top1": result and result.top1,
        "top5": result and result.top5,
        "images": result and result.images,
        "rank1": found and found.rank1,
        "dataset": first and first.dataset,
        "checksum": file and _checksum(file),
        "sha256": file and file.sha256,
        "license": entry.license if file else None,
    }


def _checksum(file: File) -> str:
    return "sha256" if file.sha256 else "md5" if file.md5 else "never published"


def _text_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    width = max(len(row["name"]) for row in rows)
    faces = any(row["rank1"] is not None for row in rows)
    head = f"{'top-1':>6}  {'top-5':>6}  {'rank-1  ' if faces else ''}{'on':<15}  checksum"
    lines = [f"{'name':<{width}}  {'params':>7}  {head}"]
    for row in rows:
        params = f"{row['num_params'] / 1e6:.1f} M" if row["num_params"] else ""
        top1, top5 = _figure(row["top1"]), _figure(row["top5"])
        checksum = row["checksum"] or "architecture only"
        rank1 = f"{_figure(row['rank1']):>6}  " if faces else ""
        figures = f"{params:>7}  {top1:>6}  {top5:>6}  {rank1}{row['dataset'] or '':<15}"
        lines.append(f"{row['name']:<{width}}  {figures}  {checksum}")
    return lines


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _rank(entry: Entry, which: str) -> tuple[bool, float]:
    """Return the key that sorts by accuracy, with figures on ImageNet before all others."""
    if not entry.published:
        return True, 0.0
    result = entry.published[0]
    return not result.dataset.startswith("imagenet"), -getattr(result, which)


def _format_pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(map(_format_value, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
