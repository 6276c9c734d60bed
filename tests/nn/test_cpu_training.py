"""The compiled loops of a training step against the formula in float64."""

import copy
import importlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from norm_layers import LAYOUTS, channels_last, make_layer
from torch import nn

from snzoo.nn import SparseSwitchNorm2d
from snzoo.nn.backends import cpu_fused
from snzoo.nn.functional import switch_norm

pytest.importorskip("llvmlite", reason="needs the extra [fast]")
# Channels last, samples of fewer than 2,048 values are left to the formula.
SHAPES = [(3, 100, 7, 7), (2, 33, 5, 41), (3, 64, 9, 31), (1, 2, 50, 90), (5, 512, 2, 3)]
SHAPES += [(2, 40, 3, 5, 6), (3, 65, 33)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def step(layer, x, grad):
    """Return the output and all gradients, and assert that loops computed them."""
    x = x.detach().requires_grad_()
    y = layer(x)
    assert y.grad_fn.step is cpu_fused
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], grad)]


def exact(layer, x, grad):
    """Return what ``step`` returns, in float64."""
    own = list(layer.parameters())
    wide = [p.detach().double().requires_grad_() for p in own]
    tensors, config = layer.tensors_and_config()
    running = [None if t is None else t.double() for t in tensors[4:]]
    x = x.detach().double().requires_grad_()
    y, _ = switch_norm(x, type(tensors)(*wide, *running), config)
    return [y.detach(), *torch.autograd.grad(y, [x, *wide], grad.double())]


