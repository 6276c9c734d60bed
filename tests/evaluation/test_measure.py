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
from snzoo.data.pixels import load_pixels
from snzoo.data.samples import find_samples
from snzoo.errors import ArgumentError, DataError, Interrupted, NonFiniteError
from snzoo.evaluation.measure import Evaluation, measure
from snzoo.evaluation.records import Journal, Records
from snzoo.inference.network import Network, float32_precision
from snzoo.processes import Processes

SHARED = Path(__file__).parents[3] / "shared"
MSRA = snzoo.get_info("resnet50v1_bn_msra").preprocessing


def reference_counts(network, samples):
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    top1 = top5 = 0
    for i, label in enumerate(samples.labels):
        with torch.no_grad(), float32_precision(network.device, tf32=False):
            image = Image.open(samples.locate(i)).convert("RGB")
            x = transform(image)[None].to(network.device)
            order = network.model(x)[0].argsort(descending=True).tolist()
        top1 += order[0] == label
        top5 += label in order[:5]
    return top1, top5


def counts(evaluation, network=0):
    return evaluation.top1(network).correct, evaluation.top5(network).correct


@pytest.mark.parametrize("batch_size, workers", [(1, 1), (5, 3), (64, 2)])
def test_counts_are_those_of_a_plain_loop(samples, make_network, batch_size, workers):
    network = make_network()
    result = measure([network], samples, batch_size=batch_size, workers=workers)
    expected = reference_counts(network, samples)
    assert counts(result) == expected and expected[1] > 0
    assert result.top1().images == result.measured == 12
    assert result.errors == () and result.images_per_second > 0


def test_several_networks_in_one_pass_are_each_as_if_alone(samples, make_network, monkeypatch):
    networks = [make_network(0), make_network(1, MSRA), make_network(2)]
    reads, read = [], type(samples.source).read
    monkeypatch.setattr(
        type(samples.source), "read", lambda self, i: reads.append(i) or read(self, i)
    )
    together = measure(networks, samples, batch_size=5)
    assert sorted(reads) == list(range(12))  # each image once
    for i, network in enumerate(networks):
        alone = measure([network], samples, batch_size=5)
        assert np.array_equal(alone.classes(), together.classes(i))
        assert np.array_equal(alone.probabilities(), together.probabilities(i))
    assert len({together.classes(i).tobytes() for i in range(3)}) == 3


def test_networks_of_different_sizes_are_refused(samples, make_network):
    small = make_network(preprocessing=MSRA.replace(crop=64), name="small")
    with pytest.raises(ArgumentError, match=r"the network and small .* different sizes"):
        measure([make_network(), small], samples)


def test_networks_of_different_rules_of_resizing_are_refused(samples, make_network):
    other = make_network(preprocessing=MSRA.replace(resampling="tf1-bilinear"), name="other")
    with pytest.raises(ArgumentError, match=r"the network and other .* different rules"):
        measure([make_network(), other], samples)


def test_unreadable_images_stop_the_run_or_are_counted(photos, samples, make_network):
    (photos / "04.jpg").write_text("no image")
    with pytest.raises(DataError, match=r"04.jpg.*--on-error skip"):
        measure([make_network()], samples)
    seen = []
    result = measure([make_network()], samples, on_error="skip", report=seen.append)
    assert result.top1().images == 11 and 4 not in result.images()
    assert seen == list(result.errors) and len(seen) == 1 and "04.jpg" in seen[0]


def test_nothing_readable_is_an_error_even_when_skipping(tmp_path, make_network):
    path = tmp_path / "list.txt"
    path.write_text("none.jpg 0\n")
    with pytest.raises(DataError, match="none of the 1 images"):
        measure([make_network()], find_samples(path), on_error="skip")


def test_logits_that_are_not_finite_are_an_error(samples, make_network):
    network = make_network(name="resnet")
    network.model.fc.bias.data[3] = float("inf")
    with pytest.raises(NonFiniteError, match="logits of resnet are not finite"):
        measure([network], samples)


