"""The command line of snzoo train: its options, its plan and its files for TensorBoard."""

import dataclasses

import pytest

from snzoo.cli import main
from snzoo.cli.main import build_parser
from snzoo.manifest import load_manifest
from snzoo.recipes import Recipe

BASE = ["--model", "resnet18v1_sn", "--width", "8", "--device", "cpu"]
SMALL = [*BASE, "--epochs", "1", "--batch-size", "8", "--crop", "32", "--resize", "36"]


def plan(capsys, *arguments):
    status = main(["train", *map(str, arguments), "--dry-run"])
    out = capsys.readouterr().out
    return status, {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines()}


def test_every_value_of_a_recipe_has_an_option_with_help(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(Recipe):
        option = "--" + field.name.replace("_", "-")
        assert option in text
    assert "`" not in text and ":func:" not in text
    assert "--gate-lr-factor N the learning rate of SN's gates over that" in text


def test_options_replace_values_and_the_plan_says_so(colors, capsys):
    values = ["--lr", "0.2", "--nesterov", "--steps", "1", "2", "--scale", "0.5", "0.9"]
    values += [
        "--clip-norm",
        "1",
        "--schedule",
        "step",
        "--no-drop-last",
        "--warmup-first-step",
        "0",
    ]
    status, lines = plan(capsys, colors, *BASE, "--batch-size", 4, *values)
    assert status == 0
    assert lines["lr"] == "0.2 (given)" and lines["steps"] == "1 2 (given)"
    assert lines["scale"] == "0.5 0.9 (given)" and lines["schedule"] == "step (given)"
    assert lines["drop_last"] == "False (given)" and lines["warmup_first_step"] == "0 (given)"
    assert lines["momentum"] == "0.9" and lines["ema_decay"] == "none"
    _, lines = plan(capsys, colors, *BASE, "--batch-size", 4, "--clip-norm", "none")
    assert lines["clip_norm"] == "none (given)"
    assert lines["lr"] == "0.00125 (scaled with batch_size)"
    _, lines = plan(
        capsys, colors, "--recipe", "resnet50v1_sn_8x32", "--batch-size", 8, "--crop", 64
    )
    assert lines["images_per_gpu"] == "8" and lines["resize"] == "73"  # 256 / 224 of the crop


@pytest.mark.parametrize("name", sorted(n for n, m in load_manifest().models.items() if m.recipe))
def test_every_recipe_can_be_planned(colors, capsys, tmp_path, name):
    classes = tmp_path / "classes.txt"
    classes.write_text("apple\nplum\n")
    arguments = [colors, "--classes", classes, "--recipe", name, "--batch-size", 8]
    status, lines = plan(capsys, *arguments)
    recipe = load_manifest().models[name].recipe
    assert status == 0 and lines["recipe"].startswith(f"{name}, except batch_size")
    assert float(lines["lr"].split()[0]) == pytest.approx(recipe.lr * 8 / recipe.batch_size)


def test_a_run_prints_its_plan_its_epochs_and_its_result(colors, capsys, tmp_path):
    output = tmp_path / "run"
    assert main(["train", str(colors), *SMALL, "--output", str(output), "--tensorboard"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "network     resnet18v1_sn, 2 classes, from random weights"
    assert lines[-2].startswith("epoch 1/1: loss ")
    assert lines[-1].startswith("best: epoch 1, validation ")
    assert lines[-1].endswith(f"kept in {output / 'best.safetensors'}")
    assert main(["info", str(output / "best.safetensors")]) == 0
    assert "epochs 1" in capsys.readouterr().out
    assert main(["report", str(output)]) == 0

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(output)).Reload()
    tags = {"learning_rate", "train/loss", "train/top1", "validation/loss"}
    assert tags | {"validation/top1", "validation/top5"} == set(events.Tags()["scalars"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "name one folder of photos"),
        (["DATA", "--imagenet", "DATA"], "name one folder of photos"),
        (["--imagenet", "DATA", "--classes", "x"], "leave out --classes"),
        (["DATA", "--classes", "none.txt", *BASE], "can't read the classes in none.txt"),
        (["DATA", "--classes", "twice.txt", *BASE], "twice.txt names the class plum twice"),
        (["DATA", "--classes", "one.txt", *BASE], "at least two classes, one a line; it has 1"),
        (["DATA"], "name the network to train: --model NAME"),
        (["nowhere", *BASE], "nowhere"),
        (
            ["DATA", *BASE, "--recipe", "resnet50v1_ssn_8x16"],
            "no recipe of resnet50v1_ssn_8x16 was published; use that of resnet50v1_ssn_8x32",
        ),
        (["DATA", *BASE, "--recipe", "resnet50v1_bn_tf"], "was published; there are resnet101v2"),
        (["DATA", *BASE, "--recipe", "finetun"], "no recipe named 'finetun'; did you mean 'fine"),
    ],
)
def test_mistakes_are_one_line(colors, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(colors.parent)
    (colors.parent / "twice.txt").write_text("plum\napple\nplum\n")
    (colors.parent / "one.txt").write_text("plum\n")
    arguments = [colors.name if word == "DATA" else word for word in arguments]
    assert main(["train", *arguments]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
