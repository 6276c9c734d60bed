"""The command line: what it prints, its exit status, its errors."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import snzoo
from snzoo.cli import main
from snzoo.manifest import load_manifest

ROOT = Path(__file__).parents[2]
DEMO = ["--model", "resnet18v1_sn_clothing"]


def run(*arguments, **environment):
    """A real process; returns it when it ended."""
    return subprocess.run(
        [sys.executable, "-m", "snzoo", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def assert_one_line(done, *words, status=1):
    assert done.returncode == status and done.stdout == ""
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("snzoo"), done.stderr
    assert all(str(word) in done.stderr for word in words), done.stderr


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["list", "--json"], ["info", "resnet34v2_sn"]]
)
def test_answers_without_importing_torch(arguments):
    code = (
        "import sys; sys.argv[0] = 'snzoo'\n"
        "from snzoo.cli import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'PIL', 'requests'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout


def test_list_filters_and_sorts(capsys):
    assert main(["list", "resnet*_sn_*", "--sort", "top1", "--names"]) == 0
    names = capsys.readouterr().out.split()
    assert names[0] == "resnet101v2_sn_8x32" and len(names) >= 7
    published = [snzoo.get_info(name).published for name in names if "8x" in name]
    top1 = [results[0].top1 if results else 0 for results in published]
    assert top1 == sorted(top1, reverse=True) and top1[-1] == 0  # unpublished ones come last
    assert main(["list", "*v1_bn_*", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["top1"] for row in rows}["resnet50v1_bn_msra"] == 75.3


def test_face_networks_are_listed_with_their_rank1(capsys):
    assert main(["list", "face_*", "--pretrained", "--sort", "rank1", "--names"]) == 0
    names = capsys.readouterr().out.split()
    assert names[:2] == ["face_resnet100_syncsn_16x32", "face_resnet100_bn_8x64"]
    assert main(["list", "face_resnet50*", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    figures = rows["face_resnet50_bn_8x64"]
    assert (figures["rank1"], figures["top1"], figures["dataset"]) == (97.59, None, "megaface")
    assert rows["face_resnet50_bn"]["rank1"] is None
    for patterns, shown in ((["face_resnet50*"], True), (["resnet50v1_s*"], False)):
        assert main(["list", *patterns]) == 0
        assert ("rank-1" in capsys.readouterr().out.splitlines()[0]) == shown
    assert main(["list", "--norm", "syncsn", "--names", "--pretrained"]) == 0
    assert all("_syncsn_" in name for name in capsys.readouterr().out.split())


def test_info_tells_what_a_face_network_returns_and_which_link_is_wrong(capsys):
    assert main(["info", "face_resnet50_syncsn_16x32"]) == 0
    text = capsys.readouterr().out
    figure = "rank-1 97.94 of 3,530 probes among 1,000,000 distractors of megaface"
    link = "page           https://pan.baidu.com/s/1vYdyRg2pBZYz_71_Ozdt7Q"
    for words in (figure, link, "512 values", "published with an address of Baidu"):
        assert words in text
    assert "\n  url " not in text and "classes" not in text


def test_the_table_of_face_networks_follows_that_of_the_classifiers(capsys):
    assert main(["list", "*50*bn_*", "--pretrained", "--markdown"]) == 0
    first, second = capsys.readouterr().out.strip().split("\n\n")
    assert "face" not in first and "| top-1 | top-5 |" in first
    row = "| `face_resnet50_bn_8x64` | 43,584,985 | 97.59 | megaface, 1,000,000 distractors |"
    assert row in second and len(second.splitlines()) == 3


def test_list_says_where_nothing_fits(capsys):
    assert main(["list", "vgg*"]) == 1
    assert "no model matches 'vgg*'" in capsys.readouterr().err


def test_info_tells_accuracy_license_and_origin(capsys):
    assert main(["info", "resnet50v1_sn_8x1"]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("75.94", "CC-BY-NC-4.0", "never published", "baidu"))
    assert main(["info", "resnet50v1_sn_8x1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arguments"] == {"drop_rate": 0.5, "using_bn": False}


@pytest.mark.parametrize("command", [["info"], ["eval", "--imagenet", ".", "--model"], ["fetch"]])
def test_a_wrong_name_is_one_line_with_the_nearest(command):
    assert_one_line(run(*command, "resnet101v1_sn_8x23"), "did you mean resnet101v1_sn_8x32")


@pytest.mark.parametrize(
    "arguments, word",
    [
        ([], "COMMAND"),
        (["evla"], "evla"),
        (["eval", "--on-error", "maybe"], "maybe"),
        (["eval", "--batch-size", "0"], "must be a whole number from 1, got '0'"),
        (["eval", "--batch-size", "x"], "must be a whole number from 1, got 'x'"),
        (["eval", "--imagenet", ""], "must not be empty"),
        (["eval", "--tolerance", "nan"], "must be a number from 0 to 100, got 'nan'"),
        (["eval", "--tolerance", "101"], "from 0 to 100"),
        (["eval", "--tolerance", "x"], "from 0 to 100"),
        (["predict"], "IMAGE"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_status_2(arguments, word):
    assert_one_line(run(*arguments), word, "--help", status=2)


@pytest.mark.slow  # a process for each
@pytest.mark.parametrize(
    "arguments, words",
    [
        (["eval", "--model", "resnet18v1_sn"], ["which images?", "--data"]),
        (["eval", "--imagenet", "none"], ["which model?", "--data none"]),
        (["eval", *DEMO, "--imagenet", "none"], ["none does not exist"]),
        (["eval", "--device", "cuda:99"], ["device 'cuda:99' can't be used"]),
        (["eval", "--device", "toaster"], ["device 'toaster' can't be used"]),
        (
            ["eval", "--json", "none/results.json"],
            ["none/results.json", "folder that you may write"],
        ),
        (["eval", "--model", "resnet18v1_sn", "--imagenet", "."], ["neither class folders"]),
        (["predict", "x.jpg", "--weights", "none.pth"], ["none.pth", "No such file"]),
        (["predict", "none.jpg"], ["none.jpg", "No such file"]),
        (["predict", "."], ["no image in or below"]),
        (["predict", ""], ["one of the names is empty"]),
        (["predict", "x.jpg", "--model", ""], ["no model named ''"]),
        (["predict", "ftp://127.0.0.1/x.jpg"], ["ftp://127.0.0.1/x.jpg", "only http and https"]),
        (["predict", "http://a..b/x.jpg"], ["can't fetch http://a..b/x.jpg"]),
        (["eval", "--device", "meta"], ["device 'meta' can't be used"]),
        (["predict", "http://127.0.0.1:9/x.jpg"], ["can't fetch http://127.0.0.1:9/x.jpg"]),
    ],
)
def test_errors_are_one_line_that_says_what_was_wrong(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert_one_line(run(*arguments), *words)


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path):
    wrong = ["eval", *DEMO, "--imagenet", tmp_path / "none"]
    for command in (["--debug", *wrong], [*wrong, "--debug"]):
        done = run(*command)
        assert done.returncode == 1 and "Traceback" in done.stderr


def test_offline_refuses_urls():
    for value in ("1", "true"):
        done = run("predict", "http://127.0.0.1:9/x.jpg", SNZOO_OFFLINE=value)
        assert_one_line(done, "SNZOO_OFFLINE=1")
    done = run("predict", "http://127.0.0.1:9/x.jpg", SNZOO_OFFLINE="maybe")
    assert_one_line(done, "SNZOO_OFFLINE must be 1 or 0, got 'maybe'")


def test_weights_that_say_nothing_of_themselves_need_a_model(tmp_path, photo):
    weights = tmp_path / "weights.pth"
    torch.save(snzoo.create_model("resnet18v1_sn", width=8).state_dict(), weights)
    assert_one_line(run("predict", photo, "--weights", weights), "weights.pth", "--model")


def test_a_manifest_without_a_demo_asks_for_a_model(tmp_path, photo):
    manifest = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))
    manifest = {key: manifest[key] for key in ("schema_version", "preprocessing")} | {"models": {}}
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest))
    for command in (["eval"], ["predict", photo]):
        assert_one_line(run(*command, SNZOO_MANIFEST=str(path)), "no demo", "--model")
    assert "resnet18v1_sn " in run("list", SNZOO_MANIFEST=str(path)).stdout


def test_output_may_be_cut_off():
    command = f"{sys.executable} -m snzoo list | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("name") and done.stderr == ""


def test_predict_names_the_classes(photo, capsys):
    assert main(["predict", str(photo), "--topk", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(photo) and len(lines) == 4 and all("%" in line for line in lines[1:])


def test_predict_takes_files_folders_and_urls(photo, httpserver, capsys):
    httpserver.expect_request("/photo.jpg").respond_with_data(photo.read_bytes())
    url = httpserver.url_for("/photo.jpg")
    assert main(["predict", str(photo), str(photo.parent), url, "--json"]) == 0
    first, second, third = json.loads(capsys.readouterr().out)
    assert first == second and third == first | {"source": url}
    assert sum(c["probability"] for c in first["classes"]) <= 1.00001
    assert [c["probability"] for c in first["classes"]] == sorted(
        (c["probability"] for c in first["classes"]), reverse=True
    )


def test_predict_turns_phone_photos_upright(photo, tmp_path, capsys):
    upright, exif = Image.open(photo), Image.Exif()
    exif[0x0112] = 6  # as a phone that is held upright writes it
    upright.save(tmp_path / "upright.png")
    sideways = upright.rotate(90, expand=True)
    sideways.save(tmp_path / "phone.png", exif=exif)
    sideways.save(tmp_path / "sideways.png")

    def classes(name, *options):
        assert main(["predict", "--json", str(tmp_path / f"{name}.png"), *options]) == 0
        return json.loads(capsys.readouterr().out)[0]["classes"]

    assert classes("phone") == classes("upright") != classes("sideways")
    assert classes("phone", "--no-upright") == classes("sideways")


def test_a_folder_is_resolved_once(photo, tmp_path, monkeypatch):
    model = snzoo.create_model("resnet18v1_sn_clothing", pretrained=True)
    snzoo.save_pretrained(model, tmp_path / "mine")
    described, description_of = [], snzoo.weights.description_of
    monkeypatch.setattr(
        "snzoo.weights.description_of", lambda path: described.append(path) or description_of(path)
    )
    for command in (["predict", str(photo)], ["eval", "--data", str(ROOT / "snzoo/demo/photos")]):
        assert main([*command, "--model", str(tmp_path / "mine")]) == 0
    assert described == [tmp_path / "mine"] * 2


def test_names_of_files_print_no_control_characters(photo, tmp_path, capsys):
    evil = "\x1b[31mred\x07"
    folder = tmp_path / evil / "hat"
    folder.mkdir(parents=True)
    photo.rename(folder / f"{evil}.jpg")
    (folder / f"{evil}2.jpg").write_text("no image")
    main(["predict", str(folder)])
    main(["eval", *DEMO, "--data", str(tmp_path / evil), "--on-error", "skip"])
    main(["eval", *DEMO, "--data", str(tmp_path / evil / "none")])
    main(["eval", "--model", evil])
    printed = "".join(capsys.readouterr())
    assert "\\x1b[31mred" in printed and not {"\x1b", "\x07"} & set(printed)


def test_predict_goes_on_after_a_broken_image_but_returns_an_error(photo, tmp_path):
    (tmp_path / "broken.jpg").write_text("no image")
    done = run("predict", tmp_path)
    assert done.returncode == 1 and str(photo) in done.stdout
    assert done.stderr.count("\n") == 1 and "broken.jpg" in done.stderr


@pytest.mark.parametrize("status, body", [(404, b""), (200, b"no image")])
def test_predict_reports_urls_that_give_no_image(httpserver, status, body):
    httpserver.expect_request("/x.jpg").respond_with_data(body, status=status)
    assert_one_line(run("predict", httpserver.url_for("/x.jpg")), httpserver.url_for("/x.jpg"))


def test_eval_reports_skipped_images(photo, tmp_path):
    (tmp_path / "hat").mkdir()
    photo.rename(tmp_path / "hat" / "photo.jpg")
    (tmp_path / "hat" / "broken.JPEG").write_text("no image")
    assert_one_line(run("eval", *DEMO, "--imagenet", tmp_path), "broken.JPEG", "--on-error skip")
    output = tmp_path / "results.json"
    done = run("eval", *DEMO, "--imagenet", tmp_path, "--on-error", "skip", "--json", output)
    assert done.returncode == 0 and "could not be read: 1" in done.stdout
    document = json.loads(output.read_text())
    assert document["models"][0]["images"] == 1 and len(document["errors"]) == 1


def test_the_demo_scores_what_the_manifest_says(tmp_path):
    output = tmp_path / "results.json"
    done = run("eval", "--json", output)
    assert done.returncode == 0 and done.stderr == "" and "agrees" in done.stdout
    document = json.loads(output.read_text())
    photos = load_manifest().demo
    (model,) = document["models"]
    assert model["images"] == photos.images and model["same_images"]
    assert f"{photos.images} of the 372" in (ROOT / "snzoo/demo/CREDITS.md").read_text()
    assert model["top1"]["agrees"] and model["top5"]["agrees"]


def test_demo_photos_that_were_changed_are_refused(tmp_path):
    copy = tmp_path / "snzoo"
    shutil.copytree(Path(snzoo.__file__).parent, copy)
    shutil.copy(ROOT / "weights_manifest.json", tmp_path)
    changed = next((copy / "demo" / "photos").rglob("*.jpg"))
    changed.write_bytes(changed.read_bytes() + b" ")
    done = subprocess.run(
        [sys.executable, "-m", "snzoo", "eval"], cwd=tmp_path, capture_output=True, text=True
    )
    assert_one_line(done, "demo/photos", "not the published ones")


def test_terminals_get_bars():
    photo = next((ROOT / "snzoo" / "demo" / "photos" / "hat").iterdir())
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "snzoo", "predict", photo, "--topk", "2"]
    done = subprocess.run(command, stdout=slave)
    text = os.read(master, 4096).decode()
    os.close(slave)
    os.close(master)
    assert done.returncode == 0 and "█" in text.splitlines()[1]


@pytest.mark.slow
def test_json_goes_through_links_and_into_pipes_and_replaces_neither(tmp_path):
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    link.symlink_to(target)
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True)
    for path in (link, pipe):
        assert run("eval", "--json", path).returncode == 0
    command = f"{sys.executable} -m snzoo eval --json /dev/stdout | cat"
    text = subprocess.run(command, shell=True, capture_output=True, text=True).stdout
    assert json.loads(text[text.index("{") :])["data"]["images"] > 0
    assert link.is_symlink() and json.loads(target.read_text())["data"]["images"] > 0
    assert pipe.is_fifo() and json.loads(reader.communicate(timeout=60)[0])["data"]["images"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["1>&-", "2>&-"])
def test_closed_streams_do_no_harm(closed):
    command = f"{sys.executable} -m snzoo eval {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == 0 and "Error" not in done.stderr


def test_a_terminal_that_shows_ascii_only_is_no_obstacle():
    environment = {"PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0"}
    assert run("eval", "--help", **environment).returncode == 0
    assert run("info", "resnet50v1_sn_8x1", **environment).returncode == 0
