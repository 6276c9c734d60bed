"""The backends against the plain formula: values, gradients, and what autograd keeps."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from snzoo.nn import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from snzoo.nn.backends import cpu, cpu_fused
from snzoo.nn.functional import switch_norm

LAYERS = {2: SwitchNorm1d, 3: SwitchNorm1d, 4: SwitchNorm2d, 5: SwitchNorm3d}
SHAPES = [(1, 1), (3, 5), (3, 5, 1), (2, 3, 7), (1, 1, 1, 1), (2, 1, 3, 5), (1, 6, 3, 3)]
SHAPES += [(3, 5, 1, 1), (5, 33, 7, 3), (2, 4, 3, 2, 5), (1, 3, 1, 1, 2)]
STRIDES = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "a slice": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "transposed": lambda x: x.transpose(-1, 0).contiguous().transpose(-1, 0),
}


@pytest.fixture(params=[True, False], ids=["compiled loops", "operations"])
def loops(request, monkeypatch):
    """Use the compiled loops of evaluation mode, or do without them."""
    if not request.param:
        monkeypatch.setattr(cpu_fused, "HAS_LLVM", False)


@pytest.fixture(params=["small", "large"])
def size(request, monkeypatch):
    """Make the CPU backend compute moments from two sums, as for large inputs."""
    if request.param == "large":
        monkeypatch.setattr(cpu, "SMALL", 0)


def make(shape, *, training=True, using_bn=True, dtype=torch.float64):
    layer = LAYERS[len(shape)](shape[1], using_bn=using_bn).to(dtype).train(training)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    if using_bn:
        torch.nn.init.normal_(layer.running_mean)
        torch.nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer


def plain(layer, x):
    """Return the plain formula's output, which autograd differentiates."""
    return switch_norm(x, *layer.tensors_and_config())[0]


def relative(actual, expected):
    return (actual - expected).abs().max() / expected.abs().max().clamp_min(1e-30)


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training, using_bn", [(True, True), (False, True), (True, False)])
def test_values_and_gradients_are_those_of_the_plain_formula(
    shape, strides, training, using_bn, size
):
    layer = make(shape, training=training, using_bn=using_bn)
    x = STRIDES[strides](torch.randn(shape, dtype=torch.float64) * 2 + 1).requires_grad_()
    wanted = [x, *layer.parameters()]
    weights = torch.randn(shape, dtype=torch.float64)
    expected = plain(layer, x)
    y = layer(x)
    # One position of one channel is its own mean: only the bias remains, perhaps near 0.
    assert (y - expected).abs().max() <= 1e-10 * expected.abs().max().clamp_min(1)
    gradients = torch.autograd.grad(expected, wanted, weights)
    scale = max(gradient.abs().max() for gradient in gradients)
    for actual, right in zip(torch.autograd.grad(y, wanted, weights), gradients, strict=True):
        assert actual.shape == right.shape
        assert (actual - right).abs().max() <= 1e-10 * scale
    with torch.inference_mode():
        y, expected = layer.eval()(x), plain(layer, x)
        assert (y - expected).abs().max() <= 1e-10 * expected.abs().max().clamp_min(1)


