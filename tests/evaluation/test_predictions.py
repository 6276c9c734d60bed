"""Per-image files hold what the evaluation counted."""

import csv
import json

import pytest
from pyarrow import parquet

from snzoo.errors import FileError, SnzooError
from snzoo.evaluation import evaluate
from snzoo.evaluation.predictions import check_suffix, save_predictions


def read(path):
    if path.suffix == ".csv":
        with open(path, newline="") as file:
            return list(csv.DictReader(file))
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("suffix", [".csv", ".ndjson", ".parquet"])
def test_every_row_is_an_image_and_a_network(tmp_path, photos, samples, make_network, suffix):
    (photos / "04.jpg").write_text("no image")
    result = evaluate([make_network(0), make_network(1)], samples, on_error="skip")
    path = tmp_path / f"predictions{suffix}"
    save_predictions(path, result, ["a", "b"])
    rows = read(path)
    assert [row["model"] for row in rows] == ["a"] * 11 + ["b"] * 11
    assert [row["image"] for row in rows[:11]] == [f"{i:02}.jpg" for i in range(12) if i != 4]
    for network, part in enumerate((rows[:11], rows[11:])):
        right = sum(int(row["class1"]) == int(row["label"]) for row in part)
        among = sum(int(r["label"]) in [int(r[f"class{k}"]) for k in range(1, 6)] for r in part)
        assert (right, among) == (result.top1(network).correct, result.top5(network).correct)
        sure = [[float(row[f"probability{k}"]) for k in range(1, 6)] for row in part]
        assert sure == result.probabilities(network).astype(float).tolist()
    assert [p.name for p in tmp_path.iterdir() if "predictions" in p.name] == [path.name]


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(SnzooError, match=r"x.txt.*\.csv, \.ndjson, \.parquet"):
        check_suffix(tmp_path / "x.txt")


def test_a_folder_that_is_not_there_is_named(tmp_path, samples, make_network):
    result = evaluate([make_network()], samples)
    with pytest.raises(FileError, match=r"none/x.csv"):
        save_predictions(tmp_path / "none" / "x.csv", result, ["a"])
