"""Exported files, run without snzoo."""

import dataclasses
import json
import re
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from short_networks import shorten

import snzoo
from snzoo.data.demo import demo_samples
from snzoo.data.pixels import load_pixels
from snzoo.errors import ArgumentError, CheckpointError, NonFiniteError, SnzooError
from snzoo.evaluation.measure import measure
from snzoo.export import export
from snzoo.inference import Network
from snzoo.manifest import load_manifest
from snzoo.nn import set_radius
from snzoo.preprocessing import Preprocessing

DEMO = snzoo.get_info("resnet18v1_sn_clothing")
FORMATS = ["onnx", "pt2"]
OF_THE_DEMO = [pytest.param("onnx", marks=pytest.mark.slow), "pt2"]


@pytest.fixture(autouse=True)
def skip_onnx(request):
    if "onnx" in request.node.name and torch.__version__.startswith("2.6."):
        pytest.skip("PyTorch 2.6 converts only some networks to ONNX")


def load(path):
    """Return a function of float32 arrays (N, C, H, W), and the description in the file."""
    if path.suffix == ".pt2":
        extra = {"snzoo.json": ""}
        network = torch.export.load(path, extra_files=extra).module()
        return lambda x: network(torch.from_numpy(x)).detach().numpy(), json.loads(
            extra["snzoo.json"]
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map["snzoo"]
    return lambda x: session.run(["logits"], {"images": x})[0], json.loads(text)


def small(name, *, crop=64, **arguments):
    """Return a random network of three classes, with random running statistics."""
    torch.manual_seed(0)
    model = shorten(snzoo.create_model(name, width=8, num_classes=3, **arguments))
    for key, values in model.named_buffers():
        if values.is_floating_point():
            values.uniform_(0.5, 1.5) if key.endswith("var") else values.normal_()
    preprocessing = model.spec.preprocessing.replace(resize=crop, crop=crop)
    classes = ("a", "b", "c")
    model.spec = dataclasses.replace(model.spec, classes=classes, preprocessing=preprocessing)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_the_exported_demo_gives_the_same_classes(tmp_path, format):
    samples = demo_samples(load_manifest().demo, DEMO.classes)
    model = snzoo.create_model(DEMO.name, pretrained=True)
    path = tmp_path / f"demo.{format}"
    parity = export(model, path)
    assert parity.same == parity.images == 8 and 0 < parity.difference < 1e-4
    expected = measure([Network(model, DEMO.preprocessing)], samples)
    run, said = load(path)
    assert said["model"] == DEMO.name and tuple(said["classes"]) == DEMO.classes
    recipe = Preprocessing(**said["preprocessing"])
    mean, std = np.float32(recipe.mean), np.float32(recipe.std)
    photos = [load_pixels(samples.read(i), recipe) for i in range(len(samples))]
    x = ((np.stack(photos) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    parts = [run(np.ascontiguousarray(part)) for part in np.split(x, range(32, len(x), 32))]
    order = np.argsort(-np.concatenate(parts), axis=1)
    labels = np.array(samples.labels)[:, None]
    counts = [int((order[:, :k] == labels).any(1).sum()) for k in (1, 5)]
    assert counts == [expected.top1().correct, expected.top5().correct] == [134, 147]
    assert (order[:, 0] == expected.classes()[:, 0]).all()
    check_operations(path)
    assert snzoo.__path__[0].encode() not in path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


def check_operations(path):
    """Check that the demo network needs no snzoo, and how ONNX names its input and output."""
    if path.suffix == ".pt2":
        code = (
            "import sys, torch; sys.modules['snzoo'] = None\n"
            "program = torch.export.load(sys.argv[1])\n"
            "calls = [n.target for n in program.graph.nodes if n.op == 'call_function']\n"
            "names = {t.namespace for t in calls if hasattr(t, 'namespace')}\n"
            "print(names, tuple(program.module()(torch.zeros(3, 3, 128, 128)).shape))"
        )
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert done.stdout == "{'aten'} (3, 10)\n", done.stderr
        return
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
    assert {opset.domain for opset in model.opset_import} == {""}
    ends = [*model.graph.input, *model.graph.output]
    shapes = {
        end.name: [d.dim_param or d.dim_value for d in end.type.tensor_type.shape.dim]
        for end in ends
    }
    assert shapes == {"images": ["batch", 3, 128, 128], "logits": ["batch", 10]}


NETWORKS = [
    ("resnet18v2_sn", {"using_bn": False, "in_chans": 1}),
    ("resnet50v1_sn", {"stride_on": "1x1"}),
    ("resnet50v1_bn", {"stride_on": "last_unit", "norm_after_add": True}),
    ("resnet18v2_bn", {}),
    ("resnet18v1_gn", {}),
    ("resnet50v2_gn", {}),
]


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name, arguments", NETWORKS, ids=str)
def test_other_networks_and_batch_sizes(tmp_path, format, name, arguments):
    model = small(name, **arguments)
    export(model, tmp_path / f"x.{format}")
    run, said = load(tmp_path / f"x.{format}")
    assert said["classes"] == ["a", "b", "c"] and said["preprocessing"]["crop"] == 64
    for n in (1, 3, 7):
        x = torch.randn(n, arguments.get("in_chans", 3), 64, 64)
        with torch.inference_mode():
            expected = model.eval()(x)
        assert np.allclose(
            run(x.numpy()), expected.numpy(), rtol=0, atol=1e-4 * float(expected.abs().max())
        )


@pytest.mark.parametrize("format", OF_THE_DEMO)
def test_the_shares_of_sparse_sn_are_constants(tmp_path, format, capfd):
    model = small("resnet18v1_ssn")
    for name, parameter in model.named_parameters():
        if name.endswith(("mean_weight", "var_weight")):
            torch.nn.init.normal_(parameter, 1, 0.2)
    set_radius(model, 0.6)
    export(model, path := tmp_path / f"x.{format}")
    assert capfd.readouterr() == ("", "")
    if format == "onnx":
        operations = {node.op_type for node in onnx.load(path).graph.node}
    else:
        nodes = torch.export.load(path).graph.nodes
        operations = {node.target.__name__ for node in nodes if node.op == "call_function"}
    assert not {name for name in operations if re.match("topk|sort|cumsum|where", name.lower())}
    run, x = load(path)[0], torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        expected = model.eval()(x)
    assert np.abs(run(x.numpy()) - expected.numpy()).max() <= 1e-4 * float(expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(
    "format, name",
    [
        ("pt2", "resnet18v1_sn"),
        ("onnx", "resnet18v1_bn"),
        ("onnx", "resnet18v2_sn"),
        ("onnx", "resnet50v1_gn"),
    ],
)
def test_dynamic_sizes(tmp_path, format, name):
    model = small(name)
    export(model, tmp_path / f"x.{format}", dynamic_size=True)
    run, _ = load(tmp_path / f"x.{format}")
    for size in [(1, 3, 64, 64), (3, 3, 75, 133), (2, 3, 200, 40)]:
        x = torch.randn(size)
        with torch.inference_mode():
            expected = model.eval()(x)
        assert np.allclose(
            run(x.numpy()), expected.numpy(), rtol=0, atol=1e-4 * float(expected.abs().max())
        )


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_dynamic_sizes_are_checked_at_another_size(tmp_path, format):
    model = small("resnet18v1_bn")

    class Scaled(type(model)):
        def forward(self, x):
            return super().forward(x) * int(x.shape[3])  # becomes a constant

    model.__class__ = Scaled
    with pytest.raises(CheckpointError, match=f"the {format} file"):
        export(model, tmp_path / f"x.{format}", dynamic_size=True)
    assert not list(tmp_path.iterdir())
    small_crop = small("resnet18v1_bn", crop=32)
    with pytest.raises(ArgumentError, match="dynamic sizes start at 33 pixels"):
        export(small_crop, tmp_path / "x.pt2", dynamic_size=True)


@pytest.mark.slow
@pytest.mark.parametrize("name, format", [("resnet50v1_bn", "onnx"), ("resnet50v1_sn", "pt2")])
def test_a_network_of_full_size(tmp_path, name, format):
    model = snzoo.create_model(name)
    parity = export(model, tmp_path / f"x.{format}")
    run, said = load(tmp_path / f"x.{format}")
    assert parity.same == 8 and len(said["classes"]) == 1000
    assert run(np.zeros((4, 3, 224, 224), np.float32)).shape == (4, 1000)


@pytest.mark.parametrize("format", FORMATS)
def test_the_model_and_torch_settings_are_not_changed(tmp_path, format, capfd):
    model = small("resnet18v1_bn")
    model.layer1.eval()  # half of it training, and one parameter frozen
    model.conv1.weight.requires_grad_(False)

    def state():
        tensors = model.state_dict(keep_vars=True)
        facts = [(key, t._version, t.requires_grad, id(t)) for key, t in tensors.items()]
        modes = [module.training for module in model.modules()]
        settings = torch.is_grad_enabled(), torch.get_default_dtype(), list(warnings.filters)
        return facts, modes, settings, torch.get_rng_state().tolist()

    before = state()
    export(model, tmp_path / f"x.{format}")
    assert state() == before
    assert capfd.readouterr() == ("", "")
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()


@pytest.mark.filterwarnings("error")
def test_modes_and_layouts_of_the_caller_have_no_effect(tmp_path):
    model = small("resnet18v1_bn")
    plain = export(model, tmp_path / "x.pt2")
    model.to(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert export(model, tmp_path / "x.pt2") == plain


class TracedOtherwise(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) + (0.01 if torch.compiler.is_compiling() else 0)


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_with_other_logits_does_not_replace_an_earlier_one(tmp_path, format):
    model = small("resnet18v1_bn")
    model.fc = TracedOtherwise(model.fc.in_features, 3)
    path = tmp_path / f"x.{format}"
    path.write_text("an earlier file")
    with pytest.raises(CheckpointError, match=r"largest difference 1\.\de-02 of logits up to \d"):
        export(model, path)
    assert [path] == list(tmp_path.iterdir()) and path.read_text() == "an earlier file"


def test_networks_that_cannot_be_checked_are_refused(tmp_path):
    model = small("resnet18v1_bn")
    path = tmp_path / "x.pt2"
    spec, model.spec = model.spec, snzoo.get_info("resnet18v1_bn")
    with pytest.raises(ArgumentError, match=r"1,000 classes, but the network returns 3 values"):
        export(model, path)
    model.spec = spec
    model.fc.bias.data[1] = float("nan")
    with pytest.raises(NonFiniteError, match="logits of resnet18v1_bn are not finite"):
        export(model, path)
    assert not path.exists()


def test_paths_and_formats_are_checked(tmp_path):
    model = small("resnet18v1_bn")
    (tmp_path / "folder.onnx").mkdir()
    for name, format, message in [
        ("x.onnx", "pt2", "has the suffix of onnx, but the format is pt2"),
        ("x.bin", None, "use the suffix .onnx or .pt2"),
        ("none/x.onnx", None, "in a folder that you may write"),
        ("folder.onnx", None, "in a folder that you may write"),
    ]:
        with pytest.raises(SnzooError, match=message):
            export(model, tmp_path / name, format=format)
    export(model, tmp_path / "x.bin", format="pt2")
    assert Counter(path.name for path in tmp_path.iterdir()) == Counter(["folder.onnx", "x.bin"])


def test_a_network_without_classes_returns_features(tmp_path):
    model = small("resnet18v2_bn")
    model.reset_classifier(0)
    model.spec = dataclasses.replace(model.spec, classes=())
    export(model, tmp_path / "x.pt2")
    run, said = load(tmp_path / "x.pt2")
    assert said["classes"] == [] and run(np.zeros((3, 3, 64, 64), np.float32)).shape == (3, 64)


@pytest.mark.parametrize(
    "norm, format",
    [
        ("sn", "pt2"),
        pytest.param("sn", "onnx", marks=pytest.mark.slow),
        pytest.param("syncsn", "pt2", marks=pytest.mark.slow),
        pytest.param("bn", "pt2", marks=pytest.mark.slow),
        pytest.param("bn", "onnx", marks=pytest.mark.slow),
    ],
)
def test_a_face_network_returns_embeddings(tmp_path, format, norm):
    torch.manual_seed(0)
    model = shorten(snzoo.create_model(f"face_resnet18_{norm}", width=8, se=norm == "sn"))
    model(torch.randn(2, 3, 112, 112))
    path = tmp_path / f"face.{format}"
    parity = export(model, path)
    assert parity.output == "embeddings"
    assert str(parity).endswith("in 8 images") and "logits" not in str(parity)
    if format == "pt2":
        run, said = load(path)
    else:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [output.name for output in session.get_outputs()] == ["embeddings"]
        said = json.loads(session.get_modelmeta().custom_metadata_map["snzoo"])
        run = lambda x: session.run(None, {"images": x})[0]  # noqa: E731
    assert said["preprocessing"]["crop"] == 112 and said["classes"] == []
    for n in (1, 3, 6):
        x = torch.randn(n, 3, 112, 112)
        with torch.inference_mode():
            assert np.allclose(run(x.numpy()), model.eval()(x).numpy(), rtol=0, atol=1e-5)
    with pytest.raises(ArgumentError, match="takes 112×112 pixels only"):
        export(model, path, dynamic_size=True)
