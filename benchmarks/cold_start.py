"""From `import torch` to a network with its cached weights: snzoo and torchvision.

python benchmarks/cold_start.py --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
import torchvision
from jobs import cores_elsewhere
from report import Document, check_output, circumstances, elsewhere, heading, save
from rounds import Row, rotated
from session import positive, say
from torch import Tensor

import snzoo
from snzoo.errors import SnzooError

# A fresh process does this. A memory-mapped file has hardly been read when the model is there:
# reading all of it is timed too, and the sum of it tells whether it was the file in the cache.
CHILD = """
import json, sys, time, torch
name, start = sys.argv[1], time.perf_counter()
{imports}
imported = time.perf_counter()
model = {call}
made = time.perf_counter()
torch.set_num_threads(1)  # idle threads would make it a measurement of other work
total = sum(value.sum(dtype=torch.float64).item() for value in model.state_dict().values())
read = time.perf_counter()
print(json.dumps([imported - start, made - imported, read - made, total]))
"""
# What create_model would import is imported before it, so that it counts as imports.
OURS = CHILD.format(
    imports="import snzoo, snzoo.models.build, snzoo.weights",
    call="snzoo.create_model(name, pretrained=True)",
)
THEIRS = CHILD.format(
    imports="import torchvision", call='getattr(torchvision.models, name)(weights="DEFAULT")'
)
PARTS = {"seconds": "imports and model", "imports": "imports", "model": "model"}
PARTS |= {"read": "then every weight read"}


@dataclass(frozen=True)
class Contender:
    """``environment`` names its cache, ``total`` is the sum of all the values in there."""

    name: str
    model: str
    code: str
    environment: Mapping[str, str]
    total: float


def main(arguments: Sequence[str] | None = None) -> int | str:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="resnet101v2_sn_8x32", metavar="NAME", help="snzoo's, no checksum known")
    add("--peer", default="resnet101", metavar="NAME", help="torchvision's, with default weights")
    add("--rounds", type=positive, default=10, metavar="R", help="measurements of each")
    add("--output", type=Path, metavar="FILE", help="write FILE.json, and FILE.md beside it")
    args = parser.parse_args(arguments)
    try:
        check_output(args.output)
        document = run(args.model, args.peer, args.rounds)
    except SnzooError as error:
        return f"cold_start.py: {error}"
    text = markdown(document)
    print(text, end="")
    if args.output:
        save(args.output, document, text)
    return 0


def run(model: str, peer: str, rounds: int) -> Document:
    """Fill both caches and measure.

    Raises:
        SnzooError: a name is unknown, or a process failed or loaded other weights.
    """
    with caches(model, peer) as contenders:
        for contender in contenders:  # untimed: the files into the page cache
            start(contender)
        rows = measure(contenders, rounds)
    models = {contender.name: contender.model for contender in contenders}
    found = circumstances()
    found["versions"]["safetensors"] = version("safetensors")
    return found | {
        "title": "Cold starts",
        "rounds": rounds,
        "models": models,
        "comparison": compare(rows, *models),
        "measurements": rows,
    }


@contextmanager
def caches(model: str, peer: str) -> Iterator[list[Contender]]:
    """Both contenders, with random weights in their caches for the published ones."""
    try:
        theirs = torchvision.models.get_model(peer).state_dict()
        url = torchvision.models.get_model_weights(peer)["DEFAULT"].url
    except ValueError as error:
        raise SnzooError(f"torchvision: {error}") from None
    ours = snzoo.create_model(model).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        hub = {"TORCH_HOME": f"{folder}/torch"}
        checkpoints = Path(folder, "torch", "hub", "checkpoints")
        checkpoints.mkdir(parents=True)
        torch.save(theirs, checkpoints / url.rpartition("/")[2])
        published = Path(folder, "published.pth")
        torch.save(ours, published)
        home = {"SNZOO_HOME": f"{folder}/snzoo", "SNZOO_OFFLINE": "1"}
        _python(["-m", "snzoo", "import", str(published), "--model", model], home)
        yield [
            Contender("snzoo", model, OURS, home, _total(ours)),
            Contender("torchvision", peer, THEIRS, hub, _total(theirs)),
        ]


def measure(contenders: Sequence[Contender], rounds: int) -> list[Row]:
    """Each once a round, in turn, each round beginning with another one."""
    rows = []
    for number in range(rounds):
        for contender in rotated(contenders, number):
            row, other = cores_elsewhere(partial(start, contender))
            rows.append(row | {"round": number + 1, "cores_elsewhere": round(other, 3)})
            say(f"round {number + 1} of {rounds}: {contender.name}: {row['seconds']:.3f} s")
    return rows


def start(contender: Contender) -> Row:
    """The parts of one start in a fresh process, in seconds."""
    output = _python(["-c", contender.code, contender.model], contender.environment)
    imports, model, read, total = json.loads(output)
    if not math.isclose(total, contender.total, rel_tol=1e-9):
        raise SnzooError(f"{contender.name} did not load the weights in its cache")
    seconds = zip(PARTS, (imports + model, imports, model, read), strict=True)
    return {"contender": contender.name} | {part: round(value, 5) for part, value in seconds}


def _python(arguments: Sequence[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-P", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    if done.returncode:
        raise SnzooError((done.stderr.splitlines() or [f"exit status {done.returncode}"])[-1])
    return done.stdout


def _total(state: Mapping[str, Tensor]) -> float:
    return sum(value.sum(dtype=torch.float64).item() for value in state.values())


def compare(rows: Sequence[Row], ours: str, theirs: str) -> Row:
    """Part → the seconds of both, and ``ours`` as a share of ``theirs``, round by round."""
    found = {name: [row for row in rows if row["contender"] == name] for name in (ours, theirs)}
    comparison = {}
    for part in PARTS:
        seconds = {name: [row[part] for row in each] for name, each in found.items()}
        ratios = [a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True)]
        comparison[part] = {name: _spread(values) for name, values in seconds.items()}
        comparison[part]["ratio"] = _spread(ratios)
    return comparison


def _spread(values: Sequence[float]) -> Row:
    found = {"median": median(values), "least": min(values), "most": max(values)}
    return {name: round(value, 5) for name, value in found.items()}


def markdown(document: Document) -> str:
    """The document for people; everything but the single rounds is in it."""
    labels = {name: f"{name}, `{model}`, s" for name, model in document["models"].items()}
    labels["ratio"] = "ratio"
    lines = [
        *heading(document),
        "From after `import torch`, each time in a fresh process; random weights in both caches, "
        f"the files in the page cache; rounds: {document['rounds']}.",
        elsewhere(document),
        "",
        "|" + "".join(f" | {title}" for title in PARTS.values()) + " |",
        "| --- |" + " ---: |" * len(PARTS),
    ]
    for name, label in labels.items():
        cells = (document["comparison"][part][name] for part in PARTS)
        texts = [f"{f['median']:.3f} ({f['least']:.3f} … {f['most']:.3f})" for f in cells]
        lines.append(f"| {label} | {' | '.join(texts)} |")
    return "\n".join([*lines, "", "Medians (least … most); a ratio is of one round."]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
