"""Top-1 and top-5 of a network on labelled images, beside the published figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from snzoo.data.batches import read_batches
from snzoo.data.pixels import normalize
from snzoo.data.samples import Samples
from snzoo.errors import DataError, SnzooError
from snzoo.manifest import Entry, Preprocessing, Result

TOLERANCE = 0.05  # points by which the same images may differ across libraries


@dataclass(frozen=True)
class Accuracy:
    """``correct`` of ``total`` images."""

    correct: int
    total: int

    @property
    def percent(self) -> float:
        return 100 * self.correct / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson score interval, in per cent."""
        z, n, p = 1.96, self.total, self.correct / self.total
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)

    def agrees(self, published: float, *, same_images: bool) -> bool:
        """Within ``TOLERANCE`` on the published images, within the interval on others."""
        if same_images:
            return abs(self.percent - published) <= TOLERANCE
        low, high = self.interval
        return low <= published <= high


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate`: ``seconds`` of decoding and inference together."""

    top1: Accuracy
    top5: Accuracy
    errors: tuple[str, ...]
    seconds: float

    @property
    def images_per_second(self) -> float:
        return self.top1.total / self.seconds


def evaluate(
    model: nn.Module,
    samples: Samples,
    preprocessing: Preprocessing,
    *,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    workers: int | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    report_error: Callable[[str], None] = lambda message: None,
    progress: bool = False,
) -> Evaluation:
    """Count the images whose class is the first, or among the first five, of the logits.

    Args:
        model: moved to ``device`` and put into evaluation mode.
        batch_size: default 16 on the CPU, 128 elsewhere.
        workers: decoding threads (default: as many as torch computes with).
        on_error: raise at the first image that can't be read, or leave it out of the
            counts and report it.
        report_error: called with each message under ``skip``.
        progress: show a bar where stderr is a terminal.

    Raises:
        DataError: an image can't be read, or none can.
        SnzooError: the network gives logits that are not finite.
    """
    model.to(device).eval()
    labels = torch.tensor(samples.labels)
    top1 = top5 = total = 0
    errors: list[str] = []
    batches = read_batches(
        samples.paths,
        preprocessing,
        batch_size=batch_size or (16 if torch.device(device).type == "cpu" else 128),
        workers=workers or torch.get_num_threads(),
    )
    start = time.perf_counter()
    with tqdm(
        total=len(samples), unit="img", leave=False, disable=None if progress else True
    ) as bar:
        for batch in batches:
            if batch.errors and on_error == "fail":
                raise DataError(f"{batch.errors[0]}; to leave such images out: --on-error skip")
            for error in map(str, batch.errors):
                errors.append(error)
                report_error(error)
            if batch.indices:
                x = normalize(batch.pixels.to(device), preprocessing)
                hits = best_classes(model, x, 5).indices.cpu() == labels[batch.indices, None]
                top1 += int(hits[:, 0].sum())
                top5 += int(hits.sum())
                total += len(batch.indices)
            bar.update(len(batch.indices) + len(batch.errors))
    if not total:
        raise DataError(f"none of the {len(samples)} images can be read")
    seconds = time.perf_counter() - start
    return Evaluation(Accuracy(top1, total), Accuracy(top5, total), tuple(errors), seconds)


class Best(NamedTuple):
    """Probabilities and class indices of the best classes, (N, k) each, best first."""

    probabilities: Tensor
    indices: Tensor


@torch.inference_mode()
def best_classes(model: nn.Module, x: Tensor, k: int) -> Best:
    """The ``k`` best classes, at most all, of each normalised image of (N, 3, H, W).

    Raises:
        SnzooError: a logit is not finite.
    """
    logits = model(x)
    if not logits.isfinite().all():
        raise SnzooError("the network's logits are not finite; are these its weights?")
    indices = logits.topk(min(k, logits.shape[1]), dim=1).indices
    return Best(logits.float().softmax(1).gather(1, indices), indices)


def choose_device(name: str | None) -> str:
    """``name``, checked, or CUDA where there is one.

    Raises:
        SnzooError: there is no such device here.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        raise SnzooError(
            f"device {name!r} can't be used: {str(error).partition(chr(10))[0]}"
        ) from None
    return name


def choose_published(entry: Entry, samples: Samples) -> tuple[Result | None, bool]:
    """The published result to compare with, and whether it is on the same images."""
    for result in entry.published:
        if (result.dataset, result.images) == (samples.dataset, len(samples)):
            return result, True
    return (entry.published[0], False) if entry.published else (None, False)


def as_json(evaluation: Evaluation, entry: Entry, samples: Samples) -> dict[str, Any]:
    """The figures of an evaluation, beside the published ones."""
    published, same = choose_published(entry, samples)
    same = same and not evaluation.errors
    document: dict[str, Any] = {"images": evaluation.top1.total}
    for name in ("top1", "top5"):
        accuracy: Accuracy = getattr(evaluation, name)
        value: float | None = getattr(published, name) if published else None
        document[name] = {
            "correct": accuracy.correct,
            "percent": round(accuracy.percent, 4),
            "interval95": [round(bound, 4) for bound in accuracy.interval],
            "published": value,
            "agrees": None if value is None else accuracy.agrees(value, same_images=same),
        }
    return document | {
        "published_on": published and f"{published.images:,} images of {published.dataset}",
        "same_images": same,
        "errors": list(evaluation.errors),
        "seconds": round(evaluation.seconds, 3),
        "images_per_second": round(evaluation.images_per_second, 2),
    }
