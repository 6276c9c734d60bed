"""Figures of face identification (1:N), computed from embeddings alone.

A probe is a photo of a person to find, and a mate is another photo of that person. The rank of a
mate is one plus the number of competitors (photos of other people) that are at least as near to
the probe; the rate at rank k is the share of ranks of at most k. The points of these rates over k
are the cumulative match characteristic (CMC).

Distances are squared L2 distances, in float32. On L2-normalized embeddings, they give the order of
cosine similarities. They also serve features with a 513th number, by which the cleaned MegaFace
protocol keeps noisy photos far from all others; a cosine would not. Float32 cannot tell distances
apart that differ by less than about ``ROUNDING``. A competitor that is that near to the distance of
the mate counts as a tie, and a tie counts against the probe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snzoo.errors import ArgumentError, NonFiniteError
from snzoo.faces.rates import Rate
from snzoo.inference.network import choose_device, float32_precision

Rows = NDArray[np.floating]  # (photos, dimensions): an array or a memory map
Labels = NDArray[np.integer]  # (photos,): the person of each photo

RANKS = (1, 5, 10)
ROUNDING = 2e-6  # of a squared distance, as a share of the squared norm of the probe
MOST_DISTANCES = 1 << 25  # in memory at a time: 128 MiB


@dataclass(frozen=True)
class RankRate:
    """The share of trials whose mate has at most this rank."""

    rank: int
    rate: Rate


@dataclass(frozen=True)
class Identification:
    """The figures of identification.

    Attributes:
        protocol: what a trial is: ``"nearest mate"``, see :func:`identify`, or ``"megaface"``, see
            :func:`identify_megaface`.
        probes: the number of probes.
        gallery: the number of photos in the gallery; with ``"megaface"``, the probes themselves.
        distractors: the number of distractors.
        rates: the rate at each rank, lowest rank first.
    """

    protocol: Literal["nearest mate", "megaface"]
    probes: int
    gallery: int
    distractors: int
    rates: tuple[RankRate, ...]


def identify(
    probes: Rows,
    probe_labels: Labels,
    gallery: Rows,
    gallery_labels: Labels,
    distractors: Rows | Iterable[Rows] | None = None,
    *,
    ranks: Sequence[int] = RANKS,
    device: str | None = None,
    chunk_size: int = 8192,
) -> Identification:
    """Return the rates of closed-set identification: each probe is one trial.

    The rank is that of the nearest mate in the gallery. Competitors are the photos of other people
    in the gallery, and all distractors. A photo must not be both a probe and in the gallery.

    Args:
        probes: the embeddings of the probes, (P, dimensions).
        probe_labels: the person in each probe, (P,). Each person is in the gallery.
        gallery: the embeddings of the gallery, (G, dimensions).
        gallery_labels: the person in each photo of the gallery, (G,).
        distractors: embeddings of people who are in no probe: an array, a memory map, or an
            iterable of arrays, (N, dimensions) in all. They are read once, in chunks.
        ranks: the ranks of the rates.
        device: the device of the distances, e.g. ``cpu`` or ``cuda``; None means CUDA if available,
            else the CPU.
        chunk_size: the number of rows of the gallery or of the distractors that are on the device
            at a time.

    Raises:
        ArgumentError: shapes do not match, there is no probe, a rank is less than 1, or a probe has
            no mate in the gallery.
        DeviceError: the device cannot be used.
        NonFiniteError: an embedding is not finite.
    """
    ranks = _check_ranks(ranks)
    _check_labels("gallery", gallery, gallery_labels)
    with _load_probes(probes, probe_labels, device) as (queries, people):
        nearest = queries.new_full((len(queries), ranks[-1]), inf)
        mates = queries.new_full((len(queries),), inf)
        for start, chunk in _chunks(gallery, chunk_size, like=queries, name="gallery photo"):
            labels = _to_tensor(gallery_labels[start : start + len(chunk)], queries)
            for rows in _blocks(queries, chunk):
                distances = _distances(queries[rows], chunk)
                same = people[rows, None] == labels
                mate = distances.masked_fill(~same, inf).amin(dim=1)
                mates[rows] = torch.minimum(mates[rows], mate)
                _keep_nearest(nearest[rows], distances.masked_fill_(same, inf))
        for probe in mates.isinf().nonzero().flatten().tolist()[:1]:
            raise ArgumentError(
                f"probe {probe} shows person {probe_labels[probe]}, who is not in the gallery; "
                "leave it out"
            )
        number = _search(nearest, queries, distractors, chunk_size)
        limits = mates + _margin(queries)
        hits = [int((nearest[:, rank - 1] > limits).sum()) for rank in ranks]
    rates = _rates(ranks, hits, len(probes))
    return Identification("nearest mate", len(probes), len(gallery), number, rates)


def identify_megaface(
    probes: Rows,
    labels: Labels,
    distractors: Rows | Iterable[Rows],
    *,
    ranks: Sequence[int] = RANKS,
    device: str | None = None,
    chunk_size: int = 8192,
) -> Identification:
    """Return the rates by the protocol of MegaFace (Kemelmacher-Shlizerman et al., CVPR 2016).

    Each ordered pair of two photos of the same person is one trial: the first photo is the probe,
    and the second one is alone with the distractors in the gallery. Competitors are the distractors
    only. A person with n photos thus has n (n - 1) trials, and one with a single photo has none.

    The arguments and errors are those of :func:`identify`; no two photos of a person, or no
    distractor, is an :class:`~snzoo.errors.ArgumentError` too.
    """
    ranks = _check_ranks(ranks)
    with _load_probes(probes, labels, device) as (queries, people):
        nearest = queries.new_full((len(queries), ranks[-1]), inf)
        number = _search(nearest, queries, distractors, chunk_size)
        if number == 0:
            raise ArgumentError("there is no distractor; the protocol of MegaFace needs some")
        trials, hits = 0, [0] * len(ranks)
        order = torch.arange(len(queries), device=queries.device)
        for start, chunk in _chunks(probes, chunk_size, like=queries, name="probe"):
            mates = slice(start, start + len(chunk))
            for rows in _blocks(queries, chunk):
                pairs = (people[rows, None] == people[mates]) & (order[rows, None] != order[mates])
                limits = _distances(queries[rows], chunk) + _margin(queries[rows])[:, None]
                trials += int(pairs.sum())
                for i, rank in enumerate(ranks):
                    hits[i] += int((pairs & (nearest[rows, rank - 1, None] > limits)).sum())
    if trials == 0:
        raise ArgumentError("no two probes show the same person; each trial needs two such photos")
    rates = _rates(ranks, hits, trials)
    return Identification("megaface", len(probes), len(probes), number, rates)


def _check_ranks(ranks: Sequence[int]) -> list[int]:
    if not ranks or min(ranks) < 1:
        raise ArgumentError(f"ranks must be one or more numbers from 1 on; got {list(ranks)}")
    return sorted(set(ranks))


def _check_labels(name: str, rows: Rows, labels: Labels) -> None:
    if np.shape(labels) != (len(rows),) or not np.issubdtype(np.asarray(labels).dtype, np.integer):
        raise ArgumentError(f"{name} must have an integer label for each of {len(rows)} rows")


@contextmanager
def _load_probes(
    probes: Rows, labels: Labels, device: str | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the probes and their labels on the device; products in the block are float32."""
    _check_labels("probes", probes, labels)
    where = torch.device(choose_device(device))
    with torch.inference_mode(), float32_precision(where, tf32=False):
        like = torch.empty(0, np.shape(probes)[-1], device=where)
        chunks = [chunk for _, chunk in _chunks(probes, 1 << 16, like=like, name="probe")]
        if not chunks:
            raise ArgumentError("there is no probe; identification needs at least one")
        yield torch.cat(chunks), _to_tensor(labels, like)


