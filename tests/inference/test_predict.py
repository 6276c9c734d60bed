"""Prediction in batches against one photo at a time, and without side effects."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import snzoo
from snzoo.data.batches import WORTH_COMPILING
from snzoo.errors import (
    ArgumentError,
    DataError,
    DownloadError,
    NonFiniteError,
    OfflineError,
    UnexpectedArgumentError,
)
from snzoo.inference import iter_predictions


@pytest.fixture
def model():
    torch.manual_seed(0)
    return snzoo.create_model("resnet18v1_sn", width=8, num_classes=12)


@pytest.fixture(scope="module")
def clothing():
    return snzoo.create_model("resnet18v1_sn_clothing", pretrained=True)


def expected(model, photo):
    """One photo at a time, by the transform and the plain network."""
    with torch.no_grad():
        x = snzoo.create_transform(model)(photo)[None]
        return model.eval()(x)[0].softmax(0).topk(5)


@pytest.mark.parametrize("batch_size, workers", [(None, None), (1, 1), (5, 3)])
def test_batches_give_what_single_photos_give(clothing, photos, batch_size, workers):
    found = snzoo.predict(clothing, photos, batch_size=batch_size, workers=workers)
    paths = sorted(photos.glob("*.jpg"))
    assert [prediction.source for prediction in found] == list(map(str, paths))
    for path, prediction in zip(paths, found, strict=True):
        probabilities, indices = expected(clothing, path)
        assert prediction.indices == tuple(indices.tolist())
        assert prediction.probabilities == pytest.approx(probabilities.tolist(), abs=1e-5)
        assert prediction.names == tuple(clothing.spec.classes[i] for i in indices)


def test_every_form_of_a_photo_gives_the_same(clothing, photos, httpserver):
    path = photos / "03.jpg"
    httpserver.expect_request("/photo.jpg").respond_with_data(path.read_bytes())
    url = httpserver.url_for("/photo.jpg")
    image = Image.open(path).convert("RGB")
    forms = [path, str(path), url, path.read_bytes(), image, np.asarray(image)]
    found = snzoo.predict(clothing, forms)
    assert len({(p.indices, p.probabilities) for p in found}) == 1
    assert [p.source for p in found] == [str(path)] * 2 + [url, "image 3", "image 4", "image 5"]
    for form in forms:
        (alone,) = snzoo.predict(clothing, form, batch_size=1)
        assert alone.indices == found[0].indices


def test_a_name_is_loaded_with_its_weights(clothing, photos):
    by_name = snzoo.predict("resnet18v1_sn_clothing", photos, topk=2)
    assert by_name == snzoo.predict(clothing, photos, topk=2) and len(by_name[0].names) == 2


def test_photos_are_upright_unless_the_reference_is_wanted(clothing, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    upright, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    upright.save(tmp_path / "upright.png")
    upright.rotate(90, expand=True).save(tmp_path / "phone.png", exif=exif)
    upright.rotate(90, expand=True).save(tmp_path / "sideways.png")
    paths = [tmp_path / f"{name}.png" for name in ("upright", "phone", "sideways")]
    first, phone, sideways = (p.probabilities for p in snzoo.predict(clothing, paths))
    assert first == phone != sideways
    raw = [p.probabilities for p in snzoo.predict(clothing, paths, upright=False)]
    assert raw == [first, sideways, sideways]


@pytest.mark.parametrize("training", [True, False])
def test_the_network_is_left_as_it_was(model, photos, training):
    model.train(training).freeze(1)
    model.layer4.train(not training)
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    settings = torch.get_float32_matmul_precision(), torch.get_num_threads()
    snzoo.predict(model, photos)
    with pytest.raises(DataError):
        snzoo.predict(model, photos / "none.jpg")
    iterator = iter_predictions(model, photos, batch_size=2)
    next(iterator)
    iterator.close()
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == settings
    x = torch.randn(2, 3, 64, 64)
    model.train()(x).sum().backward()  # nothing that inference made is in the way
    assert model.fc.weight.grad is not None


def test_the_network_goes_back_to_its_device(model, photos):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    weight = model.fc.weight
    on_gpu = snzoo.predict(model, photos, device="cuda")
    assert model.fc.weight is weight and weight.device.type == "cpu"
    on_cpu = snzoo.predict(model, photos)
    assert [p.indices[0] for p in on_gpu] == [p.indices[0] for p in on_cpu]


def test_half_precision_weights_are_used_as_they_are(model, photos):
    plain = snzoo.predict(model, photos, topk=12)
    half = snzoo.predict(model.bfloat16(), photos, topk=12)
    assert model.fc.weight.dtype == torch.bfloat16
    for a, b in zip(plain, half, strict=True):
        pairs = dict(zip(b.indices, b.probabilities, strict=True))
        assert [pairs[i] for i in a.indices] == pytest.approx(a.probabilities, abs=0.02)


def test_new_heads_have_numbers_for_names(model, photos):
    (prediction,) = snzoo.predict(model, photos / "00.jpg", topk=100)
    assert len(prediction.names) == 12
    assert prediction.names == tuple(f"class {i}" for i in prediction.indices)


def test_unreadable_photos_raise_or_are_skipped_or_reported(clothing, photos):
    (photos / "04.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"04\.jpg"):
        snzoo.predict(clothing, photos)
    seen = []
    for on_error in ("skip", seen.append):
        found = snzoo.predict(clothing, photos, batch_size=5, on_error=on_error)
        assert [p.source[-6:-4] for p in found] == [f"{i:02}" for i in range(12) if i != 4]
    assert len(seen) == 1 and isinstance(seen[0], DataError)
    assert snzoo.predict(clothing, photos / "04.jpg", on_error="skip") == []


def test_urls_without_an_image_keep_their_error(clothing, photos, httpserver, monkeypatch):
    httpserver.expect_request("/x.jpg").respond_with_data(b"", status=404)
    url = httpserver.url_for("/x.jpg")
    with pytest.raises(DownloadError, match="404"):
        snzoo.predict(clothing, [photos, url])
    monkeypatch.setenv("SNZOO_OFFLINE", "1")
    with pytest.raises(OfflineError):
        snzoo.predict(clothing, url)


def test_predictions_stream(clothing, photos, monkeypatch):
    seen = []
    forward = type(clothing).forward
    monkeypatch.setattr(type(clothing), "forward", lambda *a: seen.append(1) or forward(*a))
    iterator = iter_predictions(clothing, [photos] * 10, batch_size=4)
    next(iterator)
    assert len(seen) <= 2  # of 30 batches


@pytest.mark.slow
def test_many_photos_take_the_compiled_resizer_and_give_the_same(clothing, photos):
    path = photos / "07.jpg"
    many = snzoo.predict(clothing, [path] * 16 + [Image.new("RGB", (9, 9))] * WORTH_COMPILING)
    (few,) = {(p.indices, p.probabilities) for p in snzoo.predict(clothing, [path] * 16)}
    assert {(p.indices, p.probabilities) for p in many[:16]} == {few}


@pytest.mark.parametrize(
    "change, options, error, words",
    [
        ({"num_classes": 0}, {}, ArgumentError, "has no classes"),
        ({"in_chans": 1}, {}, ArgumentError, "1 channels"),
        ({"features_only": True}, {}, ArgumentError, "returns no logits"),
        ({}, {"topk": 0}, ArgumentError, "topk must be a whole number from 1, got 0"),
        ({}, {"batch_size": -1}, ArgumentError, "batch_size"),
        ({}, {"on_error": "ignore"}, ArgumentError, "on_error must be"),
        ({}, {"images": ["", "x.jpg"]}, ArgumentError, "one of the names is empty"),
        ({}, {"images": [None]}, UnexpectedArgumentError, "NoneType"),
    ],
)
def test_what_cannot_be_predicted_is_refused(photos, change, options, error, words):
    model = snzoo.create_model("resnet18v1_sn", width=8, **change)
    with pytest.raises(error, match=words):
        snzoo.predict(model, **{"images": photos} | options)


def test_heads_that_do_not_fit_the_classes_are_refused(clothing, photos):
    model = snzoo.create_model("resnet18v1_sn_clothing", pretrained=True)
    model.fc = torch.nn.Linear(model.fc.in_features, 7)
    with pytest.raises(ArgumentError, match="7 logits for 10 classes"):
        snzoo.predict(model, photos)


def test_logits_that_are_not_finite_are_an_error(model, photos):
    model.fc.bias.data[3] = float("inf")
    with pytest.raises(NonFiniteError, match="logits of resnet18v1_sn are not finite"):
        snzoo.predict(model, photos)


def test_bytes_are_one_photo():
    file = io.BytesIO()
    Image.new("RGB", (40, 40)).save(file, "PNG")
    assert len(snzoo.predict("resnet18v1_sn_clothing", file.getvalue())) == 1


def test_embeddings_are_the_input_of_the_last_layer(clothing, photos):
    plain = snzoo.predict(clothing, photos)
    found = snzoo.predict(clothing, photos, embeddings=True)
    assert plain == found and all(p.embedding is None for p in plain)
    captured = []
    hook = clothing.fc.register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    for prediction in found:
        expected(clothing, prediction.source)
        assert prediction.embedding == pytest.approx(captured.pop()[0].numpy(), abs=1e-5)
    hook.remove()


def test_a_network_without_embeddings_says_so(clothing, photos):
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    network.spec = clothing.spec
    with pytest.raises(ArgumentError, match="has no embeddings"):
        snzoo.predict(network, photos, embeddings=True, device="cpu")
