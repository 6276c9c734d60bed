"""The operator in versions of torch that lack one of the private symbols it uses."""

import importlib
import sys

import pytest
import torch

import snzoo
from snzoo.nn import SwitchNorm2d, _compat, backends

OBSERVERS = [
    "_C._is_tracing",
    "_C._are_functorch_transforms_active",
    "_C._len_torch_dispatch_stack",
    "_C._functorch.is_legacy_batchedtensor",
    "autograd.forward_ad._current_level",
]
CPU = [
    "ops.aten._unsafe_view",
    "ops.aten.native_batch_norm_backward",
    "native_group_norm",
    "batch_norm_update_stats",
]
HOOKS = [
    f"nn.modules.module._global_{pass_}_{kind}"
    for pass_ in ("forward", "backward")
    for kind in ("hooks", "pre_hooks")
]


class Hidden:
    """``parent`` without the attribute at the end of ``path``."""

    def __init__(self, parent, path):
        self.__parent, (self.__name, *self.__rest) = parent, path

    def __getattr__(self, name):
        value = getattr(self.__parent, name)
        if name != self.__name:
            return value
        if not self.__rest:
            raise AttributeError(name)
        return Hidden(value, self.__rest)


@pytest.fixture
def hide(monkeypatch):
    def reload_without(path):
        monkeypatch.setitem(sys.modules, "torch", Hidden(torch, path.split(".")))
        importlib.reload(_compat)
        monkeypatch.undo()

    yield reload_without
    importlib.reload(_compat)


def run(name):
    torch.manual_seed(0)
    model = snzoo.create_model(name, width=8, num_classes=5, drop_rate=0.0).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    model.train()(x).logsumexp(1).sum().backward()
    results = [parameter.grad for parameter in model.parameters()]
    with torch.inference_mode():
        return [*results, model.eval()(x)]


@pytest.mark.parametrize("path", OBSERVERS + CPU + HOOKS)
def test_without_a_private_symbol_the_plain_formula_serves(path, hide):
    names = "resnet18v1_bn", "resnet18v1_sn"
    expected = [run(name) for name in names]
    x = torch.randn(2, 8, 16, 16)
    assert backends.select(x) is not None and not _compat.has_hooks(SwitchNorm2d(8))
    hide(path)
    assert (backends.select(x) is None) == (path not in HOOKS)
    assert _compat.has_hooks(SwitchNorm2d(8)) == (path in HOOKS)
    for name, right in zip(names, expected, strict=True):
        for value, wanted in zip(run(name), right, strict=True):
            assert (value - wanted).abs().max() <= 1e-9 * wanted.abs().max().clamp_min(1e-3)


def test_a_module_that_keeps_its_hooks_elsewhere_counts_as_hooked():
    assert _compat.has_hooks(type("Module", (), {})())
