"""Measure the time from `import torch` to a network with cached weights: snzoo and torchvision.

python benchmarks/cold_start.py --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import harness
import torch
import torchvision
from harness import Document, Row
from processes import run_python
from torch import Tensor

import snzoo
from snzoo.errors import SnzooError

# The code of a fresh process. A memory-mapped file has hardly been read when the model is ready, so
# reading all of it is timed too. The sum of the weights shows whether they are those in the cache.
CHILD = """
import json, sys, time, torch
name, start = sys.argv[1], time.perf_counter()
{imports}
imported = time.perf_counter()
model = {call}
made = time.perf_counter()
torch.set_num_threads(1)  # idle threads would count as other work
total = sum(value.sum(dtype=torch.float64).item() for value in model.state_dict().values())
read = time.perf_counter()
print(json.dumps([imported - start, made - imported, read - made, total]))
"""
# Modules that create_model would import are imported first, so that they count as imports.
OURS = CHILD.format(
    imports="import snzoo, snzoo.models.build, snzoo.weights",
    call="snzoo.create_model(name, pretrained=True)",
)
THEIRS = CHILD.format(
    imports="import torchvision", call='getattr(torchvision.models, name)(weights="DEFAULT")'
)
PARTS = {"seconds": "imports and model", "imports": "imports", "model": "model"}
PARTS |= {"read": "then every weight read"}


class Contender(NamedTuple):
    """A library; ``environment`` names its cache, ``total`` is the sum of the values in it."""

    name: str
    model: str
    code: str
    environment: Mapping[str, str]
    total: float


def main(arguments: Sequence[str] | None = None) -> int | str:
    parser = harness.make_parser(__doc__, rounds=10)
    add = parser.add_argument
    add("--model", default="resnet101v2_sn_8x32", help="snzoo's model, without a known checksum")
    add("--peer", default="resnet101", help="torchvision's model with default weights")
    args = parser.parse_args(arguments)
    return harness.run_benchmark(
        lambda: run(args.model, args.peer, args.rounds), markdown, args.output
    )


def run(model: str, peer: str, rounds: int) -> Document:
    """Fill both caches, measure, and return the document."""
    with caches(model, peer) as contenders:
        for contender in contenders:  # not timed; this brings the files into the page cache
            start(contender)
        rows = harness.measure_in_turns(contenders, rounds, start)
    return {
        "title": "Cold starts",
        "rounds": rounds,
        "models": {"snzoo": model, "torchvision": peer},
        "comparison": compare(rows, "snzoo", "torchvision"),
        "measurements": rows,
    }


@contextmanager
def caches(model: str, peer: str) -> Iterator[list[Contender]]:
    """Yield both contenders. Their caches hold random weights instead of the published ones."""
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
        published = f"{folder}/published.pth"
        torch.save(ours, published)
        home = {"SNZOO_HOME": f"{folder}/snzoo", "SNZOO_OFFLINE": "1"}
        run_python(["-P", "-m", "snzoo", "import", published, "--model", model], home)
        yield [
            Contender("snzoo", model, OURS, home, _total(ours)),
            Contender("torchvision", peer, THEIRS, hub, _total(theirs)),
        ]


def start(contender: Contender) -> Row:
    """Return the seconds of the parts of one start in a fresh process."""
    printed = run_python(["-P", "-c", contender.code, contender.model], contender.environment)
    imports, model, read, total = json.loads(printed)
    if not math.isclose(total, contender.total, rel_tol=1e-9):
        raise SnzooError(f"{contender.name} did not load the weights in its cache")
    seconds = zip(PARTS, (imports + model, imports, model, read), strict=True)
    return {"contender": contender.name} | {part: round(value, 5) for part, value in seconds}


def _total(state: Mapping[str, Tensor]) -> float:
    return sum(value.sum(dtype=torch.float64).item() for value in state.values())


def compare(rows: Sequence[Row], ours: str, theirs: str) -> Row:
    """Return the seconds of both for each part, and the ratio ``ours`` to ``theirs`` per round."""
    comparison = {}
    for part in PARTS:
        seconds = harness.by_round(rows, part)
        ratio = harness.divide(seconds[ours], seconds[theirs])
        comparison[part] = harness.spreads(seconds | {"ratio": ratio}, digits=5)
    return comparison


def markdown(document: Document) -> str:
    """Return the document as Markdown, without the single rounds."""
    labels = {name: f"{name}, `{model}`, s" for name, model in document["models"].items()}
    comparison, table = document["comparison"], [["", *PARTS.values()]]
    for name, label in (labels | {"ratio": "ratio"}).items():
        table.append([label, *(harness.show_spread(comparison[part][name], 3) for part in PARTS)])
    about = (
        "The time starts after `import torch`, in a fresh process; random weights in both caches, "
        f"the files in the page cache; rounds: {document['rounds']}."
    )
    note = "Medians (least … most); each ratio is of one round."
    return harness.page(document, [about], harness.table(*table), [note])


if __name__ == "__main__":
    sys.exit(main())
