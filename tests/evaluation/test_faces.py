"""Evaluations on pairs of faces, from photos to the report, and the files of embeddings."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import snzoo
from snzoo.cli import main
from snzoo.errors import ArgumentError, DataError, FileError, ManifestError
from snzoo.evaluation import evaluate_faces, faces
from snzoo.evaluation.face_results import read_face_results
from snzoo.faces.pairs import balance, read_pairs
from snzoo.faces.verification import verify
from snzoo.inference.classifier import prepare_network

FACES = Path(__file__).parents[3] / "shared" / "data" / "faces"


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Four people with three photos each."""
    root = tmp_path_factory.mktemp("people")
    for person in range(4):
        (root / f"p{person}").mkdir()
        face = np.random.default_rng(person).integers(60, 200, (8, 8, 3))
        for i in range(3):
            noise = np.random.default_rng([person, i]).integers(-40, 40, (112, 112, 3))
            pixels = np.kron(face, np.ones((14, 14, 1), int)) + noise
            Image.fromarray(pixels.astype(np.uint8)).save(root / f"p{person}" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """Return the path of a small face network with random weights, and the network."""
    torch.manual_seed(0)
    model = snzoo.create_model("face_resnet18_sn", width=2)
    path = tmp_path_factory.mktemp("network") / "face.safetensors"
    snzoo.save_pretrained(model, path)
    return path, model.eval()


def embed_plainly(model, pairs):
    """Return f(x) + f(mirrored x), normalized, in float64."""
    model = model.double()
    rows = []
    for i in range(len(pairs.photos)):
        pixels = np.asarray(Image.open(pairs.photos.locate(i)).convert("RGB"), np.float64)
        x = torch.from_numpy((pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
        with torch.no_grad():
            row = (model(x) + model(x.flip(3)))[0].numpy()
        rows.append(row / np.linalg.norm(row))
    model.float()
    return np.array(rows)


def test_figures_are_those_of_plain_embeddings(people, network):
    path, model = network
    results = evaluate_faces(path, people)
    pairs = read_pairs(people)
    embeddings = embed_plainly(model, pairs)
    expected = verify(embeddings, pairs.first, pairs.second, pairs.same)
    found = results.models[0].verification
    assert (found.genuine, found.impostors) == (12, 54)
    assert found.auc == pytest.approx(expected.auc, abs=0.01)
    assert found.equal_error_rate == pytest.approx(expected.equal_error_rate, abs=0.02)
    half = balance(pairs)
    expected = verify(embeddings, half.first, half.second, half.same)
    assert found.accuracy.percent == pytest.approx(expected.accuracy.percent, abs=100 / 24)
    assert results.data.accuracy_pairs == 24 and results.data.pairs == 66


def test_the_command_line_prints_and_reports_the_figures(people, network, tmp_path, capsys):
    output = tmp_path / "faces.json"
    command = ["eval", "--weights", str(network[0]), "--faces", str(people), "--json", str(output)]
    assert main(command) == 0
    shown = capsys.readouterr().out
    results = read_face_results(output)
    figures = results.models[0].verification
    assert f"{100 * figures.equal_error_rate:.2f}" in shown and "66 pairs of 12 photos" in shown
    assert "The accuracy is that of 24 pairs" in shown
    assert main(["report", str(output)]) == 0
    page = output.with_suffix(".html").read_text()
    assert "66 pairs of faces" in page and "<svg" in page and "TAR at FAR 1e-3" in page


def test_networks_of_one_name_have_a_column_each(people, network, tmp_path):
    torch.manual_seed(1)
    other = snzoo.create_model("face_resnet18_sn", width=2)
    output = tmp_path / "two.json"
    results = evaluate_faces([network[1], other], people, json=output)
    figures = results.figures()
    assert list(figures) == ["face_resnet18_sn (1)", "face_resnet18_sn (2)"]
    assert [figures[name] for name in figures] == [m.verification for m in results.models]
    assert main(["report", str(output)]) == 0
    head = output.with_suffix(".html").read_text().split("<thead>")[1].split("</thead>")[0]
    assert head.count("(1)") == head.count("(2)") == 1


def test_too_few_pairs_are_refused_before_photos_are_read(network, tmp_path):
    for person in range(2):
        (tmp_path / f"p{person}").mkdir()
        for i in range(2):
            (tmp_path / f"p{person}" / f"{i}.png").write_bytes(b"no photo")
    with pytest.raises(DataError, match="2 genuine pairs only"):
        evaluate_faces(network[0], tmp_path)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d["models"][0]["verification"].update(auc=2), "0 <= shares <= 1"),
        (lambda d: d["models"][0]["verification"].update(roc=[[0, 0]]), "points of the ROC"),
        (lambda d: d["models"][0]["verification"]["roc"].pop(), "ends at"),
        (lambda d: d.update(models=[]), "1 to 100 models"),
        (lambda d: d.update(more=1), "more"),
    ],
)
def test_damaged_results_are_refused(people, network, tmp_path, change, words):
    path = tmp_path / "faces.json"
    document = json.loads(json.dumps(evaluate_faces(network[0], people).as_dict()))
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ManifestError, match=words):
        read_face_results(path)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--faces", "PEOPLE"], "which model? name a face network"),
        (["--faces", "PEOPLE", "--model", "resnet18v1_sn_clothing"], "is a classifier"),
        (["--faces", "PEOPLE", "--labels", "real"], "--labels does not go with --faces"),
        (["--faces", "PEOPLE", "--tolerance", "0"], "--tolerance does not go with --faces"),
        (["--faces", "nowhere", "--model", "face_resnet18_sn"], "nowhere is no verification set"),
        (["--faces", "PEOPLE", "--model", "face_resnet18_sn"], "has no published weights"),
        (["--faces", "PEOPLE", "--model", "face_x*"], "no model with weights matches 'face_x*'"),
        (["--faces", "PEOPLE", "--model", "*clothing"], "resnet18v1_sn_clothing is a classifier"),
    ],
)
def test_wrong_options_are_one_line(people, capsys, options, words):
    assert main(["eval", *(str(people) if o == "PEOPLE" else o for o in options)]) == 1
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1 and not captured.out


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_embeddings_are_written_with_their_names(people, network, tmp_path, suffix):
    output = tmp_path / f"rows{suffix}"
    folder = people / "p0"
    command = ["embed", str(folder), "--weights", str(network[0]), "--output", str(output)]
    assert main(command) == 0
    if suffix == ".npz":
        stored = np.load(output, allow_pickle=False)
        names, rows = stored["names"].tolist(), stored["embeddings"]
    else:
        from pyarrow import parquet

        table = parquet.read_table(output)
        names = table["name"].to_pylist()
        rows = np.array(table["embedding"].to_pylist(), np.float32)
    assert names == [str(folder / f"{i}.png") for i in range(3)]
    assert np.array_equal(rows, snzoo.faces.embed(network[1], folder))


