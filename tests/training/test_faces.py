"""Whole runs of snzoo.train on faces: the head, half epochs, pairs, and what is refused."""

import json
import pickle
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from recordio_writer import insightface, write_records
from safetensors.torch import load_file
from torch.nn import functional as F

import snzoo
from snzoo.data.augment import Augmentation, augment, image_seed
from snzoo.data.pixels import normalize
from snzoo.data.training_batches import TrainingBatch, shuffle
from snzoo.errors import ArgumentError, DataError
from snzoo.faces.pairs import balance, read_pairs
from snzoo.faces.verification import verify
from snzoo.manifest import load_manifest
from snzoo.processes import Processes
from snzoo.recipes import learning_rate
from snzoo.training.config import TrainingConfig
from snzoo.training.devices import seed_generators
from snzoo.training.face_classifier import add_head
from snzoo.training.face_validation import validate_faces
from snzoo.training.plan import make_plan
from snzoo.training.run import check_processes
from snzoo.training.step import Stepper

SMALL = {"epochs": 2, "batch_size": 4, "images_per_gpu": None, "lr": 0.05, "steps": (1,)}


@pytest.fixture
def train(people, tmp_path):
    def run(output="run", *, data=people, **options):
        options = {"model": "face_resnet18_sn", "width": 2, "device": "cpu", **SMALL} | options
        return snzoo.train(data, output=tmp_path / output, workers=2, **options)

    return run


def test_a_run_writes_a_face_network_and_figures_of_pairs(train, people, tmp_path):
    result = train()
    assert result.pairs and result.images == 12  # 6 genuine pairs, and as many of 9 impostor pairs
    lines = (tmp_path / "run" / "log.ndjson").read_text().splitlines()
    epochs = [event for event in map(json.loads, lines) if event["event"] == "epoch"]
    assert [set(event["pairs"]) for event in epochs] == 2 * [
        {"pairs", "correct", "equal_error_rate"}
    ]
    assert result.correct == max(event["pairs"]["correct"] for event in epochs)
    assert not any("head" in key for key in load_file(result.best))

    pairs = balance(read_pairs(people / "val"))
    model = snzoo.create_model(result.best)
    photos = [pairs.photos.locate(i) for i in range(len(pairs.photos))]
    embeddings = snzoo.faces.embed(model, photos)
    found = verify(embeddings, pairs.first, pairs.second, pairs.same)
    assert found.accuracy.correct == result.correct
    assert model.spec.recipe.head == "arcface_published"


