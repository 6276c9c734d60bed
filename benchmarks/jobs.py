"""Jobs of fresh processes: each reads the same photos with one library, or evaluates a network.

``python jobs.py JSON`` runs a job and prints its result as JSON in the last line. Importing this
module does not import torch, because a large parent would share memory with its children.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import Any, Literal, NamedTuple

from harness import Row
from processes import run_python, session_mib

from snzoo.errors import SnzooError


class Configuration(NamedTuple):
    """What is measured. None means the default of the contender."""

    contender: str
    workers: int | None
    batch_size: int | None

    def __str__(self) -> str:
        parts = [f"{self.workers} workers"] if self.workers else []
        parts += [f"batch {self.batch_size}"] if self.batch_size else []
        return f"{self.contender} ({', '.join(parts) or 'its defaults'})"


@dataclass(frozen=True)
class Job:
    """The work of a fresh process; ``folder`` has class folders, ``warm`` a few of their photos.

    If ``workers`` or ``batch_size`` is None, the contender uses its own default. ``training`` asks
    for random order, crops and flips. ``model`` and ``weights`` are for ``evaluate``. ``device``
    None means CUDA if available. The process itself sets ``preprocessing``.
    """

    task: Literal["pixels", "batches", "evaluate"]
    contender: str
    folder: str = ""
    warm: str = ""
    workers: int | None = None
    batch_size: int | None = None
    training: bool = False
    model: str | None = None
    weights: str | None = None
    device: Any = None
    preprocessing: Any = None

    @property
    def configuration(self) -> Configuration:
        return Configuration(self.contender, self.workers, self.batch_size)


def run_job(job: Job, watch: Callable[[int], object] | None = None) -> Row:
    """Return the result of ``job``, or ``{"absent": reason}`` if its library can't be imported."""
    try:
        printed = run_python([__file__, json.dumps(asdict(job))], watch=watch)
    except SnzooError as error:
        raise SnzooError(f"{job.configuration}, {job.task}: {error}") from None
    found: Row = json.loads(printed.splitlines()[-1])
    return found


def peak_memory(job: Job) -> float:
    """Return the largest sum of PSS over the processes of ``job`` in MiB, in a run of its own.

    Such a run is not timed, because reading PSS takes time.
    """
    peaks = [0.0]
    run_job(job, lambda session: peaks.append(session_mib(session)))
    return max(peaks)


def main() -> int | str:
    from snzoo.inference import choose_device
    from snzoo.spec import ModelSpec

    job = Job(**json.loads(sys.argv[1]))
    try:
        contender = import_module(f"contenders.{job.contender}")
    except (ImportError, RuntimeError, OSError) as error:  # absent, or built for another torch
        reason = re.sub(r" \(/.*\)", "", str(error).partition("\n")[0])  # no paths in results
        print(json.dumps({"absent": reason}))
        return 0
    task = {"pixels": hash_pixels, "batches": time_batches, "evaluate": time_evaluation}[job.task]
    try:
        # A job without a network uses the preprocessing of the reference.
        spec = ModelSpec.find(job.model or "resnet50v1_bn", weights=job.weights)
        job = replace(job, device=choose_device(job.device), preprocessing=spec.preprocessing)
        print(json.dumps(task(contender, job, spec)))
    except SnzooError as error:
        return str(error)
    return 0


def hash_pixels(contender: Any, job: Job, spec: Any) -> dict[str, list[str]]:
    """Return digests of each file's uint8 (3, H, W); several, if its links differ.

    In training, each link has its own random numbers and counts as a file.
    """
    digests: dict[str, set[str]] = {}
    for name, image in contender.pixels(job):
        file = name if job.training else os.path.realpath(os.path.join(job.folder, name))
        content = image.contiguous().numpy().tobytes()
        digests.setdefault(file, set()).add(hashlib.sha256(content).hexdigest())
    return {file: sorted(found) for file, found in digests.items()}


def time_batches(contender: Any, job: Job, spec: Any) -> Row:
    """Return the time from the folder to the last normalized batch."""
    return _time(job, lambda job: {"images": sum(map(len, contender.batches(job)))})


def time_evaluation(contender: Any, job: Job, spec: Any) -> Row:
    """Return the counts, and the time from the folder to them."""
    import torch

    from snzoo.data.imagenet import wnids

    torch.manual_seed(0)  # the same random weights in every process
    model = (spec.load() if job.weights else spec.build()).to(job.device).eval()
    classes = wnids() if isinstance(spec.classes, str) else spec.classes
    cuda = job.device.startswith("cuda")

    def evaluate(job: Job) -> Row:
        counts = contender.evaluate(job, model, classes)
        return dict(zip(("images", "top1", "top5"), counts, strict=True))

    def warm_up() -> None:
        if cuda:  # cuDNN chooses its kernels by the size of the batch
            side, size = spec.preprocessing.crop, job.batch_size or 128
            with torch.inference_mode():
                model(torch.zeros(size, 3, side, side, device=job.device)).cpu()

    device = torch.cuda.get_device_name(job.device) if cuda else job.device
    return _time(job, evaluate, warm_up) | {"device": device}


def _time(
    job: Job, work: Callable[[Job], Row], warm_up: Callable[[], object] = lambda: None
) -> Row:
    """Return what ``work`` returns and its time, after a pass over a few photos."""
    start = time.perf_counter()
    work(replace(job, folder=job.warm))
    warm_up()
    gc.collect()  # the workers of the first pass end with its loader
    middle = time.perf_counter()
    found = work(job)
    seconds = time.perf_counter() - middle
    return found | {
        "seconds": round(seconds, 4),
        "images_per_second": round(found["images"] / seconds, 3),
        "warm_up_seconds": round(middle - start, 4),
    }


if __name__ == "__main__":
    sys.exit(main())
