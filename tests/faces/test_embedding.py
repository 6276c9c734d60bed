"""Embeddings against the plain network, one photo at a time."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from snzoo.errors import ArgumentError, DataError, NonFiniteError
from snzoo.faces import embed, similarity
from snzoo.preprocessing import Preprocessing
from snzoo.spec import ModelSpec

HALVES = (0.5, 0.5, 0.5)
FACES = Preprocessing(resize=112, crop=112, channel_order="RGB", scale=1, mean=HALVES, std=HALVES)


class Embedder(nn.Module):
    """A network that tells left from right."""

    num_classes = 0

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 16, 7, stride=14)
        self.fc = nn.Linear(16 * 8 * 8, 512)
        spec = ModelSpec.find("resnet18v1_sn")
        self.spec = dataclasses.replace(spec, name="embedder", classes=(), preprocessing=FACES)

    def forward(self, x):
        return nn.functional.normalize(self.fc(self.conv(x).relu().flatten(1)))


@pytest.fixture(scope="module")
def model():
    return Embedder()


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (112, 112, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


def expected(model, path, *, flip):
    """One photo by NumPy, PIL and the network alone."""
    pixels = np.asarray(Image.open(path), np.float32)
    views = [pixels, pixels[:, ::-1]] if flip else [pixels]
    total = 0
    for view in views:
        x = torch.tensor((view / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
        with torch.no_grad():
            total = total + model(x)[0].double().numpy()
    return total / np.sqrt((total**2).sum())


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_batches_give_what_single_photos_give(model, paths, flip, batch_size):
    model.train()
    found = embed(model, paths, flip=flip, batch_size=batch_size, workers=2)
    assert found.shape == (5, 512) and found.dtype == np.float32
    assert model.training
    for row, path in zip(found, paths, strict=True):
        np.testing.assert_allclose(row, expected(model, path, flip=flip), atol=1e-6)


def test_every_form_of_photos_gives_the_same(model, paths):
    found = embed(model, paths)
    image = Image.open(paths[0])
    forms = [paths[0], str(paths[0]), paths[0].read_bytes(), image, np.asarray(image)]
    np.testing.assert_array_equal(embed(model, forms, batch_size=5), found[[0] * 5])
    np.testing.assert_array_equal(embed(model, paths[0].parent), found)
    np.testing.assert_allclose(embed(model, image), found[:1], atol=1e-6)


@pytest.mark.parametrize("as_bytes, name", [(False, r"broken\.png"), (True, "image 3")])
def test_a_photo_that_cannot_be_read_is_named(model, paths, tmp_path, as_bytes, name):
    broken = tmp_path / "broken.png"
    broken.write_bytes(paths[0].read_bytes()[:1000])
    photos = [*paths[:3], broken.read_bytes() if as_bytes else broken, paths[3]]
    with pytest.raises(DataError, match=name) as caught:
        embed(model, photos, batch_size=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "photos, options, message",
    [
        ([], {}, "no photos"),
        (None, {"batch_size": 0}, "batch_size must be a whole number from 1, got 0"),
        (None, {"workers": 0}, "workers must be"),
    ],
)
def test_wrong_arguments_are_refused(model, paths, photos, options, message):
    with pytest.raises(ArgumentError, match=message):
        embed(model, paths if photos is None else photos, **options)


def test_classifiers_are_refused(paths):
    with pytest.raises(ArgumentError, match="resnet18v1_sn_clothing is a classifier"):
        embed("resnet18v1_sn_clothing", paths)


def test_embeddings_that_are_not_finite_are_refused(paths):
    model = Embedder()
    model.fc.bias.data[0] = float("nan")
    with pytest.raises(NonFiniteError, match="the embeddings of embedder are not finite"):
        embed(model, paths)


def test_similarity_is_the_cosine():
    angles = np.array([0.0, 0.3, 2.0, np.pi])
    rows = np.stack([np.cos(angles), np.sin(angles)], -1) * [[1], [5], [0.1], [2]]
    np.testing.assert_allclose(similarity(rows, rows[0]), np.cos(angles), atol=1e-15)
    expected = np.cos(angles[:, None] - angles[None])
    np.testing.assert_allclose(similarity(rows[:, None], rows), expected, atol=1e-15)
    assert similarity(rows[0], rows[1]).shape == ()
    same = np.full(512, np.float32(0.1))
    assert similarity(same, same) <= 1


@pytest.mark.parametrize(
    "a, b, message",
    [
        (np.ones(3), np.ones(4), r"\(3,\) and \(4,\) cannot be compared"),
        (np.ones(1), np.ones(3), "cannot be compared"),
        (np.ones(()), np.ones(()), "cannot be compared"),
        (np.ones((2, 3)), np.ones((3, 3)), "cannot be compared"),
        (np.ones(()), np.ones(3), "cannot be compared"),
        (np.zeros(3), np.ones(3), "zero or not finite"),
        (np.ones(3), np.full(3, np.nan), "zero or not finite"),
    ],
)
def test_what_has_no_angle_is_refused(a, b, message):
    with pytest.raises(ArgumentError, match=message):
        similarity(a, b)
