"""``snzoo convert``."""

from __future__ import annotations

import argparse
from typing import Any

from snzoo.cli.common import MODEL, WEIGHTS, check_survives, choose_entry, path
from snzoo.cli.output import show
from snzoo.errors import ArgumentError


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "convert a batch norm network to Switchable Normalization, or back"
    parser = commands.add_parser("convert", parents=parents, help=about, description=about)
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("model", metavar="NAME|FILE", help=f"{MODEL}, or a checkpoint that names its model")
    add("--weights", type=path, metavar="FILE", help=WEIGHTS)
    add("--norm", choices=("sn", "bn"), required=True, help="the norm of the result")
    about = "safetensors file or folder to write"
    add("--output", type=path, required=True, metavar="FILE", help=about)
    about = "sn: the share of BN in the gates, between 0 and 1 (default: nearly 1)"
    add("--share", type=float, metavar="S", help=about)
    about = "bn: the largest share of IN and LN that is dropped (default: 0.001)"
    add("--tolerance", type=float, metavar="T", help=about)


def run(args: argparse.Namespace) -> int:
    from snzoo.nn import convert_to_batchnorm, convert_to_switchnorm
    from snzoo.share import save_pretrained

    options = {"sn": ("share", args.share), "bn": ("tolerance", args.tolerance)}
    name, value = options.pop(args.norm)
    ((other, unused),) = options.values()
    if unused is not None:
        raise ArgumentError(f"--{other} is not for --norm {args.norm}; leave it out")
    spec = choose_entry(args, args.model)
    check_survives(args.output, args.weights)
    model = spec.load()
    convert: Any = convert_to_switchnorm if args.norm == "sn" else convert_to_batchnorm
    try:
        convert(model, **({} if value is None else {name: value}))
    except ValueError as error:
        raise ArgumentError(f"can't convert {args.model}: {error}") from None
    save_pretrained(model, args.output)
    assert model.spec is not None
    show(f"{args.output}: {model.spec.architecture}, converted from {args.model}")
    return 0
