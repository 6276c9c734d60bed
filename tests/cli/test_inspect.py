"""``snzoo inspect``: its text, its colors, its JSON, its chart and its errors."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from snzoo.cli import main
from snzoo.gates import read_gates
from snzoo.nn import SparseSwitchNorm2d, set_radius
from snzoo.weights import read_state_dict

ROOT = Path(__file__).parents[2]
DEMO = "resnet18v1_sn_clothing"
GATES = {
    "sub.0.mean_weight": torch.tensor([1.0, 2.0, 3.0]).log(),
    "sub.0.var_weight": torch.tensor([0.0, 0.0, 0.0]),
    "sub.1.mean_weight": torch.tensor([4.0, 1.0]).log(),
    "sub.1.var_weight": torch.tensor([1.0, 1.0]),
}


@pytest.fixture
def file(tmp_path):
    torch.save(
        {"state_dict": {f"module.{key}": gates for key, gates in GATES.items()}}, tmp_path / "x.pth"
    )
    return tmp_path / "x.pth"


def test_text_fits_80_columns_and_ascii():
    environment = {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "snzoo", "inspect", DEMO]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{DEMO}: 20 SN layers") and max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines[2:23]]
    assert names[:2] == ["sn1", "layer1.0.sn1"] and names[-1] == "average"
    assert all(len(re.findall("[ILB]{14}", line)) == 2 for line in lines[2:23])
    assert not {"\033", "?"} & set(done.stdout) and lines[-1].startswith("III IN instance norm")


def test_bars_and_percentages_are_the_shares(file, capsys):
    assert main(["inspect", str(file)]) == 0
    _, _, first, second, average, *_ = capsys.readouterr().out.splitlines()
    assert first.split() == [
        *("sub.0", "IILLLLLBBBBBBB", "17", "33", "50", "IIIIILLLLBBBBB", "33", "33", "33"),
    ]
    assert second.split() == [
        *("sub.1", "IIIIIIIIIIILLL", "80", "20", "-", "IIIIIIILLLLLLL", "50", "50", "-"),
    ]
    assert [average.split()[i] for i in (2, 3, 4, 6, 7, 8)] == ["48", "27", "25", "42", "42", "17"]


def test_terminals_get_colors(file):
    master, slave = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    command = [sys.executable, "-m", "snzoo", "inspect", file]
    done = subprocess.run(command, stdout=slave, env=environment)
    text = os.read(master, 1 << 16).decode()
    os.close(slave)
    os.close(master)
    orange, green, blue = (f"\033[38;5;{number}m" for number in (214, 36, 31))
    bar = f"{orange}██\033[0m{green}█████\033[0m{blue}███████\033[0m"
    assert done.returncode == 0 and bar in text
    assert f"{orange}███\033[0m IN instance norm" in text and "IILLLLL" not in text


@pytest.mark.parametrize("value, colored", [("1", False), ("", True)])
def test_no_color_is_respected(file, value, colored, monkeypatch, capsys):
    monkeypatch.setenv("NO_COLOR", value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["inspect", str(file)]) == 0
    text = capsys.readouterr().out
    assert ("\033" in text) == colored == ("IILLLLLBBBBBBB" not in text)


def test_json_of_names_files_and_folders(file, tmp_path, capsys):
    save_file(GATES, tmp_path / "model.safetensors")
    assert main(["inspect", "--json", str(file), DEMO, str(tmp_path)]) == 0
    made, demo, folder = json.loads(capsys.readouterr().out)
    assert made == folder | {"model": str(file)} and folder["model"] == str(tmp_path)
    even = [0.333333, 0.333333, 0.333333]
    shares = {
        "stats": ["IN", "LN", "BN"],
        "mean": [0.166667, 0.333333, 0.5],
        "var": even,
        "locked": [],
    }
    assert made["layers"][0] == {"name": "sub.0", **shares}
    assert made["average"]["mean"] == [0.483333, 0.266667, 0.25]
    state = read_state_dict(ROOT / "snzoo" / "demo" / f"{DEMO}.safetensors")
    last = read_gates(state, where="demo")[-1]
    assert demo["model"] == DEMO and demo["layers"][-1]["var"] == pytest.approx(last.var, abs=1e-6)


def test_output_draws_a_chart_too(file, tmp_path, capsys):
    assert main(["inspect", str(file), DEMO, "--output", str(tmp_path / "x.svg")]) == 0
    assert capsys.readouterr().out.count("SN layers") == 2
    svg = (tmp_path / "x.svg").read_text()
    assert DEMO in svg and str(file) in svg


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["resnet101v1_sn_8x23"], ["did you mean resnet101v1_sn_8x32"]),
        (["resnet50v1_sn"], ["resnet50v1_sn has no published weights"]),
        (["resnet50v1_bn_torchvision"], ["resnet50v1_bn_torchvision has no SN layer"]),
        (["none.pth"], ["can't read none.pth"]),
        (["none/x"], ["can't read none/x"]),
        ([""], ["no model named ''"]),
        (["bn.pth"], ["bn.pth has no SN layer", "snzoo list --norm sn"]),
        (["half.pth"], ["half.pth: sub.0.mean_weight is there, but sub.0.var_weight is missing"]),
        (["x.txt"], ["can't read x.txt"]),
        ([DEMO, "--output", "x.pdf"], ["x.pdf", ".svg, .png, .html"]),
        ([DEMO, "--output", "none/x.svg"], ["none/x.svg", "folder that you may write"]),
        (["w.svg", "--output", "./w.svg"], ["w.svg is not overwritten"]),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SNZOO_OFFLINE", "1")
    torch.save({"bn1.weight": torch.ones(3)}, "bn.pth")
    torch.save({"sub.0.mean_weight": torch.ones(3)}, "half.pth")
    torch.save(GATES, "w.svg")
    (tmp_path / "x.txt").write_text("no weights")
    assert main(["inspect", *arguments]) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert all(word in output.err for word in words), output.err
    assert not (tmp_path / "x.pdf").exists()


def test_only_charts_need_matplotlib(file, tmp_path):
    code = (
        "import sys; sys.modules['matplotlib'] = None; from snzoo.cli import main\n"
        "file, chart = sys.argv[1:]; assert main(['inspect', file]) == 0\n"
        "sys.exit(main(['inspect', 'none.pth', '--output', chart]))"  # refused before any work
    )
    command = [sys.executable, "-c", code, file, tmp_path / "x.svg"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "sub.0" in done.stdout and done.stderr.count("\n") == 1
    assert "drawing charts needs matplotlib: python -m pip install" in done.stderr
    assert not (tmp_path / "x.svg").exists()


def test_help_does_not_import_torch():
    code = (
        "import sys; from snzoo.cli import main\n"
        "try: main(['inspect', '--help'])\n"
        "finally: assert not {'torch', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_locked_shares_of_sparse_sn_are_marked(tmp_path, capsys):
    layer = SparseSwitchNorm2d(4)
    layer.var_weight.data.copy_(torch.tensor([1.02, 0.99, 1.0]))
    set_radius(layer, 0.6)
    layer.mean_weight.data.copy_(torch.tensor([-1.0, 0.0, 2.0]))
    layer(torch.randn(2, 4, 5, 5))
    save_file(layer.state_dict(), tmp_path / "sparse.safetensors")
    assert main(["inspect", str(tmp_path / "sparse.safetensors")]) == 0
    text = capsys.readouterr().out
    assert re.search(r"\(root\) +BBBBBBBBBBBBBB   0   0 100\* I+B+  81   0  19$", text, re.M)
    assert "* locked by sparse SN: 1 of 1 means, 0 of 1 variances" in text
    assert main(["inspect", "--json", str(tmp_path / "sparse.safetensors")]) == 0
    (found,) = json.loads(capsys.readouterr().out)[0]["layers"]
    assert found["locked"] == ["mean"] and found["mean"] == [0, 0, 1]


def test_hard_gates_of_a_zoo_model_are_shown_as_they_are_used(file, capsys, monkeypatch):
    monkeypatch.setattr("snzoo.weights.fetch_weights", lambda *_: file)
    for name, hard in (
        ("face_resnet50_syncsn_16x32", False),
        ("resnet50v1_sn_8x32", False),
        ("face_resnet50_syncsn_8x64_argmax", True),
    ):
        assert main(["inspect", "--json", name]) == 0
        (made,) = json.loads(capsys.readouterr().out)
        assert made["layers"][0]["mean"] == ([0, 0, 1] if hard else [0.166667, 0.333333, 0.5])