def _to_tensor(labels: Labels, like: Tensor) -> Tensor:
    return torch.from_numpy(np.array(labels, dtype=np.int64)).to(like.device)


def _chunks(
    rows: Rows | Iterable[Rows], size: int, *, like: Tensor, name: str
) -> Iterator[tuple[int, Tensor]]:
    """Yield chunks of at most ``size`` rows, checked, in float32, and where each of them starts."""
    if size < 1:
        raise ArgumentError(f"chunk_size must be a whole number from 1; got {size}")
    start = 0
    parts: Iterable[Rows] = [rows] if isinstance(rows, np.ndarray) else rows
    for part in parts:
        if np.ndim(part) != 2 or np.shape(part)[1] != like.shape[1]:
            raise ArgumentError(
                f"each {name} must have {like.shape[1]} numbers, as many as the first probe; "
                f"got an array of {'×'.join(map(str, np.shape(part)))}"
            )
        for at in range(0, len(part), size):
            content = np.array(part[at : at + size], dtype=np.float32)  # a memory map may be locked
            chunk = torch.from_numpy(content).to(like.device)
            for bad in (~chunk.isfinite().all(dim=1)).nonzero().flatten().tolist()[:1]:
                raise NonFiniteError(f"{name} {start + bad} is not finite; leave this photo out")
            yield start, chunk
            start += len(chunk)


def _blocks(queries: Tensor, chunk: Tensor) -> Iterator[slice]:
    """Yield slices of the queries so small that their distances to a chunk fit in memory."""
    size = max(MOST_DISTANCES // len(chunk), 1)
    return (slice(start, start + size) for start in range(0, len(queries), size))


def _distances(queries: Tensor, chunk: Tensor) -> Tensor:
    """Return the squared L2 distances without the squared norms of the queries, (Q, n).

    The norm of a query is the same for all of its competitors.
    """
    return torch.addmm(chunk.square().sum(dim=1)[None, :], queries, chunk.T, alpha=-2)


def _margin(queries: Tensor) -> Tensor:
    return ROUNDING * queries.square().sum(dim=1)


def _search(nearest: Tensor, queries: Tensor, rows: Rows | Iterable[Rows] | None, size: int) -> int:
    """Update the distances of the nearest competitors by rows, and return the number of rows."""
    number = 0
    for _, chunk in _chunks(() if rows is None else rows, size, like=queries, name="distractor"):
        number += len(chunk)
        for part in _blocks(queries, chunk):
            _keep_nearest(nearest[part], _distances(queries[part], chunk))
    return number


def _keep_nearest(nearest: Tensor, distances: Tensor) -> None:
    """Replace the ascending distances in ``nearest`` by the least of them and of ``distances``."""
    kept = nearest.shape[1]
    found = distances.topk(min(kept, distances.shape[1]), largest=False, sorted=False).values
    nearest.copy_(torch.cat([nearest, found], dim=1).topk(kept, largest=False).values)


def _rates(ranks: Sequence[int], hits: Sequence[int], trials: int) -> tuple[RankRate, ...]:
    counts = zip(ranks, hits, strict=True)
    return tuple(RankRate(rank, Rate.count(hit, trials)) for rank, hit in counts)
