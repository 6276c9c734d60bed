"""norm → (+ shortcut) → ReLU: the same result in every way of computing it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import snzoo
from snzoo.nn import SwitchNorm2d, norm_relu
from snzoo.nn.fused import keeps_no_output

NORMS = {
    "sn": lambda: SwitchNorm2d(6),
    "bn": lambda: nn.BatchNorm2d(6),
    "gn": lambda: nn.GroupNorm(2, 6),
    "identity": nn.Identity,
    "keeps its output": lambda: nn.Sequential(nn.BatchNorm2d(6), nn.Sigmoid()),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("with_shortcut", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_is_the_norm_the_addition_and_the_relu(norm, training, with_shortcut, memory_format):
    norm = norm().train(training)
    x = torch.randn(3, 6, 5, 7).to(memory_format=memory_format).requires_grad_()
    shortcut = torch.randn(3, 6, 5, 7).requires_grad_() if with_shortcut else None
    inputs = [tensor for tensor in (x, shortcut) if tensor is not None]
    before = [tensor.clone() for tensor in inputs]
    right = F.relu(norm(x) + shortcut if with_shortcut else norm(x))
    y = norm_relu(norm, x, shortcut)
    assert torch.allclose(y, right, atol=1e-6)
    for actual, expected in zip(
        torch.autograd.grad(y.square().sum(), inputs),
        torch.autograd.grad(right.square().sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(actual, expected, atol=1e-4)
    with torch.inference_mode():
        assert torch.allclose(norm_relu(norm.eval(), x, shortcut), norm_relu(norm, *inputs))
    assert all(map(torch.equal, inputs, before))


@pytest.mark.parametrize("norm", [SwitchNorm2d(6).eval(), nn.BatchNorm2d(6).eval()])
def test_a_hook_sees_and_keeps_what_the_norm_returned(norm):
    kept = []
    handle = norm.register_forward_hook(lambda module, args, output: kept.append(output))
    x = torch.randn(2, 6, 4, 4)
    with torch.inference_mode():
        norm_relu(norm, x, x)
        handle.remove()
        assert torch.equal(kept[0], norm(x))
        assert len(kept) == 1
        handle = nn.modules.module.register_module_forward_hook(
            lambda module, args, output: kept.append(output)
        )
        try:
            norm_relu(norm, x)
        finally:
            handle.remove()
        assert torch.equal(kept[1], norm(x))


HOOKS = ["forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("on", ["norm", "relu", "all modules"])
@pytest.mark.parametrize("kind", ["sn", "bn"])
def test_every_hook_is_called(kind, on, hook):
    norm, relu, calls = NORMS[kind]().eval(), nn.ReLU(), []
    x = torch.randn(2, 6, 4, 4, requires_grad=True)
    right = torch.autograd.grad(F.relu(norm(x) + x).square().sum(), x)[0]
    targets = {"norm": norm, "relu": relu}
    register = (
        getattr(nn.modules.module, f"register_module_{hook}")
        if on == "all modules"
        else getattr(targets[on], f"register_{hook}")
    )
    handle = register(lambda module, *args: calls.append(module))
    try:
        y = norm_relu(norm, x, x, relu)
        assert torch.allclose(torch.autograd.grad(y.square().sum(), x)[0], right, atol=1e-5)
    finally:
        handle.remove()
    assert {*calls} == ({norm, relu} if on == "all modules" else {targets[on]})


@pytest.mark.parametrize("name", ["resnet18v1_bn", "resnet18v1_sn", "resnet50v2_sn"])
def test_networks_have_a_relu_module_for_each_activation(name):
    torch.manual_seed(0)
    model = snzoo.create_model(name, width=8, num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    relus = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    plain, calls = torch.autograd.grad(model(x).sum(), x)[0], []

    def guide(relu, grad_input, grad_output):  # guided backpropagation
        calls.append(relu)
        return (grad_input[0].clamp_min(0),)

    handles = [relu.register_full_backward_hook(guide) for relu in relus]
    guided = torch.autograd.grad(model(x).sum(), x)[0]
    assert len(calls) == len(relus) == len({*calls}) >= 17
    assert not torch.allclose(guided, plain, rtol=0.1)
    for handle in handles:
        handle.remove()
    assert torch.equal(torch.autograd.grad(model(x).sum(), x)[0], plain)
    model.layer1[0].relu1 = nn.GELU()
    assert not torch.equal(torch.autograd.grad(model(x).sum(), x)[0], plain)


def test_the_gradient_of_a_shortcut_is_not_lost_where_the_norm_is_frozen():
    norm = SwitchNorm2d(6).eval().requires_grad_(False)
    x, shortcut = torch.randn(2, 1, 6, 4, 4)
    shortcut.requires_grad_()
    y = norm_relu(norm, x, shortcut)
    (gradient,) = torch.autograd.grad(y.sum(), shortcut)
    assert torch.equal(gradient, (y > 0).float())


def test_a_shortcut_of_another_dtype_or_shape_is_promoted():
    norm = SwitchNorm2d(6).eval()
    x = torch.randn(2, 6, 4, 4)
    wide = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    with torch.inference_mode():
        assert norm_relu(norm, x, wide).dtype == torch.float64
        row = torch.randn(6, 1, 1)
        assert torch.allclose(norm_relu(norm, x, row), F.relu(norm(x) + row))


def test_a_subclass_keeps_its_own_forward():
    class Doubled(SwitchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    norm, x = Doubled(6).eval(), torch.randn(2, 6, 4, 4)
    with torch.inference_mode():
        assert torch.equal(norm_relu(norm, x), F.relu(norm(x)))
        plain = SwitchNorm2d(6).eval()
        plain.forward = lambda x: x - 1
        assert torch.equal(norm_relu(plain, x), F.relu(x - 1))


def test_a_transform_over_the_shortcut_alone():
    norm, x = SwitchNorm2d(2).eval(), torch.randn(1, 2, 3, 3)
    shortcuts = torch.randn(4, 1, 2, 3, 3)
    y = torch.vmap(lambda shortcut: norm_relu(norm, x, shortcut))(shortcuts)
    assert torch.allclose(y[1], F.relu(norm(x) + shortcuts[1]), atol=1e-6)


class _Kept(nn.Conv2d):
    def forward(self, x):
        self.output = super().forward(x)
        return self.output


def test_only_a_plain_convolution_without_hooks_keeps_no_output():
    conv = nn.Conv2d(6, 6, 1)
    assert keeps_no_output(conv)
    assert not any(map(keeps_no_output, (nn.Identity(), nn.Sequential(conv), _Kept(6, 6, 1))))
    assert not keeps_no_output(nn.utils.parametrizations.weight_norm(nn.Conv2d(6, 6, 1)))
    handle = conv.register_forward_hook(lambda *_: None)
    assert not keeps_no_output(conv)
    handle.remove()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not keeps_no_output(conv)
    handle.remove()
    assert keeps_no_output(conv)


class _Recorder(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.kept = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if function is F.conv2d:
            self.kept.append((output, output.clone()))
        return output


def test_a_function_mode_may_keep_what_a_convolution_returns():
    model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=3).eval()
    with torch.inference_mode(), _Recorder() as recorder:
        model(torch.randn(1, 3, 64, 64))
    assert len(recorder.kept) == 20
    assert all(torch.equal(output, before) for output, before in recorder.kept)


@pytest.mark.parametrize("name", ["resnet18v1_sn", "resnet50v1_sn", "resnet50v2_sn"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_network_overwrites_nothing_that_is_held(name, memory_format):
    torch.manual_seed(0)
    model = snzoo.create_model(name, width=8, num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64).to(memory_format=memory_format)
    before, kept = x.clone(), []
    with torch.inference_mode():
        y = model(x)
        maps = [level.clone() for level in model.forward_levels(x, range(5))]
        held = model.forward_levels(x, range(5))
        assert all(map(torch.equal, held, maps))
        for conv in model.modules():
            if isinstance(conv, nn.Conv2d):
                conv.register_forward_hook(lambda conv, args, out: kept.append((conv, *args, out)))
        assert torch.allclose(model(x), y, atol=1e-5)
        for conv, given, output in kept:
            assert torch.equal(conv.forward(given), output)
    assert torch.equal(x, before) and len(kept) >= 20


def test_gradients_need_what_inference_overwrites():
    torch.manual_seed(0)
    model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    (right,) = torch.autograd.grad(model.double()(x.double()).sum(), x)
    assert torch.allclose(gradient, right, atol=1e-4 * right.abs().max().item())
