"""The Triton kernels against plain float64: on a GPU where there is one, else interpreted."""

import copy
import os
import re
import subprocess
import sys

import pytest
import torch

import snzoo
from snzoo.nn import SwitchNorm2d, backends
from snzoo.nn.backends import cpu_fused
from snzoo.nn.functional import Config, LayerTensors

triton = pytest.importorskip("snzoo.nn.backends.triton", reason="needs Triton")

CUDA = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if CUDA else "cpu"
run = pytest.mark.skipif(
    not CUDA and not INTERPRETED, reason="no GPU; test_in_the_interpreter runs it instead"
)

FLOAT, DOUBLE = torch.float32, torch.float64
HALF, BRAIN = torch.float16, torch.bfloat16
# With small tiles, small inputs have many tiles and parts, with ragged ends.
MANY_TILES = {"TILE": 32, "LINE": 8, "PROGRAMS": 1}
MANY_PARTS = {"TILE": 32, "LINE": 8, "PART": 2}
MIXING = ("pool_columns", "mix_rows", "reduce_columns", "spread_rows")
# (N, C, P), a type, and the module's constants for the case.
CASES = [
    ((1, 1, 1), FLOAT, {}),
    ((3, 5, 1), HALF, {}),
    ((2, 33, 49), FLOAT, {}),
    ((2, 33, 49), HALF, {}),
    ((2, 33, 49), BRAIN, {}),
    ((1, 4, 2064), FLOAT, {}),
    ((1, 16, 2064), HALF, {}),
    ((1, 4, 2064), BRAIN, {}),
    ((1, 9, 75), HALF, MANY_TILES),
    ((1, 3, 130), BRAIN, MANY_PARTS),
    ((1, 8, 112), FLOAT, MANY_PARTS),
]
FAR = [(shape, constants) for shape, dtype, constants in CASES if dtype == FLOAT]
FAR += [((1, 9, 75), MANY_TILES)]
cases = pytest.mark.parametrize("shape, dtype, constants", CASES)
layouts = pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
dtypes = pytest.mark.parametrize("dtype", [FLOAT, HALF, BRAIN])


@pytest.fixture(autouse=True)
def no_loops_of_the_cpu(monkeypatch):
    monkeypatch.setattr(cpu_fused, "HAS_LLVM", False)


@pytest.fixture(autouse=True)
def constants_of_the_case(request, monkeypatch):
    if "constants" in request.fixturenames:
        for name, value in request.getfixturevalue("constants").items():
            monkeypatch.setattr(triton, name, value)


def laid_out(x, layout):
    if layout == "contiguous":
        return x.contiguous()
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def random(*shape, dtype=FLOAT, layout=None, mean=0.0, std=1.0):
    x = (torch.randn(shape, device=DEVICE, dtype=DOUBLE) * std + mean).to(dtype)
    return x if layout is None else laid_out(x, layout)


def assert_near(actual, expected, *, rounding=0.0):
    """Allow for the rounding of the result and of the arithmetic, float32 or float64."""
    error = 1e-12 if actual.dtype == DOUBLE else 4e-6
    allowed = rounding * expected.abs() + error * max(expected.abs().max().item(), 1)
    assert actual.shape == expected.shape
    assert ((actual.double() - expected).abs() <= allowed).all()


@run
@cases
@layouts
def test_moments(shape, dtype, constants, layout):
    x = random(*shape, dtype=dtype, layout=layout, mean=0.5, std=2)
    mean, var = triton.moments(x)
    assert mean.dtype == var.dtype == FLOAT
    assert mean.is_contiguous() and var.is_contiguous()
    assert_near(mean, x.double().mean(2))
    assert_near(var, x.double().var(2, correction=0))


@run
@layouts
@pytest.mark.parametrize("shape, constants", FAR)
def test_moments_far_from_zero(shape, constants, layout):
    x = random(*shape, layout=layout, mean=1e3)
    mean, var = triton.moments(x)
    expected = x.double().var(2, correction=0)
    assert_near(mean, x.double().mean(2))
    assert ((var - expected).abs() <= 3e-5 * expected).all()


@run
@layouts
@pytest.mark.parametrize("shape, constants", FAR)
def test_equal_values_vary_by_nothing(shape, constants, layout):
    x = laid_out(torch.full(shape, 123456.7, device=DEVICE), layout)
    mean, var = triton.moments(x)
    assert (mean == x[:, :, 0]).all() and not var.any()


@run
@layouts
@pytest.mark.parametrize("constants", [MANY_TILES, MANY_PARTS])
def test_float64_is_kept(constants, layout):
    x, g = (random(1, 9, 70, dtype=DOUBLE, layout=layout, mean=3) for _ in range(2))
    mean, var = triton.moments(x)
    assert_near(mean, x.mean(2))
    assert_near(var, x.var(2, correction=0))
    scale, bias = random(1, 9, dtype=DOUBLE), random(9, dtype=DOUBLE)
    centered = x - mean[:, :, None]
    y = centered * scale[:, :, None] + bias[:, None]
    assert_near(triton.affine(x, mean, scale, bias), y)
    sums = triton.gradient_sums(g, x, mean)
    assert_near(sums[0], g.sum(2))
    assert_near(sums[1], (g * centered).sum(2))
    dx = triton.input_gradient(g, x, mean, scale, mean, var)
    assert_near(dx, scale[:, :, None] * g + mean[:, :, None] * centered + var[:, :, None])


