"""The backbones of SwitchNorm_Detection: their keys, with and without an FPN."""

import pytest
import torch

import snzoo
from snzoo.errors import CheckpointError
from snzoo.weights import read_state_dict
from snzoo.weights.detectron import rename_detectron_keys


def name_in_detectron(key, prefix):
    """Return the key that convert.py of SwitchNorm_Detection gives a key of the network."""
    head, _, rest = key.partition(".")
    if head.startswith("layer"):
        return f"{prefix}res{int(head[-1]) + 1}.{rest}"
    return f"{prefix}classifier.{rest}" if head == "fc" else f"{prefix}res1.{key}"


@pytest.mark.parametrize("prefix", ["Conv_Body.", "Conv_Body.conv_body."])
def test_a_backbone_is_the_network_it_came_from(prefix, tmp_path):
    model = snzoo.create_model("resnet50v1_sn", width=8, num_classes=10)
    state = {name_in_detectron(key, prefix): v for key, v in model.state_dict().items()}
    assert f"{prefix}res1.sn1.mean_weight" in state and f"{prefix}res2.0.conv1.weight" in state
    torch.save({"model": state}, tmp_path / "backbone.pth")
    read = read_state_dict(tmp_path / "backbone.pth")
    assert list(read) == list(model.state_dict())
    assert all(torch.equal(read[key], value) for key, value in model.state_dict().items())
    loaded = snzoo.create_model(
        "resnet50v1_sn", width=8, num_classes=10, weights=tmp_path / "backbone.pth"
    )
    assert torch.equal(loaded.fc.weight, model.fc.weight)


def test_other_keys_are_kept():
    states = [
        {"layer1.0.conv1.weight": torch.ones(1)},
        {"res2.0.conv1.weight": torch.ones(1)},
        {"Conv_Body.res1.a": torch.ones(1), "Conv_Body.conv_body.res1.a": torch.zeros(1)},
    ]
    for state in states:
        assert rename_detectron_keys(state, where="x") == state


def test_a_whole_detector_is_refused(tmp_path):
    torch.save(
        {"model": {"Conv_Body.res1.conv1.weight": torch.ones(1), "RPN.a": torch.ones(1)}},
        tmp_path / "detector.pth",
    )
    with pytest.raises(CheckpointError, match=r"detector.pth is a whole detector, .* save its"):
        snzoo.create_model("resnet50v1_sn", weights=tmp_path / "detector.pth")
