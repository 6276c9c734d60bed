"""Files of predictions hold what the evaluation counted, and are read back."""

import csv
from dataclasses import replace

import pytest

from snzoo.data.sources import Files
from snzoo.errors import ArgumentError, FileError
from snzoo.evaluation.measure import measure
from snzoo.evaluation.predictions import read_predictions, save_predictions
from snzoo.inference.tables import check_suffix

SUFFIXES = [".csv", ".ndjson", ".parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_row_is_an_image_and_a_network(tmp_path, photos, samples, make_network, suffix):
    (photos / "04.jpg").write_text("no image")
    result = measure([make_network(0), make_network(1)], samples, on_error="skip")
    path = tmp_path / f"predictions{suffix}"
    save_predictions(path, result, ["a", "b"])
    rows = read_predictions(path)
    assert [row["model"] for row in rows] == ["a"] * 11 + ["b"] * 11
    assert [row["image"] for row in rows[:11]] == [f"{i:02}.jpg" for i in range(12) if i != 4]
    for network, part in enumerate((rows[:11], rows[11:])):
        right = sum(row["class1"] == row["label"] for row in part)
        among = sum(row["label"] in [row[f"class{k}"] for k in range(1, 6)] for row in part)
        assert (right, among) == (result.top1(network).correct, result.top5(network).correct)
        sure = [[row[f"probability{k}"] for k in range(1, 6)] for row in part]
        assert sure == result.probabilities(network).astype(float).tolist()
    assert [p.name for p in tmp_path.iterdir() if "predictions" in p.name] == [path.name]


NAMES = ["=HYPERLINK(1)", "+1", "-1", "@a", "'quoted", "a,b=1", 'say "x"', "\t=1", "\r=1", "plain"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_are_no_formulas_in_a_spreadsheet_and_are_read_back(
    tmp_path, photos, samples, make_network, suffix
):
    folder = tmp_path / "named"
    folder.mkdir()
    for i, name in enumerate(NAMES):
        (folder / name).write_bytes((photos / f"{i:02}.jpg").read_bytes())
    samples = replace(samples, source=Files(folder, tuple(NAMES)), labels=tuple(range(len(NAMES))))
    path = tmp_path / f"predictions{suffix}"
    save_predictions(path, measure([make_network()], samples), ["=model"])
    rows = read_predictions(path)
    shown = [name.replace("\t", "\\t").replace("\r", "\\r") for name in NAMES]
    assert [row["image"] for row in rows] == shown and {row["model"] for row in rows} == {"=model"}
    if suffix == ".csv":
        with open(path, newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)


def test_files_that_cannot_be_written_are_refused(tmp_path, samples, make_network):
    with pytest.raises(ArgumentError, match=r"x.txt.*\.csv, \.ndjson, \.parquet"):
        check_suffix(tmp_path / "x.txt")
    with pytest.raises(FileError, match=r"none/x.csv"):
        save_predictions(tmp_path / "none" / "x.csv", measure([make_network()], samples), ["a"])
