"""Whole runs of snzoo.train on a small data set: what they learn, write and refuse."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch.nn import functional as F
from torchvision import transforms

import snzoo
from snzoo.data.augment import image_seed
from snzoo.data.training_batches import shuffle
from snzoo.errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    NonFiniteError,
    SnzooError,
    UnexpectedArgumentError,
)
from snzoo.manifest import load_manifest
from snzoo.nn import SwitchNorm2d
from snzoo.recipes import learning_rate
from snzoo.spec import ModelSpec
from snzoo.training.config import TrainingConfig
from snzoo.training.devices import seed_generators
from snzoo.training.mixup import mix_images
from snzoo.training.plan import make_plan


def read_log(folder):
    lines = (folder / "log.ndjson").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_learns_and_its_folder_holds_all_that_later_commands_need(train, colors, tmp_path):
    state = torch.random.get_rng_state()
    result = train(epochs=6)
    assert torch.equal(torch.random.get_rng_state(), state)
    run = tmp_path / "run"
    assert {path.name for path in run.iterdir()} == {
        ".lock",
        "best.safetensors",
        "last.pt",
        "log.ndjson",
        "recipe.json",
    }
    with pytest.raises(ArgumentError, match="holds a run: continue it with --resume"):
        train(epochs=6)
    with FileLock(run / ".lock"), pytest.raises(ArgumentError, match="another process trains in"):
        train(epochs=6, resume=True)
    assert (result.correct, result.images, result.best) == (7, 7, run / "best.safetensors")

    spec = ModelSpec.find(weights=result.best)
    assert spec.classes == ("apple", "plum") and spec.arguments == {"width": 8}
    assert (spec.preprocessing.resize, spec.preprocessing.crop) == (36, 32)
    document = json.loads((run / "recipe.json").read_text())
    assert spec.recipe is not None and spec.recipe.epochs == 6
    assert document["recipe"] == json.loads(json.dumps(dataclasses.asdict(spec.recipe)))
    predictions = snzoo.predict(snzoo.create_model(result.best), colors / "validation" / "plum")
    assert [p.names[0] for p in predictions] == ["plum"] * 3

    log = read_log(run)
    epochs = [line for line in log if line["event"] == "epoch"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4, 5, 6]
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    assert epochs[-1]["validation"]["images"] == 7 and log[-1]["event"] == "finished"
    for line in log:
        if line["event"] == "step":
            assert line["lr"] == learning_rate(spec.recipe, line["step"] - 1, 3)


def test_a_run_from_the_weights_of_a_run_keeps_its_width_and_size(train, tmp_path):
    first = train(epochs=1)
    options = {"model": None, "width": None, "crop": None, "resize": None}
    second = train("second", weights=first.best, epochs=1, **options)
    before, after = (ModelSpec.find(weights=result.best) for result in (first, second))
    assert after.arguments == {"width": 8} and after.preprocessing == before.preprocessing


def reference_batches(colors, recipe, preprocessing, epoch, seed):
    """The batches of an epoch, made by torchvision's transforms."""
    paths = sorted((colors / "train").glob("*/*.png"), key=lambda p: (p.parent.name, p.name))
    labels = torch.tensor([path.parent.name == "plum" for path in paths]).long()
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(recipe.crop, recipe.scale, recipe.ratio),
            transforms.RandomHorizontalFlip(recipe.flip),
            transforms.ColorJitter(*recipe.color_jitter),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    order = shuffle(len(paths), seed=seed, epoch=epoch).tolist()
    for start in range(0, len(order), recipe.batch_size):
        batch = order[start : start + recipe.batch_size]
        images = []
        for index in batch:
            torch.manual_seed(image_seed(seed, epoch, index))
            images.append(augment(Image.open(paths[index]).convert("RGB")))
        yield torch.stack(images), labels[batch]


SPARSE = {"gate_lr_factor": 0.1, "gate_clip_norm": 0.05, "final_radius": 0.9}


