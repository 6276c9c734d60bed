"""Saved networks load as they were, and their model cards are true."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import snzoo
from snzoo.cli import main
from snzoo.errors import SnzooError, UnknownModelError
from snzoo.share import CLASSES_ON_CARD

DEMO = "resnet18v1_sn_clothing"
RESNET = "resnet18v1_sn"


def come_back(model, folder, **options):
    """What is loaded after saving, once the logits are the same bit for bit."""
    model(torch.rand(2, model.conv1.in_channels, 64, 64))  # statistics of its own
    snzoo.save_pretrained(model, folder, **options)
    loaded = snzoo.create_model(str(folder))
    x = torch.rand(2, model.conv1.in_channels, 64, 64)
    assert torch.equal(model.eval()(x), loaded.eval()(x))
    return loaded


@pytest.mark.parametrize(
    "name, arguments, classes",
    [
        (DEMO, {"pretrained": True}, None),
        (DEMO, {"pretrained": True, "num_classes": 3}, ["a", "b", "c"]),
        (RESNET, {"width": 8}, None),  # ImageNet's
        (RESNET, {"width": 8, "num_classes": 0}, None),
        (RESNET, {"width": 16, "in_chans": 1, "output_stride": 8, "num_classes": 2}, ["a", "b"]),
        ("resnet50v1_sn_8x1", {"width": 8, "drop_rate": 0.25, "num_classes": 1}, ("a",)),
        ("resnet50v1_bn_msra", {"width": 8}, None),
        ("resnet18v2_bn", {"width": 8, "num_classes": 2}, ["a", "b"]),
        ("resnet18v2_gn", {"width": 8, "num_classes": 2}, ["a", "b"]),
    ],
)
def test_a_network_comes_back_bit_for_bit(tmp_path, name, arguments, classes):
    model = snzoo.create_model(name, **arguments)
    loaded = come_back(model, tmp_path / "f", classes=classes)
    assert loaded.spec.arguments == model.spec.arguments
    assert loaded.spec.preprocessing == model.spec.preprocessing
    if classes:
        assert loaded.spec.classes == tuple(classes)
    again = come_back(loaded, tmp_path / "f")  # over the same folder
    assert again.spec.classes == loaded.spec.classes


def test_a_new_classifier_comes_back_with_the_names_it_is_given(tmp_path):
    model = snzoo.create_model(DEMO, pretrained=True)
    model.reset_classifier(4)
    with pytest.raises(SnzooError, match=r"4 classes, but 0 names are known; name them: classes="):
        snzoo.save_pretrained(model, tmp_path / "f")
    assert not (tmp_path / "f").exists()
    loaded = come_back(model, tmp_path / "f", classes=list("abcd"))
    loaded.reset_classifier(0)
    assert come_back(loaded, tmp_path / "f").num_classes == 0


def test_a_folder_is_finetuned_like_a_zoo_model(tmp_path):
    model = snzoo.create_model(RESNET, width=8, num_classes=3)
    snzoo.save_pretrained(model, tmp_path / "f", classes=["a", "b", "c"])
    folder = str(tmp_path / "f")
    assert snzoo.create_model(folder, num_classes=7).fc.out_features == 7
    assert snzoo.create_model(folder, in_chans=1)(torch.rand(2, 1, 32, 32)).shape == (2, 3)
    pyramid = snzoo.create_model(folder, features_only=True)
    assert torch.equal(pyramid.layer4[1].conv2.weight, model.layer4[1].conv2.weight)
    same = snzoo.create_model(RESNET, weights=folder)
    assert torch.equal(same.fc.weight, model.fc.weight)
    with pytest.raises(SnzooError, match="pass the network"):
        snzoo.save_pretrained(pyramid, tmp_path / "g")


def test_half_precision_comes_back_as_float32_of_the_same_values(tmp_path):
    model = snzoo.create_model(RESNET, width=8, num_classes=0).half()
    snzoo.save_pretrained(model, tmp_path / "f")
    loaded = snzoo.create_model(str(tmp_path / "f"))
    assert loaded.conv1.weight.dtype == torch.float32
    assert torch.equal(loaded.conv1.weight, model.conv1.weight.float())


@pytest.mark.parametrize(
    "classes, words",
    [
        ("abc", "classes must be a list of names, got 'abc'"),
        (["a", "b"], "3 classes, but 2 names"),
        (["a", "b", "b"], "must be printable and differ, got 'b'"),
        (["a", "b", "c\n"], "must be printable"),
        (["a", "b", 3], r"classes\[2\] has the wrong type: 3|must be printable and differ, got 3"),
    ],
)
def test_names_that_nobody_could_read_are_refused(tmp_path, classes, words):
    model = snzoo.create_model(RESNET, width=8, num_classes=3)
    with pytest.raises(SnzooError, match=words):
        snzoo.save_pretrained(model, tmp_path / "f", classes=classes)
    assert not (tmp_path / "f").exists()


def test_what_could_not_be_created_again_is_not_saved(tmp_path):
    model = snzoo.create_model(RESNET, width=8, num_classes=0)
    with pytest.raises(SnzooError, match="pass the network that snzoo"):
        snzoo.save_pretrained(torch.nn.Sequential(model), tmp_path / "f")
    model.conv1 = torch.nn.Conv2d(3, 8, 3)
    with pytest.raises(SnzooError, match=r"conv1.weight is \(8, 3, 3, 3\), not \(8, 3, 7, 7\)"):
        snzoo.save_pretrained(model, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def card_of(folder):
    return ModelCard.load(folder / "README.md", ignore_metadata_errors=False)


@pytest.mark.parametrize(
    "name, license",
    [
        ("resnet50v1_sn_8x32", "cc-by-nc-4.0"),
        (DEMO, "cc0-1.0"),
        ("resnet50v1_bn_torchvision", None),  # not stated by who published it
        (RESNET, None),  # no weights of the zoo
    ],
)
def test_the_card_names_origin_and_license_but_no_figures_and_no_paths(tmp_path, name, license):
    model = snzoo.create_model(name, width=8, num_classes=2)
    snzoo.save_pretrained(model, tmp_path / "f", classes=["a", "b"])
    again = snzoo.create_model(str(tmp_path / "f"))  # its entry knows where it was loaded from
    snzoo.save_pretrained(again, tmp_path / "g")
    for folder in (tmp_path / "f", tmp_path / "g"):
        card, entry = card_of(folder), snzoo.get_info(name)
        assert (card.data.library_name, card.data.license) == ("snzoo", license)
        assert card.data.pipeline_tag == "image-classification"
        assert (entry.provenance in card.text) == (entry.file is not None)
        assert ("Their license: " in card.text) == (entry.file is not None)
        assert str(tmp_path) not in card.content and "top" not in card.content.lower()
        assert not any(str(result.top1) in card.content for result in entry.published)


def test_odd_class_names_are_no_markup(tmp_path):
    names = ["---", "license: mit", "```", "<script>", "[x](y)", "  é, ü: *z*", "#1", "| a |", ""]
    model = snzoo.create_model(RESNET, width=8, num_classes=len(names))
    snzoo.save_pretrained(model, tmp_path / "f", classes=names)
    card = card_of(tmp_path / "f")
    assert set(card.data.to_dict()) == {"library_name", "pipeline_tag"}
    assert card.text.partition("\n<!-- written by")[0].endswith(
        "Classes (9):\n\n" + "".join(f"    {name}\n" for name in names)
    )
    assert snzoo.create_model(str(tmp_path / "f")).spec.classes == tuple(names)


def test_a_card_is_no_list_of_thousands(tmp_path):
    names = [f"class {i}" for i in range(CLASSES_ON_CARD + 2)]
    model = snzoo.create_model(RESNET, width=8, num_classes=len(names))
    snzoo.save_pretrained(model, tmp_path / "f", classes=names)
    card = card_of(tmp_path / "f")
    assert card.text.partition("\n<!-- written by")[0].endswith(
        f"    class {CLASSES_ON_CARD - 1}\n\nand 2 more, in config.json.\n"
    )
    assert json.loads((tmp_path / "f" / "config.json").read_text())["classes"] == names


def test_a_card_without_classes_names_another_task(tmp_path):
    snzoo.save_pretrained(snzoo.create_model(RESNET, width=8, num_classes=0), tmp_path)
    card = card_of(tmp_path)
    assert card.data.pipeline_tag == "image-feature-extraction" and "No classes" in card.text


def test_the_code_on_the_card_runs(tmp_path):
    snzoo.save_pretrained(snzoo.create_model(DEMO, pretrained=True), tmp_path / "FOLDER")
    code = card_of(tmp_path / "FOLDER").text.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_folder_of_a_zoo_name_is_not_taken_for_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = snzoo.create_model(RESNET, width=8, num_classes=0)
    snzoo.save_pretrained(model, DEMO)
    assert snzoo.create_model(DEMO).num_classes == 10
    assert snzoo.create_model(f"./{DEMO}").num_classes == 0
    with pytest.raises(UnknownModelError, match="did you mean"):
        snzoo.create_model(f"{DEMO}n")


def test_the_command_line_takes_folders(tmp_path, monkeypatch, capsys):
    photo = next((Path(snzoo.__file__).parent / "demo" / "photos").rglob("*.jpg"))
    monkeypatch.chdir(tmp_path)
    snzoo.save_pretrained(snzoo.create_model(DEMO, pretrained=True), "f")
    outputs = set()
    for options in (["--model", "f"], ["--weights", "f"], ["--model", DEMO]):
        assert main(["predict", *options, str(photo)]) == 0
        outputs.add(capsys.readouterr())
    [(out, err)] = outputs
    assert out and not err
    (tmp_path / "data" / "hat").mkdir(parents=True)
    (tmp_path / "data" / "hat" / photo.name).write_bytes(photo.read_bytes())
    assert main(["eval", "--model", "f", "--imagenet", "data", "--workers", "1"]) == 0
    assert "on 1 image" in capsys.readouterr().out
    assert main(["predict", "--model", str(tmp_path), str(photo)]) == 1
    out, err = capsys.readouterr()
    assert not out and "has no config.json" in err and len(err.splitlines()) == 1


def test_importing_it_imports_nothing_heavy():
    heavy = {"torch", "requests", "safetensors", "huggingface_hub"}
    code = f"import sys, snzoo; snzoo.push_to_hub; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_command_line_says_what_it_can_not_do_with_a_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = snzoo.create_model("resnet18v1_sn_clothing", pretrained=True, num_classes=0)
    snzoo.save_pretrained(model, "headless")
    snzoo.save_pretrained(
        snzoo.create_model(RESNET, width=8, num_classes=1, in_chans=1), "gray", classes=["a"]
    )
    for command in (["predict", "photo.jpg"], ["eval", "--imagenet", "."]):
        assert main([*command, "--model", "gray"]) == 1
        assert "gray takes images of 1 channels, not photos" in capsys.readouterr().err
        assert main([*command, "--model", "headless"]) == 1
        assert (
            capsys.readouterr().err
            == "snzoo: headless has no classes: it is a backbone without a classifier\n"
        )
    assert main(["eval", "--model", "headless", "resnet18v1_sn_clothing", "--imagenet", "."]) == 1
    assert "headless has no classes" in capsys.readouterr().err


def test_no_output_replaces_the_weights_that_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snzoo.save_pretrained(snzoo.create_model(DEMO, pretrained=True), "full")
    before = (tmp_path / "full" / "model.safetensors").read_bytes()
    export = ["export", "--format", "pt2", "--output", "full/model.safetensors"]
    evaluation = ["eval", "--imagenet", ".", "--json", "full/config.json"]
    for command in (export, evaluation):
        for option in ("--model", "--weights"):
            assert main([*command, option, "full"]) == 1
            assert "is not overwritten" in capsys.readouterr().err
    file = "full/model.safetensors"
    assert main(["eval", "--imagenet", ".", "--weights", file, "--json", file]) == 1
    assert "is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "full" / "model.safetensors").read_bytes() == before


def test_a_headless_network_takes_a_head(tmp_path):
    snzoo.save_pretrained(snzoo.create_model(RESNET, width=8, num_classes=0), tmp_path / "x")
    model = snzoo.create_model(tmp_path / "x", num_classes=7)
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7)


def test_a_card_of_people_stays_and_one_of_ours_is_brought_up_to_date(tmp_path):
    card = tmp_path / "README.md"
    snzoo.save_pretrained(snzoo.create_model(RESNET, width=8, num_classes=0), tmp_path)
    snzoo.save_pretrained(snzoo.create_model(DEMO, pretrained=True), tmp_path)
    assert "license: cc0-1.0" in card.read_text() and "No classes" not in card.read_text()
    for text in (card.read_text().replace("dress", "gown"), "mine", ""):
        card.write_text(text)
        snzoo.save_pretrained(snzoo.create_model(RESNET, width=8, num_classes=0), tmp_path)
        assert card.read_text() == text


def test_a_headless_network_is_a_pyramid_of_other_channels(tmp_path):
    model = snzoo.create_model(RESNET, width=8, num_classes=0)
    snzoo.save_pretrained(model, tmp_path)
    gray = snzoo.create_model(tmp_path, features_only=True, in_chans=1)
    assert torch.allclose(gray.conv1.weight, model.conv1.weight.sum(1, keepdim=True))


def test_after_a_reset_the_names_of_the_classes_are_unknown(tmp_path):
    model = snzoo.create_model(DEMO, pretrained=True)
    model.reset_classifier(10)
    with pytest.raises(SnzooError, match="10 classes, but 0 names are known"):
        snzoo.save_pretrained(model, tmp_path)


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile])
def test_what_wraps_a_network_is_named(tmp_path, wrap):
    with pytest.raises(SnzooError, match="not a wrapper such as"):
        snzoo.save_pretrained(wrap(snzoo.create_model(RESNET, width=8)), tmp_path)


def test_a_folder_without_a_name_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SnzooError, match="path must not be empty"):
        snzoo.save_pretrained(snzoo.create_model(RESNET, width=8), "")
    assert not list(tmp_path.iterdir())


def test_a_folder_and_a_file_are_one_too_many(tmp_path):
    with pytest.raises(SnzooError, match="has its own weights"):
        snzoo.create_model(tmp_path, weights="x.pth")


def test_info_speaks_of_a_folder(tmp_path, capsys):
    snzoo.save_pretrained(snzoo.create_model(DEMO, pretrained=True, in_chans=1), tmp_path)
    assert main(["info", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "in_chans 1" in out and "dress, hat" in out and "sha256" not in out


def test_a_file_describes_itself_and_keeps_what_it_replaces_until_it_is_whole(tmp_path):
    file, other = tmp_path / "x.safetensors", tmp_path / "x.safetensors.partial"
    other.write_text("mine")
    model = snzoo.create_model(RESNET, width=8, num_classes=2)
    for names in (["a", "b"], ["c", "d"]):
        loaded = come_back(model.train(), file, classes=names)
        assert loaded.spec.classes == tuple(names)
        file.chmod(0o600)
    before = file.read_bytes()
    averaged = {key: 0 * value for key, value in model.state_dict().items()}
    snzoo.save_pretrained(model, file, classes=["c", "d"], state_dict=averaged)
    assert not snzoo.create_model(file).fc.weight.any() and file.read_bytes() != before
    assert other.read_text() == "mine" and file.stat().st_mode & 0o777 == 0o600
    assert len(list(tmp_path.iterdir())) == 2


def test_a_head_of_several_layers_is_refused_with_the_way_out(tmp_path):
    model = snzoo.create_model(DEMO, pretrained=True)
    layers = [torch.nn.Dropout(0.2), torch.nn.Linear(model.fc.in_features, 7)]
    model.fc = torch.nn.Sequential(*layers)
    assert model.num_classes == 7
    with pytest.raises(SnzooError, match=r"fc is a Sequential; .* one nn\.Linear .*drop_rate"):
        snzoo.save_pretrained(model, tmp_path / "f", classes=list("abcdefg"))
    model = snzoo.create_model(DEMO, pretrained=True, drop_rate=0.2)
    model.reset_classifier(7)
    assert come_back(model, tmp_path / "f", classes=list("abcdefg")).drop.p == 0.2


SHARDED = """
import sys, torch, snzoo
from torch.distributed.fsdp import fully_shard
torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=2)
whole = {key: value.clone() for key, value in model.state_dict().items()}
fully_shard(model)
snzoo.save_pretrained(model, sys.argv[1], classes=["a", "b"])
torch.distributed.barrier()
again = snzoo.create_model(sys.argv[1]).state_dict()
assert all(torch.equal(again[key], value) for key, value in whole.items())
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_sharded_parameters_are_gathered(tmp_path):
    (tmp_path / "run.py").write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", tmp_path / "run.py", tmp_path / "f"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "name, content", [("config.json", '{"mine": 1}'), ("model.safetensors", "")]
)
def test_files_of_others_are_not_overwritten(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(SnzooError, match=f"{name} is not overwritten"):
        snzoo.save_pretrained(snzoo.create_model(DEMO, pretrained=True), tmp_path)
    assert (tmp_path / name).read_text() == content and len(list(tmp_path.iterdir())) == 1


def test_a_network_without_memory_is_not_saved(tmp_path):
    model = snzoo.create_model(RESNET, width=8, num_classes=0).to("meta")
    with pytest.raises(SnzooError, match="meta device"):
        snzoo.save_pretrained(model, tmp_path / "f")
    assert not (tmp_path / "f").exists()
