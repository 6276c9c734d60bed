"""``snzoo fetch``, ``import``, ``verify``, ``cache`` and ``pin``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from snzoo.cli.output import show, warn
from snzoo.errors import ArgumentError, CheckpointError, SnzooError, UnknownModelError
from snzoo.manifest import load_manifest
from snzoo.registry import get_info, list_models
from snzoo.spec import ModelSpec


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    def add(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(
            name, parents=parents, help=about, description=about
        )
        parser.set_defaults(run=run)
        return parser

    parser = add("fetch", run_fetch, "download and verify weights")
    parser.add_argument("names", nargs="+", metavar="NAME", help="model name or wildcard")

    parser = add("import", run_import, "verify a file downloaded by hand, and keep its weights")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument(
        "--model", metavar="NAME", help="model name (default: the model whose file has this name)"
    )

    parser = add("verify", run_verify, "verify the hashes of stored weights again")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="model name or wildcard (default: all stored)"
    )

    parser = add("cache", run_cache, "list the cache, or remove models from it")
    parser.add_argument("action", nargs="?", choices=["list", "prune"], default="list")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="models to remove (default: everything)"
    )

    parser = add("pin", run_pin, "write checksums recorded on first use into a manifest")
    parser.add_argument("manifest", type=Path, metavar="MANIFEST")


def run_fetch(args: argparse.Namespace) -> int:
    from snzoo.weights import fetch_weights

    status = 0
    for entry in _find_entries(args.names):
        try:
            show(f"{entry.name}: {fetch_weights(entry, entry.layout)}")
        except SnzooError as error:  # the others may succeed
            warn(str(error))
            status = 1
    return status


def run_import(args: argparse.Namespace) -> int:
    from snzoo.weights import import_file

    entry = get_info(args.model) if args.model else _find_by_file_name(args.file)
    show(f"{entry.name}: {import_file(entry, args.file, entry.layout)}")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from snzoo.weights import verify

    status = 0
    for entry in _find_entries(args.names or list_models(pretrained=True)):
        try:
            path = verify(entry)
            if path is not None:
                show(f"{entry.name}: {path} is as verified")
            elif args.names:
                raise CheckpointError(f"it is not stored; to download it: snzoo fetch {entry.name}")
        except SnzooError as error:
            warn(f"{entry.name}: {error}")
            status = 1
    return status


def run_cache(args: argparse.Namespace) -> int:
    from snzoo.evaluation.records import prune_runs, unfinished_runs
    from snzoo.weights import prune, stored
    from snzoo.weights.cache import home

    sizes, runs = stored(), unfinished_runs()
    if args.action == "list":
        if args.names:
            raise ArgumentError("snzoo cache list takes no names")
        for name, size in sizes.items():
            show(f"{name:<28} {size / 1e6:8.1f} MB")
        if runs:
            show(f"records of {runs} unfinished evaluations, for --resume")
        show(f"{sum(sizes.values()) / 1e6:.1f} MB in {home()}")
        return 0
    for name in args.names or sizes:
        prune(name)
        show(f"{name}: removed")
    if runs and not args.names:
        prune_runs()
        show(f"records of {runs} unfinished evaluations: removed")
    return 0


def run_pin(args: argparse.Namespace) -> int:
    from snzoo.weights import pin

    show(f"{args.manifest}: {', '.join(pin(args.manifest)) or 'nothing to pin'}")
    return 0


def _find_entries(names: list[str]) -> list[ModelSpec]:
    """Return the models of names and wildcards. A wildcard matches only models with weights."""
    entries = []
    for name in names:
        matches = list_models(name, pretrained=True) if set(name) & set("*?[") else [name]
        if not matches:
            raise UnknownModelError(
                f"no model with weights matches {name!r}; see: snzoo list --pretrained"
            )
        entries += [get_info(match) for match in matches]
    return entries


def _find_by_file_name(file: Path) -> ModelSpec:
    """Return the model whose published file has this name."""
    for entry in load_manifest().models.values():
        if entry.file is not None and entry.file.name == file.name:
            return get_info(entry.name)
    raise CheckpointError(
        f"no published file is named {file.name}; say which model it is: "
        f"snzoo import {file} --model NAME"
    )
