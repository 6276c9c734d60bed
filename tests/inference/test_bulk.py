"""Files of predictions: the same rows as one prediction after the other, whatever interrupts it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import snzoo
from snzoo.data.sources import Files
from snzoo.errors import ArgumentError, DataError, FileError, Interrupted
from snzoo.inference import bulk, outcomes, read_predictions, write_predictions
from snzoo.preprocessing import Preprocessing

SUFFIXES = [".csv", ".ndjson", ".parquet"]


def make_model(seed, classes=12):
    torch.manual_seed(seed)
    return snzoo.create_model("resnet18v1_sn", width=8, num_classes=classes)


@pytest.fixture(scope="module")
def models():
    return [make_model(0), make_model(1, classes=3)]


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(outcomes, "BATCHES", 2)


@pytest.fixture
def reads(monkeypatch):
    """The numbers of the photos that were read, and one at which the user presses Ctrl-C."""
    seen, read = {"read": [], "interrupt at": None}, Files.read

    def spy(self, index):
        if index == seen["interrupt at"]:
            raise KeyboardInterrupt
        seen["read"].append(index)
        return read(self, index)

    monkeypatch.setattr(Files, "read", spy)
    return seen


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_the_predictions_of_each_model(tmp_path, models, photos, small_chunks, suffix):
    (photos / "04.jpg").write_text("no image")
    output, errors = tmp_path / f"x{suffix}", []
    summary = write_predictions(
        models, photos, output, topk=4, batch_size=2, device="cpu", on_error=errors.append
    )
    assert (summary.photos, summary.broken, len(errors)) == (12, 1, 1)
    rows = read_predictions(output)
    assert [row["image"] for row in rows] == [
        str(photos / f"{i:02}.jpg") for i in range(12) for _ in models
    ]
    assert [row["model"] for row in rows[:2]] == ["resnet18v1_sn (1)", "resnet18v1_sn (2)"]
    for number, model in enumerate(models):
        found = snzoo.predict(model, photos, topk=4, batch_size=2, on_error="skip")
        of_model = [row for row in rows[number::2] if row["error"] is None]
        assert len(of_model) == len(found) == 11
        for row, prediction in zip(of_model, found, strict=True):
            padding = [None] * (4 - len(prediction.names))
            for column, values in (
                ("class", prediction.indices),
                ("name", prediction.names),
                ("probability", prediction.probabilities),
            ):
                assert [row[f"{column}{k}"] for k in range(1, 5)] == [*values, *padding]
    (broken, _) = [row for row in rows if row["error"]]
    assert "04.jpg" in broken["error"] and broken["class1"] is broken["probability1"] is None
    assert [path.name for path in tmp_path.iterdir() if path != photos] == [output.name]


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_embeddings_are_a_column(tmp_path, models, photos, suffix):
    output = tmp_path / f"x{suffix}"
    write_predictions(models[0], photos, output, embeddings=True, device="cpu")
    expected = snzoo.predict(models[0], photos, embeddings=True, device="cpu")
    for row, prediction in zip(read_predictions(output), expected, strict=True):
        assert np.array_equal(np.array(row["embedding"], np.float32), prediction.embedding)
    if suffix == ".parquet":
        kind = parquet.read_schema(output).field("embedding").type
        assert kind == pa.list_(pa.float32())


def test_nothing_is_a_file_without_rows(tmp_path, models):
    for suffix in SUFFIXES:
        summary = write_predictions(models, [], tmp_path / f"x{suffix}", device="cpu")
        assert summary.photos == 0 and read_predictions(tmp_path / f"x{suffix}") == []
    assert (tmp_path / "x.csv").read_text().startswith("model,image,class1,")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stop_at, done", [(1, 0), (5, 4), (11, 8)])
def test_an_interrupted_run_is_resumed_to_the_same_bytes(
    tmp_path, models, photos, small_chunks, reads, suffix, stop_at, done
):
    (photos / "02.jpg").write_text("no image")

    def run(name, **options):
        return write_predictions(
            models, photos, tmp_path / name, batch_size=2, device="cpu", on_error="skip", **options
        )

    whole = run(f"whole{suffix}")
    reads["interrupt at"] = stop_at
    with pytest.raises(Interrupted, match=f"rows of {done} photos are kept, .* --resume"):
        run(f"x{suffix}")
    folder = tmp_path / f"x{suffix}.partial"
    assert len(list(folder.glob("0*"))) == done / 4 and not (tmp_path / f"x{suffix}").exists()
    reads |= {"interrupt at": None, "read": []}
    assert run(f"x{suffix}", resume=True) == whole
    assert sorted(reads["read"]) == list(range(done, 12))
    content = (tmp_path / f"x{suffix}").read_bytes()
    assert content == (tmp_path / f"whole{suffix}").read_bytes() and not folder.exists()


def test_an_interruption_while_parts_are_joined_loses_nothing(
    tmp_path, models, photos, reads, monkeypatch
):
    output, join_rows = tmp_path / "x.csv", bulk.join_rows

    def interrupt(*args, **options):
        join_rows(*args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(bulk, "join_rows", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_predictions(models, photos, output, device="cpu")
    assert not output.exists()
    monkeypatch.setattr(bulk, "join_rows", join_rows)
    reads["read"] = []
    write_predictions(models, photos, output, device="cpu", resume=True)
    assert len(read_predictions(output)) == 24 and reads["read"] == []


@pytest.mark.parametrize("count", range(1, 6))
def test_an_interruption_while_parts_are_removed_leaves_none_of_an_unknown_run(
    tmp_path, models, photos, small_chunks, monkeypatch, count
):
    unlink, left = Path.unlink, [count]

    def interrupt(self, *args, **options):
        if self.parent.name == "x.csv.partial":
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
        unlink(self, *args, **options)

    options = {"batch_size": 2, "device": "cpu"}
    monkeypatch.setattr(Path, "unlink", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_predictions(models, photos, tmp_path / "x.csv", **options)
    monkeypatch.undo()
    with pytest.raises(FileError, match="topk was 5, is 3"):
        write_predictions(models, photos, tmp_path / "x.csv", resume=True, topk=3, **options)


def test_two_runs_do_not_write_the_same_file_at_once(tmp_path, models, photos):
    output = tmp_path / "x.csv"

    def list_photos():
        with pytest.raises(FileError, match="another run writes to"):
            write_predictions(models, photos, output, device="cpu", resume=True)
        yield photos

    assert write_predictions(models, list_photos(), output, device="cpu").photos == 12
    assert len(read_predictions(output)) == 24 and list(tmp_path.glob("x*")) == [output]


@pytest.fixture
def interrupted(tmp_path, models, photos, small_chunks, reads):
    """A run that stopped after 8 of 12 photos, and a function that repeats it."""
    reads["interrupt at"] = 9

    def run(inputs=photos, models=models, **options):
        options = {"batch_size": 2, "device": "cpu", "on_error": "skip"} | options
        return write_predictions(models, inputs, tmp_path / "x.csv", **options)

    with pytest.raises(Interrupted):
        run()
    reads["interrupt at"] = None
    return run


def test_what_an_interrupted_run_left_is_not_destroyed(interrupted, tmp_path):
    before = sorted(path.name for path in (tmp_path / "x.csv.partial").iterdir())
    with pytest.raises(FileError, match=r"x.csv.partial holds .* --resume .* or remove it"):
        interrupted()
    assert sorted(path.name for path in (tmp_path / "x.csv.partial").iterdir()) == before


@pytest.mark.parametrize(
    "options, words",
    [
        ({"topk": 3}, "topk was 5, is 3"),
        ({"batch_size": 4}, "batch size was 2, is 4"),
        ({"upright": False}, "upright was True, is False"),
        ({"models": make_model(2)}, "models was .*, is resnet18v1_sn [0-9a-f]{16}"),
    ],
)
def test_other_options_are_not_resumed(interrupted, options, words):
    with pytest.raises(FileError, match=words) as error:
        interrupted(resume=True, **options)
    assert str(error.value).count(" was ") == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_threads_that_decode_may_change(interrupted, workers):
    assert interrupted(resume=True, workers=workers).photos == 12


def test_inputs_that_changed_are_not_resumed(interrupted, photos):
    (photos / "05a.jpg").write_bytes((photos / "05.jpg").read_bytes())
    with pytest.raises(DataError, match="photos 5 to 8 are not those"):
        interrupted(resume=True)
    (photos / "05a.jpg").unlink()
    with pytest.raises(DataError, match="the interrupted run had more photos"):
        interrupted([photos / f"{i:02}.jpg" for i in range(4)], resume=True)
    with pytest.raises(DataError, match="the interrupted run had more photos"):
        interrupted([], resume=True)
    assert interrupted(resume=True).photos == 12


def test_a_damaged_description_of_a_run_is_refused(interrupted, tmp_path):
    (tmp_path / "x.csv.partial" / "run.json").write_text("[]")
    with pytest.raises(FileError, match=r"run.json is damaged; remove .*x.csv.partial to begin"):
        interrupted(resume=True)


def test_a_run_that_failed_at_a_photo_goes_on_without_it(interrupted, photos):
    (photos / "11.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"11\.jpg"):
        interrupted(resume=True, on_error="raise")
    assert interrupted(resume=True).broken == 1


def test_rows_of_broken_photos_are_not_resumed_by_a_run_that_wants_none(
    interrupted, photos, tmp_path
):
    (part,) = (tmp_path / "x.csv.partial").glob("00000000-*")
    part.rename(part.with_name(part.name.replace("-0.csv", "-1.csv")))
    with pytest.raises(DataError, match="--on-error skip"):
        interrupted(resume=True, on_error="raise")


def test_a_run_that_did_not_begin_is_resumed_from_the_start(tmp_path, models, photos):
    said = []
    options = {"device": "cpu", "resume": True, "report": said.append}
    assert write_predictions(models, photos, tmp_path / "x.csv", **options).photos == 12
    assert len(said) == 1 and "begins anew" in said[0]


def test_a_complete_file_is_not_begun_anew(tmp_path, models, photos, reads):
    output, said = tmp_path / "x.csv", []
    write_predictions(models, photos, output, device="cpu")
    before = output.stat()
    reads["read"] = []
    options = {"device": "cpu", "resume": True, "report": said.append}
    assert write_predictions(models, photos, output, **options).photos == 0
    assert said == [f"{output} is complete; remove it to begin anew"]
    assert output.stat() == before and reads["read"] == []
    assert not (tmp_path / "x.csv.partial").exists()


def test_other_files_in_the_folder_are_kept(tmp_path, models, photos):
    (tmp_path / "x.csv.partial").mkdir()
    (tmp_path / "x.csv.partial" / "mine").write_text("mine")
    write_predictions(models, photos, tmp_path / "x.csv", device="cpu", resume=True)
    assert [path.name for path in (tmp_path / "x.csv.partial").iterdir()] == ["mine"]


def test_an_output_replaces_no_input(tmp_path, models):
    data = tmp_path / "x-0.parquet"
    parquet.write_table(pa.table({"image": [b"x"]}), data)
    before = data.read_bytes()
    for inputs in (data, [str(data)], tmp_path / "x-*.parquet"):
        with pytest.raises(FileError, match="not overwritten"):
            write_predictions(models, inputs, data, device="cpu")
    assert data.read_bytes() == before


@pytest.mark.parametrize(
    "name, options, error, words",
    [
        ("x.txt", {}, ArgumentError, r"one of \.csv, \.ndjson, \.parquet"),
        ("x.csv", {"embeddings": True}, ArgumentError, r"\.parquet or \.ndjson file, not \.csv"),
        ("none/x.csv", {}, FileError, "folder that you may write"),
        ("x.csv", {"topk": 0}, ArgumentError, "topk must be a whole number"),
        ("x.csv", {"on_error": "ignore"}, ArgumentError, "on_error must be"),
        ("x.csv", {"models": []}, ArgumentError, "name at least one model"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, models, photos, name, options, error, words):
    with pytest.raises(error, match=words):
        write_predictions(
            **{"models": models, "inputs": photos, "output": tmp_path / name} | options
        )
    assert list(tmp_path.iterdir()) == [photos]


def test_models_of_different_pixels_are_refused(tmp_path, models, photos):
    spec = models[0].spec
    other = make_model(1)
    other.spec = snzoo.spec.dataclasses.replace(
        spec, preprocessing=Preprocessing(**{**vars(spec.preprocessing), "crop": 64})
    )
    with pytest.raises(ArgumentError, match="different sizes"):
        write_predictions([models[0], other], photos, tmp_path / "x.csv", device="cpu")


def test_names_are_harmless_in_every_format(tmp_path, models, photos):
    evil = photos / "=1\x1b[31m\n.jpg"
    (photos / "00.jpg").rename(evil)
    for suffix in SUFFIXES:
        output = tmp_path / f"x{suffix}"
        write_predictions(models[0], evil, output, device="cpu")
        (row,) = read_predictions(output)
        assert row["image"].endswith("=1\\x1b[31m\\n.jpg")
    assert json.loads((tmp_path / "x.ndjson").read_text())["image"].isprintable()
