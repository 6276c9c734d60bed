"""The compiled loops of evaluation mode against the formula in float64."""

import ctypes
import importlib
import logging
import multiprocessing
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from norm_layers import LAYOUTS, channels_last, make_layer
from torch import nn

from snzoo.nn import SparseSwitchNorm2d
from snzoo.nn.backends import cpu_fused
from snzoo.nn.functional import switch_norm

pytest.importorskip("llvmlite", reason="needs the extra [fast]")
SHAPES = [(2, 3, 7), (1, 5, 40), (2, 3, 1, 1), (3, 100, 7, 7), (2, 33, 5, 41)]
SHAPES += [(1, 8, 1, 3), (3, 64, 9, 31), (1, 257, 3, 3), (1, 2, 150, 150), (2, 4, 3, 5, 6)]


def make(shape, dtype=torch.float32, **options):
    return make_layer(shape, **options).eval().to(dtype)


def exact(layer, x, shortcut=None, relu=True):
    tensors, config = layer.tensors_and_config()
    tensors = type(tensors)(*(None if t is None else t.double() for t in tensors))
    y, _ = switch_norm(x.double(), tensors, config)
    y = y if shortcut is None else y + shortcut.double()
    return F.relu(y) if relu else y


def fused(layer, x, shortcut=None, relu=True, overwrite=False):
    with torch.no_grad():
        y = cpu_fused.infer(x, *layer.tensors_and_config(), shortcut, relu, overwrite)
    assert y is not None
    return y


def error(y, right):
    return ((y.double() - right).abs().max() / right.abs().max().clamp_min(1)).item()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("parameters", ["float32", "bfloat16"])
