"""What trainers save: the network's state dict is found in it, averaged weights are preferred."""

import logging
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from snzoo.errors import CheckpointError
from snzoo.weights.wrappers import select_state_dict


class Holder(nn.Module):
    """A network as an attribute of another module, as LightningModule has it."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


def prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


NETWORK = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 4, 1), fc=nn.Linear(4, 2)))
RAW = NETWORK.state_dict()
EMA = {key: value + 1 for key, value in RAW.items()}
COMPILED = Holder(conv1=torch.compile(NETWORK.conv1), fc=NETWORK.fc).state_dict()
STEPS = {"n_averaged": torch.tensor(9)}
ASIDE = {"epoch": 3, "optimizer": {"state": {}, "param_groups": []}, "args": {"model": "x"}}


def select(content, averaged=None):
    return select_state_dict(content, averaged=averaged, where="FILE")


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "content",
    [
        RAW,
        OrderedDict(RAW),
        dict(NETWORK.named_parameters()),
        nn.DataParallel(NETWORK).state_dict(),
        torch.compile(NETWORK).state_dict(),
        nn.DataParallel(torch.compile(NETWORK)).state_dict(),
        torch.compile(nn.DataParallel(NETWORK)).state_dict(),
        COMPILED,
        AveragedModel(NETWORK).state_dict(),
        AveragedModel(nn.DataParallel(torch.compile(NETWORK))).state_dict(),
        prefixed("_fsdp_wrapped_module.", RAW),
        {"state_dict": prefixed("model.module._orig_mod.", RAW)},
        *(ASIDE | {"state_dict": Holder(**{name: NETWORK}).state_dict()} for name in
          ("model", "net", "network", "backbone")),
        *(ASIDE | {key: RAW} for key in
          ("state_dict", "model_state_dict", "model", "network", "net", "weights", "module")),
        ASIDE | {"model": "resnet18", "state_dict": RAW},
        ASIDE | {"model": {"state_dict": nn.DataParallel(NETWORK).state_dict()}},
    ],
)  # fmt: skip
def test_a_state_dict_is_found_in_its_wrappers(content):
    assert_equal(select(content), RAW)
    assert not any(value.requires_grad for value in select(content).values())


BOTH = {
    "timm": {"state_dict": RAW, "state_dict_ema": EMA},
    "torchvision": {"model": RAW, "model_ema": STEPS | prefixed("module.", EMA)},
    "model_ema first": {"model_ema": EMA, "model": RAW},
    "ema": {"net": RAW, "ema": {"module": EMA}},
    "ema_state_dict": {"model_state_dict": RAW, "ema_state_dict": EMA},
    "Lightning's WeightAveraging": {
        "state_dict": prefixed("model.", EMA),
        "current_model_state": prefixed("model.", RAW),
        "averaging_state": STEPS,
    },
    "Lightning, two attributes": {
        "state_dict": prefixed("model.", RAW)
        | {"ema_model.n_averaged": STEPS["n_averaged"]}
        | prefixed("ema_model.module.", EMA)
    },
    "one flat file": prefixed("model.", RAW) | prefixed("model_ema.", EMA),
    "ema_pytorch": {"initted": torch.tensor(True), "step": torch.tensor(3)}
    | prefixed("online_model.", RAW)
    | prefixed("ema_model.", EMA),
}


@pytest.mark.parametrize("content", BOTH.values(), ids=BOTH)
def test_averaged_weights_are_preferred_aloud_and_chosen_by_an_option(content, caplog):
    content = content if any(isinstance(value, torch.Tensor) for value in content.values()) else (
        ASIDE | content
    )  # fmt: skip
    assert_equal(select(content), EMA)
    assert "FILE holds averaged weights" in caplog.text and "averaged=False" in caplog.text
    caplog.clear()
    assert_equal(select(content, averaged=True), EMA)
    assert_equal(select(content, averaged=False), RAW)
    assert caplog.text == ""


def test_weights_of_the_other_kind_are_refused(caplog):
    with pytest.raises(CheckpointError, match="raw weights only, not the averaged ones asked for"):
        select({"model": RAW}, averaged=True)
    with pytest.raises(CheckpointError, match="averaged weights only, not the raw ones asked for"):
        select(AveragedModel(NETWORK).state_dict(), averaged=False)
    with caplog.at_level(logging.WARNING, "snzoo"):
        assert_equal(select({"model": RAW, "ema": {"shadow_params": list(RAW.values())}}), RAW)
    assert "ema is not a state dict, so it is ignored" in caplog.text


SELF = {"model": {}}
SELF["model"]["net"] = SELF


@pytest.mark.parametrize(
    "content, words",
    [
        ({"model": RAW, "net": EMA}, "several networks ('model', 'net'); save one of them"),
        ({"state_dict": prefixed("net.", RAW) | prefixed("model.", EMA)}, "'state_dict/model.'"),
        ({"student": RAW, "teacher": EMA}, "not dense tensors: student, teacher"),
        (list(RAW.values()), "no state dict but a list"),
        (RAW["fc.bias"], "no state dict but a Tensor"),
        ({}, "a dict without entries"),
        (SELF, "no state dict"),
        (RAW | {"fc.bias": RAW["fc.bias"].to_sparse()}, "not dense tensors: fc.bias"),
        (RAW | {"fc.bias": RAW["fc.bias"].to("meta")}, "not dense tensors: fc.bias"),
        (RAW | {"epoch": 3}, "not dense tensors: epoch"),
        (RAW | {3: torch.zeros(1)}, "not dense tensors: 3"),
        ({"_flat_param": torch.zeros(9)}, "sharded over processes (FSDP, DTensor); gather a full"),
    ],
)
def test_anything_else_is_refused_by_name(content, words):
    with pytest.raises(CheckpointError) as caught:
        select(content)
    assert str(caught.value).startswith("FILE ") and words in str(caught.value)


@pytest.mark.parametrize(
    "state",
    [
        prefixed("model.", RAW) | {"criterion.weight": torch.ones(2)},
        RAW | prefixed("_orig_mod.", EMA),
        prefixed("student.", RAW),
        prefixed("net.", RAW),  # the names of some other network, perhaps
        {"model": torch.ones(2)},
    ],
)
def test_a_state_dict_that_no_wrapper_explains_stays_as_it_is(state):
    assert_equal(select(state), state)