@pytest.mark.parametrize(
    "norm, decay, mixup, more",
    [
        ("sn", "all", 0.0, {}),
        ("sn", "weights", 0.0, {}),
        ("sn", "weights", 0.4, {}),
        ("ssn", "not_gates", 0.0, SPARSE),
    ],
)
def test_the_weights_are_those_of_a_plain_loop(train, colors, norm, decay, mixup, more, tmp_path):
    """Two epochs, compared with SGD as a textbook writes it, in float64."""
    name = f"resnet18v1_{norm}"
    values = {"decay": decay, "mixup": mixup, "gate_lr_factor": 1.0, "weight_decay": 0.01} | more
    train(model=name, seed=3, precision="fp64", epochs=2, **values)
    start = snzoo.create_model(name, width=8, num_classes=2)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    recipe = snzoo.create_model(tmp_path / "run" / "best.safetensors").spec.recipe

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = snzoo.create_model(name, width=8, num_classes=2).double()
        preprocessing = model.spec.preprocessing
        gates = {name for name, _ in model.named_parameters() if name.endswith("_weight")}
        momenta = {}
        step = 0
        for epoch in range(2):
            for images, labels in reference_batches(colors, recipe, preprocessing, epoch, 3):
                x, others, share = images.double(), labels, 1.0
                if mixup:
                    seed_generators(x.device, 3, step, 0, 0)  # of the run, the step and the pass
                    x, others, share = mix_images(x, labels, mixup)
                if "final_radius" in values:
                    snzoo.nn.set_radius(model, values["final_radius"] * step / 6)
                logits = model(x)
                loss = share * F.cross_entropy(logits, labels, label_smoothing=0.1)
                loss += (1 - share) * F.cross_entropy(logits, others, label_smoothing=0.1)
                gradients = torch.autograd.grad(loss, list(model.parameters()))
                rate = learning_rate(recipe, step, 3)
                squares = dict(zip(dict(model.named_parameters()), gradients, strict=True))
                norm = math.sqrt(sum(float((squares[gate] ** 2).sum()) for gate in gates))
                with torch.no_grad():
                    for (name, p), gradient in zip(
                        model.named_parameters(), gradients, strict=True
                    ):
                        decays = decay == "all" or "conv" in name or "downsample.0" in name
                        decays |= name == "fc.weight"
                        decays |= decay == "not_gates" and name not in gates
                        factor = values["gate_lr_factor"] if name in gates else 1.0
                        if name in gates and norm > values.get("gate_clip_norm", math.inf):
                            gradient = gradient * (0.05 / (norm + 1e-6))  # PyTorch's
                        gradient = gradient + 0.01 * p * decays
                        momentum = gradient + 0.9 * momenta.get(name, 0.0)
                        p -= factor * rate * (gradient + 0.9 * momentum)
                        momenta[name] = momentum
                step += 1
    assert start.state_dict().keys() == state["model"].keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state["model"][name], value, rtol=0, atol=1e-10)


def test_accumulated_passes_are_one_step(train, tmp_path):
    for name, at_a_time in (("whole", None), ("parts", 3)):
        # Of larger images, no group of a norm has only two values.
        options = {"model": "resnet18v1_gn", "precision": "fp64", "crop": 96, "resize": 108}
        train(name, **options, images_per_gpu=at_a_time)
    whole, parts = (
        torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "parts")
    )
    for name, value in whole["model"].items():
        torch.testing.assert_close(parts["model"][name], value, rtol=0, atol=1e-10)


def test_frozen_stages_stay_as_they_were(train, tmp_path):
    start = snzoo.create_model("resnet18v1_sn", width=8, num_classes=2)
    for name, buffer in start.named_buffers():
        buffer.fill_(1.0 if name.endswith("var") else 0.1)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    result = train(weights=tmp_path / "start.pth", freeze=1, epochs=1)
    after = snzoo.create_model(result.best).state_dict()
    for key, value in start.state_dict().items():
        if key.startswith(("conv1", "sn1", "layer1")):
            assert torch.equal(value, after[key]), key
    for key in ("layer2.0.conv1.weight", "layer2.0.sn1.running_mean"):
        assert not torch.equal(start.state_dict()[key], after[key])


