"""One job in this process: JSON in as the argument, JSON out as the last line of stdout."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import re
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jobs import Job

from snzoo.errors import SnzooError

if TYPE_CHECKING:
    from snzoo.manifest import Entry


def main() -> int:
    job = Job(**json.loads(sys.argv[1]))
    try:
        contender = import_module(f"contenders.{job.contender}")
    except (ImportError, RuntimeError, OSError) as error:  # absent, or not built for this torch
        reason = re.sub(r" \(/.*\)", "", str(error).partition("\n")[0])  # no paths in results
        print(json.dumps({"absent": reason}))
        return 0
    task = {"pixels": pixels, "load": load, "evaluate": evaluate}[job.task]
    try:
        print(json.dumps(task(contender, job)))
    except SnzooError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def pixels(contender: Any, job: Job) -> dict[str, list[str]]:
    """File → digests of its uint8 (3, H, W): one, unless links to it are read differently."""
    from snzoo.inference import choose_device

    digests: dict[str, set[str]] = {}
    device = choose_device(job.device)
    for name, image in contender.pixels(job.folder, _entry(job).preprocessing, device=device):
        file = os.path.realpath(os.path.join(job.folder, name))
        content = image.contiguous().numpy().tobytes()
        digests.setdefault(file, set()).add(hashlib.sha256(content).hexdigest())
    return {file: sorted(found) for file, found in digests.items()}


def load(contender: Any, job: Job) -> dict[str, Any]:
    """From the folder to the last normalized batch, after a pass over the warm photos."""
    preprocessing = _entry(job).preprocessing
    options = {"workers": job.workers, "batch_size": job.batch_size}
    start = time.perf_counter()
    sum(map(len, contender.batches(job.warm, preprocessing, **options)))
    gc.collect()  # the workers of the first pass end with its loader
    middle = time.perf_counter()
    images = sum(map(len, contender.batches(job.folder, preprocessing, **options)))
    return _timed(images, start, middle)


def evaluate(contender: Any, job: Job) -> dict[str, Any]:
    """From the folder to the counts, after a pass over the warm photos."""
    import torch

    import snzoo
    from snzoo.data.imagenet import wnids
    from snzoo.inference import choose_device

    entry, device = _entry(job), choose_device(job.device)
    torch.manual_seed(0)  # the same random weights in every process
    model = snzoo.create_model(entry.name, weights=job.weights).to(device).eval()
    classes = wnids() if isinstance(entry.classes, str) else entry.classes
    about = model, classes, entry.preprocessing
    options = {"workers": job.workers, "batch_size": job.batch_size, "device": device}
    start = time.perf_counter()
    contender.evaluate(job.warm, *about, **options)
    if device.startswith("cuda"):  # cuDNN chooses its kernels by the size of the batch
        side, size = entry.preprocessing.crop, job.batch_size or 128
        with torch.inference_mode():
            model(torch.zeros(size, 3, side, side, device=device)).cpu()
    gc.collect()
    middle = time.perf_counter()
    images, top1, top5 = contender.evaluate(job.folder, *about, **options)
    return _timed(images, start, middle) | {
        "top1": top1,
        "top5": top5,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }


def _entry(job: Job) -> Entry:
    """Of the network; without one, of any with the reference's preprocessing."""
    from snzoo.spec import ModelSpec

    return ModelSpec.find(job.model or "resnet50v1_bn", weights=job.weights)


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
