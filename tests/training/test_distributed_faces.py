"""A face network in two processes with synchronized norms against a plain loop in one process."""

import copy
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from snzoo.data.augment import Augmentation, augment, image_seed
from snzoo.data.pixels import normalize
from snzoo.data.training_batches import shuffle
from snzoo.faces.pairs import balance, read_pairs
from snzoo.faces.verification import verify
from snzoo.recipes import learning_rate
from snzoo.training.config import TrainingConfig
from snzoo.training.plan import make_plan

TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run"),
    *("--standalone", "--nproc-per-node", "2", "-m", "snzoo", "train"),
]
OPTIONS = shlex.split(
    "--width 2 --device cpu --workers 1 --precision fp64 --epochs 2 --epochs-per-pass 1 "
    "--batch-size 6 --images-per-gpu none --drop-rate 0 --lr 0.05 --steps 1"
)
RECIPE = {"epochs": 2, "epochs_per_pass": 1, "batch_size": 6, "images_per_gpu": None}
RECIPE |= {"drop_rate": 0.0, "lr": 0.05, "steps": (1,), "head": "arcface"}


class Halves(nn.Module):
    """The norm of embeddings, which is not synchronized: each half of a batch has its own one."""

    def __init__(self, norm):
        super().__init__()
        self.first, self.second = norm, copy.deepcopy(norm)
        self.second.weight, self.second.bias = norm.weight, norm.bias

    def forward(self, x):
        first, second = x.chunk(2)
        return torch.cat([self.first(first), self.second(second)])

    def average(self):
        for one, other in zip(self.first.buffers(), self.second.buffers(), strict=True):
            if one.is_floating_point():
                mean = (one + other) / 2
                one.copy_(mean)
                other.copy_(mean)


def train_plainly(plan):
    """Return the network and the centers after two epochs of two steps."""
    torch.manual_seed(0)
    model = plan.create_network()
    centers = torch.empty(3, 512).uniform_(-(512**-0.5), 512**-0.5)
    model, centers = model.double(), centers.double().requires_grad_()
    halves = model.output_layer[4] = Halves(model.output_layer[4])
    optimizer = torch.optim.SGD(
        [*model.parameters(), centers], lr=1, momentum=0.9, weight_decay=5e-4
    )
    model.train()
    for step in range(4):
        epoch, part = divmod(step, 2)
        indices = shuffle(12, seed=0, epoch=epoch).tolist()[6 * part : 6 * part + 6]
        x = torch.stack([load(plan, epoch, index) for index in indices])
        y = torch.tensor([plan.train.labels[index] for index in indices])
        cosine = F.normalize(model(x)) @ F.normalize(centers).T
        own = torch.cos(torch.acos(cosine[range(6), y]) + 0.5)
        optimizer.param_groups[0]["lr"] = learning_rate(plan.recipe, step, 2)
        optimizer.zero_grad()
        F.cross_entropy(64 * cosine.scatter(1, y[:, None], own[:, None]), y).backward()
        optimizer.step()
        if part == 1:
            halves.average()
    model.output_layer[4] = halves.first
    return model, centers.detach()


def load(plan, epoch, index):
    generator = torch.Generator().manual_seed(image_seed(0, epoch, index))
    augmentation = Augmentation(112, 112, (1.0, 1.0), (1.0, 1.0), 0.5, (0.0, 0.0, 0.0), "none", 0.1)
    pixels, _ = augment(plan.train.source.read(index), augmentation, generator)
    x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    return normalize(x, plan.spec.preprocessing)[0].double()


def measure(model, pairs):
    """Return the figures of a network on pairs."""
    paths = [pairs.photos.locate(i) for i in range(len(pairs.photos))]
    pixels = np.stack([np.asarray(Image.open(path), np.float32) for path in paths])
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 127.5 - 1
    with torch.no_grad():
        rows = F.normalize(model.eval()(x) + model(x.flip(3))).numpy()
    return verify(rows, pairs.first, pairs.second, pairs.same)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [["--model", "face_resnet18_sn", "--sync-norm"], ["--model", "face_resnet18_syncsn"]]
)
def test_two_processes_are_one_with_a_norm_of_embeddings_for_each_half(people, tmp_path, options):
    output = tmp_path / "run"
    command = [*TORCHRUN, str(people), "--output", str(output), *OPTIONS, "--head", "arcface"]
    done = subprocess.run([*command, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plan = make_plan(TrainingConfig(data=people, model=options[1], width=2, overrides=RECIPE))
    model, centers = train_plainly(plan)
    state = torch.load(output / "last.pt", weights_only=True)
    for key, value in model.state_dict().items():
        found = state["model"][f"network.{key}"]
        torch.testing.assert_close(found, value, rtol=0, atol=1e-8, msg=key)
    torch.testing.assert_close(state["model"]["head.weight"], centers, rtol=0, atol=1e-8)
    first, second = state["buffers"]
    assert all(torch.equal(second[key], value) for key, value in first.items())

    pairs = balance(read_pairs(people / "val"))
    expected = measure(model, pairs)
    log = map(json.loads, (output / "log.ndjson").read_text().splitlines())
    *_, last = (event["pairs"] for event in log if event["event"] == "epoch")
    assert (last["pairs"], last["correct"]) == (len(pairs), expected.accuracy.correct)
    assert last["equal_error_rate"] == pytest.approx(expected.equal_error_rate)
