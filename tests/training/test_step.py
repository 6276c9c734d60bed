"""How steps are divided, and what happens if a pass does not fit into the memory."""

import resource
import subprocess
import sys

import pytest
import torch

from snzoo.manifest import load_manifest
from snzoo.processes import Processes
from snzoo.training.mixup import mix_images
from snzoo.training.step import mark_last, split_step


@pytest.mark.parametrize("name", ["resnet50v1_sn_8x32", "resnet50v1_sn_8x4", "resnet50v1_sn_8x1"])
def test_a_published_recipe_has_the_same_passes_on_one_device_as_on_eight(name):
    recipe = load_manifest().models[name].recipe
    images = list(range(recipe.batch_size))
    alone = split_step(images, recipe, Processes())
    together = [split_step(images, recipe, Processes(rank, 8)) for rank in range(8)]
    assert alone == [group for (group,) in together]
    assert {len(group) for group in alone} == {recipe.images_per_gpu}


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("images", [1, 2, 5, 32, 33])
@pytest.mark.parametrize("at_a_time", [None, 1, 4, 40])
def test_each_image_is_in_one_pass_and_all_processes_have_as_many_passes(count, images, at_a_time):
    recipe = load_manifest().recipes["finetune"].replace(images_per_gpu=at_a_time)
    shares = [split_step(range(images), recipe, Processes(rank, count)) for rank in range(count)]
    assert sorted(i for passes in shares for group in passes for i in group) == list(range(images))
    assert len({len(passes) for passes in shares}) == 1
    if at_a_time:
        assert max(len(group) for passes in shares for group in passes) <= at_a_time


def test_the_last_item_is_marked():
    assert list(mark_last("abc")) == [("a", False), ("b", False), ("c", True)]
    assert list(mark_last("")) == []


def test_mixup_mixes_each_image_with_another_one_and_keeps_the_larger_label():
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, 4, 4).double(), torch.arange(6)
    shares = []
    for _ in range(300):
        mixed, others, share = mix_images(x, y, 0.4)
        assert sorted(others.tolist()) == y.tolist() and 0.5 <= share <= 1
        torch.testing.assert_close(mixed, share * x + (1 - share) * x[others], rtol=0, atol=1e-12)
        shares.append(share)
    # Of Beta(0.4, 0.4), E[(2λ − 1)²] = 1 / (2α + 1).
    assert abs((2 * torch.tensor(shares) - 1).square().mean() - 1 / 1.8) < 0.06


@pytest.mark.slow
def test_a_pass_that_does_not_fit_says_which_size_does(colors, tmp_path):
    """A limit on the address space stands for a small memory."""

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))

    options = ["--model", "resnet50v1_sn", "--batch-size", "22", "--crop", "448"]
    options += ["--resize", "512", "--workers", "1", "--device", "cpu"]
    options += ["--output", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "snzoo", "train", str(colors), *options],
        capture_output=True,
        text=True,
        preexec_fn=limited,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert "22 images in a forward pass do not fit into the memory of cpu; " in done.stderr
    assert " do: --images-per-gpu " in done.stderr
