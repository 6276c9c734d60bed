"""Evaluate face networks on pairs of photos, and write the results."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from snzoo.errors import ArgumentError
from snzoo.evaluation.face_results import FaceData, FaceModel, FaceResults, FaceRun
from snzoo.evaluation.wildcards import is_wildcard, match_models
from snzoo.faces.embedding import Embeddings, check_embeds, iter_embeddings
from snzoo.faces.pairs import FacePairs, balance, check_folds, read_pairs
from snzoo.faces.verification import Verification, verify
from snzoo.files import check_writable, write_json
from snzoo.inference.classifier import prepare_network
from snzoo.inference.computation import device_name, versions
from snzoo.inference.network import Network, default_batch_size, local_cores
from snzoo.inference.outputs import check_inputs_survive
from snzoo.inference.transform import Model, find_spec
from snzoo.spec import ModelSpec


def evaluate_faces(
    models: Model | Sequence[Model],
    faces: str | Path | FacePairs,
    *,
    weights: str | Path | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    json: str | Path | None = None,
    show: Callable[[FaceResults], None] = lambda results: None,
    progress: bool = False,
) -> FaceResults:
    """Return the figures of face networks on the pairs of a verification set.

    An embedding is that of the photo plus that of the mirrored photo, L2-normalized. The accuracy
    over folds is that of :func:`snzoo.faces.balance` of the pairs, and all other figures are those
    of all pairs; see :class:`snzoo.faces.Verification`.

    Args:
        models: one or several networks of :func:`snzoo.create_model`, names, or wildcards, which
            stand for models of the zoo that have weights.
        faces: the verification set; see :func:`snzoo.faces.read_pairs`.
        weights: a checkpoint or folder to load instead of the zoo's weights, for a single model.
        device: the device for the computation (default: that of a given network; for names, CUDA
            if available, else the CPU).
        batch_size: number of photos in a batch (default: 16 on a CPU, else 128).
        workers: number of threads that decode (default: the number of cores).
        json: write the results to this file.
        show: a function that is called with the results before they are written.
        progress: show a progress bar if stderr is a terminal.

    Raises:
        ArgumentError: a network is a classifier, or an option has a wrong value.
        UnknownModelError, CheckpointError, ChecksumError: see :func:`snzoo.create_model`.
        DataError: the set cannot be read, or a photo of it, or it has too few pairs for its folds.
        FileError: the results cannot be written.
        DeviceError, NonFiniteError: see :func:`snzoo.faces.embed`.
    """
    chosen = _choose_models(models, weights)
    pairs = faces if isinstance(faces, FacePairs) else read_pairs(faces)
    check_folds(pairs, pairs.name if isinstance(faces, FacePairs) else faces)
    if json is not None:
        check_writable(json)
        data = [] if isinstance(faces, FacePairs) else [faces]
        check_inputs_survive([Path(json)], data, [spec for _, spec in chosen])
    workers = workers or local_cores()
    start = time.monotonic()
    found = []
    for model, spec in chosen:
        with prepare_network(model, spec, device) as network:
            there, size = network.device, batch_size or default_batch_size(network.device)
            embeddings = _embed(network, pairs, size, workers, progress=progress)
        weights_of_spec = None if spec.weights is None else str(spec.weights)
        figures = verify_pairs(embeddings, pairs)
        found.append(FaceModel(spec.name, spec.architecture, weights_of_spec, figures))
    results = FaceResults(
        data=FaceData(
            path=pairs.name if isinstance(faces, FacePairs) else str(faces),
            name=pairs.name,
            photos=len(pairs.photos),
            pairs=len(pairs),
            accuracy_pairs=len(balance(pairs)),
        ),
        run=FaceRun(device_name(str(there)), size, workers, round(time.monotonic() - start, 3)),
        versions=versions(),
        models=tuple(found),
    )
    show(results)
    if json is not None:
        write_json(json, results.as_dict())
    return results


def verify_pairs(embeddings: Embeddings, pairs: FacePairs) -> Verification:
    """Return the figures of all pairs, with the accuracy over folds of the balanced ones."""

    def figures_of(pairs: FacePairs) -> Verification:
        return verify(embeddings, pairs.first, pairs.second, pairs.same, folds=pairs.folds)

    figures, balanced = figures_of(pairs), balance(pairs)
    if balanced is pairs:
        return figures
    return dataclasses.replace(figures, accuracy=figures_of(balanced).accuracy)


def _embed(
    network: Network, pairs: FacePairs, batch_size: int, workers: int, *, progress: bool
) -> Embeddings:
    def rows() -> Iterator[Embeddings]:
        total, bar = len(pairs.photos), None if progress else True
        with tqdm(total=total, unit="photo", desc=network.name, disable=bar) as shown:
            for part in iter_embeddings(
                network, pairs.photos, batch_size=batch_size, workers=workers
            ):
                shown.update(len(part))
                yield part

    return np.concatenate(list(rows()))


def _choose_models(
    models: Model | Sequence[Model], weights: str | Path | None
) -> list[tuple[Model, ModelSpec]]:
    listed: list[Model] = list(models) if isinstance(models, (list, tuple)) else [models]  # type: ignore[list-item]
    if weights is not None:
        if len(listed) > 1:
            raise ArgumentError(f"{weights} is the checkpoint of one model: name one model")
        listed = [ModelSpec.find(*listed, weights=weights)]  # type: ignore[arg-type]
    if not listed:
        raise ArgumentError("which model? name a face network: --model NAME")
    chosen: list[tuple[Model, ModelSpec]] = []
    for model in listed:
        specs = match_models(model) if is_wildcard(model) else []
        chosen += [(spec, spec) for spec in specs] or [(model, find_spec(model))]
    for model, spec in chosen:
        check_embeds(spec, model)
    return chosen
