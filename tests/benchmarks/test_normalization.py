"""The benchmark of layers and networks: its textbook operator, its arithmetic, small real runs."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import snzoo
from snzoo.errors import SnzooError
from snzoo.nn import SwitchNorm2d

ROOT = Path(__file__).parents[2]
GOLDEN = np.load(ROOT / "tests" / "golden" / "layers.npz")
CASES = sorted({key.split("/")[0] for key in GOLDEN.files if key.startswith("2d_")})
TINY = ["--device", "cpu", "--rounds", "2", "--maps", "8x6", "--batch-size", "3"]
TINY += ["--training-batch-size", "2", "--network", "resnet18v1", "--image-size", "64"]


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of several processes wait for each other, which tiny work can't afford."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def golden(case, key):
    return torch.from_numpy(GOLDEN[f"{case}/{key}"])


def golden_state(case, kind):
    start = f"{case}/{kind}/"
    keys = (key.removeprefix(start) for key in GOLDEN.files if key.startswith(start))
    return {key: golden(case, f"{kind}/{key}") for key in keys}


def textbook(case):
    from textbook import TextbookSwitchNorm2d

    _, _, mode, bn = case.split("_")
    x = golden(case, "x")
    options = {"using_moving_average": mode == "ma", "using_bn": bn == "bn"}
    layer = TextbookSwitchNorm2d(x.shape[1], **options).double()
    layer.load_state_dict(golden_state(case, "param"))
    return layer, x


def assert_matches(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= 1e-10 * expected.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_the_textbook_is_the_published_operator(case):
    layer, x = textbook(case)
    assert_matches(layer.eval()(x), golden(case, "eval/y"))
    x.requires_grad_()
    y = layer.train()(x)
    y.backward(golden(case, "grad_y"))
    assert_matches(y.detach(), golden(case, "train/y"))
    assert_matches(x.grad, golden(case, "train/grad_x"))
    for key, expected in golden_state(case, "train/grad").items():
        assert_matches(layer.get_parameter(key).grad, expected)
    for key, expected in golden_state(case, "train/buffer").items():
        assert_matches(layer.get_buffer(key), expected)


@pytest.mark.parametrize("options", [{}, {"using_bn": False}, {"using_moving_average": False}])
def test_a_network_is_converted_with_its_state(options):
    from textbook import TextbookSwitchNorm2d, convert
    from workloads import _shuffled

    ours = _shuffled(snzoo.create_model("resnet50v1_sn", width=4, **options)).double().eval()
    theirs = convert(ours)
    kinds = [type(module) for module in theirs.modules()]
    assert kinds.count(TextbookSwitchNorm2d) == 53 and SwitchNorm2d not in kinds
    assert any(isinstance(module, SwitchNorm2d) for module in ours.modules())
    assert not any(module.training for module in theirs.modules())
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.allclose(ours(x), theirs(x))
    assert torch.allclose(ours.train()(x), theirs.train()(x))


EVERYTHING = ["layers", "layers-training", "networks", "networks-training", "memory"]


@pytest.mark.slow
@pytest.mark.parametrize("parts", [EVERYTHING[:3], EVERYTHING])
def test_what_is_measured_is_shown_and_kept(parts, tmp_path, capsys):
    from normalization import main

    output = tmp_path / "result.json"
    assert main([*TINY, "--only", *parts, "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert shown == output.with_suffix(".md").read_text()
    result = json.loads(output.read_text())
    assert {"date", "machine", "versions", "device", "precision", "rounds"} < result.keys()
    assert result["device"]["threads"] == torch.get_num_threads()

    *rows, copy = result["measurements"]
    layers, networks = ["textbook", "bn", "snzoo"], ["textbook", "bn", "torchvision", "snzoo"]
    assert [(row["part"], row["layout"], [*row["seconds"]], row["shape"][0]) for row in rows] == [
        (part, layout, networks if "networks" in part else layers, 2 if "training" in part else 3)
        for part in parts
        if part != "memory"
        for layout in ("contiguous", "channels_last")
    ]
    for row in (*rows, copy):
        assert row["repeats"].keys() == row["seconds"].keys() and row["cores_elsewhere"] >= 0
        assert all(len(each) == 2 and min(each) > 0 for each in row["seconds"].values())
    assert result["copy_gb_per_s"] > 0
    assert len(result["comparisons"]) == len(rows)
    for row in result["comparisons"]:
        assert ("roofline" in row) == (row["part"] == "layers")
        assert row["speed"].keys() == {*row["milliseconds"]} - {"snzoo"}
    assert "| 8 × 6×6 | 3 | channels_last |" in shown
    assert len(result["memory"]) == ("memory" in parts) * 2 * (len(layers) + len(networks))
    for row in result["memory"]:
        assert row["training_peak_bytes"] > row["kept_bytes"] > 0
        assert row["inference_peak_bytes"] > 0
        assert f"| {row['label']} | 2 | {row['layout']} | {row['contender']} |" in shown


def test_parts_in_low_precision(capsys):
    from normalization import main

    parts = ["--only", "layers-training", "networks", "--precision", "bf16"]
    assert main([*TINY, *parts]) == 0
    shown = capsys.readouterr().out
    assert "bf16, on cpu" in shown
    assert "## Layers, training" in shown and "## Networks, inference" in shown
    assert "## Layers, inference" not in shown and "## Memory" not in shown


@pytest.mark.slow
def test_compiled_layers(capsys):
    from normalization import main

    assert main([*TINY, "--only", "layers", "--compile"]) == 0
    assert "compiled by Inductor" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda(precision, capsys):
    from normalization import main

    assert main([*TINY, "--device", "cuda", "--precision", precision]) == 0
    assert torch.cuda.get_device_name() in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("part", ["layers", "layers-training", "networks", "memory"])
def test_a_wrong_operator_is_not_timed(part, tmp_path, monkeypatch):
    import stopwatch
    import workloads
    from normalization import main

    class Wrong(SwitchNorm2d):
        def forward(self, x):
            return super().forward(x) * 1.001

    create = snzoo.create_model

    def wrong(name):
        return workloads.convert(create(name), Wrong)

    monkeypatch.setattr(workloads, "SwitchNorm2d", Wrong)
    monkeypatch.setattr(workloads.snzoo, "create_model", wrong)
    monkeypatch.setattr(stopwatch, "seconds", pytest.fail)
    output = tmp_path / "result.json"
    message = main([*TINY, "--only", part, "--output", str(output)])
    assert "the output differs from the textbook's by 1." in message
    assert not output.exists()


def test_a_wrong_gradient_is_seen():
    from workloads import Case, check_agreement

    class Wrong(SwitchNorm2d):
        def forward(self, x):
            return super().forward((x + x.detach()) / 2)

    case = Case(training=True, shape=(2, 4, 5, 5), layout="contiguous")
    x, gradient = torch.randn(2, *case.shape)
    check_agreement(SwitchNorm2d(4), SwitchNorm2d(4), case, x, gradient)
    with pytest.raises(SnzooError, match=r"4 × 5×5 × 2, contiguous.*gradient differs"):
        check_agreement(Wrong(4), SwitchNorm2d(4), case, x, gradient)
    nothing = torch.full_like(x, torch.nan)
    with pytest.raises(SnzooError, match=r"output differs from the textbook's by nan"):
        check_agreement(SwitchNorm2d(4), SwitchNorm2d(4), case, nothing, gradient)


def test_a_ratio_is_of_one_round():
    from figures import compare

    about = {"label": "", "layout": "contiguous", "shape": [2, 5, 10, 10]}
    seconds = {"textbook": [3.0, 8.0, 6.0], "snzoo": [1.0, 2.0, 4.0], "bn": [1.0, 1.0, 1.0]}
    rows = [about | {"part": part, "seconds": seconds} for part in ("layers", "networks")]
    layer, network = compare(rows, copy_rate=6000.0, itemsize=2)
    assert layer["milliseconds"] == {"textbook": 6000.0, "snzoo": 2000.0, "bn": 1000.0}
    assert layer["speed"] == {
        "textbook": {"median": 3.0, "least": 1.5, "most": 4.0},
        "bn": {"median": 0.5, "least": 0.25, "most": 1.0},
    }
    assert layer["roofline"] == 0.5  # 3 × 1000 values × 2 bytes are 1 s of copying
    assert network["speed"] == layer["speed"] and "roofline" not in network


def test_rounds_take_turns_and_short_work_is_repeated():
    from stopwatch import LEAST, measure

    calls = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = measure(works, 2, "cpu")
    assert found["repeats"]["a"] > 100 and len(found["seconds"]["b"]) == 2
    changes = [name for i, name in enumerate(calls) if i == 0 or name != calls[i - 1]]
    assert changes == ["a", "b", "a", "b", "a"]  # warm-up of each; a, b; b, a
    assert measure({"a": lambda: time.sleep(LEAST)}, 1, "cpu")["repeats"] == {"a": 1}


def test_memory_is_what_the_graph_holds_and_the_most_at_one_time():
    from allocations import kept_bytes, peak_bytes

    class Square(torch.autograd.Function):
        """Lays a tensor aside where the hooks of saved tensors don't see it."""

        @staticmethod
        def forward(ctx, x):
            ctx.aside = x * 2
            return x**2

    size = 4 * 1000
    x = torch.randn(1000, requires_grad=True)
    weight = torch.randn(1000)
    assert kept_bytes(lambda: x * weight, x, "cpu") == 0  # a constant's product keeps that alone
    assert kept_bytes(lambda: x**2, x, "cpu") == size
    assert kept_bytes(lambda: x.exp(), x, "cpu") == size
    assert kept_bytes(lambda: x.exp().exp(), x, "cpu") == 2 * size
    assert kept_bytes(lambda: Square.apply(x), x, "cpu") == size
    older = [torch.randn(1000)]

    def work():
        older.clear()  # its bytes are not set against the new ones
        y = x.detach() + 1
        y = (y + 1) + (y + 1)
        return y + 1

    assert peak_bytes(work, "cpu") == 4 * size


def test_mistakes_are_one_line_before_the_work(tmp_path):
    from normalization import main

    assert "can't write" in main([*TINY, "--output", str(tmp_path / "result.txt")])
    if not torch.cuda.is_available():
        assert "there is no CUDA device here" in main(["--device", "cuda"])
