"""Torch7 files: objects and hostile files, and the network of fb.resnet.torch's ResNet-50."""

import random
import re
import struct
import time
import tracemalloc
from collections import namedtuple
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import snzoo
from snzoo.errors import CheckpointError
from snzoo.models.architectures import ARCHITECTURES
from snzoo.models.build import build
from snzoo.weights import conform_state_dict, read_state_dict
from snzoo.weights.torch7 import read_torch7

NUMBERS = {"Double": "<f8", "Half": "<f2", "Long": "<i8", "Byte": "u1"}  # Float and Cuda: "<f4"

Object = namedtuple("Object", "name content")  # of a class; the content is a value
Tensor = namedtuple("Tensor", "kind sizes strides offset storage")
Storage = namedtuple("Storage", "kind elements")


def array_of(array, kind="Float"):
    """The tensor of a contiguous array."""
    strides = [int(np.prod(array.shape[i + 1 :])) for i in range(array.ndim)]
    return Tensor(kind, array.shape, strides, 0, Storage(kind, array.ravel()))


class Writer:
    """Write objects as File.lua of torch7 does; ``starts`` are the positions of the values."""

    def __init__(self, versions=True):
        self.out, self.starts, self.versions, self.seen = bytearray(), [], versions, {}

    def put(self, code, *numbers):
        self.out += struct.pack(f"<{code}", *numbers)

    def string(self, text):
        encoded = text.encode()
        self.put(f"i{len(encoded)}s", len(encoded), encoded)

    def write(self, value):
        self.starts.append(len(self.out))
        if value is None:
            self.put("i", 0)
        elif isinstance(value, bool):
            self.put("ii", 5, value)
        elif isinstance(value, int | float):
            self.put("id", 1, value)
        elif isinstance(value, str):
            self.put("i", 2)
            self.string(value)
        else:
            known = id(value) in self.seen
            index, _ = self.seen.setdefault(id(value), (len(self.seen) + 1, value))
            self.put("ii", 3 if isinstance(value, dict) else 4, index)
            if not known:
                self.write_content(value)
        return self

    def write_content(self, value):
        if isinstance(value, dict):
            self.put("i", len(value))
            for item in (item for pair in value.items() for item in pair):
                self.write(item)
            return
        if self.versions:
            self.string("V 1")
        if isinstance(value, Object):
            self.string(value.name)
            self.write(value.content)
        elif isinstance(value, Tensor):
            self.string(f"torch.{value.kind}Tensor")
            count = len(value.sizes)
            self.put(f"i{2 * count + 1}q", count, *value.sizes, *value.strides, value.offset + 1)
            self.write(value.storage)
        else:
            self.string(f"torch.{value.kind}Storage")
            dtype = NUMBERS.get(value.kind.removeprefix("Cuda"), "<f4")
            self.put("q", len(value.elements))
            self.out += np.asarray(value.elements, dtype).tobytes()


def write(path, value, **options):
    path.write_bytes(Writer(**options).write(value).out)
    return path


# Objects


def test_values_tables_and_references_are_read(tmp_path):
    shared = {"x": 0.5}
    table = {"text": "é", "yes": True, "no": False, "nothing": None, 1: shared, 2: shared}
    table["itself"] = table
    table["module"] = Object("nn.Linear", {"parent": table})
    found = read_torch7(write(tmp_path / "x.t7", table))
    assert list(found) == list(table) and found["itself"] is found
    assert [found[key] for key in ("yes", "no", "nothing")] == [True, False, None]
    assert found["text"].encode("latin-1").decode() == "é"
    assert found[1] == {"x": 0.5} and found[1] is found[2]
    assert found["module"].name == "nn.Linear" and found["module"].fields["parent"] is found


@pytest.mark.parametrize("versions", [True, False], ids=["V 1", "without a version"])
@pytest.mark.parametrize(
    "kind, dtype",
    {"Float": "f4", "Cuda": "f4", "Double": "f8", "CudaDouble": "f8", "Half": "f2"}.items()
    | {"CudaHalf": "f2", "Long": "i8", "CudaLong": "i8", "Byte": "u1"}.items(),
)
def test_tensors_of_every_class_are_read(tmp_path, kind, dtype, versions):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    found = read_torch7(write(tmp_path / "x", array_of(array, kind), versions=versions))
    assert found.dtype == array.dtype and np.array_equal(found, array)


