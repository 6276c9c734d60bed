"""``snzoo list`` and ``snzoo info``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from snzoo.cli.common import MODEL
from snzoo.errors import SnzooError
from snzoo.manifest import Entry, File
from snzoo.models.architectures import NORMS
from snzoo.registry import get_info, list_models
from snzoo.spec import ModelSpec

Key = Callable[[Entry], Any]

SORT_KEYS: dict[str, Key] = {
    "name": lambda entry: entry.name,
    "top1": lambda entry: _rank(entry, "top1"),
    "top5": lambda entry: _rank(entry, "top5"),
    "params": lambda entry: entry.num_params or float("inf"),
}


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser("list", parents=parents, help="the models of the zoo")
    parser.set_defaults(run=run_list)
    parser.add_argument("pattern", nargs="?", default="*", help="wildcard, e.g. 'resnet50*'")
    parser.add_argument("--norm", choices=NORMS, help="only this normalization")
    parser.add_argument("--pretrained", action="store_true", help="only models with weights")
    parser.add_argument("--sort", choices=list(SORT_KEYS), help="(the manifest's order)")
    parser.add_argument("--names", action="store_true", help="names alone, one a line")
    parser.add_argument("--json", action="store_true", help="names, figures and licenses as JSON")
    parser.add_argument("--markdown", action="store_true", help="the table of the README")

    parser = commands.add_parser("info", parents=parents, help="all that is known of a model")
    parser.set_defaults(run=run_info)
    parser.add_argument("name", help=MODEL)
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run_list(args: argparse.Namespace) -> int:
    names = list_models(args.pattern, norm=args.norm, pretrained=args.pretrained)
    entries = [get_info(name) for name in names]
    if not entries:
        raise SnzooError(f"no model fits {args.pattern!r} and the filters; see: snzoo list")
    if args.sort:
        entries.sort(key=SORT_KEYS[args.sort])
    if args.json:
        print(json.dumps([_row(entry) for entry in entries], indent=2))
    elif args.names:
        print("\n".join(entry.name for entry in entries))
    elif args.markdown:
        print(markdown_table(entries))
    else:
        print(_text_table([_row(entry) for entry in entries]))
    return 0


def run_info(args: argparse.Namespace) -> int:
    entry = ModelSpec.find(args.name)
    if entry.weights is not None:  # what is known of the zoo's file is not known of this one
        entry = replace(entry, num_params=None, training=None, file=None)
    if args.json:
        print(json.dumps(asdict(entry), indent=2, ensure_ascii=False))
        return 0
    lines = [("architecture", entry.architecture), ("arguments", _pairs(entry.arguments))]
    lines.append(("parameters", f"{entry.num_params:,}" if entry.num_params else ""))
    classes = (entry.classes,) if isinstance(entry.classes, str) else entry.classes
    lines.append(("classes", ", ".join(classes)))
    lines += [
        (
            "published",
            f"top-1 {r.top1:.2f}, top-5 {r.top5:.2f} on {r.images:,} images of {r.dataset} "
            f"({r.source})",
        )
        for r in entry.published
    ]
    lines.append(("preprocessing", _pairs(asdict(entry.preprocessing))))
    lines.append(("training", _pairs(entry.training or {})))
    if file := entry.file:
        lines += [("file", file.bundled or file.name or "(name not published)")]
        lines += [("url", url) for url in file.urls] + [("page", page) for page in file.pages]
        md5 = file.md5 and f"md5 {file.md5}"
        sha256 = file.sha256 and f"sha256 {file.sha256}"
        lines += [
            ("checksum", sha256 or md5 or "never published"),
            ("size", f"{file.size:,} bytes" if file.size else "never published"),
        ]
    lines += [("license", entry.license or "not stated"), ("provenance", entry.provenance)]
    print(entry.name)
    print("\n".join(f"  {key:<14} {value}" for key, value in lines if value))
    return 0


def markdown_table(entries: Sequence[Entry]) -> str:
    """The zoo's table in the README, which a test holds to this."""
    lines = ["| name | parameters | top-1 | top-5 | measured on | checksum | weights' license |"]
    lines.append("| --- | ---: | ---: | ---: | --- | --- | --- |")
    for entry in entries:
        row = _row(entry)
        cells = [f"`{row['name']}`", f"{row['num_params']:,}" if row["num_params"] else ""]
        cells += [_figure(row["top1"]), _figure(row["top5"])]
        cells += [row["dataset"] or "", row["checksum"] or ""]
        lines.append(f"| {' | '.join([*cells, row['license'] or 'not stated'])} |")
    return "\n".join(lines)


def _row(entry: Entry) -> dict[str, Any]:
    result, file = (entry.published or (None,))[0], entry.file
    return {
        "name": entry.name,
        "num_params": entry.num_params,
        "top1": result and result.top1,
        "top5": result and result.top5,
        "images": result and result.images,
        "dataset": result and result.dataset,
        "checksum": file and _checksum(file),
        "sha256": file and file.sha256,
        "license": entry.license if file else None,
    }


def _checksum(file: File) -> str:
    if not file.is_readable:
        return f"{file.format} file, not readable"
    return "sha256" if file.sha256 else "md5" if file.md5 else "never published"


def _text_table(rows: list[dict[str, Any]]) -> str:
    width = max(len(row["name"]) for row in rows)
    lines = [f"{'name':<{width}}  {'params':>7}  {'top-1':>6}  {'top-5':>6}  {'on':<15}  checksum"]
    for row in rows:
        params = f"{row['num_params'] / 1e6:.1f} M" if row["num_params"] else ""
        top1, top5 = _figure(row["top1"]), _figure(row["top5"])
        checksum = row["checksum"] or "architecture only"
        figures = f"{params:>7}  {top1:>6}  {top5:>6}  {row['dataset'] or '':<15}"
        lines.append(f"{row['name']:<{width}}  {figures}  {checksum}")
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _rank(entry: Entry, which: str) -> tuple[bool, float]:
    """ImageNet's figures first: those of another data set compare with nothing."""
    if not entry.published:
        return True, 0.0
    result = entry.published[0]
    return not result.dataset.startswith("imagenet"), -getattr(result, which)


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
