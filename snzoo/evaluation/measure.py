"""Rank the classes of labeled images by several networks, in one pass over the images."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from snzoo.data.batches import Batch, count_batches, read_batches
from snzoo.data.samples import Samples
from snzoo.errors import DataError, Interrupted
from snzoo.evaluation.accuracy import Classes, Labels, Probabilities, accuracy
from snzoo.evaluation.config import OnError
from snzoo.evaluation.records import Journal, Records
from snzoo.evaluation.results import Accuracy
from snzoo.inference.computation import find_shared_preprocessing
from snzoo.inference.network import (
    Network,
    TopK,
    check_finite,
    default_batch_size,
    iter_ranked,
    local_cores,
    rank_classes,
    resize_device,
)
from snzoo.processes import Processes


@dataclass(frozen=True)
class Evaluation:
    """The ranked classes of every image by every network.

    Attributes:
        samples: The images and their labels.
        records: The classes ranked among all classes by each network. If ``present`` is not None,
            the classes ranked among the present ones by each network follow.
        present: The ascending indices of the classes that occur in the data, if these classes were
            also ranked by themselves.
        measured: The number of images that this run evaluated. A run that it resumed evaluated the
            others.
        seconds: The time of decoding and inference together.
    """

    samples: Samples
    records: Records
    measured: int
    seconds: float
    present: tuple[int, ...] | None = None

    @property
    def errors(self) -> tuple[str, ...]:
        """The messages of the images that were left out, in the order of the images."""
        return tuple(message for _, message in sorted(self.records.errors.items()))

    @property
    def images_per_second(self) -> float:
        return self.measured / self.seconds

    def images(self) -> list[int]:
        """Return the positions in ``samples`` of the n images that were read."""
        return [int(i) for i in np.flatnonzero(self.records.read())]

    def labels(self) -> Labels:
        """Return the labels (n,) of the images that were read."""
        return np.array(self.samples.labels, np.int64)[self.records.read()]

    def classes(self, network: int = 0, *, present: bool = False) -> Classes:
        """Return the first five classes (n, 5), padded with -1 if there are fewer classes."""
        return np.asarray(self.records.classes[self._row(network, present), self.records.read()])

    def probabilities(self, network: int = 0, *, present: bool = False) -> Probabilities:
        """Return the probabilities (n, 5) of :meth:`classes`."""
        row = self._row(network, present)
        return np.asarray(self.records.probabilities[row, self.records.read()])

    def top1(self, network: int = 0, *, present: bool = False) -> Accuracy:
        return accuracy(self.classes(network, present=present)[:, :1], self.labels())

    def top5(self, network: int = 0, *, present: bool = False) -> Accuracy:
        return accuracy(self.classes(network, present=present), self.labels())

    def _row(self, network: int, present: bool) -> int:
        return network + present * len(self.records.classes) // 2


def measure(
    networks: Sequence[Network],
    samples: Samples,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    present: bool = False,
    approximate: bool = False,
    on_error: OnError = "fail",
    report: Callable[[str], None] = lambda message: None,
    progress: bool = False,
    processes: Processes | None = None,
    journal: Journal | None = None,
) -> Evaluation:
    """Rank the classes of every image by every network.

    Args:
        networks: the networks, on one device and for images of one size.
        samples: the labeled images.
        batch_size: number of images in a batch (default: 16 on a CPU, else 128).
        workers: number of threads that decode (default: the number of cores).
        present: also rank the classes that occur in ``samples`` by themselves.
        approximate: decode at a reduced size; see :func:`~snzoo.data.batches.read_batches`.
        on_error: whether to stop at an image that cannot be read, or to leave it out and report it.
        report: a function that is called with the message of each image that is left out.
        progress: show a progress bar if stderr is a terminal.
        processes: the processes that share the work; each of them returns the whole result.
        journal: the journal that keeps the records in case the run is interrupted. Batches that
            it has already are not computed again.

    Raises:
        DataError: an image cannot be read, or none can.
        ArgumentError: the networks take images of different sizes or rules of resizing, or return
            no logits.
        DeviceError: a single image does not fit into the memory.
        NonFiniteError: a network returns logits that are not finite.
        Interrupted: the user pressed Ctrl-C.
    """
    device, preprocessing = networks[0].device, find_shared_preprocessing(networks)
    classes = samples.classes_present if present else None
    processes = processes or Processes()
    records = Records.empty(len(networks) * (2 if present else 1), len(samples))
    if journal:
        journal.restore(records)
    for other in processes.gather(records):
        records.update(other)
    batch_size = batch_size or default_batch_size(device)
    batches = read_batches(
        samples,
        preprocessing,
        batch_size=batch_size,
        workers=workers or local_cores(),
        numbers=processes.share(_unfinished_batches(records, batch_size)),
        resize_on=resize_device(device),
        approximate=approximate,
    )
    before, start = int(records.done().sum()), time.perf_counter()
    total = before + (len(samples) - before) // processes.count  # only the first shows a bar
    bar = tqdm(total=total, unit="img", leave=False, disable=None if progress else True)
    try:
        with bar:
            bar.update(before)
            for batch, ranked in iter_ranked(batches, _make_rank(networks, classes)):
                _store_batch(records, networks, batch, ranked)
                _report_errors(batch, on_error, report)
                if journal and not batch.errors:  # a later run may be able to read them
                    journal.write(records, batch.indices)
                bar.update(len(batch.indices) + len(batch.errors))
    except KeyboardInterrupt:
        raise Interrupted(_describe_progress(records, journal)) from None
    for other in processes.gather(records):
        records.update(other)
    seconds = max(processes.gather(time.perf_counter() - start))
    if not records.read().any():
        raise DataError(f"none of the {len(samples)} images can be read")
    return Evaluation(samples, records, int(records.done().sum()) - before, seconds, classes)


def _unfinished_batches(records: Records, batch_size: int) -> list[int]:
    """Return the numbers of the batches with images that are not done yet."""
    done = records.done()
    numbers = range(count_batches(len(done), batch_size))
    return [n for n in numbers if not done[n * batch_size : (n + 1) * batch_size].all()]


def _make_rank(
    networks: Sequence[Network], present: tuple[int, ...] | None
) -> Callable[[Tensor], list[TopK]]:
    """Return a function that computes the rows of :class:`Records` for a batch."""
    among = None if present is None else torch.tensor(present, device=networks[0].device)

    def rank(pixels: Tensor) -> list[TopK]:
        logits = [network.predict_logits(pixels) for network in networks]
        ranked = [rank_classes(row, 5) for row in logits]
        return ranked + ([] if among is None else [rank_classes(row, 5, among) for row in logits])

    return rank


def _store_batch(
    records: Records, networks: Sequence[Network], batch: Batch, ranked: list[TopK]
) -> None:
    for i, row in enumerate(ranked):
        check_finite(row.probabilities, networks[i % len(networks)].name)
        probabilities, classes = (values.numpy() for values in row)
        records.put(i, batch.indices, classes, probabilities)
    records.errors.update({i: str(error) for i, error in batch.errors.items()})


def _report_errors(batch: Batch, on_error: OnError, report: Callable[[str], None]) -> None:
    for error in batch.errors.values():
        if on_error == "fail":
            raise DataError(f"{error}; to leave such images out: --on-error skip")
        report(str(error))


def _describe_progress(records: Records, journal: Journal | None) -> str:
    count = int(records.done().sum())
    done = f"interrupted after {count:,} of {records.images:,} images"
    if journal is None or not count:
        return done
    if journal.error:
        return f"{done}, which could not be recorded: {journal.error}"
    return f"{done}; the same command with --resume goes on from there"
