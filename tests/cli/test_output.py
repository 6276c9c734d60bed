"""Control characters in names, URLs and foreign files never reach the terminal."""

import ast
import json
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import snzoo
from snzoo.cli import main, output
from snzoo.cli.main import build_parser

ROOT = Path(__file__).parents[2]
EVIL = "\x1b[2J\x1b]0;x\x07\x9b1m\r\x7f\u202e\nFORGED"
URL = f"http://127.0.0.1:9/{EVIL}.jpg"
SN = {"sn.mean_weight": torch.ones(3), "sn.var_weight": torch.ones(3)}


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    """Make every kind of file under a hostile name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SNZOO_HOME", str(tmp_path / f"home {EVIL}"))
    Path(f"photos {EVIL}").mkdir()
    Image.new("RGB", (40, 30)).save(f"photos {EVIL}/{EVIL}.png")
    Path(f"photos {EVIL}/{EVIL} broken.jpg").write_text("no image")
    Path(f"list {EVIL}.txt").write_text("photo.png 0\n")
    Path(f"broken {EVIL}.txt").write_text(f"photo.png {EVIL}\n")
    Image.new("RGB", (40, 30)).save("photo.png")
    save_file(SN, f"gates {EVIL}.safetensors")
    model = snzoo.create_model("resnet18v2_bn", width=8, num_classes=2)
    for name in ("model", "foreign"):
        snzoo.save_pretrained(model, f"{name} {EVIL}", classes=["cat", "dog"])
    config, weights = Path(f"foreign {EVIL}/config.json"), f"foreign {EVIL}/model.safetensors"
    config.write_text(config.read_text().replace('"width": 8', json.dumps({EVIL: EVIL})[1:-1]))
    save_file(model.state_dict(), weights, {"snzoo": config.read_text()})
    Path(f"foreign {EVIL}.json").write_text(json.dumps({"schema_version": 1, EVIL: EVIL}))


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    """Use a manifest with a hostile text in every field that takes any text."""
    document = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))
    entry = document["models"]["resnet50v1_sn_8x1"]
    entry |= {"license": EVIL, "provenance": EVIL, "training": {EVIL: EVIL}}
    entry["published"] = [entry["published"][0] | {"dataset": EVIL, "source": EVIL}]
    entry["file"] |= {"urls": [URL], "pages": [URL]}
    path = tmp_path / f"manifest {EVIL}.json"
    path.write_text(json.dumps(document))
    monkeypatch.setenv("SNZOO_MANIFEST", str(path))
    return document, path


def printed(capfd, *arguments):
    """Run a command; return its status and what it printed, which must be harmless."""
    try:
        status = main(list(arguments))
    except SystemExit as stopped:
        status = stopped.code
    out, err = capfd.readouterr()
    raw = {c for c in out + err if c != "\n" and not c.isprintable()}
    assert raw == set() and (out or err)
    assert not any(line.startswith("FORGED") for line in (out + err).splitlines())
    return status, out + err


COMMANDS = [  # the status, and a command line
    (0, ["predict", f"photos {EVIL}/{EVIL}.png", "--model", f"model {EVIL}"]),
    (0, ["predict", f"photos {EVIL}/{EVIL}.png", "--model", f"model {EVIL}", "--json"]),
    (1, ["predict", f"photos {EVIL}"]),
    (1, ["predict", URL]),
    (1, ["predict", f"none {EVIL}"]),
    (1, ["predict", "photo.png", "--device", EVIL]),
    (1, ["predict", "photo.png", "--model", EVIL]),
    (0, ["info", f"foreign {EVIL}"]),
    (0, ["info", f"foreign {EVIL}", "--json"]),
    (1, ["info", f"hf-hub:{EVIL}/x"]),
    (1, ["info", EVIL]),
    (1, ["list", EVIL, "--exclude", EVIL]),
    (0, ["eval", "--data", f"list {EVIL}.txt", "--weights", f"model {EVIL}"]),
    (1, ["eval", "--data", f"broken {EVIL}.txt", "--weights", f"model {EVIL}"]),
    (1, ["eval", "--data", f"photos {EVIL}", "--weights", f"model {EVIL}"]),
    (1, ["eval", "--data", f"none {EVIL}", "--model", f"model {EVIL}"]),
    (1, ["eval", "--data", EVIL]),
    (1, ["eval", "--json", f"none {EVIL}/x.json"]),
    (1, ["eval", "--faces", f"none {EVIL}", "--model", "face_resnet18_sn"]),
    (1, ["eval", "--faces", f"photos {EVIL}", "--model", "face_resnet18_sn"]),
    (1, ["embed", "photo.png", "--model", EVIL, "--output", "x.npz"]),
    (1, ["embed", "photo.png", "--model", "face_resnet18_sn", "--output", EVIL]),
    (1, ["train", EVIL, "--model", "resnet18v1_sn"]),
    (1, ["train", f"photos {EVIL}", "--model", EVIL]),
    (1, ["train", f"photos {EVIL}", "--model", "resnet18v1_sn", "--classes", f"none {EVIL}"]),
    (0, ["inspect", f"gates {EVIL}.safetensors", "--output", f"{EVIL}.svg"]),
    (0, ["inspect", f"gates {EVIL}.safetensors", "--json"]),
    (1, ["inspect", f"model {EVIL}"]),
    (0, ["export", "--weights", f"model {EVIL}", "--output", f"{EVIL}.pt2"]),
    (1, ["export", "--weights", f"foreign {EVIL}", "--output", f"{EVIL}.pt2"]),
    (1, ["export", "--output", EVIL]),
    (0, ["convert", f"model {EVIL}", "--norm", "sn", "--output", "x.safetensors"]),
    (1, ["report", f"foreign {EVIL}.json"]),
    (1, ["report", f"none {EVIL}"]),
    (1, ["serve", "--model", EVIL, "--port", "0"]),
    (1, ["serve", "--token-file", f"none {EVIL}"]),
    (1, ["fetch", EVIL]),
    (1, ["import", f"gates {EVIL}.safetensors"]),
    (1, ["import", f"gates {EVIL}.safetensors", "--model", "resnet50v1_sn_8x1"]),
    (1, ["verify", EVIL]),
    (0, ["cache"]),
    (1, ["pin", f"foreign {EVIL}.json"]),
    (1, ["info", EVIL, "--debug"]),
    (2, ["eval", "--precision", EVIL]),
    (2, ["eval", "--batch-size", EVIL]),
    (2, ["cache", EVIL]),
    (2, ["list", f"--{EVIL}"]),
    (2, [EVIL]),
]


@pytest.mark.parametrize("status, arguments", COMMANDS, ids=lambda value: ascii(value)[:60])
def test_control_characters_are_escaped(capfd, status, arguments):
    found, text = printed(capfd, *arguments)
    assert found == status, text
    assert "FORGED" in text  # escaped, but there


def test_all_commands_are_tested():
    parser = build_parser()
    (commands,) = (action.choices for action in parser._actions if action.dest == "==SUPPRESS==")
    assert set(commands) == {arguments[0] for _, arguments in COMMANDS} - {EVIL}


@pytest.mark.slow
def test_fields_of_a_foreign_manifest_are_escaped(capfd, manifest):
    model = "resnet50v1_sn_8x1"
    for command in (["info", model], ["info", model, "--json"], ["list", "--json", model]):
        status, text = printed(capfd, *command)
        assert status == 0 and "FORGED" in text
    for options in ([], ["--markdown"]):
        assert printed(capfd, "list", model, *options)[0] == 0
    assert printed(capfd, "fetch", model)[0] == 1  # the URL is refused or does not answer


@pytest.mark.parametrize("classes", [["a", "a"], ["a", f"b{EVIL}"]])
def test_class_names_of_a_manifest_must_be_printable_and_differ(capfd, manifest, classes):
    document, path = manifest
    document["models"]["resnet50v1_sn_8x1"]["classes"] = classes
    path.write_text(json.dumps(document))
    status, text = printed(capfd, "list")
    assert status == 1 and "class names must be printable and differ" in text


def test_an_unknown_architecture_in_a_manifest_does_not_break_the_list(capfd, manifest):
    document, path = manifest
    document["models"]["resnet50v1_sn_8x1"]["architecture"] = "transformer"
    path.write_text(json.dumps(document))
    for options in ([], ["--norm", "sn"], ["--pretrained"], ["--json"]):
        status, text = printed(capfd, "list", *options)
        assert status == 0 and "resnet50v1_sn_8x32" in text


def test_warnings_and_logs_are_escaped_lines(capfd):
    import logging
    import warnings

    with output.redirect_warnings():
        warnings.warn(EVIL, stacklevel=1)
        logging.getLogger("snzoo.weights").warning("waiting for %s", EVIL)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("snzoo: ") for line in lines)
    assert all(line.isprintable() for line in lines)


def test_only_output_prints():
    for path in sorted((ROOT / "snzoo" / "cli").glob("*.py")):
        if path.name == "output.py":
            continue
        names = [
            node.func.id
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        ]
        assert "print" not in names, f"{path} prints; use snzoo.cli.output"


@pytest.mark.parametrize("arguments", [["list"], ["list", "--json"]])
def test_a_full_disk_behind_stdout_is_an_error_of_one_line(monkeypatch, capsys, arguments):
    with suppress(OSError), open("/dev/full", "w") as full:  # closing it writes again
        monkeypatch.setattr("sys.stdout", full)
        assert main(arguments) == 1
    assert capsys.readouterr().err == "snzoo: can't write to stdout: No space left on device\n"


def test_an_unknown_option_points_to_the_help_of_its_command(capsys):
    for arguments, program in ((["serve", "--nope"], "snzoo serve"), (["--nope", "list"], "snzoo")):
        with pytest.raises(SystemExit):
            build_parser().parse_args(arguments)
        expected = f"{program}: unrecognized arguments: --nope (see: {program} --help)\n"
        assert capsys.readouterr().err == expected
