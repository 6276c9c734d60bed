"""Summarize an evaluation: the measured figures, the settings, and the published figures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from snzoo.data.batches import resizer
from snzoo.data.decode import decoder
from snzoo.data.imagenet import names_of
from snzoo.data.samples import Samples
from snzoo.entry import Entry, Result
from snzoo.evaluation.accuracy import (
    calibration_error,
    count_classes,
    find_confusions,
    real_accuracy,
)
from snzoo.evaluation.measure import Evaluation
from snzoo.evaluation.results import TOLERANCE, Data, Model, Pixels, Present, Results, Run
from snzoo.inference.computation import distinct_names, versions
from snzoo.inference.network import resize_device
from snzoo.preprocessing import Resampling
from snzoo.spec import ModelSpec


def summarize(
    evaluation: Evaluation,
    specs: Sequence[ModelSpec],
    *,
    path: str | Path | None,
    settings: dict[str, Any],
    pixels: Pixels,
    real: Sequence[Sequence[int]] | None = None,
    tolerance: float = TOLERANCE,
) -> Results:
    """Return the results of an evaluation.

    Args:
        evaluation: the ranked classes.
        specs: the specs of the networks, in their order.
        path: the path of the images (None for the bundled demo, and for images without a path).
        settings: the fields of :class:`Run` that are known before the run.
        pixels: how the images were decoded and resized.
        real: the ReaL labels of every image (None: the results do not have this accuracy).
        tolerance: percentage points by which figures may differ from those published for the same
            images.
    """
    samples = evaluation.samples
    run = Run(
        **settings,
        seconds=round(evaluation.seconds, 3),
        images_per_second=round(evaluation.images_per_second, 2),
        resumed=evaluation.measured < len(samples),
    )
    return Results(
        Data(
            path=None if path is None else os.path.abspath(path),
            description=samples.description,
            dataset=samples.dataset,
            images=len(samples),
            classes=specs[0].classes,
        ),
        pixels,
        run,
        versions(),
        evaluation.errors,
        tuple(
            _summarize_model(
                evaluation, i, spec, name, exact=pixels.exact, real=real, tolerance=tolerance
            )
            for i, (spec, name) in enumerate(zip(specs, distinct_names(specs), strict=True))
        ),
    )


def choose_published(entry: Entry, samples: Samples) -> tuple[Result | None, bool]:
    """Return the published result to compare with, and whether it is for the same images."""
    for result in entry.published:
        if (result.dataset, result.images) == (samples.dataset, len(samples)):
            return result, True
    return (entry.published[0], False) if entry.published else (None, False)


def find_disagreements(results: Results, tolerance: float = TOLERANCE) -> list[str]:
    """Return a sentence for each figure that differs from the published one, for ``--check``."""
    found = [f"{len(results.errors)} images were left out"] if results.errors else []
    for model in results.models:
        for title, row in (("top-1", model.top1), ("top-5", model.top5)):
            low, high = row.interval95
            allowed = (
                f"by more than {tolerance:g} points"
                if model.same_images
                else f"and lies outside [{low:.2f}, {high:.2f}]"
            )
            if row.published is None:
                found.append(f"{model.name}: no published {title} to check against")
            elif not row.agrees:
                found.append(
                    f"{model.name}: {title} is {row.percent:.2f} %, published "
                    f"{row.published:.2f} %: differs {allowed}"
                )
    return found


def describe_pixels(
    images: int, device: str, *, resampling: Resampling, approximate: bool
) -> Pixels:
    """Return the packages that decode and resize the images of an evaluation."""
    by = resizer(images, resize_device(torch.device(device)), resampling)
    return Pixels(exact=not approximate, decoder=decoder(), resize=f"{by} {version(by)}")


def _summarize_model(
    evaluation: Evaluation,
    network: int,
    spec: ModelSpec,
    name: str,
    *,
    exact: bool,
    real: Sequence[Sequence[int]] | None,
    tolerance: float,
) -> Model:
    samples, images = evaluation.samples, evaluation.images()
    # Figures of approximate pixels are not compared with published ones.
    published, same = choose_published(spec, samples) if exact else (None, False)
    same = same and not evaluation.errors
    figures = (published.top1, published.top5) if published else (None, None)
    measured = evaluation.top1(network), evaluation.top5(network)
    top1, top5 = (
        accuracy.compare(figure, same_images=same, tolerance=tolerance)
        for accuracy, figure in zip(measured, figures, strict=True)
    )
    classes, labels = evaluation.classes(network), evaluation.labels()
    names = names_of(spec.classes)
    error = calibration_error(classes, evaluation.probabilities(network), labels)
    return Model(
        name=name,
        architecture=spec.architecture,
        weights=None if spec.weights is None else str(spec.weights),
        preprocessing=spec.preprocessing,
        images=len(images),
        top1=top1,
        top5=top5,
        published_on=f"{published.images:,} images of {published.dataset}" if published else None,
        same_images=same,
        calibration_error=round(error, 6),
        per_class=count_classes(classes, labels, names),
        confused=find_confusions(classes, labels, names, [samples.names[i] for i in images]),
        real=None if real is None else real_accuracy(classes, [real[i] for i in images]),
        present=None
        if evaluation.present is None
        else Present(
            len(evaluation.present),
            evaluation.top1(network, present=True),
            evaluation.top5(network, present=True),
        ),
    )