@pytest.mark.parametrize(
    "options",
    [
        {"model": "face_resnet18_sn", "head": "arcface", "head_margin": 0.3},
        {"model": "face_resnet18_bn", "head": "cosface", "head_margin": 0.2, "norm_momentum": 0.7},
    ],
)
def test_the_weights_are_those_of_a_plain_loop(train, people, options):
    result = train(precision="fp64", head_scale=16.0, epochs=4, **options)
    config = TrainingConfig(
        data=people,
        model=options["model"],
        width=2,
        overrides=SMALL | {"head_scale": 16.0, "epochs": 4} | options | {"model": None},
    )
    del config.overrides["model"]
    plan = make_plan(config)
    recipe = plan.recipe
    torch.manual_seed(0)
    model = plan.create_network()
    weight = torch.empty(3, 512).uniform_(-(512**-0.5), 512**-0.5)
    model, weight = model.double(), weight.double().requires_grad_()
    optimizer = torch.optim.SGD(
        [*model.parameters(), weight], lr=1, momentum=recipe.momentum, weight_decay=5e-4
    )
    for epoch in range(4):  # of one step each
        # Half of the photos an epoch, the other half in the next one
        order = shuffle(12, seed=0, epoch=epoch // 2).tolist()[6 * (epoch % 2) :][:6]
        indices = order[:4]  # the step of 2 is left out
        x = torch.stack([load(plan, epoch, index) for index in indices])
        y = torch.tensor([plan.train.labels[index] for index in indices])
        optimizer.param_groups[0]["lr"] = learning_rate(recipe, epoch, 1)
        seed_generators(torch.device("cpu"), 0, epoch, 0, 0)
        model.train()
        cosine = F.normalize(model(x)) @ F.normalize(weight).T
        own = cosine[range(4), y]
        own = torch.cos(torch.acos(own) + 0.3) if recipe.head == "arcface" else own - 0.2
        cosine = cosine.scatter(1, y[:, None], own[:, None])
        optimizer.zero_grad()
        F.cross_entropy(16 * cosine, y).backward()
        optimizer.step()
    state = torch.load(result.best.parent / "last.pt", weights_only=True)["model"]
    torch.testing.assert_close(state["head.weight"], weight.detach(), rtol=0, atol=1e-10)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(state[f"network.{key}"], value, rtol=0, atol=1e-10)


def load(plan, epoch, index):
    """Return an image from -1 to 1, mirrored as snzoo.data.augment draws it."""
    generator = torch.Generator().manual_seed(image_seed(0, epoch, index))
    augmentation = Augmentation(112, 112, (1.0, 1.0), (1.0, 1.0), 0.5, (0.0, 0.0, 0.0), "none", 0.1)
    pixels, _ = augment(plan.train.source.read(index), augmentation, generator)
    stored = np.asarray(Image.open(plan.train.source.locate(index)))
    assert np.array_equal(pixels, stored) or np.array_equal(pixels, stored[:, ::-1])
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    return normalize(x, plan.spec.preprocessing)[0].double()


def test_a_stopped_run_continues_to_the_same_weights(train, tmp_path, monkeypatch):
    train("whole", epochs=4)
    with monkeypatch.context() as patch:
        patch.setattr("snzoo.training.loop.validate_faces", interrupt_after(2))
        with pytest.raises(KeyboardInterrupt):
            train("parts", epochs=4)
    train("parts", epochs=4, resume=True)
    whole, parts = (
        torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]
        for name in ("whole", "parts")
    )
    assert whole.keys() == parts.keys() and "head.weight" in whole
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def write_list(people, data):
    """A list of paths and numbers, which are in the order of the folders but not from 0 on."""
    folders = sorted((people / "train").iterdir())
    data.mkdir()
    lines = [
        f"{path} {7 * number + 5}\n"
        for number, folder in enumerate(folders)
        for path in sorted(folder.iterdir())
    ]
    (data / "train.txt").write_text("".join(lines))


def write_rec(people, data):
    folders = sorted((people / "train").iterdir())
    photos = {
        7 * number + 5: [path.read_bytes() for path in sorted(folder.iterdir())]
        for number, folder in enumerate(folders)
    }
    data.mkdir()
    write_records(data / "train.rec", insightface(photos))


@pytest.mark.parametrize("write", [write_list, write_rec])
def test_numbered_people_of_a_list_or_recordio_train_as_folders_do(train, people, tmp_path, write):
    expected = load_file(train("folders").best)
    write(people, tmp_path / "data")
    result = train("numbers", data=tmp_path / "data", validation=people / "val")
    found = load_file(result.best)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    recipe = json.loads((tmp_path / "numbers" / "recipe.json").read_text())
    assert recipe["classes"] == ["5", "12", "19"]


def copy_pairs(people, path, kind):
    """Write the pairs of six photos in one of the three forms; return the path of the set."""
    photos = sorted((people / "val").glob("*/*.png"))
    if kind == "bin":
        contents = [photos[i].read_bytes() for i in 5 * [0, 1, 0, 5]]
        (path / "set.bin").write_bytes(pickle.dumps((contents, 5 * [True, False])))
        return path / "set.bin"
    shutil.copytree(people / "val", path / "set")
    if kind == "list":
        names = [photo.relative_to(people / "val") for photo in photos]
        lines = [f"{names[0]} {names[1]} 1\n", f"{names[0]} {names[5]} 0\n"]
        (path / "set" / "pairs_label.txt").write_text("".join(10 * lines))
    return path / "set"


