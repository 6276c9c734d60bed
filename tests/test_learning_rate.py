"""The learning rate of each step, against published figures, formulas and PyTorch."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch

from snzoo.manifest import load_manifest
from snzoo.recipes import learning_rate

MANIFEST = load_manifest(Path(__file__).parents[1] / "weights_manifest.json")
COSINE = MANIFEST.models["resnet50v1_sn_8x32"].recipe
STEP = MANIFEST.models["resnet50v1_sn_8x32_step"].recipe
FINETUNE = MANIFEST.recipes["finetune"]


@pytest.mark.parametrize(
    "step, rate",
    [
        (0, "0"),
        (1, "3.996003996e-06"),
        (12512, "0.049998001998"),
        (25025, "0.1"),
        (312812, "0.0500001364545"),
        (500000, "0.00735008836"),
        (600599, "7.448e-13"),
    ],
)
def test_the_cosine_follows_the_published_rates(step, rate):
    digits = max(1, len(rate.partition("e")[0].replace(".", "").lstrip("0")))
    assert float(f"{learning_rate(COSINE, step, 5005):.{digits}g}") == float(rate)


@pytest.mark.parametrize(
    "epoch, rate", [(0, 0.1), (29, 0.1), (30, 0.01), (59, 0.01), (60, 1e-3), (90, 1e-4), (99, 1e-4)]
)
def test_steps_fall_at_the_start_of_their_epochs(epoch, rate):
    for step in (0, 5004):
        assert learning_rate(STEP, 5005 * epoch + step, 5005) == pytest.approx(rate, rel=1e-12)


def test_warm_up_does_not_shift_the_steps():
    recipe = STEP.replace(warmup_epochs=5)
    rates = [learning_rate(recipe, step, 100) for step in (250, 500, 2999, 3000)]
    assert rates == pytest.approx([0.05, 0.1, 0.1, 0.01])


def test_poly_follows_its_formula():
    recipe = COSINE.replace(schedule="poly", power=2, final_lr=0.02, epochs=10)  # 50 of 100 warm up
    rates = [learning_rate(recipe, step, 10) for step in (50, 60, 75, 99)]
    assert rates == pytest.approx(
        [0.1, 0.02 + 0.08 * 0.8**2, 0.02 + 0.08 * 0.5**2, 0.02 + 0.08 * 0.02**2]
    )


@pytest.mark.parametrize("schedule", ["cosine", "poly"])
def test_without_warm_up_the_rates_are_those_of_pytorch(schedule):
    recipe = COSINE.replace(schedule=schedule, power=1.5, warmup_epochs=0, epochs=3)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=recipe.lr)
    theirs = {
        "cosine": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=30),
        "poly": partial(torch.optim.lr_scheduler.PolynomialLR, total_iters=30, power=1.5),
    }[schedule](optimizer)
    for step in range(30):
        assert learning_rate(recipe, step, 10) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_a_constant_warm_up_stays_at_its_rate():
    recipe = COSINE.replace(warmup="constant", warmup_lr=0.004, warmup_epochs=2)
    assert {learning_rate(recipe, step, 10) for step in range(20)} == {0.004}
    assert learning_rate(recipe, 20, 10) == 0.1


def test_a_linear_warm_up_starts_at_its_rate_or_one_step_above():
    recipe = COSINE.replace(warmup_lr=0.02, warmup_epochs=2)
    assert [learning_rate(recipe, t, 10) for t in (0, 1, 19)] == pytest.approx([0.02, 0.024, 0.096])
    mended = recipe.replace(warmup_first_step=1)
    assert [learning_rate(mended, t, 10) for t in (0, 1, 19)] == pytest.approx([0.024, 0.028, 0.1])
    assert learning_rate(mended, 20, 10) == 0.1


def test_finetuning_warms_up_as_the_example_did():
    """That is min(total // 10, 3 epochs) steps, of which the first has a rate above 0."""
    for epochs, n in ((20, 96), (4, 96), (1, 7), (30, 1), (40, 96)):
        recipe, total = FINETUNE.replace(epochs=epochs), epochs * n
        warm = min(total // 10, 3 * n)
        for step in range(total):
            if step < warm:
                share = (step + 1) / warm
            else:
                share = 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
            assert learning_rate(recipe, step, n) == pytest.approx(0.01 * share, rel=1e-12)


def test_a_part_of_an_epoch_is_rounded_down_to_steps():
    for epochs, steps in ((0.29, 29), (0.299, 29), (0.001, 0)):  # 0.29 * 100 is below 29
        recipe = COSINE.replace(warmup_epochs=epochs, warmup="constant")
        assert sum(learning_rate(recipe, step, 100) == 0 for step in range(100)) == steps
