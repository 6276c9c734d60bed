"""The README's tables are the manifest's, and its commands are run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import snzoo
from snzoo.cli import main
from snzoo.data.imagenet import class_names
from snzoo.manifest import load_manifest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def results(name):
    path = ROOT / "benchmarks" / "results" / name
    return json.loads(path.read_text(encoding="utf-8"))


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


def test_the_zoos_table_is_made_from_the_manifest(capsys):
    main(["list", "--pretrained", "--markdown"])
    assert capsys.readouterr().out.strip() in README


def test_the_comparison_is_the_manifests():
    comparison = load_manifest().comparison
    for norm, row in comparison.top1.items():
        cells = ["–" if value is None else f"{value:.1f}" for value in row]
        assert f"| {norm} | {' | '.join(cells)} |" in README
    settings = " | ".join(setting.replace("x", "×") for setting in comparison.settings)
    assert f"| | {settings} |" in README


def test_the_speeds_are_those_that_were_measured():
    measured = results("loaders-2core-cpu.json")
    for name in ("snzoo", "timm", "torchvision"):
        rows = [row for row in measured["summary"] if row["contender"] == name]
        best = max(rows, key=lambda row: row["median"])
        cells = f" | {best['median']:,.0f} | {best['peak_mib']:,.0f} |"
        assert re.search(rf"^\| {name}.*{re.escape(cells)}$", README, re.MULTILINE), cells
    timm, torchvision, _ = (
        "{median:.2f} to {name} ({least:.2f} to {most:.2f})".format(**row, name=name)
        for row, name in zip(measured["comparisons"], ("timm", "torchvision", ""), strict=True)
    )
    sentence = f"Medians of the ratios of each round: {timm}, {torchvision}."
    assert sentence in " ".join(README.split())


def test_the_speeds_of_training_are_those_that_were_measured():
    measured = results("training-loaders-2core-cpu.json")
    best = {}
    for row in measured["summary"]:
        best[row["contender"]] = max(row["median"], best.get(row["contender"], 0))
    snzoo, timm, torchvision = (f"{best[name]:,.0f}" for name in ("snzoo", "timm", "torchvision"))
    ratios = [f"{row['median']:.2f}" for row in measured["comparisons"][:2]]
    text = " ".join(README.split())
    assert f"snzoo then reads {snzoo} images/s, timm {timm} and torchvision {torchvision};" in text
    assert f"the medians of the ratios are {' and '.join(ratios)}." in text
    speed = results("training-steps-2core-cpu.json")["comparison"]["snzoo to plain"]["median"]
    assert f"weights take {1 / speed:.2f} times as long" in text


def test_the_operators_speeds_are_those_that_were_measured():
    measured = results("normalization-2core-cpu.json")
    rows = [row for row in measured["comparisons"] if row["layout"] == "contiguous"]
    for part, batch, title in (
        ("networks", 1, "inference, batch 1"),
        ("networks", 8, "inference, batch 8"),
        ("networks-training", 8, "forward and backward, batch 8"),
    ):
        (row,) = (row for row in rows if row["part"] == part and row["shape"][0] == batch)
        speeds = [f"{row['speed'][other]['median']:.2f}" for other in ("textbook", "bn")]
        cells = [title, f"{row['milliseconds']['snzoo']:,.0f}", *speeds]
        assert f"| {' | '.join(cells)} |" in README
    kept = {
        row["contender"]: row["kept_bytes"]
        for row in measured["memory"]
        if row["part"] == "networks-training" and row["layout"] == "contiguous"
    }
    share = kept["snzoo"] / kept["textbook"]
    assert f"what is kept for the backward pass is {share:.0%}" in " ".join(README.split())


def test_the_page_of_the_operator_has_the_speeds_that_were_measured():
    page = " ".join((ROOT / "docs" / "operator.md").read_text().split())

    def speeds(name, part):
        rows = results(f"normalization-{name}-2core-cpu.json")["comparisons"]
        return [row["speed"]["bn"]["median"] for row in rows if row["part"] == part]

    times = [1 / speed for speed in speeds("compiled", "networks")]
    assert f"takes {min(times):.2f} to {max(times):.2f} times as long as with batch norm" in page
    assert f"training has {speeds('bf16', 'networks-training')[0]:.2f} of that speed" in page
    small = speeds("small", "networks-training")[0]
    assert f"of 64×64 has [{small:.2f} of the speed]" in page


def test_the_speeds_of_servers_are_those_that_were_measured():
    rows = results("serving-2core-cpu.json")["comparison"]
    titles = {"resnet18v1_sn_clothing": "demo network, 128×128"}
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = [titles.get(model, "ResNet-50 with SN, 224×224")]
        for name in ("snzoo serve", "plain FastAPI", "LitServe"):
            same = [r for r in rows if r["model"] == model and r["contender"].startswith(name)]
            best = max(same, key=lambda row: row["requests_per_s"]["median"])
            rate, slowest = (best[key]["median"] for key in ("requests_per_s", "p99_ms"))
            cells.append(f"{rate:.1f} ({slowest:,.0f})")
        assert f"| {' | '.join(cells)} |" in README


def test_the_cold_starts_are_those_that_were_measured():
    seconds = results("cold-start-2core-cpu.json")["comparison"]["seconds"]
    ours, theirs = seconds["snzoo"]["median"], seconds["torchvision"]["median"]
    text = " ".join(README.split())
    assert f"that is in the cache takes {ours:.2f} s (its" in text
    assert f"and with torchvision {theirs:.2f} s;" in text


def test_ci_runs_the_commands_that_install():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    first, test = (line for line in COMMANDS if "pip install" in line)
    assert test.removeprefix("python -m pip install ") in script.replace("install -q ", "")
    assert first.split("&& ")[1] in script


@pytest.mark.slow
def test_the_python_blocks_of_the_backbones_page_run_one_after_the_other(tmp_path):
    page = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["[256, 512, 1024, 2048]", "[4, 8, 16, 32]"]


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def stage(tmp_path, httpserver, monkeypatch):
    """A folder like the checkout; the model that the README downloads is served locally."""
    for name in ("snzoo", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    torch.save(snzoo.create_model("resnet50v1_sn_8x32").state_dict(), tmp_path / "weights.pth")
    httpserver.expect_request("/weights").respond_with_data((tmp_path / "weights.pth").read_bytes())
    document = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))
    for name in ("resnet50v1_sn_8x32", "resnet50v1_sn_8x32_step"):
        document["models"][name]["file"]["urls"] = [httpserver.url_for("/weights")]
    face = document["models"]["face_resnet50_sn_8x64"]
    face["arguments"], face["num_params"] = {"width": 4}, None
    face["file"]["urls"] = [httpserver.url_for("/face")]
    torch.save(snzoo.create_model("face_resnet50_sn", width=4).state_dict(), tmp_path / "face.pth")
    httpserver.expect_request("/face").respond_with_data((tmp_path / "face.pth").read_bytes())
    (tmp_path / "manifest.json").write_text(json.dumps(document))
    for i, name in enumerate(("train/a", "train/b", "val/c", "val/d")):
        (tmp_path / "FACES" / name).mkdir(parents=True)
        for j in range(6):
            pixels = np.random.default_rng([i, j]).integers(0, 256, (112, 112, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "FACES" / name / f"{j}.png")
    for split in ("train", "validation", "imagenet"):
        for i, wnid in enumerate(("n01440764", "n01443537")):
            folder = tmp_path / "DATA" / split / wnid
            folder.mkdir(parents=True)
            pixels = np.random.default_rng(i).integers(0, 256, (240, 230, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "photo.jpg")
    monkeypatch.setenv("SNZOO_MANIFEST", str(tmp_path / "manifest.json"))
    monkeypatch.setenv("SNZOO_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.slow
def test_every_other_command_runs_in_the_order_of_the_readme(stage, monkeypatch):
    monkeypatch.chdir(stage)
    photo = "DATA/imagenet/n01440764/photo.jpg"
    places = {"/path/to/val": "DATA/imagenet", "/path/to/imagenet": "DATA", "PHOTO": photo}
    places["resnet*_sn_*"] = "resnet50v1_sn_8x32*"  # two of the seven networks say as much
    places["@PHOTO"] = f"@{photo}"
    server = None
    for line in COMMANDS:
        if "pip install" not in line:
            command = [places.get(word, word) for word in shlex.split(line)]
            if {"train", "examples/finetune.py"} & set(command):  # two photos, and one epoch
                command += ["--epochs", "1", "--batch-size", "2"]
            if "serve" in command:
                server = subprocess.Popen(
                    [*command, "--port", "0"], cwd=stage, stdout=PIPE, text=True
                )
                address = server.stdout.readline().split()[-1]
                continue
            if server:  # the next command asks it
                command[-1] = command[-1].replace("http://127.0.0.1:8000", address)
            if command[0] == "snzoo":  # without a process that imports PyTorch again
                assert main(command[1:]) == 0, line
                continue
            done = subprocess.run(command, cwd=stage, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}: {done.stderr}"
            if server:
                assert len(json.loads(done.stdout)["photos"][0]["predictions"][0]["classes"]) == 5
                server.terminate()
                assert server.wait(60) == 0
                server = None
    assert (stage / "results.html").exists() and (stage / "RUN" / "report.html").exists()
    assert (stage / "FACE_RUN" / "best.safetensors").exists() and (stage / "faces.npz").exists()


@pytest.mark.slow
def test_a_hub_user_of_the_bgr_network_gets_the_right_classes_from_the_snippet(tmp_path):
    """The README's lines, with the network whose input is BGR from 0 to 255."""
    weights = ROOT.parent / "shared" / "weights" / "resnet50v1_bn_msra_bgr_fp16.pth"
    photos = sorted((ROOT.parent / "shared" / "data" / "imagenet_sample").rglob("*.JPEG"))
    if not weights.exists():
        pytest.skip(f"needs {weights}")
    (code,) = (block for block in blocks("python") if "torch.hub.load" in block)
    photo = re.search(r'photo = "(.*)"', code)[1]
    code = code.replace("pretrained=True", f"weights={str(weights)!r}")
    code = code.replace("resnet18v1_sn_clothing", "resnet50v1_bn_msra")
    script = "\n".join(code.replace(photo, str(path)) for path in photos[:3])
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = snzoo.create_model("resnet50v1_bn_msra", weights=weights).eval()
    for path, line in zip(photos[:3], done.stdout.splitlines(), strict=True):
        with Image.open(path) as image:
            steps = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
            pixels = np.asarray(steps(image.convert("RGB"))).astype(np.float32)
        bgr = torch.tensor(pixels[:, :, ::-1] - np.float32([103.939, 116.779, 123.68]))
        best = model(bgr.permute(2, 0, 1)[None]).argmax(1).item()
        index, name = line.split(" ", 1)
        assert (int(index), name) == (best, class_names()[best])
