"""A network as it is evaluated: precision, memory, settings that stay as they were."""

import pytest
import torch
from snzoo.evaluation.network import _tf32, best_classes, choose_device
from torch.backends import cudnn, mkldnn
from torch.backends.cuda import matmul

from snzoo.errors import SnzooError

PIXELS = torch.randint(0, 256, (5, 3, 224, 224), generator=torch.manual_seed(0)).to(torch.uint8)


def test_best_classes_are_ranked_with_their_probabilities():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, float("nan")]])
    probabilities, classes = best_classes(torch.nn.Identity(), logits, 2)
    assert classes[0].tolist() == [1, 2]
    assert torch.allclose(probabilities[0], logits[0].softmax(0)[[1, 2]])
    assert probabilities[1].isnan().all()


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"channels_last": True},
        pytest.param({"compile": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_other_arithmetic_gives_nearly_the_same(make_network, options):
    plain = make_network().best(PIXELS)
    other = make_network(**options).best(PIXELS)
    assert torch.allclose(plain.probabilities, other.probabilities, atol=0.03)
    assert other.probabilities.dtype == torch.float32
    if "precision" in options:
        assert not torch.equal(plain.probabilities, other.probabilities)


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
    expected = network.best(PIXELS)
    network.model = Small(fits)
    best = network.best(PIXELS, k=3)
    assert network.model.seen == seen and len(best.indices) == len(expected.indices) == 5
    network.model.seen.clear()
    network.best(PIXELS)
    assert max(network.model.seen) <= fits  # it remembers


def test_memory_too_short_for_one_image_is_an_error(make_network):
    network = make_network(device="cpu")
    network.model = Small(0)
    with pytest.raises(SnzooError, match=r"one image at a time does not fit .* cpu"):
        network.best(PIXELS)


def test_tf32_is_refused_where_there_is_none(make_network):
    with pytest.raises(SnzooError, match="tf32 needs a CUDA device, not cpu"):
        make_network(precision="tf32", device="cpu")


@pytest.mark.parametrize("before", ["highest", "high"])
@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_set_for_the_network_alone(before, allowed):
    torch.set_float32_matmul_precision(before)
    try:
        settings = cudnn.allow_tf32, cudnn.benchmark, cudnn.enabled
        newer = matmul.fp32_precision, mkldnn.matmul.fp32_precision, cudnn.conv.fp32_precision
        with _tf32(torch.device("cuda"), allowed=allowed):
            assert torch.backends.cuda.matmul.allow_tf32 == cudnn.allow_tf32 == allowed
            assert (cudnn.benchmark, cudnn.enabled) == settings[1:]
        assert torch.get_float32_matmul_precision() == before
        assert (cudnn.allow_tf32, cudnn.benchmark, cudnn.enabled) == settings
        after = matmul.fp32_precision, mkldnn.matmul.fp32_precision, cudnn.conv.fp32_precision
        assert after == newer
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
    with pytest.raises(SnzooError, match="device 'cuda:99' can't be used"):
        choose_device("cuda:99")