def change_pairs(path, kind):
    if kind == "bin":
        contents, same = pickle.loads(path.read_bytes())
        path.write_bytes(pickle.dumps((contents[::-1], same)))
    elif kind == "list":
        pairs = path / "pairs_label.txt"
        pairs.write_text(pairs.read_text().replace(" 0\n", " 1\n", 1))
    else:
        shutil.copy(path / "val0" / "0.png", path / "val1" / "2.png")


@pytest.mark.parametrize("kind", ["bin", "list", "folders"])
def test_a_changed_verification_set_is_no_continuation(people, tmp_path, monkeypatch, kind):
    def identity(path):
        config = TrainingConfig(
            data=people, model="face_resnet18_sn", width=2, validation=path, overrides=SMALL
        )
        return make_plan(config).identity()

    path = copy_pairs(people, tmp_path, kind)
    before = identity(path)
    (tmp_path / "moved").mkdir()
    path = path.rename(tmp_path / "moved" / path.name)
    monkeypatch.chdir(tmp_path)
    assert identity(path.relative_to(tmp_path)) == before
    change_pairs(path, kind)
    after = identity(path)
    assert [key for key in before if before[key] != after[key]] == ["validation photos"]


def test_a_run_is_not_continued_with_other_pairs(train, people, tmp_path):
    path = copy_pairs(people, tmp_path, "bin")
    train(validation=path)
    change_pairs(path, "bin")
    with pytest.raises(ArgumentError, match=r"can't resume .*run: validation photos changed"):
        train(validation=path, resume=True)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_damaged_photo_of_a_pair_ends_the_run_before_it_begins(
    train, people, tmp_path, monkeypatch, on_error
):
    path = copy_pairs(people, tmp_path, "folders")
    (path / "val0" / "1.png").write_bytes(b"no photo")
    monkeypatch.setattr("snzoo.training.run.Loop", None)
    with pytest.raises(DataError, match=r"1 of 6 photos can't be used.*1\.png") as caught:
        train(validation=path, on_error=on_error)
    assert "skip" not in str(caught.value)


@pytest.mark.parametrize("images", [0, 1])
def test_a_short_pass_beside_others_uses_the_running_statistics_of_the_last_norm(people, images):
    """One of several processes with synchronized norms may have too few photos that can be read."""
    stepper = make_stepper(people)
    stepper.synchronized = True
    last = stepper.network.output_layer[-1]
    last.running_mean.fill_(0.25)
    pixels = torch.full((images, 3, 112, 112), 99, dtype=torch.uint8)
    batch = TrainingBatch(list(range(images)), pixels, torch.zeros(images, 3), {})
    before = last.running_mean.clone()
    figures = stepper.run([batch], torch.tensor([2]), step=0, images=4, rate=0.1)
    assert np.isfinite(figures.read()[0]) and figures.images == images
    assert torch.equal(last.running_mean, before) and last.training
    assert all(parameter.isfinite().all() for parameter in stepper.model.parameters())


def make_stepper(people):
    config = TrainingConfig(data=people, model="face_resnet18_sn", width=2, overrides=SMALL)
    plan = make_plan(config)
    model = add_head(plan.create_network(), plan.recipe, plan.num_classes)
    return Stepper(model, plan.recipe, config, torch.device("cpu"), Processes())


def test_a_pass_of_one_image_is_not_tried_if_the_memory_is_too_small(people, monkeypatch):
    stepper, tried = make_stepper(people), []
    monkeypatch.setattr(stepper, "_fits", tried.append)
    assert "and no fewer do" in stepper._explain_memory(8)
    assert tried == [4, 2]


def interrupt_after(count):
    """Return a validation that is interrupted when ``count`` validations are done."""
    done = []

    def validate(*args, **options):
        done.append(1)
        if len(done) > count:
            raise KeyboardInterrupt
        return validate_faces(*args, **options)

    return validate


