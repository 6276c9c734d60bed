"""The Keras ResNet-50: what is read gives the logits of a network with biases and Keras's eps."""

import hashlib
import re
import sys

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from snzoo.errors import CheckpointError, MissingPackageError
from snzoo.models.architectures import ARCHITECTURES
from snzoo.models.build import build
from snzoo.weights import conform_state_dict, read_state_dict

BLOCKS = {2: 3, 3: 4, 4: 6, 5: 3}


def layers():
    """Keras name of each convolution → where torchvision keeps it and its batch norm."""
    found = {"conv1": ("conv1", "bn1")}
    for stage, blocks in BLOCKS.items():
        for block in range(1, blocks + 1):
            here = f"layer{stage - 1}.{block - 1}"
            if block == 1:
                shortcut = (f"{here}.downsample.0", f"{here}.downsample.1")
                found[f"conv{stage}_block1_0"] = shortcut
            for i in (1, 2, 3):
                found[f"conv{stage}_block{block}_{i}"] = (f"{here}.conv{i}", f"{here}.bn{i}")
    return found


def with_biases(eps=1.001e-5, **options):
    """ResNet-50 as Keras computes it: a bias in each convolution, another eps."""
    network = build(ARCHITECTURES["resnet50v1_bn"], stride_on="1x1", **options)
    for name, layer in [*network.named_modules()]:
        if isinstance(layer, nn.Conv2d):
            parent, _, last = name.rpartition(".")
            shape = layer.in_channels, layer.out_channels, layer.kernel_size
            biased = nn.Conv2d(*shape, layer.stride, layer.padding, bias=True)
            setattr(network.get_submodule(parent), last, biased)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.eps = eps
    return network.eval()


