"""The heads against the published code (tests/golden/faces.npz) and against angles."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from snzoo.errors import ArgumentError
from snzoo.faces import ArcFace, CosFace
from snzoo.faces.heads import Margin, add_margin

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "faces.npz")
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def golden(key):
    return torch.from_numpy(GOLDEN[f"head/{key}"])


def label_logits(head, angles):
    """Return the logits of labels at these angles to the center of their class."""
    head = head.double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0, 5.0], [2.0, 0.0]]))
    angles = torch.as_tensor(angles, dtype=torch.float64)
    embeddings = torch.stack([angles.cos(), angles.sin()], 1)
    logits = head(embeddings, torch.ones(len(angles), dtype=torch.int64))
    logits = logits.detach().numpy()
    np.testing.assert_allclose(logits[:, 0], head.scale * angles.sin(), rtol=0, atol=1e-12)
    return logits[:, 1]


@pytest.mark.parametrize(
    "name, fallback", [("hard", "linear"), ("easy", "easy"), ("plain", "none")]
)
def test_the_published_head_has_its_golden_logits_and_loss(name, fallback):
    head = ArcFace(32, 10, fallback=fallback, published=True).double()
    head.load_state_dict({"weight": golden("weight")})
    logits = head(golden("embedding"), golden("labels"))
    loss = F.cross_entropy(logits, golden("labels"))
    np.testing.assert_allclose(logits.detach(), golden(f"{name}/logits"), rtol=0, atol=1e-12)
    np.testing.assert_allclose(loss.detach(), golden(f"{name}/loss"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5, math.pi / 2])
def test_arcface_adds_its_margin_to_the_angle_and_falls_beyond_a_half_turn(margin):
    angles = np.linspace(0, np.pi, 1000)
    logits = label_logits(ArcFace(2, 2, margin=margin), angles)
    turned = angles + margin < np.pi
    sure = angles > 0.01  # a cosine hides smaller angles
    expected = np.where(turned, np.cos(angles + margin), np.cos(angles) - margin * np.sin(margin))
    np.testing.assert_allclose(logits[sure], 64 * expected[sure], rtol=0, atol=1e-11)
    np.testing.assert_allclose(logits, 64 * expected, rtol=0, atol=1e-6)
    assert (np.diff(logits) < 0).all()


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_the_logit_of_arcface_never_rises_with_the_angle_in_other_dtypes(dtype):
    cosine = torch.linspace(1, -1, 20001, dtype=torch.float64).to(dtype)[:, None]
    labels = torch.zeros(len(cosine), dtype=torch.int64)
    moved = add_margin(cosine, labels, ArcFace(2, 2).margin)[:, 0]
    assert (moved.diff() <= 0).all() and moved[0] > 0.87 and moved[-1] < -1.2


@pytest.mark.parametrize(
    "options, jump",
    [
        ({"published": True}, (math.acos(-math.cos(0.5) / 64), 15.2)),
        ({"fallback": "easy"}, (math.pi / 2, 64 * math.sin(0.5))),
    ],
)
def test_other_fallbacks_rise_where_they_begin(options, jump):
    angle, rise = jump
    before, after = label_logits(ArcFace(2, 2, **options), [angle - 1e-6, angle + 1e-6])
    assert after - before == pytest.approx(rise, abs=0.05)


def test_without_a_fallback_the_logit_is_that_of_the_angle_alone():
    angles = np.linspace(0.01, 3.13, 100)
    logits = label_logits(ArcFace(2, 2, fallback="none", margin=0.7, scale=30), angles)
    np.testing.assert_allclose(logits, 30 * np.cos(angles + 0.7), rtol=0, atol=1e-11)


def test_cosface_subtracts_its_margin_from_the_cosine():
    angles = np.linspace(0, np.pi, 100)
    logits = label_logits(CosFace(2, 2), angles)
    np.testing.assert_allclose(logits, 64 * (np.cos(angles) - 0.4), rtol=0, atol=1e-12)


def test_margins_combine_and_rows_with_a_negative_label_keep_their_cosines():
    angles = torch.tensor([[0.4, 1.0], [0.6, 2.0], [0.9, 1.4]], dtype=torch.float64)
    moved = add_margin(angles.cos(), torch.tensor([1, -1, 0]), Margin(angular=0.3, additive=0.2))
    expected = np.cos(angles.numpy())
    expected[0, 1] = np.cos(1.3) - 0.2
    expected[2, 0] = np.cos(1.2) - 0.2
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("fallback", ["linear", "none"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_values_and_gradients_are_finite_at_the_ends_and_beyond(dtype, fallback):
    eps = torch.finfo(dtype).eps
    ends = torch.tensor([1 + eps, 1, 1 - eps / 2, eps / 2 - 1, -1, -1 - eps], dtype=dtype)
    cosine = ends[:, None].requires_grad_()
    labels = torch.zeros(len(cosine), dtype=torch.int64)
    moved = add_margin(cosine, labels, ArcFace(2, 2, fallback=fallback).margin)
    low = -math.cos(0.5) if fallback == "none" else -1 - 0.5 * math.sin(0.5)
    expected = np.repeat([math.cos(0.5), low], 3)
    np.testing.assert_allclose(moved[:, 0].detach(), expected, rtol=0, atol=eps**0.5)
    (64 * moved).sum().backward()
    assert cosine.grad.isfinite().all()
    assert (cosine.grad.abs() < 64 / eps**0.5).all()


@pytest.mark.parametrize("make", [ArcFace, CosFace])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_embeddings_along_a_center_have_finite_logits_and_gradients(make, sign, dtype, autocast):
    torch.manual_seed(0)
    head = make(512, 8).to(dtype)
    embeddings = sign * 2e5 * head.weight.detach()  # whose norm float16 does not hold
    embeddings.requires_grad_()
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        logits = head(embeddings, torch.arange(8))
    assert logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    labeled = logits.detach().diagonal().double()
    cosine = {(ArcFace, 1): 0.8776, (ArcFace, -1): -1.2397, (CosFace, 1): 0.6, (CosFace, -1): -1.4}
    np.testing.assert_allclose(labeled, 64 * cosine[make, sign], rtol=0, atol=5)
    (logits * torch.randn(8, 8)).sum().backward()
    assert embeddings.grad.isfinite().all() and head.weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES[2:])
def test_the_margin_of_half_precision_is_computed_in_float32(dtype):
    cosine = torch.linspace(-0.85, 0.98, 500).to(dtype)
    labels = torch.zeros(len(cosine), dtype=torch.int64)
    moved = add_margin(cosine[:, None], labels, ArcFace(2, 2).margin)[:, 0]
    expected = np.cos(np.arccos(cosine.double().numpy()) + 0.5)
    np.testing.assert_allclose(moved, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("angle", [0.003, 0.03, 0.3, 3.0])
def test_the_gradient_near_the_ends_is_that_of_the_angle(angle):
    head = ArcFace(2, 1)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0]]))
    embedding = torch.tensor([[math.cos(angle), math.sin(angle)]], requires_grad=True)
    head(embedding, torch.tensor([0])).sum().backward()
    slope = math.sin(angle + 0.5) if angle + 0.5 < math.pi else math.sin(angle)
    expected = 64 * slope * np.array([math.sin(angle), -math.cos(angle)])  # along the circle
    np.testing.assert_allclose(embedding.grad[0], expected, rtol=0, atol=0.02 * 64 * slope)


@pytest.mark.parametrize("make", [ArcFace, CosFace])
def test_gradients_are_those_of_finite_differences(make):
    torch.manual_seed(0)
    head = make(6, 4).double()
    labels = torch.tensor([0, 3, 3])

    def logits(embeddings, weight):
        return torch.func.functional_call(head, {"weight": weight}, (embeddings, labels))

    embeddings = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(logits, (embeddings, head.weight))


def test_only_the_directions_of_embeddings_and_centers_count():
    torch.manual_seed(0)
    head, embeddings, labels = ArcFace(6, 4).double(), torch.randn(3, 6).double(), torch.arange(3)
    right = head(embeddings, labels)
    with torch.no_grad():
        head.weight *= torch.tensor([[0.1], [1.0], [7.0], [30.0]])
    np.testing.assert_allclose(
        head(1000 * embeddings, labels).detach(), right.detach(), rtol=0, atol=1e-11
    )


def test_the_centers_begin_as_published():
    torch.manual_seed(0)
    weight = ArcFace(100, 500).weight.detach()
    assert weight.shape == (500, 100)
    assert 0.0999 < weight.abs().max() <= 0.1
    assert weight.std() == pytest.approx(0.1 / 3**0.5, rel=0.01) and abs(weight.mean()) < 0.001


LABELS = torch.tensor([0, 3])


@pytest.mark.parametrize(
    "embeddings, labels, message",
    [
        (torch.ones(2, 5), LABELS, r"embeddings must be .* \(N, 6\), got torch.float32 \(2, 5\)"),
        (torch.ones(2, 6, 1), LABELS, r"embeddings must be .*, got torch.float32 \(2, 6, 1\)"),
        (torch.ones(2, 6).int(), LABELS, r"embeddings must be .*, got torch.int32 \(2, 6\)"),
        (torch.ones(3, 6), LABELS, r"labels must be .* \(3,\), got torch.int64 \(2,\)"),
        (torch.ones(2, 6), LABELS.int(), r"labels must be torch.int64 .*, got torch.int32 \(2,\)"),
        (torch.ones(2, 6), LABELS - 1, "labels must be from 0 to 3, got -1: number"),
        (torch.ones(2, 6), LABELS + 1, "labels must be from 0 to 3, got 4: number"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(embeddings, labels, message):
    with pytest.raises(ArgumentError, match=message):
        CosFace(6, 4)(embeddings, labels)


@pytest.mark.parametrize(
    "make, options, message",
    [
        (ArcFace, {"features": 0}, "features and classes must be at least 1, got 0 and 4"),
        (ArcFace, {"scale": 0}, "scale must be a positive number, got 0"),
        (ArcFace, {"margin": 1.6}, "margin must be from 0 to π/2 radians, got 1.6"),
        (ArcFace, {"fallback": "linea"}, "unknown fallback 'linea'; did you mean 'linear'?"),
        (CosFace, {"margin": -0.1}, "margin must be a number of at least 0, got -0.1"),
        (CosFace, {"scale": math.nan}, "scale must be a positive number, got nan"),
    ],
)
def test_arguments_out_of_range_are_refused(make, options, message):
    with pytest.raises(ArgumentError) as error:
        make(**{"features": 6, "classes": 4} | options)
    assert str(error.value) == message