def test_the_published_recipes_are_those_of_the_four_configurations():
    recipe = load_manifest().recipes["arcface"]
    assert (recipe.lr, recipe.batch_size, recipe.images_per_gpu) == (0.1, 512, 64)
    assert (recipe.epochs, recipe.epochs_per_pass, recipe.steps) == (40, 2, (24, 30, 36))
    assert (recipe.momentum, recipe.weight_decay, recipe.decay) == (0.9, 5e-4, "all")
    steps = 5822  # half of 5.8 million photos, 500 at a time
    rates = [learning_rate(recipe, epoch * steps, steps) for epoch in (0, 23, 24, 30, 36)]
    assert np.allclose(rates, [0.1, 0.1, 0.01, 0.001, 0.0001])


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"head": "linear"}, ArgumentError, "head linear does not fit face_resnet18_sn; it takes"),
        ({"model": "resnet18v1_sn", "recipe": "arcface"}, ArgumentError, "it takes linear"),
        ({"mixup": 0.2}, ArgumentError, "mixup mixes two labels"),
        ({"crop": 96}, ArgumentError, "crop must be 112"),
        ({"drop_last": False}, ArgumentError, "drop_last must be true"),
        ({"batch_size": 1}, ArgumentError, "at least 2 images in a forward pass, but a step of 1"),
        ({"batch_size": 5, "images_per_gpu": 2}, ArgumentError, "a step of 5 has a pass with 1"),
        ({"images_per_gpu": 1}, ArgumentError, "a step of 4 has a pass with 1"),
        ({"batch_size": 7}, ArgumentError, "part of the training set in an epoch, of 6"),
        ({"validation": "nowhere"}, DataError, "nowhere is no verification set"),
    ],
)
def test_what_does_not_fit_a_face_network_is_refused(train, options, error, words):
    with pytest.raises(error, match=words):
        train(**options)


def test_a_data_set_without_pairs_names_the_option(train, people):
    with pytest.raises(DataError, match=r"holds no pairs of faces .*--validation"):
        train(data=people / "train")


@pytest.mark.parametrize("batch_size, fits", [(2, False), (3, False), (4, True), (5, True)])
def test_each_process_needs_two_images(people, batch_size, fits):
    config = TrainingConfig(
        people, model="face_resnet18_sn", width=2, overrides=SMALL | {"batch_size": batch_size}
    )
    check = partial(check_processes, make_plan(config), config, torch.device("cpu"))
    check(Processes())
    if fits:
        check(Processes(0, 2))
    else:
        with pytest.raises(ArgumentError, match=f"a step of {batch_size} has a pass with 1"):
            check(Processes(0, 2))


def test_too_few_pairs_are_found_before_the_training(train, people, tmp_path):
    few = tmp_path / "few"
    for name in ("val0", "val1"):
        (few / name).mkdir(parents=True)
        for i in range(2):
            shutil.copy(people / "val" / name / f"{i}.png", few / name)
    with pytest.raises(DataError, match="few has 2 genuine pairs only"):
        train(validation=few)
    assert not (tmp_path / "run" / "log.ndjson").exists()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["face_resnet18_sn", "face_resnet18_syncsn"])
def test_two_processes_go_on_if_one_has_one_photo_left(people, tmp_path, model):
    data = shutil.copytree(people, tmp_path / "data")
    (data / "train" / "train0" / "0.png").write_bytes(b"damaged")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "snzoo", "train", data, "--output", tmp_path / "run", "--on-error", "skip"),
        *("--model", model, "--width", "2", "--device", "cpu", "--epochs", "4", "--steps", "1"),
        *("--batch-size", "4", "--lr", "0.05"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "left out" in done.stderr, done.stderr
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["position"]["validated"] == 4
    values = [*state["model"].values(), *(b for part in state["buffers"] for b in part.values())]
    assert all(value.isfinite().all() for value in values)
