"""The ResNet-50 of fb.resnet.torch: files that hold it, and files of other networks."""

import numpy as np
import pytest
import torch
from fbtorch_writer import resnet50, torch7_of
from torch import nn
from torch7_writer import Object, Storage, Tensor, array_of, write

import snzoo
from snzoo.errors import CheckpointError
from snzoo.models.architectures import ARCHITECTURES
from snzoo.models.build import build
from snzoo.weights import conform_state_dict, read_state_dict


@torch.no_grad()
def logits(network):
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(6))
    return network.double()(x.double())


DTYPES = {"Half": torch.float16, "Double": torch.float64}
FILES = {
    "float32": ({}, {}),
    "float32 on a GPU, cudnn": ({}, {"kind": "Cuda", "library": "cudnn"}),
    "without biases": ({"bias": False}, {"library": "cudnn"}),
    "float16": ({}, {"kind": "Half"}),
    "float64, another eps": ({"eps": 1e-3}, {"kind": "Double"}),
    "float64, old": ({"eps": 1e-4}, {"kind": "Double", "old": True}),
}


@pytest.mark.parametrize("made, written", FILES.values(), ids=FILES)
@torch.no_grad()
def test_the_logits_are_those_of_a_plain_network(tmp_path, made, written):
    dtype = DTYPES.get(written.get("kind"), torch.float32)
    reference = resnet50(**made).to(dtype)
    tree = torch7_of(reference, **written)
    state = read_state_dict(write(tmp_path / "x.t7", tree, versions="old" not in written))
    dtype = max(dtype, torch.float32, key=lambda dtype: dtype.itemsize)
    assert {tensor.dtype for tensor in state.values()} == {dtype}

    network = build(ARCHITECTURES["resnet50v1_bn"], norm_after_add=True, width=8, num_classes=5)
    network = network.to(dtype).eval()
    network.load_state_dict(conform_state_dict(state, network.state_dict(), where="x.t7"))
    expected = logits(reference)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    assert (logits(network) - expected).abs().max() <= tolerance * expected.abs().max()


def test_a_model_of_the_zoo_is_made_from_a_file(tmp_path, tree):
    path = write(tmp_path / "x.t7", tree)
    options = {"width": 8, "num_classes": 5}
    network = snzoo.create_model("resnet50v1_bn_fbtorch", weights=path, **options)
    assert torch.equal(
        network.layer1[0].downsample.weight, read_state_dict(path)["layer1.0.downsample.weight"]
    )
    with pytest.raises(CheckpointError, match="downsample"):
        snzoo.create_model("resnet50v1_bn", weights=path, **options)


def map_tensors(value, function):
    if isinstance(value, Object):
        return Object(value.name, map_tensors(value.content, function))
    if isinstance(value, dict):
        return {key: map_tensors(item, function) for key, item in value.items()}
    return function(value) if isinstance(value, Tensor) else value


def test_parameters_may_be_parts_of_one_storage(tmp_path, tree):
    """So they are after getParameters of Torch."""
    storage = Storage("Float", [])

    def move(tensor):
        storage.elements.extend(tensor.storage.elements)
        offset = len(storage.elements) - len(tensor.storage.elements)
        return tensor._replace(offset=offset, storage=storage)

    expected = read_state_dict(write(tmp_path / "x.t7", tree))
    found = read_state_dict(write(tmp_path / "flat.t7", map_tensors(tree, move)))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_tensors_that_share_elements_do_not_take_more_memory_than_allowed(tmp_path, tree):
    whole = array_of(np.ones(300_000, np.float32))
    path = write(tmp_path / "x.t7", map_tensors(tree, lambda tensor: whole))
    with pytest.raises(CheckpointError, match="it unpacks to more than"):
        read_state_dict(path, max_bytes=10)


def change(value, path, function):
    """A tree whose value at ``path``, of numbers of modules and then of a field, is changed."""
    if not path:
        return function(value)
    content, part = value.content, path[0]
    if isinstance(part, int):
        modules = content["modules"]
        changed = {"modules": modules | {part: change(modules[part], path[1:], function)}}
    else:
        changed = {part: function(content.get(part))}
    return Object(value.name, content | changed)


def contain_itself(module):
    module = Object(module.name, dict(module.content))
    module.content["modules"] = {1: module}
    return module


def swap(modules):
    return modules | {1: modules[2], 2: modules[1]}


ONE = array_of(np.ones(1, np.float32))
BLOCK = (5, 1)  # the first one: its branches, the addition, the norm and the ReLU
MAIN, SHORTCUT = (*BLOCK, 1, 1), (*BLOCK, 1, 2)
OTHERS = {
    "a number": ((), lambda tree: 5.0, "can't read|not a weights file"),
    "a table of the network": ((), lambda tree: {"model": tree}, "it holds another value in place"),
    "unknown class": ((3,), lambda module: Object("os.execute", {}), "it holds a os.execute"),
    "no module": ((*MAIN, 2), lambda module: {}, "it holds another value in place"),
    "no modules": (BLOCK, lambda module: Object("nn.Sequential", {}), "nn.Sequential has no list"),
    "a gap": (("modules",), lambda modules: modules | {99: modules[1]}, "has no list of modules"),
    "a cycle": (BLOCK, contain_itself, "it has more than 2,000 modules"),
    "swapped": (("modules",), swap, "its modules are others, or in another order"),
    "norm before the addition": (
        (*MAIN, "modules"),
        lambda modules: modules | {8: modules[5]},
        "its modules are others, or in another order",
    ),
    "norm of a projection": (
        SHORTCUT,
        lambda conv: Object("nn.Sequential", {"modules": {1: conv, 2: BATCH_NORM}}),
        "its modules are others, or in another order",
    ),
    "kernel": ((*MAIN, 4, "kW"), lambda size: 5, "the kW of a nn.SpatialConvolution is not 3"),
    "stride": ((6, 1, 1, 1, 1, "dH"), lambda size: 2, "the dH of a nn.SpatialConvolution is not 1"),
    "padding": ((1, "padW"), lambda size: None, "the padW of a nn.SpatialConvolution is not 3"),
    "ceil mode": ((4, "ceil_mode"), lambda mode: True, "a nn.SpatialMaxPooling rounds up"),
    "weight": ((*SHORTCUT, "weight"), lambda weight: None, "SpatialConvolution has no weight"),
    "shape": ((*MAIN, 4, "weight"), lambda weight: ONE, "is invalid for input of size 1"),
    "bias": ((*SHORTCUT, "bias"), lambda bias: ONE, "biases before it, differ in shape"),
    "text for a bias": ((*SHORTCUT, "bias"), lambda bias: "text", "has no bias"),
    "norm": ((2, "running_mean"), lambda mean: ONE, "a nn.SpatialBatchNormalization, or the bia"),
    "variance": ((2, "running_var"), lambda variance: None, "has no running_std"),
    "eps": ((2, "eps"), lambda eps: float("nan"), "the eps of a nn.SpatialBatchNormalization"),
    "integers": (
        (11, "weight"),
        lambda weight: array_of(np.ones((5, 256), int), "Long"),
        "nn.Linear has no weight",
    ),
}
BATCH_NORM = torch7_of(nn.BatchNorm2d(32))


@pytest.mark.parametrize("path, function, words", OTHERS.values(), ids=OTHERS)
def test_another_network_is_refused(tmp_path, tree, path, function, words):
    file = write(tmp_path / "x.t7", change(tree, path, function))
    with pytest.raises(CheckpointError, match=words) as caught:
        read_state_dict(file)
    assert str(file) in str(caught.value) and len(str(caught.value).splitlines()) == 1
