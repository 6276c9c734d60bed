"""The document of an evaluation: what was measured, how, and beside what was published."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from snzoo.data.batches import resizer
from snzoo.data.decode import decoder
from snzoo.data.imagenet import names_of
from snzoo.data.samples import Samples
from snzoo.errors import printable
from snzoo.evaluation.accuracy import (
    TOLERANCE,
    Accuracy,
    calibration_error,
    confused,
    per_class,
    reassessed,
)
from snzoo.evaluation.run import Evaluation, resize_device
from snzoo.manifest import Entry, Result

SCHEMA_VERSION = 1
PACKAGES = ("snzoo", "torch", "torchvision", "numpy", "pillow", "simplejpeg", "numba")


def as_document(
    evaluation: Evaluation,
    entries: Sequence[Entry],
    *,
    path: Path | None,
    weights: Path | None = None,
    run: dict[str, Any],
    pixels: dict[str, Any],
    real: Sequence[Sequence[int]] | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Everything that is written with ``--json``.

    Args:
        entries: of the networks, in their order.
        path: where the images are (None: the bundled demo).
        weights: the checkpoint where it isn't the zoo's.
        run: the settings.
        pixels: how they were made.
        real: the ReaL labels of every image, to give that accuracy as well.
        tolerance: points within which figures on the same images agree.
    """
    samples = evaluation.samples
    classes = entries[0].classes
    return {
        "schema_version": SCHEMA_VERSION,
        "data": {
            "path": None if path is None else os.path.abspath(path),
            "description": samples.description,
            "dataset": samples.dataset,
            "images": len(samples),
            "classes": classes if isinstance(classes, str) else list(classes),
        },
        "pixels": pixels,
        "run": run
        | {
            "seconds": round(evaluation.seconds, 3),
            "images_per_second": round(evaluation.images_per_second, 2),
            "resumed": evaluation.measured < len(samples),
        },
        "versions": versions(),
        "errors": list(evaluation.errors),
        "models": [
            _about(entry, weights)
            | published_beside(evaluation, i, entry, exact=pixels["exact"], tolerance=tolerance)
            | _beyond(evaluation, i, entry, real)
            for i, entry in enumerate(entries)
        ],
    }


def choose_published(entry: Entry, samples: Samples) -> tuple[Result | None, bool]:
    """The published result to compare with, and whether it is on the same images."""
    for result in entry.published:
        if (result.dataset, result.images) == (samples.dataset, len(samples)):
            return result, True
    return (entry.published[0], False) if entry.published else (None, False)


def published_beside(
    evaluation: Evaluation,
    network: int,
    entry: Entry,
    *,
    exact: bool = True,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Top-1 and top-5 of a network, and whether the published figures agree.

    Figures of pixels that are not ``exact`` are not compared.
    """
    published, same = choose_published(entry, evaluation.samples) if exact else (None, False)
    same = same and not evaluation.errors

    def row(measured: Accuracy, value: float | None) -> dict[str, Any]:
        agrees = value is not None and measured.agrees(value, same_images=same, tolerance=tolerance)
        return _figures(measured) | {
            "published": value,
            "agrees": None if value is None else agrees,
        }

    return {
        "images": evaluation.top1(network).total,
        "top1": row(evaluation.top1(network), published.top1 if published else None),
        "top5": row(evaluation.top5(network), published.top5 if published else None),
        "published_on": published and f"{published.images:,} images of {published.dataset}",
        "same_images": same,
    }


def versions() -> dict[str, str]:
    """Of Python, and of the packages that decide over pixels and logits, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(cudnn)}
    return found


def describe_pixels(images: int, device: str, *, approximate: bool) -> dict[str, Any]:
    """How the pixels of an evaluation are made: whether as the reference, and by what."""
    by = resizer(images, resize_device(torch.device(device)))
    return {
        "exact": not approximate,
        "decoder": decoder(),
        "resize": f"{by} {version(by)}",
    }


def device_name(device: str) -> str:
    """The name of the GPU, or the device as it is called."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _figures(measured: Accuracy) -> dict[str, Any]:
    return {
        "correct": measured.correct,
        "percent": round(measured.percent, 4),
        "interval95": [round(bound, 4) for bound in measured.interval],
    }


def _about(entry: Entry, weights: Path | None) -> dict[str, Any]:
    return {
        "name": entry.name,
        "architecture": entry.architecture,
        "weights": weights and str(weights),
        "preprocessing": entry.preprocessing.as_dict(),
    }


def _beyond(
    evaluation: Evaluation, network: int, entry: Entry, real: Sequence[Sequence[int]] | None
) -> dict[str, Any]:
    """What the accuracies don't tell: by class, calibration, confusions; and ReaL accuracy."""
    classes, labels = evaluation.classes(network), evaluation.labels()
    images, names = evaluation.images(), names_of(entry.classes)
    document: dict[str, Any] = {
        "calibration_error": round(
            calibration_error(classes, evaluation.probabilities(network), labels), 6
        ),
        "per_class": [
            {"index": c.label, "name": names[c.label]}
            | {"images": c.images, "top1": c.top1, "top5": c.top5}
            for c in per_class(classes, labels)
        ],
        "confused": [
            {"label": c.label, "label_name": names[c.label]}
            | {"predicted": c.predicted, "predicted_name": names[c.predicted]}
            | {
                "count": len(c.images),
                "examples": [printable(evaluation.samples.names[images[i]]) for i in c.images[:3]],
            }
            for c in confused(classes, labels)
        ],
    }
    measured = reassessed(classes, [real[i] for i in images]) if real is not None else None
    if measured:
        document["real"] = _figures(measured) | {"images": measured.total}
    return document
