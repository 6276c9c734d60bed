"""Write the predictions of any number of photos to a file, in bounded memory."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import nn
from tqdm import tqdm

from snzoo.data import is_image
from snzoo.data.decode import Photo
from snzoo.data.inputs import STDIN, Chunk, is_path, iter_chunks, list_files, list_items
from snzoo.errors import ArgumentError, DataError, FileError, Interrupted
from snzoo.files import check_writable, write_atomically
from snzoo.inference.classifier import Classifier
from snzoo.inference.computation import (
    choose_shared_device,
    device_name,
    number_names,
    versions,
)
from snzoo.inference.network import default_batch_size
from snzoo.inference.outcomes import (
    OnError,
    PredictionOptions,
    classify,
    count_photos,
    open_classifiers,
)
from snzoo.inference.outputs import check_inputs_survive
from snzoo.inference.parts import (
    Part,
    begin_run,
    check_resumed,
    is_complete,
    list_parts,
    lock_parts,
    partial_folder,
    read_parts,
    remove_parts,
    write_part,
)
from snzoo.inference.tables import check_suffix, join_rows, list_columns, make_rows, open_rows
from snzoo.inference.transform import Model, find_spec, list_given_models
from snzoo.processes import Processes, join
from snzoo.spec import ModelSpec


@dataclass(frozen=True)
class Summary:
    """The number of photos of a run, and what could not be read.

    Attributes:
        photos: the number of photos.
        broken: the number of those that could not be read.
        unreadable: the names of inputs that could not be read as a whole, such as a missing folder.
            Each of them counts as a broken photo.
    """

    photos: int
    broken: int
    unreadable: tuple[str, ...] = ()


def write_predictions(
    models: Model | Sequence[Model],
    inputs: Photo | Iterable[Photo],
    output: str | Path,
    *,
    topk: int = 5,
    embeddings: bool = False,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    workers: int | None = None,
    upright: bool = True,
    on_error: OnError = "raise",
    resume: bool = False,
    show: Callable[[Summary], None] = lambda summary: None,
    report: Callable[[str], None] = lambda message: None,
    progress: bool = False,
) -> Summary:
    """Classify any number of photos, and write one row for each photo and model to a file.

    The columns are ``model``, ``image``, the most probable classes ``class1`` … (indices),
    ``name1`` … and ``probability1`` …, and ``error``: the reason why the photo could not be read,
    in which case the columns of the classes are empty.

    While this runs, the rows of finished chunks of photos are files in the folder
    ``OUTPUT.partial``. At the end they are joined, and the folder is removed. If torchrun started
    several processes, all of them must call this function; they share the chunks, and the first
    one joins them.

    Args:
        models: one or several models, which take pixels of the same size; see
            :func:`snzoo.predict`.
        inputs: the photos, see :func:`~snzoo.data.inputs.iter_chunks`.
        output: the file to write: ``.csv``, ``.ndjson`` or ``.parquet``.
        topk, batch_size, device, workers, upright: see :func:`snzoo.predict`.
        embeddings: add a column ``embedding`` with the pooled features of each photo.
        on_error: see :func:`snzoo.predict`. Unless it is ``"raise"``, photos that cannot be read
            have rows.
        resume: continue an interrupted run of the same call. Chunks that are finished are not
            read again. A file that is complete is left as it is, and no photo is read.
        show: a function that is called with the summary, in the first process only.
        report: a function that is called with a message if there is nothing to resume.
        progress: show a progress bar if stderr is a terminal.

    Returns:
        The number of photos, including those of the resumed run.

    Raises:
        ArgumentError: an option has a wrong value, or the models take pixels of different sizes.
        FileError: the file cannot be written, is an input, or has parts of another run.
        DataError: a photo cannot be read, or the inputs changed since the interrupted run.
        Interrupted: the user pressed Ctrl-C.
        UnknownModelError, CheckpointError, DeviceError, NonFiniteError: see :func:`snzoo.predict`.
    """
    options = PredictionOptions(topk, embeddings, batch_size, workers, upright, on_error)
    output, models = Path(output), list_given_models(models)
    models = [m if isinstance(m, nn.Module) else find_spec(m) for m in models]  # once
    specs = [find_spec(model) for model in models]
    _check_output(output, inputs, specs, options, resume=resume)
    shared = choose_shared_device(device, models)
    with join(shared) as processes, ExitStack() as stack:
        is_first = processes.rank == 0
        if resume and is_complete(output):
            if is_first:
                report(f"{output} is complete; remove it to begin anew")
            return Summary(0, 0)
        classifiers = stack.enter_context(open_classifiers(models, shared))
        if processes.count > 1 and STDIN in _list_paths(inputs):
            raise ArgumentError("several processes can't share stdin: write the list to a file")
        job = _Job(classifiers, number_names(specs), options, output)
        with lock_parts(job.folder) if is_first else nullcontext():
            found = _open_parts(job, processes, resume=resume, report=report)
            disable = None if progress and is_first else True
            with tqdm(unit="img", leave=False, disable=disable) as bar:
                seen = _write_parts(job, inputs, found, processes, bar)
            if len(set(processes.gather(seen))) > 1:
                raise DataError("the processes found different photos; give all the same ones")
            broken = _join_parts(job, seen.parts) if is_first else 0
        summary = Summary(seen.photos, processes.broadcast(broken), seen.unreadable)
        if is_first:
            remove_parts(job.folder)
            show(summary)
    return summary


@dataclass(frozen=True)
class _Job:
    """What all parts of a file have in common."""

    classifiers: Sequence[Classifier]
    names: Sequence[str]
    options: PredictionOptions
    output: Path

    @property
    def folder(self) -> Path:
        return partial_folder(self.output)

    @property
    def suffix(self) -> str:
        return self.output.suffix.lower()

    @property
    def columns(self) -> list[str]:
        return list_columns([each.num_classes for each in self.classifiers], self.options)


def _check_output(
    output: Path,
    inputs: Photo | Iterable[Photo],
    specs: Sequence[ModelSpec],
    options: PredictionOptions,
    *,
    resume: bool,
) -> None:
    check_suffix(output)
    if options.embeddings and output.suffix.lower() == ".csv":
        raise ArgumentError(f"{output}: embeddings need a .parquet or .ndjson file, not .csv")
    check_writable(output)
    files: list[Path] = []
    for path in _list_paths(inputs):
        if not is_image(os.fspath(path)):  # the output is not named like one
            with suppress(DataError, OSError):  # the run reports it
                files += list_files(path)
    check_inputs_survive([output], files, specs)
    check_resumed(output, resume=resume)


def _list_paths(inputs: Photo | Iterable[Photo]) -> list[str | os.PathLike[str]]:
    """Return the paths among inputs that are given as a sequence, which can be read twice."""
    items = list_items(inputs)
    return [item for item in items if is_path(item)] if isinstance(items, (list, tuple)) else []


def _describe_run(job: _Job) -> dict[str, Any]:
    """Return what determines the rows, apart from the photos."""
    device = job.classifiers[0].network.device
    digests = [classifier.network.digest()[:16] for classifier in job.classifiers]
    return {
        "models": ", ".join(map(" ".join, zip(job.names, digests, strict=True))),
        "topk": job.options.topk,
        "embeddings": job.options.embeddings,
        "upright": job.options.upright,
        "batch size": job.options.batch_size or default_batch_size(device),
        "device": device_name(str(device)),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        **versions(),
    }


def _open_parts(
    job: _Job, processes: Processes, *, resume: bool, report: Callable[[str], None]
) -> dict[int, Part]:
    """Return the finished parts of an interrupted run, or begin a new run."""
    run = _describe_run(job)
    found = read_parts(job.folder, run)
    begun = any(processes.gather(found is not None))  # before any process writes
    if not begun and processes.rank == 0:
        if resume:
            report(f"there is no {job.folder}, so the run begins anew")
        begin_run(job.folder, run)
    processes.gather(None)
    if job.options.on_error == "raise" and any(part.broken for part in (found or {}).values()):
        raise DataError(
            f"{job.folder} has photos that could not be read: resume it with --on-error skip, or "
            "remove it to begin anew"
        )
    return found or {}


class _Seen(NamedTuple):
    """What a process saw of the photos, which is the same in all processes."""

    parts: int
    photos: int
    digest: str
    unreadable: tuple[str, ...]


def _write_parts(
    job: _Job,
    inputs: Photo | Iterable[Photo],
    found: dict[int, Part],
    processes: Processes,
    bar: tqdm[NoReturn],
) -> _Seen:
    """Write this process's share of the parts that are missing."""
    parts = photos = done = 0
    digests, unreadable = hashlib.sha256(), list[str]()
    try:
        size = count_photos(job.classifiers, job.options)
        for number, chunk in enumerate(iter_chunks(inputs, size)):
            digest = chunk.digest()
            is_own = number % processes.count == processes.rank
            if part := found.get(number):
                _check_same(part, digest, chunk)
                bar.update(len(chunk))
            elif is_own:
                write = partial(_write_rows, job, chunk, bar)
                write_part(job.folder, number, digest, job.suffix, write)
            parts, photos = number + 1, photos + len(chunk)
            done += len(chunk) if part or is_own else 0
            digests.update(digest.encode())
            unreadable += chunk.list_unreadable()
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; the rows of {done:,} photos are kept, and the same command with "
            "--resume goes on from there"
        ) from None
    return _Seen(parts, photos, digests.hexdigest(), tuple(unreadable))


