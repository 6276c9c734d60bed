"""Run an evaluation: choose models and images, measure, and write the results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from snzoo.data.demo import demo_samples
from snzoo.data.imagenet import real_labels_of
from snzoo.data.samples import Samples, find_samples
from snzoo.errors import (
    ArgumentError,
    UnexpectedArgumentError,
    suggest,
)
from snzoo.evaluation.config import EvaluationConfig
from snzoo.evaluation.measure import measure
from snzoo.evaluation.predictions import save_predictions
from snzoo.evaluation.records import Journal, digest_of, run_folder
from snzoo.evaluation.results import Results
from snzoo.evaluation.summary import describe_pixels, summarize
from snzoo.evaluation.wildcards import is_wildcard, match_models
from snzoo.files import check_writable, write_json
from snzoo.inference.classifier import borrow, check_classifies_photos
from snzoo.inference.computation import choose_shared_device, device_name, versions
from snzoo.inference.network import Network, default_batch_size, local_cores
from snzoo.inference.outputs import check_inputs_survive
from snzoo.inference.tables import check_suffix
from snzoo.inference.transform import Model, find_spec, list_given_models
from snzoo.manifest import load_demo, load_manifest
from snzoo.processes import Processes, join
from snzoo.spec import ModelSpec


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate; ``model`` is None until its weights are loaded."""

    spec: ModelSpec
    model: nn.Module | None = None


def evaluate(
    models: Model | Sequence[Model] = (),
    data: str | Path | Samples | None = None,
    **options: Any,
) -> Results:
    """Evaluate classifiers on labeled images; return their accuracies and the published ones.

    All models are evaluated in one pass over the images. The mode and the device of given networks
    are restored. If torchrun started several processes, all of them must call this function; each
    of them returns the whole results.

    Args:
        models: one or several networks of :func:`snzoo.create_model`, or names (default: the demo
            network).
        data: the labeled images: a folder or file, see ``docs/evaluation.md`` (default: the
            bundled demo photos).
        options: the other fields of :class:`~snzoo.evaluation.EvaluationConfig`, such as
            ``batch_size``, ``precision`` and ``json``.

    Returns:
        :class:`~snzoo.evaluation.results.Results`; ``results.models[0].top1.percent`` is the
        top-1 accuracy of the first model.

    Raises:
        UnexpectedArgumentError: there is no such option.
        ArgumentError: an option has a wrong value, or the options do not go together.
        UnknownModelError, CheckpointError, ChecksumError: see :func:`snzoo.create_model`.
        DataError: the images cannot be labeled or read.
        FileError: an output cannot be written.
        DeviceError, NonFiniteError: see :func:`snzoo.predict`.

    >>> evaluate("resnet18v1_sn_clothing").models[0].top1.images
    149
    """
    known = [field.name for field in dataclasses.fields(EvaluationConfig)]
    if unknown := sorted(set(options) - set(known)):
        hint = suggest(unknown[0], known)
        raise UnexpectedArgumentError(f"evaluate takes no argument {unknown[0]!r}; {hint}")
    return run_evaluation(EvaluationConfig(models=models, data=data, **options))


def run_evaluation(
    config: EvaluationConfig,
    *,
    show: Callable[[Results], None] = lambda results: None,
    report: Callable[[str], None] = lambda message: None,
    progress: bool = False,
) -> Results:
    """Run the evaluation that ``config`` describes, and return its results; see :func:`evaluate`.

    Args:
        config: the options.
        show: a function that is called with the results before they are written, in the first
            process only.
        report: a function that is called with a message for each image that is left out, and if
            there is nothing to resume.
        progress: show a progress bar if stderr is a terminal.
    """
    _check_outputs(config)
    candidates = choose_models(config)
    specs = [candidate.spec for candidate in candidates]
    outputs = [Path(output) for output in (config.json, config.predictions) if output]
    data = [config.data] if isinstance(config.data, (str, Path)) else []
    check_inputs_survive(outputs, data, specs)
    unpublished = [spec.name for spec in specs if not spec.published]
    if config.check and unpublished:
        raise ArgumentError(f"no published figures of {', '.join(unpublished)} to check against")
    device = choose_shared_device(config.device, [candidate.model for candidate in candidates])
    with ExitStack() as stack:
        processes = stack.enter_context(join(device))
        samples = _find_samples(config, candidates)
        real = real_labels_of(samples.names) if config.labels == "real" else None
        networks = []
        for candidate in candidates:
            if candidate.model is not None:
                stack.enter_context(borrow(candidate.model, device))
            networks.append(_make_network(config, candidate, device))
        settings = _settings(config, device, processes)
        journal = _open_journal(config, networks, samples, settings, processes, report)
        evaluation = measure(
            networks,
            samples,
            batch_size=settings["batch_size"],
            workers=settings["workers"],
            present=config.classes == "present",
            approximate=config.decode == "fast",
            on_error=config.on_error,
            report=report,
            progress=progress and processes.rank == 0,
            processes=processes,
            journal=journal,
        )
        results = summarize(
            evaluation,
            specs,
            path=None if isinstance(config.data, Samples) else config.data,
            settings=settings,
            pixels=describe_pixels(
                len(samples),
                device,
                resampling=specs[0].preprocessing.resampling,
                approximate=config.decode == "fast",
            ),
            real=real,
            tolerance=config.tolerance,
        )
        if processes.rank == 0:
            show(results)
            if config.json:
                write_json(config.json, results.as_dict())
            if config.predictions:
                names = [model.name for model in results.models]
                save_predictions(Path(config.predictions), evaluation, names)
        processes.gather(None)  # wait until the results are written
        if processes.local_rank == 0:
            journal.remove()
    return results