@pytest.mark.parametrize(
    "output, words",
    [
        ("rows.csv", "must be .npz or .parquet"),
        ("missing/rows.npz", "missing"),
        ("NETWORK", "must be .npz or .parquet"),
    ],
)
def test_embeddings_replace_no_input(people, network, tmp_path, capsys, output, words):
    output = str(network[0]) if output == "NETWORK" else str(tmp_path / output)
    command = ["embed", str(people / "p0"), "--weights", str(network[0]), "--output", output]
    assert main(command) == 1
    captured = capsys.readouterr()
    assert words in captured.err and captured.err.count("\n") == 1


def test_a_damaged_photo_leaves_the_earlier_file(people, network, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no photo")
    output = tmp_path / "rows.npz"
    output.write_bytes(b"earlier")
    photos = [str(people / "p0"), str(tmp_path / "broken.png")]
    assert main(["embed", *photos, "--weights", str(network[0]), "--output", str(output)]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert output.read_bytes() == b"earlier"


@pytest.mark.skipif(not FACES.is_dir(), reason="needs ../shared/data/faces")
def test_real_faces_are_read(network):
    results = evaluate_faces(network[0], FACES)
    found = results.models[0].verification
    assert (results.data.photos, found.genuine, found.impostors) == (204, 102, 20_604)


def test_a_wildcard_stands_for_the_networks_with_weights(people, monkeypatch):
    torch.manual_seed(0)
    network = snzoo.create_model("face_resnet18_sn", width=2)
    monkeypatch.setattr(faces, "prepare_network", lambda model, spec, _: prepare(network, spec))
    results = evaluate_faces("face_resnet50_*n_8x64", people)
    assert [model.name for model in results.models] == [
        "face_resnet50_sn_8x64",
        "face_resnet50_bn_8x64",
    ]


def prepare(network, spec):
    return prepare_network(network, spec, "cpu")


def test_several_networks_must_be_without_weights_of_their_own(people, network):
    with pytest.raises(ArgumentError, match="name one model"):
        evaluate_faces(["face_resnet18_sn", "face_resnet18_bn"], people, weights=network[0])


def test_results_do_not_replace_the_network(people, network, tmp_path):
    folder = tmp_path / "network"
    snzoo.save_pretrained(network[1], folder)
    before = (folder / "config.json").read_text()
    with pytest.raises(FileError, match=r"config\.json is not overwritten"):
        evaluate_faces(folder, people, json=folder / "config.json")
    assert (folder / "config.json").read_text() == before