def test_finetuning_keeps_the_radius_of_sparse_sn(train, tmp_path):
    start = snzoo.create_model("resnet18v1_ssn", width=8, num_classes=2)
    snzoo.nn.set_radius(start, 0.6)
    snzoo.save_pretrained(start, tmp_path / "start.safetensors", classes=["a", "b"])
    result = train(model=None, weights=tmp_path / "start.safetensors", width=None, epochs=1)
    after = snzoo.create_model(result.best)
    assert {round(float(m.radius), 6) for m in after.modules() if hasattr(m, "radius")} == {0.6}


def test_the_moving_average_has_the_locks_of_the_network(train, tmp_path):
    train(model="resnet18v1_ssn", epochs=2, ema_decay=0.9, final_radius=1.0)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    for key in ("model", "average"):
        locks = [int(v) for name, v in state[key].items() if name.endswith("mean_fixed")]
        assert sum(locks) == len(locks) == 20


@pytest.mark.parametrize("norm", ["bn", "sn"])
def test_frozen_statistics_are_used_in_training_and_do_not_change(train, tmp_path, norm):
    start = snzoo.create_model(f"resnet18v1_{norm}", width=8, num_classes=2)
    for name, buffer in start.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    options = {"weights": tmp_path / "start.pth", "model": f"resnet18v1_{norm}", "epochs": 1}
    # Without statistics of the batch, the photos of a step are independent of one another.
    for name, at_a_time in (("whole", None), ("single", 1)):
        more = {"precision": "fp64", "images_per_gpu": at_a_time}
        train(name, **options, **more, statistics="frozen")
    whole, single = (
        torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]
        for name in ("whole", "single")
    )
    for name, value in whole.items():
        torch.testing.assert_close(single[name], value, rtol=0, atol=1e-10)
        if "running" in name or "tracked" in name:
            assert torch.equal(value, start.state_dict()[name].to(value.dtype)), name
    assert not torch.equal(whole["conv1.weight"].float(), start.conv1.weight)


def test_sn_trains_without_batch_statistics(train):
    model = snzoo.create_model(train(using_bn=False, epochs=1).best)
    assert model.spec.arguments == {"width": 8, "using_bn": False}
    assert model.sn1.mean_weight.shape == (2,) and not list(model.buffers())


def test_half_stores_large_weights_in_half_the_bytes(train):
    full, half = train("full", epochs=1).best, train("half", epochs=1, half=True).best
    assert half.stat().st_size < 0.75 * full.stat().st_size
    assert snzoo.create_model(half).conv1.weight.dtype == torch.float32


def test_the_moving_average_of_the_weights_is_validated_and_saved(train, tmp_path):
    result = train(ema_decay=0.5, epochs=1)
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    saved = snzoo.create_model(result.best).state_dict()
    assert torch.equal(saved["fc.weight"], state["average"]["module.fc.weight"])
    assert not torch.equal(saved["fc.weight"], state["model"]["fc.weight"])


