"""Run the job in the JSON argument; print the result as JSON in the last line of stdout."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import sys
import time
from dataclasses import replace
from importlib import import_module
from typing import Any

from jobs import Job

from snzoo.errors import SnzooError
from snzoo.inference import choose_device
from snzoo.spec import ModelSpec


def main() -> int:
    job = Job(**json.loads(sys.argv[1]))
    try:
        contender = import_module(f"contenders.{job.contender}")
    except (ImportError, RuntimeError, OSError) as error:  # absent, or built for another torch
        reason = re.sub(r" \(/.*\)", "", str(error).partition("\n")[0])  # no paths in results
        print(json.dumps({"absent": reason}))
        return 0
    tasks = {"pixels": pixels, "load": load, "evaluate": evaluate}
    task = (tasks | {"training-pixels": pixels, "train": load})[job.task]
    try:
        # A job without a network uses the preprocessing of the reference.
        spec = ModelSpec.find(job.model or "resnet50v1_bn", weights=job.weights)
        job = replace(job, device=choose_device(job.device), preprocessing=spec.preprocessing)
        print(json.dumps(task(contender, job, spec)))
    except SnzooError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def pixels(contender: Any, job: Job, spec: ModelSpec) -> dict[str, list[str]]:
    """Return digests of each file's uint8 (3, H, W); several, if its links differ.

    In training, each link has its own random numbers and counts as a file.
    """
    digests: dict[str, set[str]] = {}
    training = job.task == "training-pixels"
    for name, image in (contender.training_pixels if training else contender.pixels)(job):
        file = name if training else os.path.realpath(os.path.join(job.folder, name))
        content = image.contiguous().numpy().tobytes()
        digests.setdefault(file, set()).add(hashlib.sha256(content).hexdigest())
    return {file: sorted(found) for file, found in digests.items()}


def load(contender: Any, job: Job, spec: ModelSpec) -> dict[str, Any]:
    """Return the time from the folder to the last normalized batch, after a warm-up pass."""
    batches = contender.training_batches if job.task == "train" else contender.batches
    start = time.perf_counter()
    sum(map(len, batches(replace(job, folder=job.warm))))
    gc.collect()  # the workers of the first pass end with its loader
    middle = time.perf_counter()
    return _timed(sum(map(len, batches(job))), start, middle)


def evaluate(contender: Any, job: Job, spec: ModelSpec) -> dict[str, Any]:
    """Return the counts, and the time from the folder to them, after a warm-up pass."""
    import torch

    from snzoo.data.imagenet import wnids

    torch.manual_seed(0)  # the same random weights in every process
    model = (spec.load() if job.weights else spec.build()).to(job.device).eval()
    classes = wnids() if isinstance(spec.classes, str) else spec.classes
    start = time.perf_counter()
    contender.evaluate(replace(job, folder=job.warm), model, classes)
    cuda = job.device.startswith("cuda")
    if cuda:  # cuDNN chooses its kernels by the size of the batch
        side, size = spec.preprocessing.crop, job.batch_size or 128
        with torch.inference_mode():
            model(torch.zeros(size, 3, side, side, device=job.device)).cpu()
    gc.collect()
    middle = time.perf_counter()
    images, top1, top5 = contender.evaluate(job, model, classes)
    device = torch.cuda.get_device_name(job.device) if cuda else job.device
    return _timed(images, start, middle) | {"top1": top1, "top5": top5, "device": device}


def _timed(images: int, start: float, middle: float) -> dict[str, Any]:
    seconds = time.perf_counter() - middle
    return {
        "images": images,
        "seconds": round(seconds, 4),
        "images_per_second": round(images / seconds, 3),
        "warm_up_seconds": round(middle - start, 4),
    }


if __name__ == "__main__":
    sys.exit(main())