@pytest.mark.parametrize("values", ["float32", "bfloat16"])
@pytest.mark.parametrize("using_bn", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_it_is_the_formula(shape, using_bn, values, parameters, layout):
    torch.manual_seed(0)
    layer = make(shape, getattr(torch, parameters), using_bn=using_bn)
    tolerance = 3e-6 if values == "float32" else 2**-8
    for relu, with_shortcut in [(True, True), (False, False), (True, False)]:
        x, shortcut = (layout(torch.randn(shape).to(getattr(torch, values))) for _ in range(2))
        before, shortcut = x.clone(), shortcut if with_shortcut else None
        right = exact(layer, x, shortcut, relu)
        y = fused(layer, x, shortcut, relu)
        assert error(y, right) < tolerance
        assert y.stride() == x.stride() and torch.equal(x, before)
        over = fused(layer, x, shortcut, relu, overwrite=True)
        assert over.data_ptr() == x.data_ptr() and torch.equal(over, y)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean", [30, 1e3, 1e5])
def test_a_far_mean_costs_no_accuracy(mean, layout):
    torch.manual_seed(0)
    for seed in range(3):
        layer, x = make((3, 24, 20, 33)), layout(torch.randn(3, 24, 20, 33) + mean)
        x[:, seed::5, 0, 0] = 0  # the values next to which the mean is looked for
        x[0, seed] = mean
        right = exact(layer, x)
        # The output depends on the input's own rounding, half a unit in its last place.
        scale = right.abs().max() / mean
        assert error(fused(layer, x), right) < 1e-5 + 3 * mean * 2**-24 * max(1, scale.item())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_variance_keeps_its_precision_next_to_an_outlier(layout):
    """An outlier where distances are taken to is far from the mean, so the sums are repeated."""
    torch.manual_seed(0)
    layer = make((1, 40, 100, 200))
    with torch.no_grad():  # IN alone
        for gates in (layer.mean_weight, layer.var_weight):
            gates.copy_(torch.tensor([0.0, -1e4, -1e4]))
    x = layout(1e-3 * torch.randn(1, 40, 100, 200))
    x[:, ::3, 0, 0] = 50.0
    assert error(fused(layer, x), exact(layer, x)) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_value_that_is_not_finite_stays_where_only_batch_statistics_are_mixed(layout):
    layer = make((2, 8, 9, 9))
    with torch.no_grad():
        for gates in (layer.mean_weight, layer.var_weight):
            gates.copy_(torch.tensor([-1e4, -1e4, 0.0]))
    x = layout(torch.randn(2, 8, 9, 9))
    right = exact(layer, x)
    x[1, 2, 3, 4], right[1, 2, 3, 4] = torch.nan, torch.nan
    assert torch.allclose(fused(layer, x).double(), right, atol=1e-5, equal_nan=True)


def test_parameters_of_another_dtype_or_size_are_left_to_torch():
    x = torch.randn(2, 8, 4, 4)
    with torch.inference_mode():
        layer = make(x.shape, torch.float16)
        assert error(layer(x), exact(layer, x, relu=False)) < 1e-5
        layer = make(x.shape)
        layer.weight = nn.Parameter(torch.ones(1, 4, 1, 1))
        with pytest.raises(RuntimeError):
            layer(x)
        with pytest.raises(RuntimeError):
            layer.forward_relu(x)


@pytest.mark.parametrize("layer", ["batch statistics", "shares"])
def test_other_statistics_and_gates_are_those_of_the_formula(layer):
    """Without running ones, BN statistics are the batch's; the gates of SSN are shares."""
    torch.manual_seed(0)
    if layer == "shares":
        layer = SparseSwitchNorm2d(8).eval()
        nn.init.normal_(layer.mean_weight)
    else:
        layer = make((2, 8, 4, 4), track_running_stats=False)
    x = torch.randn(2, 8, 4, 4) + torch.randn(2, 8, 1, 1)
    with torch.inference_mode():
        y = layer.forward_relu(x)
        assert torch.allclose(y, F.relu(layer(x)), atol=1e-5)
        assert error(y, exact(layer, x)) < 1e-5


class _Logged(torch.Tensor):
    """A subclass, which is left to torch."""


def test_tensors_that_are_not_their_memory_are_left_to_torch():
    layer, x = make((1, 8, 4, 4)), torch.randn(1, 8, 4, 4)
    negated = torch._neg_view(x)
    with torch.inference_mode():
        assert error(layer.forward_relu(negated), exact(layer, -x)) < 1e-5
        layer.running_mean = layer.running_mean.as_subclass(_Logged)
        assert cpu_fused.infer(x, *layer.tensors_and_config(), None, True, False) is None


@pytest.mark.parametrize("shortcut", ["negative view", "other strides", "other dtype", "broadcast"])
def test_any_shortcut_is_added(shortcut):
    layer, x = make((2, 8, 40, 40)), torch.randn(2, 8, 40, 40)
    other = {
        "negative view": lambda: torch._neg_view(torch.randn_like(x)),
        "other strides": lambda: channels_last(torch.randn_like(x)),
        "other dtype": lambda: torch.randn_like(x).double(),
        "broadcast": lambda: torch.randn(2, 8, 1, 1),
    }[shortcut]()
    with torch.inference_mode():
        assert error(layer.forward_relu(x, other), exact(layer, x, other)) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("samples", [1, 3, 8])
def test_the_number_of_threads_does_not_matter(samples, layout, threads):
    layer, x = make((samples, 40, 30, 31)), layout(torch.randn(samples, 40, 30, 31))
    right = exact(layer, x)
    for number in (1, 2, 3, 5):
        threads(number)
        assert error(fused(layer, x), right) < 3e-6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("samples, number", [(1, 4), (3, 2), (4, 3)])
def test_no_thread_writes_over_what_another_one_reads(samples, number, layout, threads):
    """Several samples with parts of two threads would be wrong in each call, not by chance."""
    torch.manual_seed(0)
    layer, x = make((samples, 64, 60, 61)), layout(torch.randn(samples, 64, 60, 61))
    x[:, ::2, 0, 0] = 1e4  # these sums are repeated
    threads(number)
    right = fused(layer, x)
    for _ in range(50):
        assert torch.equal(fused(layer, x.clone(), overwrite=True), right)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("distance", [1.9, 2.1, 3.9])
def test_sums_next_to_a_value_at_some_distance_are_exact(distance, layout):
    torch.manual_seed(0)
    layer, x = make((2, 8, 50, 50)), torch.randint(0, 2, (2, 8, 50, 50)).float() * 2 - 1
    x[:, :, 0, 0] = distance
    assert error(fused(layer, layout(x)), exact(layer, layout(x))) < 3e-6


def test_a_running_statistic_may_be_a_parameter():
    layer, x = make((2, 8, 4, 4)), torch.randn(2, 8, 4, 4)
    right = exact(layer, x)
    mean = layer.running_mean
    del layer.running_mean
    layer.running_mean = nn.Parameter(mean)
    with torch.inference_mode():
        assert error(layer.forward_relu(x), right) < 1e-5


def test_it_runs_within_a_team_of_the_same_library():
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    if not hasattr(library, "GOMP_parallel"):
        pytest.skip("this build of torch has no OpenMP")
    layer, x = make((1, 8, 4, 4)), torch.randn(1, 8, 4, 4)
    right, errors = exact(layer, x), []
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(
        lambda _: errors.append(error(fused(layer, x), right))
    )
    library.GOMP_parallel(callback, None, 2, 0)
    assert len(errors) == 2 and max(errors) < 3e-6


def test_python_threads_run_at_once():
    layer, xs = make((2, 16, 40, 40)), torch.randn(8, 2, 16, 40, 40)

    def find_error(x):
        right = exact(layer, x)
        return max(error(fused(layer, x), right) for _ in range(20))

    with ThreadPoolExecutor(len(xs)) as pool:
        assert max(pool.map(find_error, xs)) < 3e-6


def _run_in_child(layer, x, queue):
    torch.set_num_threads(1)  # as in the workers of a data loader
    queue.put(fused(layer, x).numpy())


def test_a_forked_process_computes_after_its_parent_did():
    layer, x = make((2, 16, 40, 40)), torch.randn(2, 16, 40, 40)
    right = fused(layer, x)
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=_run_in_child, args=(layer, x, queue))
    child.start()
    y = torch.from_numpy(queue.get(timeout=60))
    child.join(60)
    assert child.exitcode == 0 and torch.allclose(y, right, atol=1e-6)