def errors(found, right):
    """Return the errors of the output and of the gradients.

    That of each is relative to its largest value; to the largest of those of all parameters, for
    them, since the gradient of a gate is a difference of many sums.
    """
    scales = [t.abs().max().clamp_min(1e-3) for t in right]
    scales[2:] = [max(scales[2:])] * 4
    return [
        ((a.double() - b).abs().max() / scale).item()
        for a, b, scale in zip(found, right, scales, strict=True)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("values", ["float32", "bfloat16"])
@pytest.mark.parametrize("training, using_bn", [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_formula_and_its_gradient(shape, training, using_bn, values, layout):
    layer = make_layer(shape, using_bn=using_bn).train(training)
    x, grad = (layout(torch.randn(shape).to(getattr(torch, values))) for _ in range(2))
    right = exact(layer, x, grad)
    found = step(layer, x, grad)
    assert all(t.stride() == x.stride() and t.dtype == x.dtype for t in found[:2])
    of_values, of_parameters = errors(found, right)[:2], errors(found, right)[2:]
    assert max(of_values) < (1e-6 if values == "float32" else 2**-8)
    assert max(of_parameters) < 2e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_running_statistics_are_those_of_the_formula(layout):
    layer, x = make_layer((4, 50, 9, 9)), torch.randn(4, 50, 9, 9) + torch.randn(4, 50, 1, 1)
    mean, var = layer.running_mean.double(), layer.running_var.double()
    tensors, config = layer.tensors_and_config()
    tensors = type(tensors)(*(t if t is None else t.double() for t in tensors))
    bn = switch_norm(x.double(), tensors, config)[1].batch_stats()
    layer(layout(x))
    assert torch.allclose(layer.running_mean.double(), 0.9 * mean + 0.1 * bn[0][:, None], atol=1e-6)
    assert torch.allclose(layer.running_var.double(), 0.9 * var + 0.1 * bn[1][:, None], atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean", [30, 1e3])
def test_a_far_mean_costs_no_accuracy(mean, layout):
    layer, x = make_layer((3, 64, 20, 33)), layout(torch.randn(3, 64, 20, 33) + mean)
    x[:, ::5, 0, 0] = 0  # next to which the mean is looked for
    grad = layout(torch.randn(x.shape))
    y, *gradients = errors(step(layer, x, grad), exact(layer, x, grad))
    # The output depends on the input's own rounding, half a unit in its last place.
    assert y < 1e-5 + mean * 2**-24 and max(gradients) < 2e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("samples", [1, 3, 8])
def test_the_number_of_threads_does_not_matter(samples, layout, threads):
    layer, x = make_layer((samples, 40, 30, 31)), layout(torch.randn(samples, 40, 30, 31))
    grad = layout(torch.randn(x.shape))
    right = exact(layer, x, grad)
    for number in (1, 2, 3, 5):
        threads(number)
        found = step(layer, x, grad)
        assert max(errors(found, right)) < 2e-6
        assert all(map(torch.equal, found, step(layer, x, grad)))  # the same bits


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gates_of_sparse_sn_are_shares(layout):
    layer, x = SparseSwitchNorm2d(64), layout(torch.randn(4, 64, 9, 9) + torch.randn(4, 64, 1, 1))
    nn.init.normal_(layer.mean_weight), nn.init.normal_(layer.var_weight)
    grad = layout(torch.randn(x.shape))
    found = step(layer, x, grad)
    wide, own = x.double().requires_grad_(), layer.double()
    y = own(wide)
    right = [y.detach(), *torch.autograd.grad(y, [wide, *own.parameters()], grad.double())]
    assert max(errors(found, right)) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_input_may_need_no_gradient(layout):
    layer, x = make_layer((2, 64, 9, 9)), layout(torch.randn(2, 64, 9, 9))
    grad = layout(torch.randn(x.shape))
    found = torch.autograd.grad(layer(x), list(layer.parameters()), grad)
    assert all(map(torch.equal, found, step(layer, x, grad)[2:]))


@pytest.mark.parametrize("grad", ["expanded", "other strides", "negative view", "zeros", "double"])
def test_any_gradient_of_the_output(grad):
    layer, x = make_layer((2, 64, 9, 9)), torch.randn(2, 64, 9, 9).requires_grad_()
    given = {
        "expanded": lambda: torch.randn(()).expand(x.shape),
        "other strides": lambda: channels_last(torch.randn(x.shape)),
        "negative view": lambda: torch._neg_view(torch.randn(x.shape)),
        "zeros": lambda: torch._efficientzerotensor(x.shape),
        "double": lambda: torch.randn(x.shape).double(),
    }[grad]()
    y, wanted = layer(x), [x, *layer.parameters()]
    if grad == "double":  # autograd itself would convert it
        found = [g for g in y.grad_fn.apply(given) if g is not None]
    else:
        found = torch.autograd.grad(y, wanted, given)
    assert max(errors([y, *found], exact(layer, x, given))) < 2e-6


@pytest.mark.parametrize("change", ["strides", "half", "slice"])
def test_hooks_may_change_what_is_saved(change):
    layer, x = make_layer((2, 64, 9, 9)), torch.randn(2, 64, 9, 9).half().float()
    unpack = {
        "strides": lambda t: channels_last(t) if t.ndim == 4 else t,
        "half": lambda t: t.half() if t.shape == x.shape else t,
        "slice": lambda t: torch.cat([t, t], -1)[..., : t.shape[-1]],
    }[change]
    grad = torch.randn(x.shape)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), unpack):
        found = step(layer, x, grad)
    limit = 1e-2 if change == "half" else 2e-6
    assert max(errors(found, exact(layer, x, grad))) < limit


def test_what_is_kept_is_the_input_and_its_statistics():
    layer, x = make_layer((8, 64, 14, 14)), torch.randn(8, 64, 14, 14).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = layer(x)
    assert sum(t.numel() for t in saved if t.shape == x.shape) == x.numel()
    assert y.grad_fn.kept.numel() == 2 * (8 * 64 + 8 + 64)


def test_a_gradient_can_be_taken_twice_and_of_itself():
    layer, x = make_layer((2, 64, 9, 9)), torch.randn(2, 64, 9, 9).requires_grad_()
    y = layer(x)
    first, second = (torch.autograd.grad(y.sum(), x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (of_grad,) = torch.autograd.grad(grad.square().sum(), x)
    assert of_grad.isfinite().all() and of_grad.abs().max() > 0


def test_python_threads_run_at_once():
    layer, (xs, grads) = make_layer((2, 64, 20, 20)), torch.randn(2, 6, 2, 64, 20, 20)

    def find_error(x, grad):
        own = copy.deepcopy(layer)  # with running statistics of its own
        right = exact(own, x, grad)
        return max(max(errors(step(own, x, grad), right)) for _ in range(10))

    with ThreadPoolExecutor(len(xs)) as pool:
        assert max(pool.map(find_error, xs, grads)) < 2e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("using_bn", [True, False])
def test_a_sample_that_is_not_finite_spoils_no_other_one(using_bn, layout):
    """Without statistics of the batch, samples do not depend on each other."""
    layer, x = make_layer((3, 64, 9, 9), using_bn=using_bn).eval(), torch.randn(3, 64, 9, 9)
    grad = layout(torch.randn(x.shape))
    x[1, 2, 3, 4] = torch.nan
    y, to_x, *_ = step(layer, layout(x), grad)
    right = exact(layer, x, grad)
    for values, exact_values in ((y, right[0]), (to_x, right[1])):
        assert not values[1].isfinite().all()
        assert torch.allclose(values[::2].double(), exact_values[::2], atol=1e-5)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16, "meta"])
def test_the_defaults_of_new_tensors_do_not_matter(default):
    layer, x, grad = make_layer((4, 64, 9, 9)), *torch.randn(2, 4, 64, 9, 9)
    other, right = copy.deepcopy(layer), exact(layer, x, grad)
    layer(x)
    before = torch.get_default_dtype()
    try:
        with torch.device("meta" if default == "meta" else "cpu"):
            torch.set_default_dtype(before if default == "meta" else default)
            y = other.forward(x.requires_grad_())
            found = [y, *torch.autograd.grad(y, [x, *other.parameters()], grad)]
    finally:
        torch.set_default_dtype(before)
    assert max(errors(found, right)) < 2e-6
    for name, buffer in layer.named_buffers():
        assert torch.equal(other.get_buffer(name), buffer)


@pytest.mark.parametrize("tracking", [True, False])
def test_statistics_of_the_batch_without_running_ones(tracking):
    layer, x = make_layer((3, 64, 9, 9), track_running_stats=tracking), torch.randn(3, 64, 9, 9)
    layer.train(tracking)
    grad = torch.randn(x.shape)
    assert max(errors(step(layer, x, grad), exact(layer, x, grad))) < 2e-6


def test_where_the_gradient_can_not_be_compiled_torch_computes_it(monkeypatch):
    layer, x, grad = make_layer((2, 64, 9, 9)), *torch.randn(2, 2, 64, 9, 9)
    llvm = importlib.import_module("snzoo.llvm")
    y = layer(x.requires_grad_())
    monkeypatch.setattr(llvm, "compile_functions", _fail)
    cpu_fused._load_kernel.cache_clear()
    try:
        found = [y, *torch.autograd.grad(y, [x, *layer.parameters()], grad)]
    finally:
        cpu_fused._load_kernel.cache_clear()
    assert max(errors(found, exact(layer, x, grad))) < 1e-5


def _fail(module, names):
    raise RuntimeError("no such processor")


def test_where_nothing_can_be_compiled_torch_computes_the_same(monkeypatch):
    layer, x, grad = make_layer((2, 64, 9, 9)), *torch.randn(2, 2, 64, 9, 9)

    llvm = importlib.import_module("snzoo.llvm")
    monkeypatch.setattr(llvm, "compile_functions", _fail)
    cpu_fused._load_kernel.cache_clear()
    try:
        x.requires_grad_()
        y = layer(x)
        found = [y, *torch.autograd.grad(y, [x, *layer.parameters()], grad)]
        assert y.grad_fn.step is not cpu_fused
    finally:
        cpu_fused._load_kernel.cache_clear()
    assert max(errors(found, exact(layer, x, grad))) < 1e-5
