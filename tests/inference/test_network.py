"""Networks as they are run: precision, memory, settings that are restored."""

import pytest
import torch
from torch.backends import cudnn, mkldnn
from torch.backends.cuda import matmul

from snzoo.errors import ArgumentError, DeviceError
from snzoo.inference import choose_device, rank_classes
from snzoo.inference.network import float32_precision

PIXELS = torch.randint(0, 256, (5, 3, 224, 224), generator=torch.manual_seed(0)).to(torch.uint8)
NAN = float("nan")


@pytest.mark.parametrize(
    "among, classes, logits",
    [(None, [3, 0, 2], [4.0, 3.0, 2.0]), ([0, 2], [0, 2], [3.0, 2.0]), ([1], [1], [1.0])],
)
def test_classes_are_ranked_among_those_that_compete(among, classes, logits):
    rows = torch.tensor([[3.0, 1.0, 2.0, 4.0], [5.0, 0.0, 1.0, NAN]])
    competing = rows[0] if among is None else rows[0][among]
    ranked = rank_classes(rows, 3, None if among is None else torch.tensor(among))
    assert ranked.indices[0].tolist() == classes
    expected = torch.tensor(logits).exp() / competing.exp().sum()
    assert torch.allclose(ranked.probabilities[0], expected)
    assert ranked.probabilities[1].isnan().all()  # one of its logits is


# Largest differences of a probability. bf16 has 8 significant bits, fp16 has 11; TF32 has 11 in
# products and sums in float32. The formats of the memory change the order of sums alone.
@pytest.mark.parametrize(
    "options, least, most",
    [
        ({"precision": "bf16"}, 1e-5, 4e-3),
        ({"precision": "fp16"}, 1e-6, 5e-4),
        pytest.param(
            {"precision": "tf32"},
            1e-7,
            5e-4,
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="TF32 needs a GPU"),
        ),
        ({"channels_last": True}, 0, 2e-6),
        pytest.param({"compile": True}, 0, 2e-6, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_arithmetic_gives_nearly_the_same(make_network, options, least, most):
    if options == {"precision": "tf32"} and make_network().device.type == "cpu":
        pytest.skip("a CPU has no TF32")
    plain, other = (
        network.predict_logits(PIXELS) for network in (make_network(), make_network(**options))
    )
    assert other.dtype == torch.float32
    difference = (plain.softmax(1) - other.softmax(1)).abs().max()
    assert least <= difference <= most


class Small(torch.nn.Module):
    """A network in whose memory at most ``fits`` images fit."""

    def __init__(self, fits):
        super().__init__()
        self.fits, self.seen = fits, []

    def forward(self, x):
        self.seen.append(len(x))
        if len(x) > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x.mean((2, 3))


@pytest.mark.parametrize("fits, seen", [(5, [5]), (3, [5, 3, 2]), (1, [5, 3, 2, 1, 1, 1, 1, 1])])
def test_a_batch_that_does_not_fit_is_halved_until_it_does(make_network, fits, seen):
    network = make_network()
    expected = network.predict_topk(PIXELS)
    network.model = Small(fits)
    ranked = network.predict_topk(PIXELS, k=3)
    assert network.model.seen == seen and len(ranked.indices) == len(expected.indices) == 5
    network.model.seen.clear()
    network.predict_topk(PIXELS)
    assert max(network.model.seen) <= fits  # it remembers


def test_memory_too_short_for_one_image_is_an_error(make_network):
    network = make_network(device="cpu")
    network.model = Small(0)
    with pytest.raises(DeviceError, match=r"one image at a time does not fit .* cpu"):
        network.predict_topk(PIXELS)


def test_tf32_is_refused_where_there_is_none(make_network):
    with pytest.raises(ArgumentError, match="tf32 needs a CUDA device, not cpu"):
        make_network(precision="tf32", device="cpu")


def settings():
    """What PyTorch says of float32, by its older and (from 2.9 on) newer interface."""
    places = (matmul, getattr(mkldnn, "matmul", None), getattr(cudnn, "conv", None))
    newer = [getattr(place, "fp32_precision", None) for place in places]
    older = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, cudnn.enabled
    return torch.get_float32_matmul_precision(), *older, *newer


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize("kind, tf32", [("cpu", False), ("cuda", False), ("cuda", True)])
def test_precision_is_set_for_the_network_alone(before, kind, tf32):
    torch.set_float32_matmul_precision(before)
    try:
        outside = settings()
        with float32_precision(torch.device(kind), tf32=tf32):
            assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
            assert kind == "cpu" or cudnn.allow_tf32 == matmul.allow_tf32 == tf32
            assert (cudnn.benchmark, cudnn.enabled) == (outside[2], outside[4])
        assert settings() == outside
    finally:
        torch.set_float32_matmul_precision("highest")


def test_the_digest_tells_weights_and_preprocessing_apart(make_network):
    first = make_network()
    assert make_network().digest() == first.digest()
    first.model.fc.bias.data[0] += 1e-3
    preprocessing = first.preprocessing.replace(crop=64)
    others = [make_network(1), make_network(preprocessing=preprocessing), first]
    assert len({network.digest() for network in [make_network(), *others]}) == 4


def test_devices_are_checked():
    assert choose_device("cpu") == "cpu"
    with pytest.raises(DeviceError, match="device 'cuda:99' can't be used"):
        choose_device("cuda:99")
