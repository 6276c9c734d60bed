"""Measure networks of sparse SN with locked gates, before and after `snzoo.nn.simplify`.

python benchmarks/locked.py --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import copy
import sys

import harness
import torch
from harness import Document, Row
from stopwatch import measure
from torch import nn

import snzoo
from snzoo.errors import SnzooError
from snzoo.nn import SparseSwitchNorm2d, set_radius, simplify

# How the layers are locked: the norms of the mean and of the variance, one layer after the other.
LOCKS = {"BN": ["BN"], "IN, LN, BN in turns": ["IN", "LN", "BN"], "LN": ["LN"]}
STATS = ("IN", "LN", "BN")


def main() -> int | str:
    parser = harness.make_parser(
        __doc__,
        depth=(50, "layers of the ResNet"),
        size=(224, "pixels"),
        batch_size=([1, 8], "images at a time"),
    )
    args = parser.parse_args()

    def run() -> Document:
        rows = []
        for lock in LOCKS:
            networks = make_networks(f"resnet{args.depth}v1", LOCKS[lock])
            for batch in args.batch_size:
                harness.say(f"{lock}, batch {batch}")
                x = torch.randn(batch, 3, args.size, args.size)
                rows.append({"locked to": lock, "batch": batch} | compare(networks, x, args.rounds))
        return {
            "title": f"Locked sparse SN: ResNet-{args.depth}, {args.size} pixels, inference",
            "rounds": args.rounds,
            "measurements": rows,
        }

    return harness.run_benchmark(run, markdown, args.output)


def make_networks(name: str, lock: list[str]) -> dict[str, nn.Module]:
    """Return a locked network, the same one simplified, and batch norm's, in evaluation mode."""
    torch.manual_seed(0)
    sparse = snzoo.create_model(f"{name}_ssn", drop_rate=0.0)
    layers = [layer for layer in sparse.modules() if isinstance(layer, SparseSwitchNorm2d)]
    for i, layer in enumerate(layers):
        for gates in (layer.mean_weight, layer.var_weight):
            gates.data.zero_()
            gates.data[STATS.index(lock[i % len(lock)])] = 1
        nn.init.uniform_(layer.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    set_radius(sparse, 1)
    sparse.eval()
    batch_norm = snzoo.create_model(f"{name}_bn", stem_pool="ceil").eval()
    return {"sparse": sparse, "simplified": simplify(copy.deepcopy(sparse)), "BN": batch_norm}


@torch.inference_mode()
def compare(networks: dict[str, nn.Module], x: torch.Tensor, rounds: int) -> Row:
    """Return the seconds of each network, and the ratios to the simplified one in each round."""
    before, after = networks["sparse"](x), networks["simplified"](x)
    error = float((before - after).abs().max() / before.abs().max())
    if not error < 1e-4:
        raise SnzooError(f"the logits of the simplified network differ by {error:.1e}")
    works = {name: (lambda network=network: network(x)) for name, network in networks.items()}
    seconds = measure(works, rounds, "cpu")["seconds"]
    return {
        "error": error,
        "seconds": seconds,
        "speed": harness.spreads(
            {n: harness.divide(seconds[n], seconds["simplified"]) for n in ("sparse", "BN")}
        ),
    }


def markdown(document: Document) -> str:
    """Return the document as Markdown, without the single rounds."""
    table = [["locked to", "sparse, ms", "simplified, ms", "BN, ms"]]
    table[0] += ["speed to sparse", "speed to BN", "logits differ by"]
    for row in document["measurements"]:
        times = (row["seconds"][name] for name in ("sparse", "simplified", "BN"))
        cells = [f"{row['locked to']}, batch {row['batch']}"]
        cells += [f"{1000 * min(seconds):.1f}" for seconds in times]
        cells += [harness.show_spread(row["speed"][name]) for name in ("sparse", "BN")]
        table.append([*cells, f"{row['error']:.0e}"])
    text = (
        "Milliseconds are those of the fastest round. *Speed* is the other network's time divided "
        "by that of the simplified one in the same round: median (least … most)."
    )
    return harness.page(document, [], [text], harness.table(*table))


if __name__ == "__main__":
    sys.exit(main())
