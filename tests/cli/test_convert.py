"""``snzoo convert``."""

import pytest
import torch

import snzoo
from snzoo.cli import main
from snzoo.nn import SparseSwitchNorm2d, set_radius


@pytest.fixture
def network(tmp_path, monkeypatch):
    """Save a batch norm network as bn.safetensors in the current folder, and return it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = snzoo.create_model("resnet18v2_bn", num_classes=2, width=8)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1)
    snzoo.save_pretrained(model, "bn.safetensors", classes=["cat", "dog"])
    return model.eval()


def run(capfd, *arguments):
    status = main(["convert", *arguments])
    return status, *capfd.readouterr()


def test_there_and_back(network, capfd):
    x = torch.randn(2, 3, 64, 64)
    status, out, err = run(capfd, "bn.safetensors", "--norm", "sn", "--output", "sn")
    assert (status, err) == (0, "")
    assert out == "sn: resnet18v2_sn, converted from bn.safetensors\n"
    sn = snzoo.create_model("sn").eval()
    assert sn.spec.classes == ("cat", "dog") and sn.spec.architecture == "resnet18v2_sn"
    torch.testing.assert_close(sn(x), network(x))
    assert run(capfd, "sn", "--norm", "bn", "--output", "again.safetensors")[0] == 0
    again = snzoo.create_model("again.safetensors").eval()
    assert torch.equal(again(x), network(x))


def test_the_share_is_given(network, capfd):
    command = ["bn.safetensors", "--norm", "sn", "--share", "0.9", "--output", "sn.safetensors"]
    assert run(capfd, *command)[0] == 0
    gates = snzoo.create_model("sn.safetensors").sn_out.var_weight
    assert gates.softmax(0)[2].item() == pytest.approx(0.9)
    command = ["sn.safetensors", "--norm", "bn", "--output", "bn2"]
    status, _, err = run(capfd, *command)
    assert status == 1
    assert "can't convert sn.safetensors: " in err and "takes 90.0% of its mean from BN" in err
    assert run(capfd, *command, "--tolerance", "0.11")[0] == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["bn.safetensors", "--norm", "sn", "--tolerance", "0.1"], "--tolerance is not for --norm"),
        (["bn.safetensors", "--norm", "sn", "--share", "1"], "share must be greater than 0"),
        (["bn.safetensors", "--norm", "bn"], "there is no SwitchNorm to convert"),
        (["resnet18v1_gn", "--norm", "sn"], "resnet18v1_gn has no published weights"),
        (["missing.safetensors", "--norm", "sn"], "missing.safetensors"),
    ],
)
def test_mistakes_are_one_line(network, capfd, tmp_path, arguments, message):
    status, out, err = run(capfd, *arguments, "--output", "out.safetensors")
    assert (status, out) == (1, "") and message in err and err.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("locked", [True, False])
def test_sparse_sn_is_converted_if_it_locked_to_bn(tmp_path, monkeypatch, capfd, locked):
    monkeypatch.chdir(tmp_path)
    model = snzoo.create_model("resnet18v1_ssn", num_classes=2, width=8)
    for layer in model.modules():
        if isinstance(layer, SparseSwitchNorm2d):
            layer.running_var.uniform_(0.5, 1)
            for gates in (layer.mean_weight, layer.var_weight):
                gates.data.copy_(torch.tensor([0.0, 0.1, 0.2 * locked]))
    set_radius(model, 1)
    snzoo.save_pretrained(model, "ssn.safetensors", classes=["cat", "dog"])
    status, out, err = run(capfd, "ssn.safetensors", "--norm", "bn", "--output", "bn.safetensors")
    if locked:
        assert (status, err) == (0, "") and out.startswith("bn.safetensors: resnet18v1_bn, ")
        converted, x = snzoo.create_model("bn.safetensors").eval(), torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(converted(x), model.eval()(x))
    else:
        assert status == 1 and "sn1 takes 0.0% of its mean from BN" in err
        assert "snzoo.nn.simplify" in err and err.count("\n") == 1
    status, _, err = run(capfd, "ssn.safetensors", "--norm", "sn", "--output", "sn.safetensors")
    assert status == 1 and "snzoo.nn.simplify" in err and err.count("\n") == 1


def test_the_input_is_not_overwritten(network, capfd):
    status, _, err = run(capfd, "bn.safetensors", "--norm", "sn", "--output", "bn.safetensors")
    assert status == 1 and "it is an input" in err


def test_the_license_of_the_original_weights_stays(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    command = ["resnet18v1_sn_clothing", "--norm", "bn", "--tolerance", "1", "--output", "bn"]
    assert run(capfd, *command)[0] == 0
    card = (tmp_path / "bn" / "README.md").read_text()
    assert "license: cc0-1.0" in card
    assert "The zoo's weights of `resnet18v1_sn_clothing`, converted to another norm: " in card
    model = snzoo.create_model("bn")
    assert (model.spec.origin, model.spec.license) == ("resnet18v1_sn_clothing", "CC0-1.0")
    snzoo.save_pretrained(model, "again")
    assert "license: cc0-1.0" in (tmp_path / "again" / "README.md").read_text()
