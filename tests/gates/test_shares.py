"""Gates of a state dict and of a model: their shares, their norms, their order."""

import random
from math import log
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from snzoo.errors import CheckpointError, UnknownModelError
from snzoo.gates import average, load_gates, read_gates
from snzoo.models.architectures import ARCHITECTURES
from snzoo.models.build import build
from snzoo.nn import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d


def state_of(*layers, **tensors):
    """Return the even gates of layers, and other tensors."""
    even = {f"{name}.{gate}": torch.ones(3) for name in layers for gate in GATES}
    return even | {key.replace("__", "."): torch.tensor(value) for key, value in tensors.items()}


GATES = ("mean_weight", "var_weight")


def test_shares_are_the_softmax_of_the_gates():
    state = state_of(a__mean_weight=[0, log(2), log(5)], a__var_weight=[log(7), log(2), 0])
    (layer,) = read_gates(state, where="x")
    assert (layer.name, layer.stats) == ("a", ("IN", "LN", "BN"))
    assert layer.mean == pytest.approx((0.125, 0.25, 0.625), abs=1e-6)
    assert layer.var == pytest.approx((0.7, 0.2, 0.1), abs=1e-6)
    assert layer.shares("var")["LN"] == layer.var[1]


def test_shares_add_up_in_any_dtype():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        gates = torch.tensor([-6e4, 6e4, 6e4], dtype=dtype)
        (layer,) = read_gates({"a.mean_weight": gates, "a.var_weight": gates}, where="x")
        assert layer.mean == layer.var == (0, 0.5, 0.5)


@pytest.mark.parametrize(
    "layer, stats",
    [
        (SwitchNorm2d(4), ("IN", "LN", "BN")),
        (SwitchNorm2d(4, using_bn=False), ("IN", "LN")),
        (SwitchNorm3d(4), ("IN", "LN", "BN")),
        (SwitchNorm1d(4), ("LN", "BN")),
        (SwitchNorm1d(4, using_bn=False), ("LN",)),
    ],
)
def test_stats_are_those_of_the_layer(layer, stats):
    for module, name in ((layer, "(root)"), (torch.nn.Sequential(torch.nn.ReLU(), layer), "1")):
        (found,) = read_gates(module.state_dict(), where="x")
        assert (found.name, found.stats) == (name, stats)
        assert found.mean == pytest.approx([1 / len(stats)] * len(stats))


@pytest.mark.parametrize(
    "name", ["resnet18v1_sn", "resnet101v1_sn", "resnet101v2_sn", "face_resnet50_syncsn"]
)
@pytest.mark.parametrize("prefix", ["", "backbone.body."])
def test_layers_are_in_the_order_of_depth(name, prefix):
    with torch.device("meta"):
        model = build(ARCHITECTURES[name])
    order = [prefix + key for key, m in model.named_modules() if isinstance(m, SwitchNorm2d)]
    state = state_of(*order)
    keys = list(state)
    for shuffled in (sorted(keys), random.Random(0).sample(keys, len(keys))):
        gates = read_gates({key: state[key] for key in shuffled}, where="x")
        assert [layer.name for layer in gates] == order


def test_numbers_are_ordered_as_numbers():
    order = [
        "features.0",
        "features.2.block.1",
        "features.9",
        "features.10.0",
        f"features.{10**4000}{10**4000}",
    ]
    state = state_of(*reversed(order))
    assert [layer.name for layer in read_gates(state, where="x")] == order


def test_a_missing_norm_has_share_0_in_the_average():
    state = state_of(
        a__mean_weight=[0.0, 0.0],
        a__var_weight=[0.0, log(3)],
        b__mean_weight=[1.0],
        b__var_weight=[1.0],
    )
    found = average(read_gates(state, where="x"))
    assert (found.name, found.stats) == ("average", ("IN", "LN"))
    assert found.mean == pytest.approx((0.25, 0.75)) and found.var == pytest.approx((0.125, 0.875))


@pytest.mark.parametrize(
    "wrong, words",
    [
        (
            {"a__mean_weight": [1.0, 1.0, 1.0]},
            "a.mean_weight is there, but a.var_weight is missing",
        ),
        ({"a__var_weight": [1.0, 1.0, 1.0]}, "a.var_weight is there, but a.mean_weight is missing"),
        ({"a__mean_weight": [1.0, 1.0], "a__var_weight": [1.0] * 3}, "a.mean_weight has 2 gates"),
        ({"a__mean_weight": [[1.0]], "a__var_weight": [1.0]}, "a.mean_weight has shape (1, 1)"),
        ({"a__mean_weight": [1.0], "a__var_weight": [1.0] * 4}, "a.var_weight has shape (4,)"),
        ({"a__mean_weight": [], "a__var_weight": []}, "a.mean_weight has shape (0,)"),
        ({"a__mean_weight": 1.0, "a__var_weight": [1.0]}, "a.mean_weight has shape ()"),
        (
            {"a__mean_weight": [1], "a__var_weight": [1]},
            "a.mean_weight has shape (1,) and type torch.int64",
        ),
        ({"a__mean_weight": [1.0], "a__var_weight": [float("nan")]}, "a.var_weight is not finite"),
        ({"a__mean_weight": [float("-inf")], "a__var_weight": [1.0]}, "a.mean_weight is not fin"),
    ],
)
def test_malformed_gates_are_refused(wrong, words):
    with pytest.raises(CheckpointError) as caught:
        read_gates(state_of("fine", **wrong), where="file.pth")
    assert str(caught.value).startswith("file.pth: ") and words in str(caught.value)


def test_a_network_without_gates_is_refused():
    state = build(ARCHITECTURES["resnet18v1_bn"], width=8).state_dict()
    with pytest.raises(CheckpointError, match=r"file.pth has no SN layer.*snzoo list --norm sn"):
        read_gates(state, where="file.pth")


def test_gates_are_loaded_by_name_file_and_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file(state_of("net.1", "net.0"), "model.safetensors")
    for source in ("model.safetensors", Path("model.safetensors"), tmp_path, "local-dir:."):
        assert [layer.name for layer in load_gates(source)] == ["net.0", "net.1"]
    (tmp_path / "resnet18v1_sn_clothing").mkdir()  # as a string, the name means the zoo's model
    assert len(load_gates("resnet18v1_sn_clothing")) == 20
    with pytest.raises(CheckpointError):
        load_gates(Path("resnet18v1_sn_clothing"))
    with pytest.raises(UnknownModelError, match="did you mean resnet18v1_sn_clothing"):
        load_gates("resnet18v1_sn_clothin")