def choose_models(config: EvaluationConfig) -> list[Candidate]:
    """Return the models of a config. Wildcards match only models of the zoo that have weights.

    If plain names are given too, wildcards match only models with the same classes. Otherwise they
    match models with the classes of ImageNet, if there are any.

    Raises:
        ArgumentError: the models have different classes, or are not classifiers of photos.
        UnknownModelError: a name is unknown, or a wildcard matches no model.
    """
    models: list[Any] = list_given_models(config.models)
    if config.weights:
        if len(models) > 1 or any(isinstance(model, nn.Module) for model in models):
            raise ArgumentError(f"{config.weights} is the checkpoint of one model: name one model")
        models = [ModelSpec.find(*models, weights=config.weights)]
    found: dict[Any, Candidate] = {}
    for model in models or [load_demo().model]:
        if not is_wildcard(model):
            spec = find_spec(model)
            network = model if isinstance(model, nn.Module) else None
            check_classifies_photos(spec, network)
            found[(spec.name, spec.weights, network)] = Candidate(
                _name_classes(spec, network), network
            )
    classes = {candidate.spec.classes for candidate in found.values()}
    if len(classes) > 1:
        names = ", ".join(candidate.spec.name for candidate in found.values())
        raise ArgumentError(f"{names} have different classes: evaluate them one by one")
    for pattern in filter(is_wildcard, models):
        specs = match_models(pattern)
        if not classes:
            first = next((spec for spec in specs if spec.classes), specs[0])
            check_classifies_photos(first)
            is_imagenet = any(spec.classes == "imagenet-1k" for spec in specs)
            classes = {"imagenet-1k" if is_imagenet else first.classes}
        matched = (spec for spec in specs if spec.classes in classes)
        found |= {(spec.name, None, None): Candidate(spec) for spec in matched}
    return list(found.values())


def _name_classes(spec: ModelSpec, network: nn.Module | None) -> ModelSpec:
    """Return a spec whose classes have names; the classes of a new head are named ``class N``."""
    if network is None:
        return spec
    count: int = getattr(network, "num_classes", 0)
    if spec.classes and count not in (0, spec.num_classes):
        raise ArgumentError(
            f"{spec.name} returns {count} logits for {spec.num_classes} classes; create it with "
            "num_classes, or call reset_classifier"
        )
    if spec.classes:
        return spec
    return dataclasses.replace(spec, classes=tuple(f"class {i}" for i in range(count)))


def _check_outputs(config: EvaluationConfig) -> None:
    if config.data is not None and not config.models and not config.weights:
        raise ArgumentError(f"which model? name it: snzoo eval --model NAME --data {config.data}")
    outputs = [Path(output) for output in (config.json, config.predictions) if output]
    for output in outputs:
        check_writable(output)
    if config.predictions:
        check_suffix(Path(config.predictions))
    if len(outputs) == 2 and outputs[0].resolve() == outputs[1].resolve():
        raise ArgumentError(f"--json and --predictions both name {outputs[0]}; name two files")


def _find_samples(config: EvaluationConfig, candidates: Sequence[Candidate]) -> Samples:
    spec = candidates[0].spec
    if isinstance(config.data, Samples):
        return config.data
    if config.data is not None:
        return find_samples(config.data, spec.classes)
    photos = load_manifest().demo
    if photos is None or [c.spec.name for c in candidates] != [photos.model] or spec.weights:
        raise ArgumentError(f"which images? name them: snzoo eval --model {spec.name} --data PATH")
    return demo_samples(photos, spec.classes)


def _make_network(config: EvaluationConfig, candidate: Candidate, device: str) -> Network:
    model, spec = candidate.model, candidate.spec
    return Network(
        spec.load() if model is None else model,
        spec.preprocessing,
        name=spec.name,
        device=device,
        precision=config.precision,
        compile=config.compile,
        channels_last=config.channels_last,
    )


def _settings(config: EvaluationConfig, device: str, processes: Processes) -> dict[str, Any]:
    return {
        "device": device_name(device),
        "precision": config.precision,
        "batch_size": config.batch_size or default_batch_size(torch.device(device)),
        "compile": config.compile,
        "channels_last": config.channels_last,
        "threads": torch.get_num_threads(),
        "processes": processes.count,
        "workers": config.workers or local_cores(),
    }


def _open_journal(
    config: EvaluationConfig,
    networks: Sequence[Network],
    samples: Samples,
    settings: dict[str, Any],
    processes: Processes,
    report: Callable[[str], None],
) -> Journal:
    """Return the journal of this run. An earlier journal of the same run is kept for ``resume``."""
    identity = config.identity() | {
        "networks": [network.digest() for network in networks],
        "samples": digest_of(samples),
        "versions": versions(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **{key: settings[key] for key in ("device", "batch_size", "threads")},
    }
    journal = Journal(run_folder(identity), resume=config.resume)
    begun = any(processes.gather(journal.exists()))  # before any process writes
    if config.resume and not begun and processes.rank == 0:
        report("there is no record of such a run, so it begins anew")
    return journal
