"""``snzoo export``: the files that it writes, and its errors."""

import json
import os
import re
import subprocess
import sys
from typing import get_args

import pytest
import torch
from safetensors.torch import save_file

import snzoo
from snzoo.cli import main
from snzoo.cli.export import short_name
from snzoo.cli.main import build_parser
from snzoo.export import Format

DESCRIPTION = {
    "model": "resnet18v2_bn",
    "arguments": {"width": 8},
    "classes": ["cat", "dög"],
    "preprocessing": {
        "resize": 40,
        "crop": 32,
        "channel_order": "BGR",
        "scale": 255,
        "mean": [1.0, 2.0, 3.0],
        "std": [1.0, 1.0, 1.0],
        "resampling": "pillow-bilinear",
    },
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checkpoint(folder):
    """A finetuned checkpoint with its description."""
    model = snzoo.create_model("resnet18v2_bn", width=8, num_classes=2)
    save_file(model.state_dict(), "mine.safetensors", {"snzoo": json.dumps(DESCRIPTION)})
    return "mine.safetensors"


@pytest.mark.slow
def test_the_demo_is_exported_by_default(folder):
    done = subprocess.run(
        [sys.executable, "-m", "snzoo", "export", "--format", "pt2"],
        capture_output=True,
        text=True,
        env=os.environ | {"SNZOO_OFFLINE": "1"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        r"resnet18v1_sn_clothing\.pt2: 1\d\.\d MB, batch 1, 2, 5: largest difference "
        r"\d\.\de-0\d of logits up to \d\.\d, same best class in 8 of 8\n",
        done.stdout,
    )
    assert [path.name for path in folder.iterdir()] == ["resnet18v1_sn_clothing.pt2"]


@pytest.mark.parametrize("format", get_args(Format))
def test_the_file_describes_a_finetuned_checkpoint(checkpoint, format, capfd):
    if format == "onnx" and torch.__version__.startswith("2.6."):
        pytest.skip("PyTorch 2.6 converts only some networks to ONNX")
    output = f"mine.{format.upper()}"
    assert main(["export", "--weights", checkpoint, "--output", output]) == 0
    out, err = capfd.readouterr()
    assert out.startswith(f"{output}: ") and out.count("\n") == 1 and err == ""
    if format == "onnx":
        import onnx

        (prop,) = onnx.load(output).metadata_props
        said = json.loads(prop.value)
    else:
        extra = {"snzoo.json": ""}
        with open(output, "rb") as file:
            torch.export.load(file, extra_files=extra)
        said = json.loads(extra["snzoo.json"])
    assert {key: said[key] for key in DESCRIPTION if key != "arguments"} == {
        key: value for key, value in DESCRIPTION.items() if key != "arguments"
    }


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], ["which format?", "--format onnx"]),
        (["--output", "x"], ["x: use the suffix .onnx or .pt2"]),
        (["--output", "x.pt2", "--format", "onnx"], ["x.pt2", "the format is onnx"]),
        (["--output", "none/x.onnx"], ["none/x.onnx", "folder that you may write"]),
        (["--output", "/dev/null", "--format", "pt2"], ["/dev/null", "regular file"]),
        (["--format", "pt2", "--model", "resnet81v1_sn"], ["no model named 'resnet81v1_sn'"]),
        (["--format", "pt2", "--model", "resnet18v1_sn"], ["no published weights"]),
        (["--format", "pt2", "--weights", "none.pth"], ["none.pth", "No such file"]),
        (
            ["--format", "pt2", "--weights", "mine.safetensors", "--output", "mine.safetensors"],
            ["mine.safetensors is not overwritten"],
        ),
    ],
)
def test_errors_are_one_line(checkpoint, folder, capsys, arguments, words):
    content = (folder / checkpoint).read_bytes()
    assert main(["export", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and all(word in err for word in words), err
    assert list(folder.iterdir()) == [folder / checkpoint]
    assert (folder / checkpoint).read_bytes() == content


def test_missing_packages_are_named_before_the_download(folder, monkeypatch, capsys):
    monkeypatch.setenv("SNZOO_HOME", str(folder / "home"))
    monkeypatch.setenv("SNZOO_OFFLINE", "1")
    wanted = ["export", "--model", "resnet50v1_sn_8x1", "--format"]
    for name in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main([*wanted, "onnx"]) == 1
    err = capsys.readouterr().err
    assert "ONNX needs onnxscript and onnxruntime" in err and "snzoo[export]" in err
    assert main([*wanted, "pt2"]) == 1  # which needs none of them
    assert "SNZOO_OFFLINE=1" in capsys.readouterr().err


def test_the_option_offers_every_format(capsys):
    with pytest.raises(SystemExit) as stopped:
        build_parser().parse_args(["export", "--format", "tflite"])
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert all(repr(format) in err for format in ("tflite", *get_args(Format)))


@pytest.mark.parametrize(
    "source, name",
    [
        ("resnet18v1_sn", "resnet18v1_sn"),
        ("some/mine.v2.safetensors", "mine.v2"),
        ("net-v1.5", "net-v1.5"),
        ("./net-v1.5/", "net-v1.5"),
        ("local-dir:net-v1.5", "net-v1.5"),
        ("hf-hub:owner/name-v1.5@refs/pr/1", "name-v1.5"),
        ("hf-hub:owner/name", "name"),
        ("", ""),
    ],
)
def test_the_file_is_named_after_the_source(tmp_path, monkeypatch, source, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net-v1.5").mkdir()
    assert short_name(source) == name