@pytest.mark.parametrize("dtype, error", [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("strides", ["contiguous", "channels last"])
@pytest.mark.parametrize("training", [True, False])
def test_float32_is_near_float64(strides, training, dtype, error, size, loops):
    layer = make((4, 37, 29, 31), training=training, dtype=torch.float32)
    x = torch.randn(4, 37, 29, 31) * 2 + 1
    x[:, ::5] += 20  # channels where E[x²] − E[x]² cancels
    x = STRIDES[strides](x).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    assert relative(y.double(), plain(copy.deepcopy(layer).double(), x.double())) < error


def published(layer, x):
    """Return the published formula, with LN and BN statistics from ``E[x²] − E[x]²``."""
    mean_in, var_in = x.mean((2, 3), keepdim=True), x.var((2, 3), keepdim=True)
    square = var_in + mean_in**2
    mean, var = 0, 0
    shares = zip(layer.mean_weight.softmax(0), layer.var_weight.softmax(0), strict=True)
    for (mean_share, var_share), dims in zip(shares, ((), 1, 0), strict=True):
        mean_k = mean_in.mean(dims, keepdim=True) if dims != () else mean_in
        square_k = square.mean(dims, keepdim=True) if dims != () else square
        mean = mean + mean_share * mean_k
        var = var + var_share * (square_k - mean_k**2)
    return (x - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias


@pytest.mark.parametrize("strides", ["contiguous", "channels last"])
@pytest.mark.parametrize("gate, side", [(1, 28), (20, 56)])  # even shares; IN's alone
def test_a_mean_far_from_zero_costs_no_more_precision_than_as_published(
    strides, gate, side, size, loops
):
    layer = SwitchNorm2d(24)
    layer.mean_weight.data[0] = layer.var_weight.data[0] = gate
    x = STRIDES[strides](torch.randn(4, 24, side, side) + 1e3)
    exact = published(copy.deepcopy(layer).double(), x.double())
    assert relative(plain(copy.deepcopy(layer).double(), x.double()), exact) < 1e-9
    error = relative(layer(x).double(), exact)
    assert error <= relative(published(layer, x).double(), exact)
    assert error < 1e-3
    # In evaluation mode, other code computes the (N, C) part.
    layer.running_mean.fill_(1e3)
    layer.running_var.fill_(1)
    exact = plain(copy.deepcopy(layer).double().eval(), x.double())
    with torch.inference_mode():
        assert relative(layer.eval()(x).double(), exact) < 1e-3


@pytest.mark.parametrize("strides", ["contiguous", "channels last"])
@pytest.mark.parametrize("mean", [0, 10, 1e4])
def test_long_sums_lose_no_more_than_the_plain_formula_does(strides, mean):
    layer = make((1, 3, 300, 301), dtype=torch.float32)
    x = STRIDES[strides](torch.randn(1, 3, 300, 301) + mean).requires_grad_()
    exact = copy.deepcopy(layer).double()
    wide = x.detach().double().requires_grad_()
    right = exact(wide)
    y = layer(x)
    weights = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, weights)
    (right_gradient,) = torch.autograd.grad(right, wide, weights.double())
    unit = 1e-5 * max(mean / 10, 1)
    assert relative(y.double(), right) < unit
    assert relative(gradient.double(), right_gradient) < unit
    assert relative(layer.running_var.double(), exact.running_var) < unit


@pytest.mark.parametrize("mean", [0, 3, 10, 50, 200, 1e3])
def test_a_variance_keeps_its_precision_at_any_mean(mean, monkeypatch):
    """The difference of two sums is taken only where it loses a few bits."""
    monkeypatch.setattr(cpu, "SMALL", 0)
    x = torch.randn(2, 8, 40, 40, generator=torch.Generator().manual_seed(0)) + mean
    exact = x.double().var((2, 3), correction=0)
    assert relative(cpu.moments(x)[1].double(), exact) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_share_of_zero_is_none(dtype, loops):
    layer = make((2, 3, 4, 4), training=False, dtype=dtype)
    for gates in (layer.mean_weight, layer.var_weight):
        gates.data = torch.tensor([0, -torch.inf, -torch.inf], dtype=dtype)
    x = torch.randn(2, 3, 4, 4, dtype=dtype)
    with torch.inference_mode():
        limit = 1e-10 if dtype == torch.float64 else 1e-6
        assert relative(layer(x), plain(layer, x)) < limit


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 2, 3), (3, 2, 1, 1)])
@pytest.mark.parametrize("training", [True, False])
def test_gradcheck_twice(shape, training):
    layer = make(shape, training=training)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def call(x, *parameters):
        state = dict(zip(dict(layer.named_parameters()), parameters, strict=True))
        # A copy: the running statistics must not move between the calls.
        return torch.func.functional_call(copy.deepcopy(layer), state, x)

    inputs = (x, *layer.parameters())
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


def test_a_parameter_may_depend_on_the_input():
    layer = make((3, 4, 2, 2))
    x = torch.randn(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)

    def second(normalize):
        weight = x.square().mean((0, 2, 3)).view(1, 4, 1, 1)
        y = torch.func.functional_call(layer, {"weight": weight}, x) if normalize else None
        if y is None:
            tensors, config = layer.tensors_and_config()
            y = switch_norm(x, tensors._replace(weight=weight), config)[0]
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    assert relative(second(True), second(False)) < 1e-10


def test_gradients_may_come_in_batches():
    layer = make((2, 3, 4, 4))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    y, weights = layer(x), torch.randn(5, 2, 3, 4, 4, dtype=torch.float64)
    (batch,) = torch.autograd.grad(y, x, weights, is_grads_batched=True, retain_graph=True)
    for gradient, weight in zip(batch, weights, strict=True):
        (single,) = torch.autograd.grad(y, x, weight, retain_graph=True)
        assert relative(gradient, single) < 1e-10
    layer.eval()
    slow, fast = (
        torch.autograd.functional.hessian(lambda x: layer(x).pow(3).sum(), x, vectorize=vectorize)
        for vectorize in (False, True)
    )
    assert relative(fast, slow) < 1e-10


def test_what_needs_no_gradient_gets_none():
    layer = make((2, 3, 4, 4))
    layer.requires_grad_(False)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None
    layer.weight.requires_grad_()
    layer(x.detach()).square().sum().backward()
    assert layer.weight.grad.shape == layer.weight.shape and layer.bias.grad is None


def test_one_activation_is_kept():
    layer, x = SwitchNorm2d(16), torch.randn(4, 16, 32, 32, requires_grad=True)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
        statistics = torch.utils._pytree.tree_leaves(vars(y.grad_fn))
        y = torch.nn.functional.relu_(y)
    laid = [t for t in statistics if isinstance(t, torch.Tensor)]
    assert laid and sum(tensor.nbytes for tensor in laid) < x.nbytes / 8
    small = sum(parameter.nbytes for parameter in layer.parameters())
    assert kept.pop(x.data_ptr()) == x.nbytes
    assert kept.pop(y.data_ptr()) == y.nbytes  # kept by the ReLU and the next convolution
    assert sum(kept.values()) <= small