def test_another_openmp_library_does_no_harm(tmp_path, threads):
    """A copy of the library, as wheels of other packages bring it, has threads of its own."""
    threads(2)
    found = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))
    if not found:
        pytest.skip("this build of torch brings no libgomp")
    copy = tmp_path / "libgomp-other.so"
    shutil.copy(found[0], copy)
    other = ctypes.CDLL(str(copy), mode=ctypes.RTLD_GLOBAL)
    seen = set()
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(
        lambda _: seen.add(other.omp_get_thread_num())
    )
    layer, x = make((2, 16, 64, 64)), torch.randn(2, 16, 64, 64)
    right = exact(layer, x)
    for _ in range(10):
        other.GOMP_parallel(callback, None, 2, 0)
        assert error(fused(layer, x), right) < 3e-6
    assert seen == {0, 1}


def test_where_nothing_can_be_compiled_torch_computes_the_same(monkeypatch, caplog):
    layer, x = make((2, 8, 20, 20)), torch.randn(2, 8, 20, 20)

    def fail(module, names):
        raise RuntimeError("no such processor\nmore")

    llvm = importlib.import_module("snzoo.llvm")
    monkeypatch.setattr(llvm, "compile_functions", fail)
    cpu_fused._load_kernel.cache_clear()
    try:
        with torch.inference_mode(), caplog.at_level(logging.WARNING, "snzoo"):
            for _ in range(2):
                assert error(layer.forward_relu(x, x), exact(layer, x, x)) < 1e-5
    finally:
        cpu_fused._load_kernel.cache_clear()
    assert [record.message for record in caplog.records] == [
        "SwitchNorm uses the operations of PyTorch, which are slower: llvmlite can't compile its "
        "loops (no such processor)"
    ]


def test_without_llvmlite_torch_computes_the_same(monkeypatch):
    monkeypatch.setattr(cpu_fused, "HAS_LLVM", False)
    layer, x = make((2, 8, 20, 20)), torch.randn(2, 8, 20, 20)
    with torch.inference_mode():
        assert cpu_fused.infer(x, *layer.tensors_and_config(), None, True, False) is None
        assert error(layer.forward_relu(x, x), exact(layer, x, x)) < 1e-5