def randomize(network):
    """Every array matters to the logits; in the stem, variances so small that eps does, too."""
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            nn.init.normal_(module.bias, std=0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1, generator=generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)
            nn.init.normal_(module.running_mean, std=0.5, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    network.bn1.running_var *= 1e-6
    network.bn1.weight *= 3e-3
    return network


def write_h5(path, network, *, within="/", dense="probs"):
    """The file of keras.applications: HWIO kernels, each array under its layer's name twice."""
    with h5py.File(path, "w") as file:
        root = file.require_group(within)
        root.create_group("activation_1")

        def write(layer, **arrays):
            for name, array in arrays.items():
                root[f"{layer}/{layer}/{name}:0"] = array.detach().numpy()

        for name, (conv, bn) in layers().items():
            conv, bn = network.get_submodule(conv), network.get_submodule(bn)
            write(f"{name}_conv", kernel=conv.weight.permute(2, 3, 1, 0), bias=conv.bias)
            write(f"{name}_bn", gamma=bn.weight, beta=bn.bias)
            write(f"{name}_bn", moving_mean=bn.running_mean, moving_variance=bn.running_var)
        write(dense, kernel=network.fc.weight.T, bias=network.fc.bias)
    return path


def write_old_h5(path, network):
    """The file of deep-learning-models v0.2: flat names, and the variance called running_std."""
    with h5py.File(path, "w") as file:

        def write(layer, **arrays):
            for name, array in arrays.items():
                file[f"{layer}/{layer}_{name}:0"] = array.detach().numpy()

        for name, (conv, bn) in layers().items():
            conv, bn = network.get_submodule(conv), network.get_submodule(bn)
            old, norm = "conv1", "bn_conv1"
            if name != "conv1":  # conv3_block2_0 is res3b_branch1, conv3_block2_1 res3b_branch2a
                stage, block, i = re.findall(r"\d+", name)
                branch = ["1", "2a", "2b", "2c"][int(i)]
                old, norm = (
                    f"{x}{stage}{' abcdef'[int(block)]}_branch{branch}" for x in ("res", "bn")
                )
            write(old, W=conv.weight.permute(2, 3, 1, 0), b=conv.bias)
            write(norm, gamma=bn.weight, beta=bn.bias)
            write(norm, running_mean=bn.running_mean, running_std=bn.running_var)
        write("fc1000", W=network.fc.weight.T, b=network.fc.bias)
    return path


@torch.no_grad()
def logits(network):
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    return network.double()(x.double())


@pytest.mark.slow
@pytest.mark.parametrize("written, eps", [(write_h5, 1.001e-5), (write_old_h5, 1e-5)])
@torch.no_grad()
def test_logits_are_those_of_a_network_with_biases_and_the_eps_of_keras(tmp_path, written, eps):
    reference = randomize(with_biases(eps))
    state = read_state_dict(written(tmp_path / "full.h5", reference))
    network = build(ARCHITECTURES["resnet50v1_bn"], stride_on="1x1").eval()
    network.load_state_dict(conform_state_dict(state, network.state_dict(), where="full.h5"))
    expected = logits(reference)
    scale = expected.abs().max()
    assert (logits(network) - expected).abs().max() <= 1e-6 * scale

    network.bn1.running_var -= 1e-8  # with the eps of PyTorch: the line above can tell
    assert (logits(network) - expected).abs().max() > 1e-5 * scale


@pytest.fixture(scope="module")
def narrow():
    with torch.no_grad():
        return randomize(with_biases(width=8, num_classes=3))


@pytest.fixture
def file(narrow, tmp_path):
    """The file of a narrow network, which is enough for most tests."""
    return write_h5(tmp_path / "narrow.h5", narrow)


def test_the_old_file_of_the_same_network_has_the_same_tensors(narrow, file, tmp_path):
    expected, found = read_state_dict(file), read_state_dict(write_old_h5(tmp_path / "x", narrow))
    assert len(expected) == 5 * len(layers()) + 2 and found.keys() == expected.keys()
    for key in expected:
        difference = 1e-8 if "running_var" in key else 0  # in eps
        assert torch.equal(found[key] + np.float32(difference), expected[key]), key


@pytest.mark.parametrize("shape", [{"within": "model_weights"}, {"dense": "predictions"}])
def test_files_of_whole_models_and_of_later_versions_are_read(narrow, file, tmp_path, shape):
    expected, found = (
        read_state_dict(file),
        read_state_dict(write_h5(tmp_path / "x.h5", narrow, **shape)),
    )
    assert len(expected) == 5 * len(layers()) + 2 and found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_keras_file_is_fetched_by_its_md5(zoo, file):
    content, state = file.read_bytes(), read_state_dict(file)
    md5 = hashlib.md5(content).hexdigest()
    entry = {"known": False, "architecture": "resnet50v1_bn", "format": "keras"}
    zoo.publish(content, md5="0" * 32, **entry)
    zoo.refuses(zoo.run("fetch", "made"), f"md5 is {md5}", "snzoo import FILE --model made")

    zoo.publish(content, md5=md5, **entry)
    assert zoo.run("fetch", "made").status == 0
    cached = read_state_dict(zoo.weights)
    assert all(torch.equal(cached[key], state[key]) for key in state)
    assert all(cached[key] == 0 for key in cached.keys() - state.keys())


def replace(name, array):
    """Replace an array by another one, or remove it (None)."""

    def change(path):
        with h5py.File(path, "a") as file:
            del file[name]
            if array is not None:
                file[name] = array

    return change


def cut(path):
    path.write_bytes(path.read_bytes()[:-5000])


@pytest.mark.parametrize(
    "change, words",
    [
        (replace("conv1_bn", None), "unknown layer 'conv1_conv', not the Keras ResNet-50"),
        (replace("conv1_bn/conv1_bn/gamma:0", None), "unknown layer 'conv1_conv'"),
        (replace("conv1_conv/conv1_conv/bias:0", None), "unknown layer 'conv1_conv'"),
        (replace("conv1_conv/conv1_conv/bias:0", np.ones(7)), "unknown layer 'conv1_conv'"),
        (replace("conv1_conv/conv1_conv/kernel:0", np.ones(8)), "unknown layer 'conv1_conv'"),
        (replace("probs/probs/kernel:0", None), "unknown layer 'probs'"),
        (replace("activation_1", np.ones(8)), "can't read"),
        (replace("probs/probs/bias:0", "text"), "can't read"),
        (cut, "can't read"),
    ],
)
def test_another_or_a_broken_file_is_refused(file, change, words):
    change(file)
    with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
        read_state_dict(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    "name, layer",
    [
        ("bn_conv1", "conv1"),
        ("bn3b_branch2a/bn3b_branch2a_running_std:0", "res3b_branch2a"),
        ("res5c_branch2c/res5c_branch2c_b:0", "res5c_branch2c"),
        ("fc1000/fc1000_W:0", "fc1000"),
    ],
)
def test_an_old_file_without_an_array_is_refused(narrow, tmp_path, name, layer):
    path = write_old_h5(tmp_path / "x", narrow)
    replace(name, None)(path)
    with pytest.raises(CheckpointError, match=f"x: unknown layer '{layer}', not the Keras ResNet"):
        read_state_dict(path)


def test_another_network_of_keras_is_refused(file):
    with h5py.File(file, "a") as opened:
        opened.move("conv5_block3_3_conv", "conv5_block4_3_conv")
        opened.move("conv5_block3_3_bn", "conv5_block4_3_bn")
    layout = build(ARCHITECTURES["resnet50v1_bn"], width=8, num_classes=3).state_dict()
    with pytest.raises(CheckpointError, match=r"missing: layer4\.2\.conv3.*unexpected: layer4\.3"):
        conform_state_dict(read_state_dict(file), layout, where=file)


def test_without_h5py_the_message_says_what_to_install(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingPackageError, match=r"snzoo\[keras\].*h5py"):
        read_state_dict(file)