def test_batch_averages_are_those_of_update_bn_statistics(train, colors, tmp_path):
    values = {"statistics": "batch", "statistics_batches": 200, "statistics_batch_size": 22}
    result = train(epochs=1, **values)
    saved = snzoo.create_model(result.best)
    again = snzoo.create_model(result.best)
    transform = snzoo.create_transform(again)
    images = torch.stack([transform(p) for p in sorted((colors / "train").glob("*/*.png"))])
    snzoo.nn.update_bn_statistics(again, [images])
    for name, value in again.named_buffers():
        torch.testing.assert_close(saved.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_broken_photo_stops_the_run_before_it_begins_or_is_named_once(train, colors, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(colors, data)
    broken = data / "train" / "plum" / "broken.png"
    broken.write_text("no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        train(data=data)
    mended = shutil.copytree(data, tmp_path / "other")
    shutil.move(mended / "train" / "plum" / "broken.png", mended / "validation" / "plum")
    with pytest.raises(DataError, match=r"validation.*broken\.png"):
        train(data=mended)
    assert not (tmp_path / "run" / "recipe.json").exists()
    (data / "validation" / "plum" / "bad.png").write_text("no image")
    result = train(data=data, on_error="skip")
    log = read_log(tmp_path / "run")
    skipped = [line["photo"] for line in log if line["event"] == "skipped"]
    assert sorted(skipped) == [str(broken), str(data / "validation" / "plum" / "bad.png")]
    assert result.images == 7 and 100 * result.correct / 7 == result.top1
    assert [line["validation"]["images"] for line in log if line["event"] == "epoch"] == [7, 7]
    for photo in (data / "train").glob("*/*.png"):
        photo.write_text("no image")
    with pytest.raises(DataError, match="no training photo can be read"):
        train("nothing", data=data, on_error="skip")


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"model": "resnet19v1_sn"}, SnzooError, "did you mean"),
        ({"model": None}, ArgumentError, "name the network"),
        ({"recipe": "finetun"}, ArgumentError, "did you mean 'finetune'"),
        ({"freeze": 6}, ArgumentError, "freeze must be from 0 to 4, got 6"),
        ({"lr": float("nan")}, ArgumentError, "lr"),
        ({"crop": 0}, ArgumentError, "crop must be at least 1"),
        ({"batch_size": 23}, ArgumentError, "larger than the training set of 22 photos"),
        ({"weights": "none.pth"}, SnzooError, "none.pth"),
        ({"pretrained": True}, CheckpointError, "no published weights"),
        ({"device": "toaster"}, SnzooError, "device 'toaster' can't be used"),
        ({"model": "resnet18v1_gn", "norm_momentum": 0.9}, ArgumentError, "no running statistics"),
        ({"model": "resnet18v2_sn", "last_gamma": True}, ArgumentError, "applies to v1 networks"),
        ({"model": "resnet18v1_gn", "statistics": "batch"}, ArgumentError, "statistics=batch"),
        ({"statistics": "batch", "freeze": 4}, ArgumentError, "statistics=batch needs SN"),
        ({"statistics": "frozen"}, ArgumentError, "statistics=frozen needs weights"),
        (
            {"model": "resnet18v1_bn", "using_bn": False},
            ArgumentError,
            "using_bn is for Switchable",
        ),
        ({"schedule": "step"}, ArgumentError, "schedule step needs steps"),
        ({"decay": "all", "layer_decay": 0.5}, ArgumentError, "layer_decay needs decay=weights"),
        ({"decay": "not_gates", "layer_decay": 0.5}, ArgumentError, "layer_decay needs"),
        ({"decay": "all", "gate_lr_factor": 0.1}, ArgumentError, "gate_lr_factor needs decay="),
        ({"final_radius": 1.0}, ArgumentError, "final_radius is for sparse SN"),
        ({"model": "resnet18v1_ssn"}, ArgumentError, "would stay at the radius 0"),
        (
            {"model": "resnet18v1_bn", "gate_clip_norm": 1.0},
            ArgumentError,
            "gate_clip_norm is for Switchable Normalization",
        ),
        (
            {"center_crop_epochs": 1, "random_crop_epochs": 1},
            ArgumentError,
            "exclude each other",
        ),
        ({"precision": "tf32"}, ArgumentError, "needs a CUDA device"),
        ({"sync_norm": True, "model": "resnet18v1_bn"}, ArgumentError, "sync_norm"),
        ({"epoch": 3}, UnexpectedArgumentError, "did you mean 'epochs'"),
        ({"seed": -1}, ArgumentError, "seed must be"),
    ],
)
def test_mistakes_are_found_before_any_work(train, tmp_path, options, error, message):
    with pytest.raises(error) as found:
        train(**options)
    assert message in str(found.value) and "\n" not in str(found.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"precision": "fp16", "images_per_gpu": 3, "clip_norm": 1.0},
        {"channels_last": True},
        {"mixup": 0.4, "images_per_gpu": 3},
        {"lighting": "published", "center_crop_epochs": 1},
        {"norm_momentum": 0.0},
        {"model": "resnet18v2_bn"},
        {"schedule": "step", "steps": (1,), "warmup": "constant", "warmup_lr": 0.01},
    ],
    ids=lambda options: "-".join(options),
)
def test_other_options_train_too(train, tmp_path, options):
    result = train(epochs=5, **options)
    losses = [line["train_loss"] for line in read_log(tmp_path / "run") if "train_loss" in line]
    assert losses[-1] < losses[0] and result.best.exists()


