"""Counts against an independent loop over torchvision's transforms, and the real MSRA network."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import snzoo
from snzoo.cli import main
from snzoo.data.samples import Samples, find_samples
from snzoo.errors import DataError, SnzooError
from snzoo.evaluate import Accuracy, choose_published, evaluate

SHARED = Path(__file__).parents[2] / "shared"
ENTRY = snzoo.get_info("resnet18v1_sn")


@pytest.fixture
def photos(tmp_path):
    """Twelve random photos of several sizes, two a class, in ImageNet class folders."""
    for i in range(12):
        folder = tmp_path / "photos" / f"{sorted(NAMES)[i // 2]}"
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (240 + 20 * i, 300, 3), dtype=np.uint8) // (1 + i % 5)
        Image.fromarray(pixels).save(folder / f"{i}.jpg")
    return tmp_path / "photos"


NAMES = ["n01440764", "n01443537", "n01484850", "n01491361", "n01494475", "n01496331"]


def small_model():
    torch.manual_seed(0)
    return snzoo.create_model("resnet18v1_sn", width=8, num_classes=12).eval()


def reference_counts(model, samples):
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    top1 = top5 = 0
    for path, label in zip(samples.paths, samples.labels, strict=True):
        with torch.no_grad():
            logits = model(transform(Image.open(path).convert("RGB"))[None])
        order = logits[0].argsort(descending=True).tolist()
        top1 += order[0] == label
        top5 += label in order[:5]
    return top1, top5


@pytest.mark.parametrize("batch_size, workers", [(1, 1), (5, 3), (64, 2)])
def test_counts_are_those_of_a_plain_loop(photos, batch_size, workers):
    samples = find_samples(photos)
    # Labels that the random network gets right now and then.
    model = small_model()
    samples = Samples(samples.paths, tuple(i % 12 for i in range(len(samples))), "shuffled")
    result = evaluate(model, samples, ENTRY.preprocessing, batch_size=batch_size, workers=workers)
    expected = reference_counts(model, samples)
    assert (result.top1.correct, result.top5.correct) == expected and expected[1] > 0
    assert result.top1.total == 12 and result.errors == () and result.images_per_second > 0


def test_unreadable_images_stop_the_run_or_are_counted(photos):
    broken = photos / NAMES[2] / "broken.JPEG"
    broken.write_text("no image")
    samples = find_samples(photos)
    with pytest.raises(DataError, match=f"{broken}.*--on-error skip"):
        evaluate(small_model(), samples, ENTRY.preprocessing)
    seen = []
    result = evaluate(
        small_model(), samples, ENTRY.preprocessing, on_error="skip", report_error=seen.append
    )
    assert result.top1.total == 12 and len(result.errors) == 1
    assert seen == list(result.errors) and str(broken) in seen[0]


def test_nothing_readable_is_an_error_even_when_skipping(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("none.jpg 0\n")
    with pytest.raises(DataError, match="none of the 1 images"):
        evaluate(small_model(), find_samples(path), ENTRY.preprocessing, on_error="skip")


def test_logits_that_are_not_finite_are_an_error(photos):
    model = small_model()
    model.fc.bias.data.fill_(float("nan"))
    with pytest.raises(SnzooError, match="not finite"):
        evaluate(model, find_samples(photos), ENTRY.preprocessing)


def test_the_interval_is_wilsons():
    # Brown, Cai & DasGupta (2001): never outside 0 to 100, not empty at the ends
    assert Accuracy(231, 250).interval == pytest.approx((88.4358, 95.0809), abs=1e-3)
    assert Accuracy(0, 10).interval == pytest.approx((0, 27.75), abs=1e-2)
    assert Accuracy(10, 10).interval == pytest.approx((72.25, 100), abs=1e-2)


def test_agreement_is_a_tolerance_on_the_same_images_and_an_interval_on_others():
    accuracy = Accuracy(38_000, 50_000)  # 76 %, interval about 75.6 to 76.4
    assert accuracy.agrees(76.05, same_images=True)
    assert not accuracy.agrees(76.06, same_images=True)
    assert accuracy.agrees(76.3, same_images=False)
    assert not accuracy.agrees(76.5, same_images=False)


def test_the_published_result_on_the_same_images_is_chosen():
    entry = snzoo.get_info("resnet50v1_sn_8x32")
    whole = Samples((Path("x"),) * 50_000, (0,) * 50_000, "", "imagenet-1k-val")
    assert choose_published(entry, whole) == (entry.published[0], True)
    assert choose_published(entry, replace(whole, dataset=None)) == (entry.published[0], False)
    part = replace(whole, paths=whole.paths[:250])
    assert choose_published(entry, part) == (entry.published[0], False)
    assert choose_published(ENTRY, whole) == (None, False)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared with the MSRA checkpoint is absent")
def test_the_real_msra_network_scores_what_it_should(tmp_path):
    output = tmp_path / "results.json"
    weights = SHARED / "weights" / "resnet50v1_bn_msra_bgr_fp16.pth"
    images = SHARED / "data" / "imagenet_sample"
    arguments = ["--weights", str(weights), "--imagenet", str(images), "--json", str(output)]
    assert main(["eval", "--model", "resnet50v1_bn_msra", *arguments]) == 0
    document = json.loads(output.read_text())
    counts = [document[key]["correct"] for key in ("top1", "top5")]
    assert (counts, document["images"], document["errors"]) == ([231, 246], 250, [])
