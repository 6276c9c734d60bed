"""What tracers, exporters, compilers and transforms make of the layers and the networks."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from short_networks import shorten
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, replace_all_batch_norm_modules_
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import snzoo
from snzoo.nn import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d, disable_running_stats_
from snzoo.nn.functional import switch_norm

OLD = torch.__version__ < "2.7"
NETWORKS = ["resnet18v1_bn", "resnet18v1_sn", "resnet18v2_sn", "resnet18v1_ssn"]
# A layer, and shapes of two inputs.
LAYERS = {
    "1d": (SwitchNorm1d, (3, 4), (5, 4)),
    "1d of sequences": (SwitchNorm1d, (3, 4, 5), (2, 4, 9)),
    "2d": (SwitchNorm2d, (3, 4, 5, 5), (2, 4, 7, 6)),
    "3d": (SwitchNorm3d, (3, 4, 2, 5, 5), (2, 4, 3, 4, 6)),
}


def network(name, **options):
    torch.manual_seed(0)
    model = snzoo.create_model(name, width=8, num_classes=5, drop_rate=0.0, **options)
    # As in trained networks: none is 0, no two are equal.
    for tensor in (t for t in model.state_dict().values() if t.ndim != 4 or t.shape[2] == 1):
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1)
    if "ssn" in name:
        snzoo.nn.set_radius(model, 0.3)  # no share is 0
    return model


def layer_and_inputs(kind, **options):
    make, *shapes = LAYERS[kind]
    layer = make(4, **options)
    for tensor in layer.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape) + 0.5 if tensor.is_floating_point() else 3)
    return layer, [torch.randn(shape) for shape in shapes]


def assert_near(actual, expected, error=1e-5):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= error * expected.abs().max()


@pytest.mark.parametrize("name", NETWORKS)
def test_fx_traces_a_network_with_its_norms_as_leaves(name):
    model = network(name)
    traced = torch.fx.symbolic_trace(model)
    right = copy.deepcopy(model)
    assert {f"{model.prefix}1", "relu1"} <= {
        node.target for node in traced.graph.nodes if node.op == "call_module"
    }
    x = torch.randn(2, 3, 64, 64)
    assert_near(traced(x), right(x))
    for key, buffer in right.named_buffers():
        assert_near(traced.get_buffer(key), buffer)
    with torch.inference_mode():
        assert_near(traced.eval()(x), right.eval()(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_torchvisions_feature_extractor(name):
    model, x = network(name).eval(), torch.randn(2, 3, 64, 64)
    assert "layer2.0.relu1" in get_graph_node_names(model)[1]
    maps = create_feature_extractor(model, {"layer2": "a", "layer4": "b"})(x)
    assert_near(maps["b"], model.layer4(model.layer3(maps["a"])))


@pytest.mark.filterwarnings("ignore")
def test_fx_quantization():
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    model, x = network("resnet18v1_sn").eval(), torch.randn(2, 3, 64, 64)
    observed = prepare_fx(model, get_default_qconfig_mapping(), (x,))
    observed(x)
    assert_near(convert_fx(observed)(x), model(x), 0.2)


EXPORTERS = ["export", "strict export", "jit", "torchscript onnx"]
EXPORTERS += [pytest.param("onnx", marks=pytest.mark.slow)]
exporters = pytest.mark.parametrize("how", EXPORTERS)


@exporters
@pytest.mark.parametrize(
    "kind, options",
    [*((kind, {}) for kind in LAYERS), ("2d", {"using_bn": False})]
    + [(kind, {"track_running_stats": False}) for kind in ("1d", "2d")],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_layer_keeps_dynamic_sizes(kind, options, how, tmp_path):
    if options and how == "export" and OLD:
        pytest.skip("torch 2.6 can't export buffers that are None, as in nn.InstanceNorm2d")
    layer, (x, other) = layer_and_inputs(kind, **options)
    assert_takes_another_size(layer.eval(), x, other, how, tmp_path)


# torch.export itself tells maps of one position apart, for batch norm networks too.
@pytest.mark.parametrize("how", EXPORTERS[2:])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_map_shrinks_to_one_position(how, tmp_path):
    model = nn.Sequential(nn.AvgPool2d(4), layer_and_inputs("2d")[0]).eval()
    x = torch.randn(2, 4, 16, 16)
    assert_takes_another_size(model, x, x[:, :, :5, :6], how, tmp_path)


@pytest.mark.slow
@exporters
@pytest.mark.parametrize("name", NETWORKS[1:])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_network_keeps_dynamic_sizes(name, how, tmp_path):
    x, other = torch.randn(2, 3, 64, 96), torch.randn(3, 3, 128, 96)
    assert_takes_another_size(shorten(network(name)).eval(), x, other, how, tmp_path)


def assert_takes_another_size(model, x, other, how, folder):
    dims = [i for i in range(x.ndim) if i != 1]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        if how == "jit":
            y = torch.jit.trace(model, x)(other)
        elif "export" in how:
            dynamic = ({i: torch.export.Dim.AUTO for i in dims},)
            strict = how.startswith("strict")
            program = torch.export.export(model, (x,), dynamic_shapes=dynamic, strict=strict)
            y = program.module()(other)
        else:
            y = run_onnx(model, x, other, dims, how == "onnx", folder)
        assert_near(y, model(other))


def run_onnx(model, x, other, dims, dynamo, folder):
    runtime = pytest.importorskip("onnxruntime")
    if dynamo and OLD:
        pytest.skip("torch 2.6 can't convert arithmetic on dynamic sizes: dynamo=False can")
    if dynamo:
        dynamic = {"dynamic_shapes": (dict.fromkeys(dims, torch.export.Dim.AUTO),)}
    else:
        dynamic = {"dynamic_axes": {"x": dims}}
    path, options = str(folder / "model.onnx"), {"input_names": ["x"], "verbose": False}
    torch.onnx.export(model, (x,), path, dynamo=dynamo, **options, **dynamic)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(np.asarray(session.run(None, {"x": other.numpy()})[0]))


def test_an_exported_graph_has_plain_operations_only():
    layer = SwitchNorm2d(4).eval()
    program = torch.export.export(layer, (torch.randn(2, 4, 5, 5),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {name.split(".")[0] for name in called} <= {"aten", "<built-in function getitem>"}
    assert "aten.rsqrt.default" in called


@pytest.mark.parametrize("options", [{}, {"bias_correction": True}])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_compiles_without_a_graph_break(kind, training, options):
    layer, (x, _) = layer_and_inputs(kind, **options)
    layer.train(training)
    torch._dynamo.reset()  # or it counts all of these as recompilations of one function
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), layer(x), atol=1e-6)
    assert torch.allclose(compiled.running_var, layer.running_var)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("mean", [0, 1e3])
def test_the_compiled_layer_is_accurate(mean, layout):
    torch.manual_seed(0)
    layer = layer_and_inputs("2d")[0].eval()
    layer.running_mean.fill_(mean)
    for gates in (layer.mean_weight, layer.var_weight):
        gates.data[0] = 10  # IN, which a wrong mean changes the most
    x = (torch.randn(2, 4, 60, 61) + mean).to(memory_format=layout).requires_grad_()
    wide, gradient = x.detach().double().requires_grad_(), torch.randn(x.shape)
    torch._dynamo.reset()
    y, right = torch.compile(layer, fullgraph=True)(x), copy.deepcopy(layer).double()(wide)
    # Half a unit in the last place of the mean, which is float32, changes all of the output.
    assert_near(y, right, 1e-5 + mean * 2**-25)
    (found,) = torch.autograd.grad(y, x, gradient)
    (right_gradient,) = torch.autograd.grad(right, wide, gradient.double())
    assert_near(found, right_gradient)


def test_compiled_autograd_sees_the_backward_pass():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), SwitchNorm2d(4)).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    right = torch.autograd.grad(net(x).pow(3).sum(), list(net.parameters()))
    loss = net(x).pow(3).sum()
    compiler = torch.compile(backend="aot_eager", fullgraph=True)
    with torch._dynamo.compiled_autograd._enable(compiler):
        loss.backward()
    for parameter, gradient in zip(net.parameters(), right, strict=True):
        assert (parameter.grad - gradient).abs().max() <= 1e-10 * right[0].abs().max()


def test_functional_transforms_see_the_plain_formula():
    layer, (x, _) = layer_and_inputs("2d")
    layer.double().eval()
    x, t = torch.randn(2, 5, *x.shape, dtype=torch.float64)
    right = switch_norm(x[0], *layer.tensors_and_config())[0]
    assert_near(torch.vmap(layer)(x)[0], right, 1e-10)
    value, tangent = torch.func.jvp(layer, (x[0],), (t[0],))
    h = 1e-6
    assert_near(value, right, 1e-10)
    assert_near(tangent, (layer(x[0] + h * t[0]) - layer(x[0] - h * t[0])) / (2 * h), 1e-6)
    with forward_ad.dual_level():
        dual = layer(forward_ad.make_dual(x[0], t[0]))
        assert_near(forward_ad.unpack_dual(dual).tangent, tangent, 1e-10)
    graph = torch.fx.experimental.proxy_tensor.make_fx(layer)(x[0])
    assert_near(graph(x[0]), right, 1e-10)
    assert "native_batch_norm" not in graph.code and "group_norm" not in graph.code


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_per_task_in_training_mode(name):
    model = disable_running_stats_(network(name))
    replace_all_batch_norm_modules_(model)
    x, y = torch.randn(2, 3, 3, 64, 64), torch.tensor([[1, 2, 3], [0, 1, 2]])
    parameters = {key: p.detach() for key, p in model.named_parameters()}

    def loss(parameters, x, y):
        return F.cross_entropy(functional_call(model, parameters, (x,)), y)

    found = torch.func.vmap(grad(loss), (None, 0, 0))(parameters, x, y)
    for task in (0, 1):
        wanted = torch.autograd.grad(loss({}, x[task], y[task]), list(model.parameters()))
        for gradient, right in zip(found.values(), wanted, strict=True):
            assert (gradient[task] - right).abs().max() <= 1e-3 * right.abs().max() + 1e-6
