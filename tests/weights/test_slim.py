"""The ResNet-50 of TF-Slim, from files that hold it and from files that hold another one.

Once, TensorFlow 2.21 wrote 268 random arrays with the names and shapes of this network and a global
step (102,500,717 bytes): all 269 arrays were read bit by bit, and the logits of the zoo's network,
with a stem pool as in TF-Slim, differed by at most 2.8e-5 from those of a TensorFlow graph, of up
to 45.
"""

import numpy as np
import pytest
import torch
from slim_writer import NARROW, make_network, modules, save, variables
from tensorflow_writer import write

from snzoo.errors import CheckpointError
from snzoo.models.architectures import ARCHITECTURES
from snzoo.models.build import build
from snzoo.weights import conform_state_dict, read_state_dict

UNUSED = {
    "global_step": np.array(600_000),
    "resnet_v1_50/mean_rgb": np.array([123.68, 116.78, 103.94], np.float32),
    "resnet_v1_50/conv1/weights/Momentum": np.ones((7, 7, 3, 8), np.float32),
}


@torch.no_grad()
def check(path, network, **options):
    """Assert that a file holds a network: its tensors bit by bit, and its logits."""
    state, expected = read_state_dict(path), network.state_dict()
    assert len(state) == 5 * len(modules()) + 2
    assert all(torch.equal(state[key], expected[key]) for key in state)
    read = build(ARCHITECTURES["resnet50v1_bn"], stride_on="last_unit", **options).eval()
    read.load_state_dict(conform_state_dict(state, read.state_dict(), where=path))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(6)).double()
    logits = network.double()(x)
    assert (read.double()(x) - logits).abs().max() <= 1e-9 * logits.abs().max()
    network.float()


@pytest.fixture(scope="module")
def narrow():
    return make_network(**NARROW)


@pytest.mark.parametrize("name", ["x.ckpt", "x.tar", "x.tar.gz"])
@pytest.mark.parametrize("unused", [{}, UNUSED])
def test_the_network_of_a_file_gives_the_logits_of_the_network_it_was_made_from(
    narrow, tmp_path, name, unused
):
    path = save(tmp_path / name, write(variables(narrow) | unused))
    check(path, narrow, **NARROW)


@pytest.mark.slow
def test_a_file_of_full_size(tmp_path):
    network = make_network()
    content = write(variables(network) | {"global_step": np.array(0)})
    for name in ("x.ckpt", "x.tar.gz"):
        check(save(tmp_path / name, content), network)


@pytest.mark.parametrize(
    "name, array",
    [
        ("resnet_v1_101/conv1/weights", np.ones((7, 7, 3, 8), np.float32)),
        ("resnet_v1_50/block5/unit_1/bottleneck_v1/conv1/weights", np.ones((1, 1, 2, 2), "f4")),
        ("resnet_v1_50/block1/unit_01/bottleneck_v1/conv1/weights", np.ones((1, 1, 2, 2), "f4")),
        ("resnet_v1_50/conv1/biases", np.ones(8, np.float32)),
        ("resnet_v1_50/conv1/weights", np.ones((7, 7, 24), np.float32)),
        ("resnet_v1_50/conv1/BatchNorm/beta", np.ones((8, 1), np.float32)),
    ],
)
def test_another_network_is_refused(tmp_path, name, array):
    path = save(tmp_path / "x.ckpt", write({"global_step": np.array(3), name: array}))
    with pytest.raises(CheckpointError, match=f"unknown variable '{name}'.*TF-Slim") as caught:
        read_state_dict(path)
    assert str(path) in str(caught.value)


def test_a_file_without_the_network_is_refused(tmp_path):
    path = save(tmp_path / "x.tar.gz", write({"global_step": np.array(3)}))
    with pytest.raises(CheckpointError, match="holds no variable of the ResNet-50"):
        read_state_dict(path)
