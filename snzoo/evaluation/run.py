"""One pass over labeled images for any number of networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from snzoo.data.batches import Batch, count_batches, read_batches
from snzoo.data.samples import Samples
from snzoo.errors import DataError, SnzooError
from snzoo.evaluation.accuracy import Classes, Labels, Probabilities, accuracy
from snzoo.evaluation.network import Best, Network, check_finite
from snzoo.evaluation.processes import Processes, local_cores
from snzoo.evaluation.records import Journal, Records
from snzoo.evaluation.results import Accuracy
from snzoo.manifest import Preprocessing


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with how far the evaluation came."""


@dataclass(frozen=True)
class Evaluation:
    """Result of :func:`evaluate`.

    ``seconds`` of decoding and inference together, for the ``measured`` images of this run;
    the others were recorded by an earlier one that it resumed.
    """

    samples: Samples
    records: Records
    measured: int
    seconds: float

    @property
    def errors(self) -> tuple[str, ...]:
        """Why images were left out, in the order of the images."""
        return tuple(message for _, message in sorted(self.records.errors.items()))

    @property
    def images_per_second(self) -> float:
        return self.measured / self.seconds

    def images(self) -> list[int]:
        """The positions in ``samples`` of the images that count."""
        return [int(i) for i in np.flatnonzero(self.records.read())]

    def labels(self) -> Labels:
        """(n,) Of the images that count."""
        return np.array(self.samples.labels, np.int64)[self.records.read()]

    def classes(self, network: int = 0) -> Classes:
        """(n, 5) The best classes of the images that count, best first."""
        return np.asarray(self.records.classes[network, self.records.read()])

    def probabilities(self, network: int = 0) -> Probabilities:
        """(n, 5) Of those classes."""
        return np.asarray(self.records.probabilities[network, self.records.read()])

    def top1(self, network: int = 0) -> Accuracy:
        return accuracy(self.classes(network)[:, :1], self.labels())

    def top5(self, network: int = 0) -> Accuracy:
        return accuracy(self.classes(network), self.labels())


def evaluate(
    networks: Sequence[Network],
    samples: Samples,
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    approximate: bool = False,
    on_error: Literal["fail", "skip"] = "fail",
    report: Callable[[str], None] = lambda message: None,
    progress: bool = False,
    processes: Processes | None = None,
    journal: Journal | None = None,
) -> Evaluation:
    """Ask every network for the best five classes of every image; decode each image once.

    Args:
        networks: on one device, of one input size, and of the classes of ``samples``.
        batch_size: default 16 on the CPU, 128 elsewhere.
        workers: decoding threads (default: the processor's cores, shared by the processes).
        approximate: decode JPEG at a reduced size: faster, and not the reference's pixels.
        on_error: raise at the first image that can't be read, or leave it out of the
            counts and report it.
        report: called with each message for people.
        progress: show a bar where stderr is a terminal.
        processes: those that share the work; each of them returns the whole result.
        journal: keeps the records of a run that is interrupted, and gives back those that
            it has: their batches are not evaluated again.

    Raises:
        DataError: an image can't be read, or none can.
        SnzooError: the networks don't fit together, or one gives logits that are not finite.
        Interrupted: by Ctrl-C.
    """
    device, preprocessing = _common(networks)
    processes, records = processes or Processes(), Records.empty(len(networks), len(samples))
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
        numbers=processes.share(_open_batches(records, batch_size)),
        resize_on=resize_device(device),
        approximate=approximate,
    )
    before, start = int(records.done().sum()), time.perf_counter()
    total = before + (len(samples) - before) // processes.count  # the others show no bar
    bar = tqdm(total=total, unit="img", leave=False, disable=None if progress else True)
    try:
        with bar:
            bar.update(before)
            for batch, outputs in _outputs(networks, batches):
                _keep(records, networks, batch, outputs)
                _tell(batch, on_error, report)
                if journal and not batch.errors:  # which a later run may be able to read
                    journal.write(records, batch.indices)
                bar.update(len(batch.indices) + len(batch.errors))
    except KeyboardInterrupt:
        raise Interrupted(_how_far(records, journal)) from None
    for other in processes.gather(records):
        records.update(other)
    seconds = max(processes.gather(time.perf_counter() - start))
    if not records.read().any():
        raise DataError(f"none of the {len(samples)} images can be read")
    return Evaluation(samples, records, int(records.done().sum()) - before, seconds)


def default_batch_size(device: torch.device) -> int:
    """What is fastest: on a CPU, activations that stay in the cache."""
    return 16 if device.type == "cpu" else 128


def resize_device(device: torch.device) -> torch.device | None:
    """A GPU resizes what the threads decode; elsewhere they resize too."""
    return device if device.type == "cuda" else None


def _common(networks: Sequence[Network]) -> tuple[torch.device, Preprocessing]:
    """The device and the input size that networks of one pass share."""
    first = networks[0]
    size = first.preprocessing.resize, first.preprocessing.crop
    for other in networks[1:]:
        if (other.preprocessing.resize, other.preprocessing.crop) != size:
            raise SnzooError(
                f"{first.name} and {other.name} take images of different sizes; "
                "evaluate them one after the other"
            )
    return first.device, first.preprocessing


def _open_batches(records: Records, batch_size: int) -> list[int]:
    """The numbers of the batches with images that are neither read nor known to be unreadable."""
    done = records.done()
    numbers = range(count_batches(len(done), batch_size))
    return [n for n in numbers if not done[n * batch_size : (n + 1) * batch_size].all()]


def _outputs(
    networks: Sequence[Network], batches: Iterable[Batch]
) -> Iterator[tuple[Batch, list[Best]]]:
    """What the networks say of each batch, given out when they are at work on the next one.

    So a GPU, which works while Python goes on, need not wait for the results to be recorded.
    """
    waiting: tuple[Batch, list[Best], Callable[[], None]] | None = None
    for batch in chain(batches, [None]):
        coming = None
        if batch:
            best = [network.best(batch.pixels) for network in networks] if batch.indices else []
            coming = (batch, *_fetch(best))
        if waiting:
            done, outputs, wait = waiting
            wait()
            yield done, outputs
        waiting = coming


def _fetch(best: list[Best]) -> tuple[list[Best], Callable[[], None]]:
    """The same on the CPU, which is there once the function is called.

    Fetching later would wait for the work on the next batch too.
    """
    if not best or best[0].indices.device.type != "cuda":
        return [Best(*(values.cpu() for values in b)) for b in best], lambda: None
    copies = [Best(*(values.to("cpu", non_blocking=True) for values in b)) for b in best]
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(best[0].indices.device))
    return copies, copied.synchronize


def _keep(records: Records, networks: Sequence[Network], batch: Batch, outputs: list[Best]) -> None:
    for i, (network, output) in enumerate(zip(networks, outputs, strict=False)):
        check_finite(output, network.name)
        probabilities, classes = (values.numpy() for values in output)
        records.put(i, batch.indices, classes, probabilities)
    records.errors.update({i: str(error) for i, error in batch.errors.items()})


def _tell(batch: Batch, on_error: Literal["fail", "skip"], report: Callable[[str], None]) -> None:
    """Of the images of a batch that can't be read."""
    for error in batch.errors.values():
        if on_error == "fail":
            raise DataError(f"{error}; to leave such images out: --on-error skip")
        report(str(error))


def _how_far(records: Records, journal: Journal | None) -> str:
    done = f"interrupted after {int(records.done().sum()):,} of {records.images:,} images"
    if journal is None:
        return done
    if journal.error:
        return f"{done}, which could not be recorded: {journal.error}"
    return f"{done}; the same command with --resume goes on from there"
