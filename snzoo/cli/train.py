"""``snzoo train``."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import os
import re
import shlex
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from snzoo.cli.common import MODEL, WEIGHTS, add_device_option, path, positive
from snzoo.cli.output import show, warn
from snzoo.errors import ArgumentError, DataError, first_line
from snzoo.recipes import Recipe
from snzoo.training.config import CHOICES, IMAGENET, TrainingConfig

if TYPE_CHECKING:
    from snzoo.training.plan import Plan


def add_commands(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    about = "train or finetune a network on labeled photos"
    parser = commands.add_parser(
        "train", parents=parents, help=about, description=about, allow_abbrev=False
    )
    parser.set_defaults(run=run)
    _add_what(parser.add_argument_group("what"))
    _add_how(parser.add_argument_group("how"))
    about = "a value replaces that of the recipe; docs/training.md explains each of them"
    _add_recipe(parser.add_argument_group("recipe", description=about))


def _add_what(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    about = "folder with the training photos (train/, ...) and the validation photos (val/, ...)"
    add("data", type=path, nargs="?", metavar="DATA", help=about)
    add("--imagenet", type=path, metavar="PATH", help="as DATA, with the 1,000 classes of ImageNet")
    about = "validation photos (for face networks: a verification set), if not in DATA"
    add("--validation", type=path, metavar="PATH", help=about)
    about = "text file with the names of the classes, one a line, in the order of the labels"
    add("--classes", type=path, metavar="FILE", help=about)
    add("--model", metavar="NAME", help=f"{MODEL} (default: the network of the recipe)")
    add("--pretrained", action="store_true", help="start from the zoo's weights")
    add("--weights", type=path, metavar="FILE", help=f"start from this {WEIGHTS}")
    add("--width", type=positive, metavar="N", help="channels of the stem (default: the model's)")
    about = "SN with batch statistics, or without (default: the model's)"
    add("--using-bn", action=argparse.BooleanOptionalAction, default=None, help=about)
    about = (
        "a model with a recipe, or 'finetune' (default: the model's own, or finetune if it starts "
        "from weights or has none)"
    )
    add("--recipe", metavar="NAME", help=about)
    add("--output", type=path, metavar="RUN", help="folder of the run (default: run)")
    add("--resume", action="store_true", help="continue the run in the folder of --output")
    add("--dry-run", action="store_true", help="print the resolved plan and stop")


def _add_how(group: argparse._ArgumentGroup) -> None:
    add_device_option(group)
    add = group.add_argument
    add("--seed", type=int, metavar="N", help="seed of all random numbers (default: 0)")
    about = "number of threads that read photos (default: the number of cores)"
    add("--workers", type=positive, metavar="N", help=about)
    add("--precision", choices=CHOICES["precision"], help="arithmetic (default: fp32)")
    add("--compile", action="store_true", help="use torch.compile")
    add("--channels-last", action="store_true", help="use the channels-last memory format")
    about = "compute batch statistics over all processes (SyncSN, SyncBN)"
    add("--sync-norm", action="store_true", help=about)
    about = "fail: stop at a photo that cannot be read (default); skip: name it and leave it out"
    add("--on-error", choices=CHOICES["on_error"], help=about)
    about = "minutes between checkpoints within an epoch (default: 10)"
    add("--save-minutes", type=float, metavar="N", help=about)
    add("--half", action="store_true", help="store large weights of the result in float16")
    about = "write event files for TensorBoard too"
    add("--tensorboard", action="store_true", help=about)


def _add_recipe(group: argparse._ArgumentGroup) -> None:
    """Add an option for each value of a recipe, with its description in the docstring."""
    lines = inspect.cleandoc(Recipe.__doc__ or "").partition("Attributes:\n")[2]
    about = dict(re.findall(r"^    (\w+): (.*(?:\n        .*)*)", lines, re.MULTILINE))
    about = {name: " ".join(text.replace("``", "").split())[:-1] for name, text in about.items()}
    for field in dataclasses.fields(Recipe):
        option = "--" + field.name.replace("_", "-")
        group.add_argument(
            option,
            dest=f"recipe.{field.name}",
            default=argparse.SUPPRESS,  # None is a value of some fields
            help=about.get(field.name),
            **_describe_value(field.type),
        )


def _describe_value(kind: Any) -> dict[str, Any]:
    """Return the arguments of ``add_argument`` for a field of this type."""
    if typing.get_origin(kind) is types.UnionType:  # ... | None
        described = _describe_value(typing.get_args(kind)[0])
        if kind := described.get("type"):
            return described | {"type": _or_none(kind)}
        return described
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        return {"choices": choices, "type": type(choices[0])}
    if typing.get_origin(kind) is tuple:
        parts = typing.get_args(kind)
        count = "*" if Ellipsis in parts else len(parts)
        return {"nargs": count, "type": parts[0], "metavar": "N"}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": kind, "metavar": "N"}


def _or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return None if text == "none" else kind(text)

    parse.__name__ = getattr(kind, "__name__", "value")  # argparse names it in errors
    return parse


def run(args: argparse.Namespace) -> int:
    given = {name: value for name, value in vars(args).items() if value is not None}
    names = {field.name for field in dataclasses.fields(TrainingConfig)} & given.keys()
    options = {name: given[name] for name in names} | _choose_data(args)
    config = TrainingConfig(**options, overrides=_choose_values(args))

    from snzoo.training.run import run_training

    def prepare(plan: Plan) -> bool:
        show(*describe_plan(plan, config))
        if args.dry_run:
            show(*describe_recipe(plan, config))
        return not args.dry_run

    command = shlex.join(["snzoo", *sys.argv[1:]])
    result = run_training(
        config, show=show, warn=warn, progress=True, prepare=prepare, command=command
    )
    if result and os.environ.get("RANK", "0") == "0":
        kind = " pairs" if result.pairs else ""
        share = f"{result.correct}/{result.images}{kind} ({result.top1:.2f} %)"
        show(f"best: epoch {result.epoch}, validation {share}, kept in {result.best}")
    return 0


def _choose_data(args: argparse.Namespace) -> dict[str, Any]:
    if (args.data is None) == (args.imagenet is None):
        raise ArgumentError("name one folder of photos: DATA, or --imagenet PATH")
    if args.imagenet is not None:
        if args.classes is not None:
            raise ArgumentError("--imagenet has its own classes; leave out --classes")
        return {"data": args.imagenet, "classes": IMAGENET}
    return {} if args.classes is None else {"classes": read_classes(args.classes)}


def read_classes(file: Path) -> tuple[str, ...]:
    """Return the names of classes in a text file, one a line.

    Raises:
        DataError: the file cannot be read, has fewer than two names, or has a name twice.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"can't read the classes in {file}: {first_line(error)}") from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) < 2:
        raise DataError(f"{file} must name at least two classes, one a line; it has {len(names)}")
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise DataError(f"{file} names the class {twice[0]} twice")
    return names