def _write_rows(job: _Job, chunk: Chunk, bar: tqdm[NoReturn], path: Path) -> int:
    """Write the rows of a chunk; return the number of photos that could not be read."""
    broken, columns = 0, job.columns
    with open_rows(path, columns, suffix=job.suffix, header=False) as write:
        for outcome in classify(job.classifiers, chunk, job.options):
            for row in make_rows(outcome, job.names, columns):
                write(row)
            broken += outcome.error is not None
            bar.update(1)
    return broken


def _check_same(part: Part, digest: str, chunk: Chunk) -> None:
    if part.digest != digest:
        first, last = chunk.start + 1, chunk.start + len(chunk)
        raise DataError(
            f"the inputs changed: photos {first:,} to {last:,} are not those of the interrupted "
            f"run; name the same inputs, or remove {part.path.parent} to begin anew"
        )


def _join_parts(job: _Job, count: int) -> int:
    """Join the parts; return the number of photos that could not be read."""
    folder = job.folder
    found = list_parts(folder)
    if missing := sorted(set(range(count)) - set(found)):
        raise FileError(f"part {missing[0]} is not in {folder}; do the processes share this disk?")
    if len(found) > count:
        raise DataError(
            "the inputs changed: the interrupted run had more photos; name the same inputs, or "
            f"remove {folder} to begin anew"
        )
    paths = (found[number].path for number in range(count))
    with write_atomically(job.output) as temporary:
        join_rows(paths, temporary, job.columns, suffix=job.suffix)
    return sum(part.broken for part in found.values())