@pytest.mark.parametrize("momentum, expected", [(None, 0.9), (0.0, 0.0), (0.997, 0.997)])
def test_every_layer_has_the_momentum_of_the_recipe(colors, momentum, expected):
    values = {"batch_size": 4, "norm_momentum": momentum}
    model = make_plan(TrainingConfig(colors, model="resnet18v1_sn", overrides=values))
    layers = [m for m in model.create_network().modules() if isinstance(m, SwitchNorm2d)]
    assert len(layers) == 20 and {layer.momentum for layer in layers} == {expected}


@pytest.mark.slow
def test_a_compiled_network_trains_to_nearly_the_same_weights(train, tmp_path):
    plain, compiled = train("plain", epochs=1), train("compiled", epochs=1, compile=True)
    one, other = (snzoo.create_model(r.best).state_dict() for r in (plain, compiled))
    torch.testing.assert_close(one["conv1.weight"], other["conv1.weight"], rtol=1e-2, atol=1e-3)


def test_a_clipped_gradient_has_the_norm_that_it_is_clipped_to(train, tmp_path):
    """Without momentum and decay, a step moves the weights by lr times the norm."""
    options = {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "epochs": 1}
    options |= {"schedule": "step", "steps": (9,), "warmup_epochs": 0.0, "batch_size": 22}
    options["precision"] = "fp64"
    train(clip_norm=0.01, lr=0.5, **options)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = snzoo.create_model("resnet18v1_sn", width=8, num_classes=2).state_dict()
    end = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    moved = [(end[k] - v).norm() for k, v in start.items() if "running" not in k]
    assert torch.stack(moved).norm().item() == pytest.approx(0.5 * 0.01, rel=1e-4)


def test_a_loss_that_is_not_finite_stops_the_run(train, tmp_path):
    with pytest.raises(NonFiniteError, match=r"in step 2, at the learning rate 9\.698e\+29; begin"):
        train(lr=1e30, warmup_epochs=0, epochs=3)
    assert not (tmp_path / "run" / "best.safetensors").exists()


@pytest.mark.parametrize(
    "options, name, start",
    [
        ({"model": "resnet18v1_sn_clothing"}, "resnet18v1_sn_clothing", "resnet18v1_sn"),
        ({"recipe": "resnet18v1_sn_clothing"}, "resnet18v1_sn_clothing", "resnet18v1_sn"),
        (
            {"model": "resnet18v1_sn_clothing", "pretrained": True},
            "finetune",
            "resnet18v1_sn_clothing",
        ),
        ({"model": "resnet18v2_bn"}, "finetune", "resnet18v2_bn"),
    ],
)
def test_the_recipe_of_a_model_is_its_default_without_weights(colors, options, name, start):
    config = TrainingConfig(colors, overrides={"batch_size": 4}, **options)
    plan = make_plan(config)
    assert (plan.recipe_name, plan.spec.name) == (name, start)
    own = load_manifest().models["resnet18v1_sn_clothing"].recipe
    expected = own if name == "resnet18v1_sn_clothing" else load_manifest().recipes["finetune"]
    assert plan.recipe.lr == pytest.approx(expected.lr / 8)  # scaled with the batch
    if start == "resnet18v1_sn":  # the license of the zoo's weights does not bind the result
        assert plan.spec.license is None and plan.spec.arguments == {"width": 32}


def test_a_network_of_another_rule_of_resizing_is_trained_with_pillows(colors, tmp_path):
    model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=2)
    given = model.spec.preprocessing.replace(resampling="tf1-bilinear")
    model.spec = dataclasses.replace(model.spec, preprocessing=given)
    folder = tmp_path / "saved"
    snzoo.save_pretrained(model, folder, classes=["a", "b"])
    assert ModelSpec.find(str(folder)).preprocessing == given
    config = TrainingConfig(colors, model=str(folder), overrides={"batch_size": 4})
    assert make_plan(config).spec.preprocessing.resampling == "pillow-bilinear"


def test_photos_may_be_any_size(train, tmp_path):
    """Photos smaller than the crop are enlarged."""
    for split, count in (("train", 4), ("val", 2)):
        for label in "ab":
            folder = tmp_path / "tiny" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((1 + i, 3, 3), 50 * i, np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    assert train(data=tmp_path / "tiny", epochs=1, batch_size=4).images == 4
