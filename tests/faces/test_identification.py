"""Figures of identification against ranks counted in float64, and against cases by hand."""

import numpy as np
import pytest
import torch

from snzoo.errors import ArgumentError, DeviceError, NonFiniteError
from snzoo.faces import identification, identify, identify_megaface

RANKS = (1, 2, 5, 10)
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=CUDA)]


def faces(seed, *, people=30, photos=3, noise=1.2, dimensions=24):
    """Normalized embeddings and the people in them, in random order."""
    chance = np.random.default_rng(seed)
    labels = chance.permutation(np.repeat(np.arange(people), photos)) * 7 - 5
    centers = {label: chance.normal(size=dimensions) for label in np.unique(labels)}
    rows = np.stack([centers[label] for label in labels])
    rows += noise * chance.normal(size=rows.shape)
    return normalized(rows), labels


def strangers(seed, count, dimensions=24):
    return normalized(np.random.default_rng(seed).normal(size=(count, dimensions)))


def normalized(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def distance(a, b):
    return ((a.astype(np.float64) - b.astype(np.float64)) ** 2).sum(axis=-1)


def rank(mate, competitors):
    return 1 + int((np.asarray(competitors) <= mate).sum())


def shares(ranks):
    return [(k, sum(r <= k for r in ranks), len(ranks)) for k in RANKS]


def counts(figures):
    return [(r.rank, r.rate.hits, r.rate.trials) for r in figures.rates]


def closed_set(probes, probe_labels, gallery, gallery_labels, distractors):
    ranks = []
    for probe, label in zip(probes, probe_labels, strict=True):
        mates = gallery_labels == label
        near = distance(probe, gallery)
        competitors = [*near[~mates], *distance(probe, distractors)]
        ranks.append(rank(near[mates].min(), competitors))
    return shares(ranks)


def megaface(probes, labels, distractors):
    return shares(
        [
            rank(distance(probes[i], probes[j]), distance(probes[i], distractors))
            for i in range(len(probes))
            for j in range(len(probes))
            if i != j and labels[i] == labels[j]
        ]
    )


@pytest.fixture(params=[None, 50], ids=["one block", "blocks"])
def blocks(request, monkeypatch):
    """Also compute distances in blocks of a few probes."""
    if request.param:
        monkeypatch.setattr(identification, "MOST_DISTANCES", request.param)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk_size", [1, 7, 8192])
@pytest.mark.parametrize("seed", range(3))
def test_each_probe_is_ranked_by_its_nearest_mate(seed, chunk_size, device, blocks):
    rows, labels = faces(seed)
    others = strangers(seed, 200)
    probes = np.zeros(len(rows), bool)
    probes[np.unique(labels, return_index=True)[1]] = True  # the first photo of each person
    parts = rows[probes], labels[probes], rows[~probes], labels[~probes]
    options = {"ranks": RANKS, "device": device, "chunk_size": chunk_size}
    figures = identify(*parts, others, **options)
    assert counts(figures) == closed_set(*parts, others)
    assert (figures.protocol, figures.probes, figures.gallery) == ("nearest mate", 30, 60)
    assert figures.distractors == 200
    alone = identify(*parts, **options)
    assert counts(alone) == closed_set(*parts, others[:0]) and alone.distractors == 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk_size", [1, 7, 8192])
@pytest.mark.parametrize("seed", range(3))
def test_megaface_ranks_each_pair_of_photos_among_the_distractors(seed, chunk_size, device, blocks):
    rows, labels = faces(seed, people=12, photos=4)
    labels[:3] = [1000, 1001, 1002]  # people with a single photo have no trial
    others = strangers(seed, 150)
    figures = identify_megaface(
        rows, labels, others, ranks=RANKS, device=device, chunk_size=chunk_size
    )
    assert counts(figures) == megaface(rows, labels, others)
    assert (figures.probes, figures.distractors) == (48, 150)
    percent = [100 * hits / trials for _, hits, trials in counts(figures)]
    assert [r.rate.percent for r in figures.rates] == pytest.approx(percent)
    assert percent[0] < percent[-1] < 100  # or the comparison would show little


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("chunk_size", [1, 3, 8192])
def test_a_competitor_as_near_as_the_mate_counts_against_the_probe(seed, chunk_size):
    rows, labels = faces(seed, people=10, photos=4, noise=0.4, dimensions=512)
    copies = rows[1::2].copy()  # of some mates, as distractors
    figures = identify_megaface(rows, labels, copies, ranks=RANKS, chunk_size=chunk_size)
    assert counts(figures) == megaface(rows, labels, copies)
    assert counts(figures)[0][1] < counts(identify_megaface(rows, labels, -copies))[0][1]
    closed = rows[0::4], labels[0::4], rows, labels  # each mate is also a distractor
    tied = identify(*closed, rows, ranks=RANKS, chunk_size=chunk_size)
    assert counts(tied)[0] == (1, 0, 10) and counts(tied) == closed_set(*closed, rows)


@pytest.mark.parametrize("chunk_size", [5, 64])
def test_distractors_are_read_once_from_chunks_or_a_memory_map(tmp_path, chunk_size):
    rows, labels = faces(3)
    others = strangers(3, 333)
    expected = identify_megaface(rows, labels, others)
    np.save(tmp_path / "others.npy", others)
    mapped = np.load(tmp_path / "others.npy", mmap_mode="r")
    assert identify_megaface(rows, labels, mapped, chunk_size=chunk_size) == expected
    parts = (others[start : start + 50].astype(np.float64) for start in range(0, 333, 50))
    assert identify_megaface(rows, labels, parts, chunk_size=chunk_size) == expected


def test_a_flag_as_an_additional_number_keeps_noisy_distractors_away():
    rows, labels = faces(4, noise=0.8)
    clean, noisy = strangers(4, 100), rows[:20]  # noisy: the people of the probes
    others = np.concatenate([clean, noisy])
    flags = np.repeat([0, 100], [len(clean), len(noisy)])
    flagged = np.column_stack([others, flags]).astype(np.float32)
    probes = np.column_stack([rows, np.zeros(len(rows))]).astype(np.float32)
    kept = identify_megaface(probes, labels, flagged, ranks=RANKS)
    assert counts(kept) == megaface(probes, labels, flagged) == megaface(rows, labels, clean)
    assert counts(kept) != megaface(rows, labels, others)


def test_missing_competitors_let_the_mate_have_a_low_rank():
    rows, labels = faces(5, people=4)
    figures = identify_megaface(rows, labels, np.concatenate([rows[:1], rows[:1]]), ranks=(9, 3, 3))
    assert [r.rank for r in figures.rates] == [3, 9]
    assert all(r.rate.percent == 100 for r in figures.rates)


ROWS, LABELS = faces(0, people=3)
CLOSED = {
    "probes": ROWS[:3],
    "probe_labels": LABELS[:3],
    "gallery": ROWS[3:],
    "gallery_labels": LABELS[3:],
    "distractors": strangers(0, 5),
}


def spoiled(rows, index):
    rows = rows.copy()
    rows[index, 2] = np.nan
    return rows


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"ranks": ()}, ArgumentError, "ranks must be one or more numbers from 1 on"),
        ({"ranks": (1, 0)}, ArgumentError, "ranks must be"),
        ({"probe_labels": LABELS[:2]}, ArgumentError, "probes must have an integer label"),
        ({"gallery_labels": LABELS[3:] / 2}, ArgumentError, "gallery must have an integer label"),
        ({"probes": ROWS[:0], "probe_labels": LABELS[:0]}, ArgumentError, "there is no probe"),
        (
            {"gallery": ROWS[3:, 1:]},
            ArgumentError,
            "gallery photo must have 24 numbers.* 6×23",
        ),
        ({"distractors": [ROWS, ROWS[0]]}, ArgumentError, "each distractor must have.* of 24$"),
        ({"probe_labels": [LABELS[3], LABELS[3], 99]}, ArgumentError, "probe 2 shows person 99"),
        ({"probes": spoiled(ROWS[:3], 1)}, NonFiniteError, "probe 1 is not finite"),
        ({"gallery": spoiled(ROWS[3:], 4)}, NonFiniteError, "gallery photo 4 is not finite"),
        ({"distractors": [ROWS, spoiled(ROWS, 2)]}, NonFiniteError, "distractor 11 is not finite"),
        ({"device": "abacus"}, DeviceError, "abacus"),
        ({"chunk_size": 0}, ArgumentError, "chunk_size must be a whole number from 1; got 0"),
        ({"chunk_size": -2}, ArgumentError, "chunk_size must be a whole number from 1; got -2"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changed, error, words):
    with pytest.raises(error, match=words):
        identify(**(CLOSED | {"chunk_size": 2} | changed))


def test_megaface_needs_distractors_and_two_photos_of_a_person():
    with pytest.raises(ArgumentError, match="no distractor"):
        identify_megaface(ROWS, LABELS, ROWS[:0])
    with pytest.raises(ArgumentError, match="no two probes show the same person"):
        identify_megaface(ROWS, np.arange(9), ROWS)