VIEWS = {
    "whole": ([2, 3], [3, 1], 0, [[0, 1, 2], [3, 4, 5]]),
    "transposed": ([3, 2], [1, 3], 0, [[0, 3], [1, 4], [2, 5]]),
    "a part": ([2], [2], 3, [3, 5]),
    "backward": ([3], [-2], 5, [5, 3, 1]),
    "size 1, any stride": ([1, 2], [2**62, 1], 4, [[4, 5]]),
    "repeated": ([2, 2], [0, 1], 0, [[0, 1], [0, 1]]),
    "no dimensions": ([], [], 0, []),
    "no elements": ([0, 5], [5, 1], 99, []),
}


@pytest.mark.parametrize("sizes, strides, offset, expected", VIEWS.values(), ids=VIEWS)
def test_views_of_a_storage_are_read(tmp_path, sizes, strides, offset, expected):
    storage = Storage("Float", range(6))
    tensors = {1: storage, 2: Tensor("Float", sizes, strides, offset, storage)}
    assert read_torch7(write(tmp_path / "x", tensors))[2].tolist() == expected
    assert read_torch7(write(tmp_path / "y", Tensor("Float", [], [], 0, None))).size == 0


def nested(depth):
    """A table in a table, and so on: type, index, number of entries, and the key 1.0."""
    tables = [struct.pack("<iiiid", 3, i, 1, 1, 1.0) for i in range(1, depth + 1)]
    return b"".join(tables) + bytes(4)


def nested_objects(depth, name):
    head = struct.pack(f"<i3si{len(name)}s", 3, b"V 1", len(name), name.encode())
    dims = struct.pack("<iq", 0, 1) if name.endswith("Tensor") else b""
    return b"".join(struct.pack("<ii", 4, i) + head + dims for i in range(1, depth))


def bad_view(*view):
    return Writer().write(Tensor("Float", *view, Storage("Float", range(6)))).out


def patched(value, old, new, code):
    """What the writer writes, with a number in place of another one that is there once."""
    out = Writer().write(value).out
    assert out.count(struct.pack(code, old)) == 1
    return out.replace(struct.pack(code, old), struct.pack(code, new))


MANY_DIMS = bad_view([], [], 77).replace(
    struct.pack("<iq", 0, 78), struct.pack("<iq", 2**31 - 1, 78)
)
TABLE, TEXT, ARRAY = {"k": dict.fromkeys("abcdefg")}, "s" * 77, Storage("Float", range(99))
WRONG = Tensor("Float", [6], [1], 0, Storage("Double", range(6)))
ITSELF = struct.pack(
    "<iii3si17siqqqii", 4, 1, 3, b"V 1", 17, b"torch.FloatTensor", 1, 6, 1, 1, 4, 1
)
HOSTILE = {
    "function": (struct.pack("<iiiiq", 3, 1, 1, 8, 2), "it holds a Lua function, which is code"),
    "old function": (struct.pack("<iiiiq", 3, 1, 1, 6, 0), "it holds a Lua function"),
    "unknown type": (struct.pack("<iiiiq", 3, 1, 1, 9, 0), "type 9 before byte 16 is unknown"),
    "string of 2^31 - 1": (patched({1: TEXT}, 77, 2**31 - 1, "<i"), "announces 2,147,483,647"),
    "string of -1": (patched({1: TEXT}, 77, -1, "<i"), "it announces -1 bytes"),
    "table of 2^31 - 1": (patched(TABLE, 7, 2**31 - 1, "<i"), "announces 25,769,803,764 bytes"),
    "table of -1": (patched(TABLE, 7, -1, "<i"), "it announces -12 bytes"),
    "storage of 2^62": (patched(ARRAY, 99, 2**62, "<q"), "announces 18,446,744,073,709,551,616"),
    "storage of -1": (patched(ARRAY, 99, -1, "<q"), "it announces -4 bytes"),
    "dimensions": (bad_view([1] * 9, [1] * 9, 0), "a tensor has 9 dimensions, not 0 to 8"),
    "2^31 - 1 dimensions": (MANY_DIMS, "a tensor has 2,147,483,647 dimensions"),
    "beyond the storage": (bad_view([2, 3], [3, 1], 1), "does not fit into its storage of 6 elem"),
    "before the storage": (bad_view([3], [-2], 3), "a tensor does not fit into its storage"),
    "offset of 2^62": (bad_view([1], [1], 2**62), "a tensor does not fit into its storage"),
    "strides of 2^62": (bad_view([2, 2], [2**62, -(2**62)], 0), "does not fit into its storage"),
    "more elements than the storage": (bad_view([2**40, 2**22], [0, 0], 0), "does not fit into"),
    "negative sizes": (bad_view([-2, -3], [1, 1], 5), "a tensor does not fit into its storage"),
    "storage of another type": (Writer().write(WRONG).out, "FloatTensor has no storage of its"),
    "a tensor is its storage": (ITSELF, "a reference before byte 72 is wrong"),
    "a table is a storage": (Writer().write(Tensor("Float", [1], [1], 0, {})).out, "no storage"),
    "a module of modules": (nested_objects(100_000, "nn.X"), "content of a nn.X is a nn.X"),
    "tensors of tensors": (nested_objects(100_000, "torch.IntTensor"), "is a torch.IntTensor"),
    "a module of a number": (Writer().write(Object("nn.X", 1)).out, "nn.X is not a table of fiel"),
    "generator": (Writer().write(Object("torch.Generator", None)).out, "torch.Generator is not"),
    "no class": (Writer().write(Object("os.execute('x')", {})).out, "the name of a class before"),
    "key twice": (struct.pack("<iiiidiidi", 3, 1, 2, 1, 7.0, 0, 1, 7.0, 0), "has a key twice"),
    "table as key": (struct.pack("<iiiiiii", 3, 1, 1, 3, 2, 0, 0), "or one that is no string"),
    "an index twice": (struct.pack("<iiiidii", 3, 1, 1, 1, 7.0, 4, 1), "a reference before byte"),
    "more bytes": (Writer().write({}).out + b"abc", "3 bytes follow its content"),
    "deep nesting": (
        nested(100_000),
        "is not the ResNet-50 of fb.resnet.torch: it holds another value",
    ),
    "many values": (nested(200_000), "it holds more than 262,144 values"),
}