@run
@cases
@layouts
def test_affine(shape, dtype, constants, layout):
    x = random(*shape, dtype=dtype, layout=layout)
    mean, scale, bias = random(*shape[:2]), random(*shape[:2]), random(shape[1], dtype=dtype)
    y = triton.affine(x, mean, scale, bias)
    assert y.dtype == dtype and y.stride() == x.stride()
    expected = (x - mean.double()[:, :, None]) * scale[:, :, None] + bias[:, None]
    assert_near(y, expected, rounding=torch.finfo(dtype).eps)


@run
@layouts
@dtypes
@pytest.mark.parametrize("relu", [False, True])
def test_affine_with_shortcut(layout, dtype, relu):
    x, shortcut = (random(2, 9, 35, dtype=dtype, layout=layout) for _ in range(2))
    mean, scale, bias = random(2, 9), random(2, 9), random(9)
    y = triton.affine(x, mean, scale, bias, shortcut, relu)
    expected = (x - mean.double()[:, :, None]) * scale[:, :, None] + bias[:, None]
    expected = expected + shortcut
    expected = expected.relu() if relu else expected
    assert_near(y, expected, rounding=torch.finfo(dtype).eps)


@run
@dtypes
def test_relu_keeps_nan(dtype):
    x = torch.tensor([[[float("nan"), -1.0, 2.0, float("inf")]]], device=DEVICE, dtype=dtype)
    zero, one = torch.zeros(1, 1, device=DEVICE), torch.ones(1, 1, device=DEVICE)
    y = triton.affine(x, zero, one, zero[0], relu=True)
    assert torch.equal(y.nan_to_num(7.0), x.relu().nan_to_num(7.0))


@run
@cases
@layouts
def test_gradient_sums(shape, dtype, constants, layout):
    x = random(*shape, dtype=dtype, layout=layout, mean=3)
    g = random(*shape, dtype=BRAIN, layout="contiguous")
    mean = random(*shape[:2], mean=3)
    sum_g, sum_gx = triton.gradient_sums(g, x, mean)
    assert sum_g.dtype == sum_gx.dtype == FLOAT
    assert_near(sum_g / shape[2], g.double().mean(2))
    centered = x.double() - mean.double()[:, :, None]
    assert_near(sum_gx / shape[2], (g.double() * centered).mean(2))


@run
@cases
@layouts
def test_input_gradient(shape, dtype, constants, layout):
    x = random(*shape, dtype=dtype, layout=layout, mean=3)
    g = random(*shape, dtype=dtype, layout="channels_last")
    rows = [random(*shape[:2]) for _ in range(4)]
    dx = triton.input_gradient(g, x, *rows)
    assert dx.dtype == dtype and dx.stride() == x.stride()
    mean, a, b, c = (row.double()[:, :, None] for row in rows)
    expected = a * g.double() + b * (x.double() - mean) + c
    assert_near(dx, expected, rounding=torch.finfo(dtype).eps)


@run
@layouts
def test_gradients_may_be_expanded(layout):
    x, mean = random(2, 5, 7, layout=layout), random(2, 5)
    g = torch.ones((), device=DEVICE).expand(2, 5, 7)
    sum_g, _ = triton.gradient_sums(g, x, mean)
    assert (sum_g == 7).all()
    one, zero = torch.ones(2, 5, device=DEVICE), torch.zeros(2, 5, device=DEVICE)
    assert (triton.input_gradient(g, x, mean, one, zero, zero) == 1).all()


@run
def test_other_shapes_are_refused():
    x, row = random(2, 5, 7), random(2, 5)
    with pytest.raises(ValueError, match=r"shape of x, \(2, 5, 7\), got \(2, 5, 1\)"):
        triton.affine(x, row, row, row[0], shortcut=random(2, 5, 1))