def test_networks_of_fewer_than_five_classes_are_ranked(samples):
    torch.manual_seed(0)
    model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=3)
    network = Network(model, MSRA)
    result = measure([network], replace(samples, labels=(0, 1, 2) * 4))
    assert counts(result)[1] == 12 and (result.classes()[:, 3:] == -1).all()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_shares_of_processes_add_up_to_the_whole_without_repetition(samples, make_network, count):
    whole = measure([make_network()], samples, batch_size=3)
    merged, measured = Records.empty(1, 12), 0
    for rank in range(count):
        part = evaluate_share(make_network(), samples, Processes(rank, count))
        measured += part.measured
        merged.update(part.records)
    assert measured == 12
    assert np.array_equal(merged.classes, whole.records.classes)
    assert np.array_equal(merged.probabilities, whole.records.probabilities)


def evaluate_share(network, samples, processes):
    """What one of several processes measures, the others being silent."""

    class Alone(Processes):
        def gather(self, value):
            return [value]

    try:
        return measure(
            [network], samples, batch_size=3, processes=Alone(processes.rank, processes.count)
        )
    except DataError:  # its share is empty
        return Evaluation(samples, Records.empty(1, 12), 0, 1.0)


@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_an_interrupted_run_is_resumed_to_identical_records(
    tmp_path, samples, make_network, stop_at, monkeypatch
):
    whole = measure([make_network(0), make_network(1)], samples, batch_size=2)
    read = type(samples.source).read
    journal = Journal(tmp_path / "run")

    def interrupt(self, index):
        if index == stop_at:
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(type(samples.source), "read", interrupt)
    with pytest.raises(
        Interrupted, match=r"after (0 of 12 images$|[1-9]\d* of 12 images; .* --resume)"
    ):
        measure([make_network(0), make_network(1)], samples, batch_size=2, journal=journal)
    monkeypatch.setattr(type(samples.source), "read", read)
    rest = measure(
        [make_network(0), make_network(1)],
        samples,
        batch_size=2,
        journal=Journal(tmp_path / "run"),
    )
    assert rest.measured < 12 or stop_at == 1
    assert np.array_equal(rest.records.classes, whole.records.classes)
    assert np.array_equal(rest.records.probabilities, whole.records.probabilities)


def test_present_classes_compete_alone(samples, make_network):
    labels = (3, 5, 3, 9, 5, 3, 3, 9, 9, 5, 3, 11)
    samples, networks = replace(samples, labels=labels), [make_network(0), make_network(1)]
    result = measure(networks, samples, batch_size=5, present=True)
    plain = measure(networks, samples, batch_size=5)
    assert result.present == (3, 5, 9, 11)
    pixels = np.stack([load_pixels(samples.read(i), MSRA) for i in range(12)])
    for i, network in enumerate(networks):
        assert np.array_equal(result.classes(i), plain.classes(i))
        assert np.array_equal(result.probabilities(i), plain.probabilities(i))
        logits = network.predict_logits(torch.from_numpy(pixels).permute(0, 3, 1, 2)).cpu()
        masked = torch.full_like(logits, -torch.inf)
        masked[:, result.present] = logits[:, result.present]
        expected = masked.softmax(1).topk(4)
        assert np.array_equal(result.classes(i, present=True)[:, :4], expected.indices)
        found = result.probabilities(i, present=True)[:, :4]
        assert np.allclose(found, expected.values, atol=1e-6)
        right = sum(
            int(c) == label for c, label in zip(expected.indices[:, 0], labels, strict=True)
        )
        assert result.top1(i, present=True).correct == right >= plain.top1(i).correct
        assert result.top5(i, present=True).correct == 12  # four classes


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared with the MSRA checkpoint is absent")
def test_the_real_msra_network_scores_what_it_should(tmp_path):
    output = tmp_path / "results.json"
    weights = SHARED / "weights" / "resnet50v1_bn_msra_bgr_fp16.pth"
    images = SHARED / "data" / "imagenet_sample"
    arguments = ["--weights", str(weights), "--imagenet", str(images), "--json", str(output)]
    assert main(["eval", "--model", "resnet50v1_bn_msra", *arguments]) == 0
    document = json.loads(output.read_text())
    (model,) = document["models"]
    figures = [model[key]["correct"] for key in ("top1", "top5")]
    assert (figures, model["images"], document["errors"]) == ([231, 246], 250, [])