@pytest.mark.parametrize("content, words", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_in_bounded_memory_and_time(tmp_path, content, words):
    path = tmp_path / "x.t7"
    path.write_bytes(content)
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(CheckpointError, match=re.escape(words)) as caught:
            read_state_dict(path)
        assert tracemalloc.get_traced_memory()[1] < 2**22 + 16 * len(content)
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - begin < 30
    assert str(path) in str(caught.value) and len(str(caught.value).splitlines()) == 1


# The network


class Block(nn.Module):
    """What fb.resnet.torch published: the last norm after the addition, a bare projection."""

    def __init__(self, conv, channels, width, stride):
        super().__init__()
        self.main = nn.Sequential(
            *(conv(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU()),
            *(conv(width, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()),
            conv(width, 4 * width, 1),
        )
        projects = channels != 4 * width
        self.shortcut = conv(channels, 4 * width, 1, stride) if projects else nn.Identity()
        self.out = nn.Sequential(nn.BatchNorm2d(4 * width), nn.ReLU())

    def forward(self, x):
        return self.out(self.main(x) + self.shortcut(x))


def resnet50(width=8, classes=5, bias=True, eps=1e-5):
    """The network from the layers of PyTorch. Every tensor matters to its logits."""
    conv = partial(nn.Conv2d, bias=bias)
    stem = [conv(3, width, 7, 2, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    stages, channels = [], width
    for stage, depth in enumerate((3, 4, 6, 3)):
        stages.append(nn.Sequential())
        for unit in range(depth):
            stride = 2 if stage and not unit else 1
            stages[-1].append(Block(conv, channels, width << stage, stride))
            channels = 4 * width << stage
    head = [nn.AvgPool2d(7, 1), nn.Flatten(), nn.Linear(channels, classes)]
    network = nn.Sequential(*stem, *stages, *head)
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if bias:
                nn.init.normal_(module.bias, std=0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = eps
            nn.init.uniform_(module.weight, 0.5, 1, generator=generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)
            nn.init.normal_(module.running_mean, std=0.5, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    network[1].running_var *= 1e-4  # so small that eps matters
    network[1].weight.data *= 1e-2
    return network.eval()


def numbers(layer):
    """The fields of the kernel, the stride and the padding."""
    fields = {}
    named = {"k": layer.kernel_size, "d": layer.stride, "pad": layer.padding}
    for name, value in named.items():
        high, wide = value if isinstance(value, tuple) else (value, value)
        fields |= {f"{name}H": high, f"{name}W": wide}
    return fields


def torch7_of(module, *, kind="Float", old=False, library="nn"):
    """The object that Torch saves for a module. ``old``: 2-D weights and running_std."""
    convert = partial(torch7_of, kind=kind, old=old, library=library)

    def arrays(**tensors):
        return {
            name: None if tensor is None else array_of(tensor.detach().numpy(), kind)
            for name, tensor in tensors.items()
        }

    def listed(*children):
        return {"modules": dict(enumerate(children, 1))}

    name, fields = type(module).__name__, {}
    if isinstance(module, nn.Sequential):
        fields = listed(*map(convert, module))
    elif isinstance(module, Block):
        branches = listed(convert(module.main), convert(module.shortcut))
        add = Object("nn.CAddTable", {"inplace": True})
        name = "Sequential"
        fields = listed(Object("nn.ConcatTable", branches), add, *map(convert, module.out))
    elif isinstance(module, nn.Conv2d):
        name = "SpatialConvolutionMM" if old else "SpatialConvolution"
        weight = module.weight.flatten(1) if old else module.weight
        fields = arrays(weight=weight, bias=module.bias) | numbers(module)
    elif isinstance(module, nn.BatchNorm2d):
        name = "SpatialBatchNormalization"
        fields = arrays(weight=module.weight, bias=module.bias, running_mean=module.running_mean)
        if old:
            fields |= arrays(running_std=(module.running_var + module.eps) ** -0.5)
        else:
            fields |= arrays(running_var=module.running_var)
        fields["eps"] = module.eps
    elif isinstance(module, nn.Linear):
        fields = arrays(weight=module.weight, bias=module.bias, gradWeight=module.weight)
    elif isinstance(module, nn.MaxPool2d):
        name, fields = "SpatialMaxPooling", numbers(module) | {"ceil_mode": False}
    elif isinstance(module, nn.AvgPool2d):
        name, fields = "SpatialAveragePooling", numbers(module)
    elif isinstance(module, nn.Flatten):
        name, fields = "View", {"size": Storage("Long", [-1]), "numElements": 7}
    prefix = library if name in ("SpatialConvolution", "ReLU") else "nn"
    return Object(f"{prefix}.{name}", {"_type": f"torch.{kind}Tensor", "train": False} | fields)


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


@pytest.fixture(scope="module")
def tree():
    return torch7_of(resnet50())


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


SMALL = {"a": array_of(np.ones((2, 3), np.float32)), "b": Object("nn.Linear", {"c": True, "d": 1})}


def refuses_or_reads(path, content):
    path.write_bytes(content)
    try:
        read_state_dict(path)
    except CheckpointError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
        return True
    return False


def test_a_file_cut_short_is_refused_wherever_it_is_cut(tmp_path, tree):
    small, large = Writer().write(SMALL).out, Writer().write(tree)
    for size in range(len(small)):
        (tmp_path / "x").write_bytes(small[:size])
        with pytest.raises(CheckpointError, match="cut short"):
            read_torch7(tmp_path / "x")
    for size in large.starts[1::40]:  # every value takes a minute
        assert refuses_or_reads(tmp_path / "x", large.out[:size])


@pytest.mark.slow
@pytest.mark.parametrize("content", ["small", "network"])
def test_whatever_is_changed_the_file_is_read_or_refused(tmp_path, tree, content):
    """10,000 files: bytes near the beginning of a value are changed, removed or repeated."""
    writer = Writer().write(SMALL if content == "small" else tree)
    generator = random.Random(7)
    refused = 0
    for _ in range(5000):
        changed = bytearray(writer.out)
        for _ in range(generator.choice((1, 1, 1, 3))):
            at = min(generator.choice(writer.starts) + generator.randrange(48), len(changed) - 1)
            put = generator.choice((b"\0", b"\xff", b"\x7f", generator.randbytes(4), b""))
            changed[at : at + generator.choice((0, 1, 4, 8))] = put * generator.choice((1, 1, 4))
        refused += refuses_or_reads(tmp_path / "x", changed)
    assert refused > 2500