@run
@pytest.mark.parametrize("name", ["resnet18v1_sn", "resnet18v2_sn"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_network_is_that_of_the_plain_formula(name, memory_format, monkeypatch):
    torch.manual_seed(0)
    model = snzoo.create_model(name, width=4, num_classes=5).to(DEVICE)
    x = torch.randn(2, 3, 64, 64, device=DEVICE).to(memory_format=memory_format)
    for layer in model.modules():
        if isinstance(layer, SwitchNorm2d):
            torch.nn.init.uniform_(layer.running_var, 0.5, 2)
            torch.nn.init.normal_(layer.mean_weight)

    def results():
        with torch.inference_mode():
            logits = model.eval()(x)
        fresh = copy.deepcopy(model).train()
        fresh(x).logsumexp(1).sum().backward()
        return [logits, *(parameter.grad for parameter in fresh.parameters())]

    launched = set()
    launch = triton._launch

    def record(kernel, *arguments, **more):
        launched.add((kernel.__name__, more.get("RELU")))
        launch(kernel, *arguments, **more)

    monkeypatch.setattr(triton, "_launch", record)
    actual = results()
    kernels = {(name, None) for name in ("moments", "gradient_sums", *MIXING)}
    # In inference with the ReLU, in training without.
    assert launched >= kernels | {("affine", True), ("affine", False), ("input_gradient", None)}
    monkeypatch.setattr(backends, "select", lambda x: None)
    for value, expected in zip(actual, results(), strict=True):
        assert (value - expected).abs().max() <= 1e-3 * expected.abs().max()


@run
def test_a_device_that_triton_can_not_use_gets_the_plain_formula(monkeypatch, caplog):
    def broken(*args, **kwargs):
        raise RuntimeError("Failed to find C compiler\nand more")

    backends._load_triton.cache_clear()
    monkeypatch.setattr(triton, "_launch", broken)
    x, layer = random(2, 6, 5, 5), SwitchNorm2d(6).to(DEVICE).eval()
    with torch.inference_mode():
        y = layer(x), layer(x)
    backends._load_triton.cache_clear()
    monkeypatch.undo()
    assert torch.allclose(y[1], layer(x), atol=1e-5)
    (record,) = caplog.records
    assert record.getMessage().endswith("Triton can't be used (Failed to find C compiler)")


@pytest.mark.skipif(
    not CUDA or torch.cuda.mem_get_info()[0] < 12 * 2**30, reason="needs a GPU with 12 GiB free"
)
@layouts
def test_offsets_are_64_bits(layout):
    positions = 2**30 + 8
    x = torch.zeros((1, 2, positions), device="cuda", dtype=HALF)
    if layout == "channels_last":
        x = x.view(1, positions, 2).transpose(1, 2)
    x[0, 1, -1] = 1000
    row = torch.ones(1, 2, device="cuda")
    y = triton.affine(x, 0 * row, 2 * row, 0 * row[0])
    assert y[0, 1, -1] == 2000 and y[0].sum(dtype=FLOAT) == 2000
    mean, _ = triton.moments(x)
    assert mean[0, 0] == 0 and abs(mean[0, 1] * positions - 1000) < 1


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="nothing is compiled in the interpreter")
@pytest.mark.skipif(torch.__version__ < "2.7", reason="Triton 3.2 is asked for it in another way")
@pytest.mark.parametrize(
    "layout, dtype",
    [("contiguous", HALF), ("channels_last", BRAIN), ("contiguous", DOUBLE)],
)
def test_compiles_for_hopper(layout, dtype, monkeypatch, tmp_path):
    """Compile without a GPU: the compiler checks more than the interpreter, such as types."""
    assembly = {}

    def compile_only(kernel, programs, warps, *arguments, **more):
        assembly[kernel.__name__] = for_hopper(kernel, warps, arguments, more)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton, "_launch", compile_only)
    x = laid_out(torch.empty(1, 64, 28 * 28 * 12, dtype=dtype), layout)
    mean, _ = triton.moments(x)
    monkeypatch.setattr(triton, "PART", 1)
    triton.moments(x)  # now in parts
    triton.affine(x, mean, mean, mean[0], x, relu=True)
    triton.gradient_sums(x, x, mean)
    triton.input_gradient(x, x, mean, mean, mean, mean)
    channel, gates = torch.empty(64, dtype=dtype), torch.empty(3, dtype=dtype)
    for running in ((), (channel, channel)):
        tensors = LayerTensors(channel, channel, gates, gates, *running)
        config = Config(True, not running, 1e-5, shares=not running)
        mixture, _ = triton.coefficients(mean, mean, tensors, config, 1)
        triton.gradient_coefficients(mean, mean, mixture, mean, tensors, config, 1)
    assert assembly.keys() >= {*MIXING, "merge"} and len(assembly) == 9
    for name in ("moments", "affine", "gradient_sums", "input_gradient"):
        vector = "v2.b64" if dtype == DOUBLE else "v4.b32"
        assert f"ld.global.{vector}" in assembly[name], f"{name} does not load 16 bytes at a time"


def for_hopper(kernel, warps, arguments, more):
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile
    from triton.runtime.jit import mangle_type

    arguments = dict(zip(kernel.arg_names, arguments, strict=False)) | more
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None:
            signature[parameter.name] = "constexpr"
            constants[(i,)] = value
        else:
            signature[parameter.name] = parameter.annotation_type or mangle_type(value)
        if isinstance(value, torch.Tensor):
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    return compile(source, GPUTarget("cuda", 90, 32), {"num_warps": warps}).asm["ptx"]


@pytest.mark.slow
@pytest.mark.skipif(CUDA or INTERPRETED, reason="the tests run here, directly")
def test_in_the_interpreter():
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", __file__]
    command.append(__file__.replace("test_triton", "test_triton_mix"))
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 100