def _choose_values(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the recipe that were given."""
    return {
        name.removeprefix("recipe."): tuple(value) if isinstance(value, list) else value
        for name, value in vars(args).items()
        if name.startswith("recipe.")
    }


def describe_plan(plan: Plan, config: TrainingConfig) -> Iterator[str]:
    """Yield the lines that say what a run does."""
    recipe, names = plan.recipe, " ".join(config.overrides)
    start = "the zoo's weights" if config.pretrained else plan.spec.weights or "random weights"
    kind = "people" if plan.spec.network.is_face else "classes"
    yield f"network     {plan.name}, {plan.num_classes:,} {kind}, from {start}"
    yield f"training    {plan.train.description}"
    yield f"validation  {plan.validation.description}"
    scaled = f"; lr {recipe.lr:g}, scaled with batch_size" if _scales_lr(config) else ""
    yield f"recipe      {plan.recipe_name}{f', except {names}' if names else ''}{scaled}"
    at_a_time = f", {recipe.images_per_gpu} at a time" if recipe.images_per_gpu else ""
    yield (
        f"steps       {plan.steps:,}: {recipe.epochs} epochs of {plan.steps_per_epoch:,}, with "
        f"{recipe.batch_size} images{at_a_time}"
    )


def _scales_lr(config: TrainingConfig) -> bool:
    """Return whether the learning rate follows from another batch size than the recipe's."""
    return "batch_size" in config.overrides and "lr" not in config.overrides


def describe_recipe(plan: Plan, config: TrainingConfig) -> Iterator[str]:
    """Yield a line for each value of the recipe."""
    for name, value in dataclasses.asdict(plan.recipe).items():
        text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        mark = "  (given)" if name in config.overrides else ""
        if name == "lr" and _scales_lr(config):
            mark = "  (scaled with batch_size)"
        yield f"  {name:<21} {'none' if value is None else text}{mark}".rstrip()
