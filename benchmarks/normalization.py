"""Measure speed and memory of SN (snzoo's and the textbook's) and batch norm.

python benchmarks/normalization.py --output benchmarks/results/NAME.json

Layers and networks run in turns in this process, on the same input. README.md has the method.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from allocations import kept_bytes, peak_bytes
from figures import PARTS, compare, markdown
from harness import Document, Row, cores_elsewhere, make_parser, positive, run_benchmark, say
from stopwatch import Work, measure
from workloads import LAYOUTS, PRECISIONS, Case, Setting, prepare

from snzoo.errors import SnzooError

# Channels and side of the maps that a ResNet-50 normalizes at 224×224.
RESNET50 = (
    *((64, 112), (64, 56), (256, 56), (128, 28), (512, 28)),
    *((256, 14), (1024, 14), (512, 7), (2048, 7)),
)
NETWORKS = [f"resnet{depth}v1" for depth in (18, 34, 50, 101, 152)]
COPY_MIB = 256


def main(arguments: Sequence[str] | None = None) -> int | str:
    args = _options(arguments)
    return run_benchmark(partial(run, args), markdown, args.output)


def run(args: argparse.Namespace) -> Document:
    """Return all measurements and the figures computed from them.

    Raises:
        SnzooError: snzoo's results are not the textbook's, or the device does not exist.
    """
    setting = Setting(args.device, args.precision, args.compile)
    device = _device(setting.device) | ({"compiled by": "Inductor"} if args.compile else {})
    rows = []
    for case in cases(args):
        say(f"{case.part}: {case.label}, batch {case.shape[0]}, {case.layout}")
        contenders = prepare(case, setting)
        works = {name: contender.step for name, contender in contenders.items()}
        rows.append(_about(case) | _measured(works, setting, args.rounds))
        del contenders, works  # freed before the next case
    copies = [copying(setting, args.rounds)] if "layers" in args.only else []
    rate = 2 * COPY_MIB * 2**20 / median(copies[0]["seconds"]["copy"]) if copies else None
    return {
        "title": "Normalization",
        "device": device,
        "precision": setting.precision,
        "rounds": args.rounds,
        "copy_gb_per_s": rate and round(rate / 1e9, 3),
        "comparisons": compare(rows, rate, setting.dtype.itemsize),
        "memory": list(memory(args, setting)) if "memory" in args.only else [],
        "measurements": rows + copies,
    }


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """Yield the cases to time, in the order of ``PARTS``."""
    for part in PARTS:
        if part in args.only:
            yield from _cases(args, part)


def _cases(args: argparse.Namespace, part: str) -> Iterator[Case]:
    training = part.endswith("training")
    for size in [args.training_batch_size] if training else args.batch_size:
        for layout in LAYOUTS:
            if part.startswith("networks"):
                shape = (size, 3, args.image_size, args.image_size)
                yield Case(training, shape, layout, args.network)
            else:
                for channels, side in args.maps:
                    yield Case(training, (size, channels, side, side), layout)


def copying(setting: Setting, rounds: int) -> Row:
    """Return the time of a copy of ``COPY_MIB``, which is too large for any cache."""
    source = torch.ones(COPY_MIB * 2**20, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    works = {"copy": lambda: target.copy_(source)}
    return {"part": "copy"} | _measured(works, setting, rounds)


def _measured(works: Mapping[str, Work], setting: Setting, rounds: int) -> Row:
    row: Row
    row, elsewhere = cores_elsewhere(partial(measure, works, rounds, setting.device))
    return {"cores_elsewhere": round(elsewhere, 3)} | row


def memory(args: argparse.Namespace, setting: Setting) -> Iterator[Row]:
    """Yield the memory of a training step and of an inference, for each case and contender."""
    for case in (*_cases(args, "layers-training"), *_cases(args, "networks-training")):
        say(f"memory: {case.label}, batch {case.shape[0]}, {case.layout}")
        found: dict[str, Row] = {}
        for name, contender in prepare(case, setting).items():
            found[name] = {
                "kept_bytes": kept_bytes(contender.forward, contender.x, setting.device),
                "training_peak_bytes": peak_bytes(contender.step, setting.device),
            }
        for name, contender in prepare(replace(case, training=False), setting).items():
            found[name]["inference_peak_bytes"] = peak_bytes(contender.step, setting.device)
        yield from (_about(case) | {"contender": name} | row for name, row in found.items())


def _about(case: Case) -> Row:
    return {"part": case.part, "label": case.label, "shape": case.shape, "layout": case.layout}


def _device(name: str) -> Document:
    """Return the device and its settings, on which the results depend."""
    if name == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return {"on": "cpu", "threads": torch.get_num_threads(), "instructions": capability}
    if not torch.cuda.is_available():
        raise SnzooError("there is no CUDA device here; --device cpu takes the processor")
    return {
        "on": torch.cuda.get_device_name(name),
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "TF32 convolutions": torch.backends.cudnn.allow_tf32,
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    cuda = torch.cuda.is_available()
    parts = (*PARTS, "memory")
    add("--only", nargs="+", choices=parts, default=parts, metavar="PART", help=", ".join(parts))
    add("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    add("--precision", choices=PRECISIONS, default="fp32", help="precision; training uses autocast")
    add("--compile", action="store_true", help="compile all contenders with torch.compile")
    many: Any = {"nargs": "+", "default": argparse.SUPPRESS}
    add(
        "--batch-size",
        type=positive,
        **many,
        metavar="B",
        help="batch sizes of inference (1 8; on CUDA 256)",
    )
    one: Any = {"type": positive, "default": argparse.SUPPRESS, "metavar": "B"}
    add("--training-batch-size", **one, help="batch size of training and memory (8; on CUDA 64)")
    known = ", ".join(f"{channels}x{side}" for channels, side in RESNET50)
    add("--maps", type=_map, **many, metavar="CxS", help=f"maps of layers (every other of {known})")
    add("--network", choices=NETWORKS, default="resnet50v1", metavar="NAME", help="a ResNet v1")
    add(
        "--image-size", type=positive, default=224, metavar="S", help="side of the networks' images"
    )
    given = vars(parser.parse_args(arguments))
    on_cuda = given["device"] == "cuda"
    defaults = {
        "batch_size": [256] if on_cuda else [1, 8],
        "training_batch_size": 64 if on_cuda else 8,
        "maps": RESNET50[::2],
    }
    return argparse.Namespace(**defaults | given)


def _map(text: str) -> tuple[int, int]:
    channels, cross, side = text.partition("x")
    if not cross:
        raise argparse.ArgumentTypeError(f"{text!r} is no map such as 256x56")
    return positive(channels), positive(side)


if __name__ == "__main__":
    sys.exit(main())
