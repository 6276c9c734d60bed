"""Records survive what happens to the file that keeps them."""

import numpy as np
import pytest

from snzoo.evaluation.records import Journal, Records, digest_of, run_folder


def filled(images=6, networks=2):
    rng = np.random.default_rng(0)
    records = Records.empty(networks, images)
    for network in range(networks):
        classes = rng.integers(0, 1000, (images, 5), dtype=np.int32)
        records.put(network, range(images), classes, rng.random((images, 5), dtype=np.float32))
    return records


def same(a, b):
    return (
        np.array_equal(a.classes, b.classes)
        and np.array_equal(a.probabilities, b.probabilities)
        and a.errors == b.errors
    )


def test_what_is_written_is_restored_to_the_last_bit(tmp_path):
    records = filled()
    for batch in ([0, 1, 2], [3], [4, 5]):
        Journal(tmp_path / "run").write(records, batch)  # several processes: several files
    restored = Records.empty(2, 6)
    Journal(tmp_path / "run", resume=False).restore(restored)
    assert not restored.done().any()
    Journal(tmp_path / "run").restore(restored)
    assert same(records, restored) and restored.done().all()


@pytest.mark.parametrize("cut", [1, 2, 40, 200])
def test_a_line_that_was_cut_off_is_left_out(tmp_path, cut):
    journal = Journal(tmp_path / "run")
    for batch in ([0, 1, 2], [3, 4, 5]):
        journal.write(filled(), batch)
    (path,) = (tmp_path / "run").iterdir()
    path.write_bytes(path.read_bytes()[:-cut])
    restored = Records.empty(2, 6)
    Journal(tmp_path / "run").restore(restored)
    done = 6 if cut == 1 else 3  # without the newline alone, the line is whole
    assert restored.done().tolist() == [True] * done + [False] * (6 - done)


FIVE = "[[[1, 2, 3, 4, 5]]]"


@pytest.mark.parametrize(
    "line",
    [
        b"5",
        b"{}",
        b"[",
        b"\x00\xff",
        f'{{"images": [9], "classes": {FIVE}, "probabilities": {FIVE}}}'.encode(),
        f'{{"images": [-1], "classes": {FIVE}, "probabilities": {FIVE}}}'.encode(),
        f'{{"images": [0], "classes": 7, "probabilities": {FIVE}}}'.encode(),
        f'{{"images": [0], "classes": {FIVE}, "probabilities": 0}}'.encode(),
    ],
)
def test_lines_that_are_no_records_are_left_out(tmp_path, line):
    (tmp_path / "x.ndjson").write_bytes(line + b"\n")
    restored = Records.empty(1, 2)
    Journal(tmp_path).restore(restored)
    assert not restored.done().any()


def test_a_journal_that_cannot_be_written_says_so_and_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "run")
    journal.write(filled(), [0])
    assert "file" in journal.error and "Not a directory" in journal.error
    journal.write(filled(), [1])
    journal.remove()


def test_runs_are_told_apart_by_everything_that_decides_over_them(monkeypatch, tmp_path, samples):
    monkeypatch.setenv("SNZOO_HOME", str(tmp_path))
    folders = {run_folder({"a": 1, "b": 2}), run_folder({"b": 2, "a": 1}), run_folder({"a": 2})}
    assert len(folders) == 2 and all(f.parent == tmp_path / "runs" for f in folders)
    from dataclasses import replace

    assert digest_of(samples) != digest_of(replace(samples, labels=samples.labels[::-1]))
