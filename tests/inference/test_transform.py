"""Transforms against torchvision's, bit by bit."""

import io
import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import snzoo
from snzoo.data.decode import TURNS
from snzoo.errors import ArgumentError, DataError, UnexpectedArgumentError, UnknownModelError
from snzoo.inference import Transform
from snzoo.manifest import load_manifest


def encode(image, format="JPEG", orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, format, exif=exif)
    return file.getvalue()


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    return Image.open(io.BytesIO(encode(Image.fromarray(pixels)))).convert("RGB")


def reference(image, preprocessing):
    """torchvision's transforms; BGR and 0 to 255 by permuting and scaling its tensor."""
    p = preprocessing
    crop = transforms.Compose([transforms.Resize(p.resize), transforms.CenterCrop(p.crop)])
    x = torch.from_numpy(np.array(crop(image))).permute(2, 0, 1).float()
    x = x.flip(0) if p.channel_order == "BGR" else x
    x = x.div(255) if p.scale == 1 else x
    return transforms.Normalize(p.mean, p.std)(x)


@pytest.mark.parametrize(
    "name", ["resnet50v1_sn_8x1", "resnet50v1_bn_msra", "resnet18v1_sn_clothing"]
)
def test_tensors_are_torchvisions_in_the_networks_channel_order(image, name, tmp_path):
    transform = snzoo.create_transform(name)
    expected = reference(image, snzoo.get_info(name).preprocessing)
    (tmp_path / "photo.png").write_bytes(encode(image, "PNG"))
    path = tmp_path / "photo.png"
    for photo in (
        image,
        path,
        str(path),
        path.read_bytes(),
        np.array(image),
        image.convert("RGBA"),
    ):
        x = transform(photo)
        assert x.dtype == torch.float32 and x.shape == expected.shape and x.is_contiguous()
        assert torch.equal(x, expected)


@pytest.mark.parametrize("form", ["content", "path", "opened", "converted"])
@pytest.mark.parametrize("orientation", TURNS)
def test_photos_are_turned_upright_as_pillow_does(image, orientation, form, tmp_path):
    content = encode(image, orientation=orientation)
    opened = Image.open(io.BytesIO(content))
    photo = {"content": content, "opened": opened, "converted": opened.convert("RGB")}.get(form)
    if form == "path":
        photo = tmp_path / "photo.jpg"
        photo.write_bytes(content)
    upright, raw = (snzoo.create_transform("resnet18v1_sn", upright=up) for up in (True, False))
    plain = Image.open(io.BytesIO(content))
    assert torch.equal(upright(photo), raw(ImageOps.exif_transpose(plain)))
    assert torch.equal(raw(photo), reference(plain.convert("RGB"), raw.preprocessing))
    assert not torch.equal(raw(photo), upright(photo))


def test_sizes_can_be_overridden():
    transform = snzoo.create_transform("resnet50v1_sn", crop=112)
    assert (transform.preprocessing.resize, transform.preprocessing.crop) == (128, 112)
    transform = snzoo.create_transform("resnet50v1_sn", crop=112, resize=112)
    assert transform(Image.new("RGB", (50, 60))).shape == (3, 112, 112)


def test_a_network_a_spec_a_preprocessing_and_a_name_give_the_same_transform():
    model = snzoo.create_model("resnet18v1_sn_clothing", pretrained=True)
    maps = snzoo.create_model("resnet18v1_sn_clothing", features_only=True)
    sources = [model, maps, model.spec, model.spec.preprocessing, "resnet18v1_sn_clothing"]
    assert len({snzoo.create_transform(source) for source in sources}) == 1


def test_a_name_needs_no_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("SNZOO_HOME", str(tmp_path))
    monkeypatch.setenv("SNZOO_OFFLINE", "1")
    for name, entry in load_manifest().models.items():
        assert snzoo.create_transform(name).preprocessing == entry.preprocessing


def test_the_repr_names_every_step():
    text = repr(snzoo.create_transform("resnet50v1_bn_msra"))
    assert text == (
        "Transform(resize=256, crop=224, channel_order='BGR', scale=255, "
        "mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0), resampling='pillow-bilinear', "
        "upright=True)"
    )


@pytest.mark.slow
def test_data_sets_and_spawned_workers_take_it(tmp_path, image):
    (tmp_path / "a").mkdir()
    for i, turn in enumerate((1, 6)):
        (tmp_path / "a" / f"{i}.jpg").write_bytes(encode(image, orientation=turn))
    transform = snzoo.create_transform("resnet18v1_sn", crop=64)
    assert pickle.loads(pickle.dumps(transform)) == transform
    dataset = datasets.ImageFolder(tmp_path, transform=transform)
    loader = DataLoader(dataset, 2, num_workers=1, multiprocessing_context="spawn")
    ((batch, _),) = loader
    expected = [transform(tmp_path / "a" / f"{i}.jpg") for i in range(2)]
    assert torch.equal(batch, torch.stack(expected))  # ImageFolder's RGB copies keep their EXIF


@pytest.mark.parametrize(
    "photo, error, words",
    [
        (b"no image", DataError, "not an image"),
        ("none.jpg", DataError, "none.jpg: No such file"),
        (np.zeros((3, 64, 64), np.uint8), DataError, r"\(height, width, 3\)"),
        (np.zeros((64, 64, 3), np.float32), DataError, "uint8"),
        (torch.zeros(3, 64, 64), UnexpectedArgumentError, "Tensor"),
    ],
)
def test_what_is_no_photo_is_refused(photo, error, words):
    with pytest.raises(error, match=words):
        snzoo.create_transform("resnet18v1_sn")(photo)


@pytest.mark.parametrize(
    "model, error, words",
    [
        ("resnet50v1_sn_8x23", UnknownModelError, "did you mean"),
        (torch.nn.Conv2d(3, 3, 3), UnexpectedArgumentError, "Conv2d.*does not say"),
        (7, UnexpectedArgumentError, "int"),
    ],
)
def test_what_has_no_transform_is_refused(model, error, words):
    with pytest.raises(error, match=words):
        snzoo.create_transform(model)


def test_networks_of_other_channels_are_refused():
    with pytest.raises(ArgumentError, match="4 channels"):
        snzoo.create_transform(snzoo.create_model("resnet18v1_sn", width=8, in_chans=4))


def test_a_transform_can_be_made_of_json():
    steps = {"resize": 8, "crop": 8, "channel_order": "RGB", "scale": 1}
    steps |= json.loads('{"mean": [0, 0, 0], "std": [1, 1, 1]}')
    preprocessing = type(snzoo.get_info("resnet18v1_sn").preprocessing)(**steps)
    assert Transform(preprocessing)(Image.new("RGB", (9, 9), "white")).unique().tolist() == [1]
