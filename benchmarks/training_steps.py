"""Measure an epoch of `snzoo train` and of a plain PyTorch loop on the same photos.

python benchmarks/training_steps.py PATH --output benchmarks/results/NAME.json
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path

import harness
import torch
from harness import Document, Row
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import snzoo
from snzoo.errors import SnzooError
from snzoo.inference.network import local_cores
from snzoo.processes import Processes
from snzoo.training.config import TrainingConfig
from snzoo.training.devices import Figures
from snzoo.training.log import RunLog
from snzoo.training.loop import Loop
from snzoo.training.plan import Plan, make_plan
from snzoo.training.state import Position
from snzoo.training.step import Stepper

MODEL = "resnet18v1_sn"
WARM_UP = 3  # steps that are not timed


def main() -> int | str:
    parser = harness.make_parser(
        __doc__,
        width=(32, "channels of the stem"),
        crop=(128, "pixels"),
        batch_size=(32, "images of a step"),
        steps=(40, "timed steps"),
    )
    add = parser.add_argument
    add("path", type=Path, metavar="PATH", help="a folder with train/ and validation/")
    args = parser.parse_args()
    values = {"batch_size": args.batch_size, "crop": args.crop, "color_jitter": (0.0, 0.0, 0.0)}

    def measure() -> Document:
        plan = make_plan(TrainingConfig(args.path, model=MODEL, width=args.width, overrides=values))
        contenders = {"snzoo": time_snzoo, "plain": time_plain_loop}

        def run(name: str) -> Row:
            seconds = contenders[name](plan, args.steps)
            speed = round(args.steps * args.batch_size / seconds, 2)
            return {"contender": name, "images_per_second": speed}

        rows = harness.measure_in_turns([*contenders], args.rounds, run)
        return {
            "title": "Training steps",
            "network": f"{MODEL}, width {args.width}, {args.crop}x{args.crop} pixels",
            "batch_size": args.batch_size,
            "steps": args.steps,
            "rounds": args.rounds,
            "comparison": compare(rows),
            "measurements": rows,
        }

    return harness.run_benchmark(measure, markdown, args.output)


def time_snzoo(plan: Plan, steps: int) -> float:
    """Return the seconds of ``steps`` steps in the loop of ``snzoo train``."""
    times: list[float] = []

    class Timed(Stepper):
        def run(self, *args: object, **options: object) -> Figures:
            times.append(time.perf_counter())
            if len(times) > WARM_UP + steps:
                raise KeyboardInterrupt
            return super().run(*args, **options)  # type: ignore[arg-type]

    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
        config = TrainingConfig("", output=folder)
        device = torch.device("cpu")
        stepper = Timed(plan.create_network(), plan.recipe, config, device, Processes())
        log = RunLog(Path(folder))
        loop = Loop(
            *(plan, config, stepper, Position(), log, Processes()),
            identity={},
            workers=local_cores(),
            show=harness.say,
            warn=harness.say,
            progress=False,
        )
        try:
            loop.run()
        except KeyboardInterrupt:
            return times[-1] - times[WARM_UP]
    raise SnzooError("the data set has fewer steps than --steps; name fewer")


def time_plain_loop(plan: Plan, steps: int) -> float:
    """Return the seconds of ``steps`` steps of a loop over torchvision's data set and transforms.

    The photos are augmented, and the parameters are updated, as in the other contender.
    """
    recipe, preprocessing = plan.recipe, plan.spec.preprocessing
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(preprocessing.crop, recipe.scale, recipe.ratio),
            transforms.RandomHorizontalFlip(recipe.flip),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    photos = datasets.ImageFolder(str(Path(plan.train.locate(0)).parents[1]), augment)
    loader = DataLoader(
        photos, recipe.batch_size, shuffle=True, drop_last=True, num_workers=local_cores()
    )
    model = plan.create_network()
    groups = snzoo.parameter_groups(model, lr=recipe.lr, weight_decay=recipe.weight_decay)
    optimizer = torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov)
    endless = itertools.chain.from_iterable(itertools.repeat(loader))
    start = 0.0
    for number, (images, labels) in enumerate(itertools.islice(endless, WARM_UP + steps)):
        if number == WARM_UP:
            start = time.perf_counter()
        loss = F.cross_entropy(model(images), labels, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if not loss.isfinite():
            raise SnzooError("the loss is not finite")
    return time.perf_counter() - start


def compare(rows: list[Row]) -> Row:
    """Return the images/s of both contenders, and their ratio in each round."""
    speeds = harness.by_round(rows, "images_per_second")
    ratios = harness.divide(speeds["snzoo"], speeds["plain"])
    return harness.spreads(speeds | {"snzoo to plain": ratios})


def markdown(document: Document) -> str:
    """Return the document as Markdown, without the single rounds."""
    about = (
        f"{document['network']}; {document['steps']} steps of {document['batch_size']} images; "
        f"rounds: {document['rounds']}."
    )
    table = harness.compare_table(document, "images/s, or ratio of a round")
    return harness.page(document, [about], table)


if __name__ == "__main__":
    sys.exit(main())