@pytest.mark.parametrize("dtype, error", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 3, 1, 1)])
def test_running_statistics_may_change_before_the_backward_pass(shape, dtype, error):
    """The gradient is that of the statistics which the output was computed with."""
    layer = make(shape, training=False, dtype=dtype)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    wanted, weights = [x, *layer.parameters()], torch.randn(shape, dtype=dtype)
    for create_graph in (False, True):
        right = torch.autograd.grad(layer.eval()(x), wanted, weights, create_graph=create_graph)
        y = layer(x)
        layer.train()(x)
        found = torch.autograd.grad(y, wanted, weights, create_graph=create_graph)
        scale = max(gradient.abs().max() for gradient in right)
        assert all((a - b).abs().max() <= error * scale for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(reentrant):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), SwitchNorm2d(8), torch.nn.ReLU(inplace=True)
    ).double()
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64, requires_grad=True)
    right = torch.autograd.grad(net(x).square().sum(), [x, *net.parameters()])
    checkpoint(net, x, use_reentrant=reentrant).square().sum().backward()
    for tensor, gradient in zip([x, *net.parameters()], right, strict=True):
        assert relative(tensor.grad, gradient) < 1e-10


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_updates_running_statistics_as_batch_norms(reentrant):
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    layers = SwitchNorm2d(3), torch.nn.BatchNorm2d(3)  # momentum 0.9 kept, 0.1 taken
    for layer in layers:
        net = torch.nn.Sequential(layer, torch.nn.Conv2d(3, 3, 1), torch.nn.Sigmoid())
        checkpoint(net, x, use_reentrant=reentrant).sum().backward()
    ours, theirs = (layer.running_mean.flatten() for layer in layers)
    assert torch.allclose(ours, theirs, atol=1e-6)
    twice = 0.19 * x.detach().mean((0, 2, 3))
    assert torch.allclose(ours, twice, atol=1e-6)


def test_autocast_gives_half_precision_and_its_gradients():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, bias=False), SwitchNorm2d(8))
    x = torch.randn(4, 3, 16, 16)
    right = torch.autograd.grad(net(x).pow(3).mean(), list(net.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    assert y.dtype == torch.bfloat16
    y.float().pow(3).mean().backward()
    for parameter, gradient in zip(net.parameters(), right, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - gradient).abs().max() < 0.05 * gradient.abs().max() + 1e-2


ONE_RANK = """
import os, sys
import torch
from snzoo.nn import SwitchNorm2d

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), SwitchNorm2d(4)).double()
parallel = torch.nn.parallel.DistributedDataParallel(net)
x = torch.randn(2, 2, 3, 6, 6, dtype=torch.float64)
parallel(x[rank]).pow(3).mean().backward()
if rank == 0:
    gradients = [parameter.grad for parameter in net.parameters()]
    torch.save((net.state_dict(), x, gradients), sys.argv[1])
del parallel  # before its process group, or its threads may abort at exit
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_distributed_data_parallel_averages_the_gradients(tmp_path):
    (tmp_path / "rank.py").write_text(ONE_RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "rank.py", "results.pt"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    state, x, gradients = torch.load(tmp_path / "results.pt")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), SwitchNorm2d(4)).double()
    net.load_state_dict(state)
    losses = [net(part).pow(3).mean() for part in x]
    right = torch.autograd.grad(sum(losses) / 2, list(net.parameters()))
    largest = max(gradient.abs().max() for gradient in right)
    for actual, gradient in zip(gradients, right, strict=True):
        assert (actual - gradient).abs().max() <= 1e-10 * largest


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("mean, var", [(i, j) for i in range(3) for j in range(3)])
def test_statistics_without_a_share_are_left_out(mean, var, samples, memory_format, monkeypatch):
    """The shares of locked layers are one-hot. The running statistics must not change."""
    calls = []
    moments = cpu.moments
    monkeypatch.setattr(cpu_fused, "HAS_LLVM", False)
    monkeypatch.setattr(cpu, "moments", lambda *inputs: calls.append(1) or moments(*inputs))
    torch.manual_seed(0)
    layer = SwitchNorm2d(8).eval()
    for gates, chosen in ((layer.mean_weight, mean), (layer.var_weight, var)):
        gates.data.fill_(-1e4)
        gates.data[chosen] = 0
    nn.init.uniform_(layer.running_mean)
    nn.init.uniform_(layer.running_var, 0.5, 1)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(samples, 8, 32, 32).to(memory_format=memory_format)
    with torch.no_grad():
        y = layer(x)
    assert len(calls) == (0 if mean == var == 2 else 1)
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())
    expected = layer.double()(x.double().requires_grad_())
    assert (y - expected).abs().max() <= 1e-5
