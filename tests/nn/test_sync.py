"""Two processes with parts of a batch against one process with the whole batch.

The processes are this file, run as a script: they run all of :data:`WORK` and save what they had.
"""

import copy
import multiprocessing
import subprocess
import sys
from datetime import timedelta
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.profiler import profile
from torch.nn.parallel import DistributedDataParallel

import snzoo
from snzoo.nn import (
    SparseSwitchNorm2d,
    SwitchNorm1d,
    SwitchNorm2d,
    SwitchNorm3d,
    SyncSwitchNorm2d,
    convert_sync_switchnorm,
    convert_to_switchnorm,
    norm_relu,
    revert_sync_switchnorm,
    update_bn_statistics,
)

LAYERS = {2: SwitchNorm1d, 3: SwitchNorm1d, 4: SwitchNorm2d, 5: SwitchNorm3d}
# No CPU backend serves single positions, nor few channels in channels-last layout.
SHAPES = [(4, 5), (4, 5, 3), (4, 5, 1, 1), (4, 5, 3, 4), (4, 128, 4, 4), (4, 5, 2, 3, 2)]
LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
}
SPLITS = [3, 4, 0]  # the samples of the first process; with the others, the second has 4
OPTIONS = {"average": {}, "sums": {"using_moving_average": False}}
LAYER_CASES = [*product(SHAPES, LAYOUTS, SPLITS, ["average"])]
LAYER_CASES += [*product(SHAPES, ["contiguous"], [3, 4], ["sums"])]


def part(x, split, rank):
    return x[:split] if rank == 0 else x[split:]


def make(shape, **options):
    torch.manual_seed(len(shape))
    layer = LAYERS[len(shape)](shape[1], **options).double()
    for tensor in layer.state_dict().values():
        nn.init.uniform_(tensor, 0.5, 2)
    return layer, torch.randn(shape, dtype=torch.float64) * 2 + 1


def run(module, x, *, collectives=None):
    """Return all results of a step; the gradient is that of a sum over samples."""
    x = x.detach().requires_grad_()
    with profile() as forward:
        y = module(x)
    with profile() as backward:
        (y**3).sum().backward()
    if collectives is not None:
        for record in (forward, backward):
            names = [event.name for event in record.function_events]
            collectives.append([name for name in names if name.startswith("c10d::")])
    return {
        "y": y.detach(),
        "x": x.grad,
        "gradients": {name: p.grad for name, p in module.named_parameters()},
        "buffers": {name: buffer.clone() for name, buffer in module.named_buffers()},
    }


def run_layer(rank, shape, layout, split, options):
    layer, x = make(shape, **OPTIONS[options])
    collectives = []
    x = LAYOUTS[layout](part(x, split, rank))
    found = run(convert_sync_switchnorm(layer), x, collectives=collectives)
    return found | {"collectives": collectives}


def network():
    torch.manual_seed(0)
    model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=5, drop_rate=0.0).double()
    model.layer2[0].sn1.eval()
    return model, torch.randn(4, 3, 32, 32, dtype=torch.float64)


def run_network(rank, split, parallel):
    model, x = network()
    convert_sync_switchnorm(model)
    found = run(DistributedDataParallel(model) if parallel else model, part(x, split, rank))
    for key in ("gradients", "buffers"):
        found[key] = {name.removeprefix("module."): t for name, t in found[key].items()}
    return found


def run_nothing_anywhere(rank):
    layer, x = make((4, 5, 3, 4))
    found = run(convert_sync_switchnorm(layer), x[:0])
    layer(x[:, :, :0])
    return found | {"after": copy.deepcopy(dict(layer.named_buffers()))}


def run_local(rank, kind):
    """Run a layer that needs no other process, forward or backward."""
    layer, x = make((4, 5, 3, 4), using_bn=kind != "no bn")
    group = [dist.new_group([r]) for r in (0, 1)][rank] if kind == "group" else None
    convert_sync_switchnorm(layer.train(kind != "eval"), process_group=group)
    collectives = []
    return run(layer, x, collectives=collectives) | {"collectives": collectives}


def run_half(rank, dtype):
    layer = convert_sync_switchnorm(SwitchNorm2d(8))
    torch.manual_seed(0)
    x = (torch.randn(4, 8, 40, 40) * 300).to(dtype)  # squares overflow in float16
    return {"x": x, "y": layer(part(x, 3, rank)).detach(), "var": layer.running_var}


def run_twice_differentiated(rank, shape):
    layer, x = make(shape)
    x = part(x, 3, rank).requires_grad_()
    y = convert_sync_switchnorm(layer)(x)
    try:
        torch.autograd.grad(y.sum(), x, create_graph=True)
    except RuntimeError as error:
        return str(error)


def run_only_parameters(rank):
    """Return gradients of parameters alone, for which autograd could skip the collective."""
    layer, x = make((4, 5, 3, 4))
    x = part(x, 4, rank).requires_grad_()
    y = convert_sync_switchnorm(layer)(x)
    return torch.autograd.grad((y**3).sum(), list(layer.parameters()))


def run_norm_relu(rank):
    layer, x = make((4, 5, 3, 4))
    convert_sync_switchnorm(layer)
    x = part(x, 3, rank).requires_grad_()
    y = norm_relu(layer, x, x)
    (gradient,) = torch.autograd.grad((y**3).sum(), x)
    return y.detach(), gradient


def run_update(rank):
    model, x = network()
    update_bn_statistics(convert_sync_switchnorm(model), [part(x, 3, rank), part(x + 1, 1, rank)])
    return dict(model.named_buffers())


WORK = [(run_layer, case) for case in LAYER_CASES]
WORK += [(run_network, case) for case in product((3, 4), (False, True))]
WORK += [(run_local, (kind,)) for kind in ("eval", "no bn", "group")]
WORK += [(run_half, (dtype,)) for dtype in (torch.float16, torch.bfloat16)]
WORK += [(run_twice_differentiated, (shape,)) for shape in ((4, 5), (4, 5, 3, 4))]
WORK += [(run_nothing_anywhere, ()), (run_only_parameters, ()), (run_norm_relu, ())]
WORK += [(run_update, ())]


def work(rank, folder):
    where = (folder / "rendezvous").as_uri()
    patience = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2, timeout=patience)
    torch.save([function(rank, *case) for function, case in WORK], folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return a function that gives the results of a piece of work in the two processes."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-6000:]
    both = zip(*(torch.load(folder / f"{rank}.pt") for rank in (0, 1)), strict=True)
    results = {(function, *case): pair for (function, case), pair in zip(WORK, both, strict=True)}
    return lambda *piece: results[piece]


def assert_near(actual, expected, error=1e-10):
    assert actual.shape == expected.shape
    scale = expected.abs().max().clamp_min(1) if expected.numel() else 1
    assert ((actual - expected).abs() <= error * scale).all()


def assert_is_the_whole(parts, whole):
    for key in ("y", "x"):
        assert_near(torch.cat([found[key] for found in parts]), whole[key])
    for name, right in whole["gradients"].items():
        assert_near(sum(found["gradients"][name] for found in parts), right)
    for name, right in whole["buffers"].items():
        assert_near(parts[0]["buffers"][name], right)
        assert torch.equal(parts[0]["buffers"][name], parts[1]["buffers"][name])


@pytest.mark.parametrize("shape, layout, split, options", LAYER_CASES)
def test_a_layer_is_as_with_the_whole_batch(found, shape, layout, split, options):
    parts = found(run_layer, shape, layout, split, options)
    layer, x = make(shape, **OPTIONS[options])
    assert_is_the_whole(parts, run(layer, LAYOUTS[layout](x)))
    for process in parts:
        forward, backward = process["collectives"]
        assert forward == ["c10d::allgather_"] and backward == ["c10d::allreduce_"]
    for gradient in parts[split == 4]["gradients"].values() if split in (0, 4) else ():
        assert not gradient.any()  # this process has no samples


@pytest.mark.parametrize("split, parallel", list(product((3, 4), (False, True))))
def test_a_network_is_as_with_the_whole_batch(found, split, parallel):
    parts = found(run_network, split, parallel)
    model, x = network()
    whole = run(model, x)
    # The loss is a sum; both have the average gradient under DistributedDataParallel.
    assert_is_the_whole(parts, whole)
    equal = map(torch.equal, *(process["gradients"].values() for process in parts))
    assert not parallel or all(equal)


def test_no_samples_anywhere_change_nothing(found):
    for process in found(run_nothing_anywhere):
        layer, _ = make((4, 5, 3, 4))
        assert process["y"].shape == process["x"].shape == (0, 5, 3, 4)
        assert all(not gradient.any() for gradient in process["gradients"].values())
        for buffers in (process["buffers"], process["after"]):
            assert all(torch.equal(buffers[name], t) for name, t in layer.named_buffers())


@pytest.mark.parametrize("kind", ["eval", "no bn", "group"])
def test_elsewhere_it_is_the_layer_of_one_process(found, kind):
    for process in found(run_local, kind):
        layer, x = make((4, 5, 3, 4), using_bn=kind != "no bn")
        right = run(layer.train(kind != "eval"), x)
        assert process["collectives"] == [[], []]
        for key in ("y", "x"):
            assert torch.equal(process[key], right[key])
        for key in ("gradients", "buffers"):
            assert all(torch.equal(process[key][name], t) for name, t in right[key].items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_has_float32_statistics(found, dtype):
    parts = found(run_half, dtype)
    x = parts[0]["x"]
    layer = SwitchNorm2d(8)
    right = layer(x.float())
    y = torch.cat([process["y"] for process in parts])
    assert y.dtype == dtype
    assert_near(y.float(), right, 1e-3 if dtype == torch.float16 else 1e-2)
    assert_near(parts[0]["var"], layer.running_var, 1e-5)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 3, 4)])
def test_a_gradient_of_the_gradient_is_refused(found, shape):
    for message in found(run_twice_differentiated, shape):
        assert message.startswith("SyncSwitchNorm has no gradient of the gradient")


def test_gradients_of_parameters_alone(found):
    layer, x = make((4, 5, 3, 4))
    expected = torch.autograd.grad((layer(x) ** 3).sum(), list(layer.parameters()))
    for *gradients, right in zip(*found(run_only_parameters), expected, strict=True):
        assert_near(sum(gradients), right)


def test_norm_relu(found):
    layer, x = make((4, 5, 3, 4))
    x.requires_grad_()
    y = torch.relu(layer(x) + x)
    (gradient,) = torch.autograd.grad((y**3).sum(), x)
    for actual, right in zip(zip(*found(run_norm_relu), strict=True), (y, gradient), strict=True):
        assert_near(torch.cat(actual), right)


def test_batch_averages_are_of_all_processes(found):
    model, x = network()
    # The second batch has one sample in the first process and three in the other.
    update_bn_statistics(model, [x, x + 1])
    first, second = found(run_update)
    for name, right in model.named_buffers():
        assert_near(first[name], right)
        assert torch.equal(first[name], second[name])


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5, 5), (3, 4, 2, 5, 5)])
def test_conversion_there_and_back_keeps_the_layer(shape):
    layer, x = make(shape, eps=1e-3, momentum=0.7, using_moving_average=False)
    layer.weight.requires_grad_(False)
    layer.eval()
    seen = []
    handle = layer.register_forward_hook(lambda module, args, y: seen.append(type(module)))
    kind, options = type(layer), layer.extra_repr()
    state, tensors = list(layer.state_dict()), [*layer.parameters(), *layer.buffers()]
    right = layer(x)
    for convert in (convert_sync_switchnorm, convert_sync_switchnorm, revert_sync_switchnorm):
        layer = convert(layer)
        assert list(layer.state_dict()) == state and layer.extra_repr() == options
        for now, before in zip([*layer.parameters(), *layer.buffers()], tensors, strict=True):
            assert now is before
        assert not layer.training and not layer.weight.requires_grad
        assert torch.equal(layer(x), right)
    assert seen[0] is seen[3] is type(layer) is kind
    assert seen[1] is seen[2] and seen[1].__name__ == "Sync" + kind.__name__
    handle.remove()
    layer(x)
    assert len(seen) == 4 and not hasattr(layer, "process_group")


def test_conversion_leaves_all_else_alone():
    shared = SwitchNorm2d(4)
    others = [nn.BatchNorm2d(4), nn.ReLU(), SyncSwitchNorm2d(4)]
    model = nn.Sequential(shared, nn.Sequential(shared), *others)
    kinds = [type(module) for module in others]
    assert convert_sync_switchnorm(model) is model
    assert model[0] is model[1][0] and type(model[0]) is SyncSwitchNorm2d
    assert [type(module) for module in others] == kinds
    revert_sync_switchnorm(model)
    assert not any(isinstance(module, SyncSwitchNorm2d) for module in model.modules())


class Own(SwitchNorm2d):
    pass


def activated():
    timm = pytest.importorskip("timm.layers")
    return convert_to_switchnorm(timm.BatchNormAct2d(4))


@pytest.mark.parametrize(
    "make, kind",
    [
        (lambda: SparseSwitchNorm2d(4), "SparseSwitchNorm2d"),
        (activated, "SwitchNormAct2d"),
        (lambda: Own(4), "Own"),
    ],
)
def test_layers_without_a_synchronized_form_are_refused_by_name(make, kind):
    model = nn.Sequential(SwitchNorm2d(4), nn.Sequential(make()))
    with pytest.raises(ValueError, match=f"1.0 is a {kind}, which has no synchronized form"):
        convert_sync_switchnorm(model)
    assert type(model[0]) is SwitchNorm2d


def test_arguments_are_those_of_the_layer():
    layer = SyncSwitchNorm2d(4, 1e-3, momentum=0.5, using_bn=False, process_group=None)
    assert layer.extra_repr() == SwitchNorm2d(4, 1e-3, 0.5, using_bn=False).extra_repr()
    assert (
        copy.deepcopy(layer).state_dict().keys()
        == SwitchNorm2d(4, using_bn=False).state_dict().keys()
    )


if __name__ == "__main__":
    # Forked, as the import of PyTorch takes longer than the work.
    fork = multiprocessing.get_context("fork").Process
    processes = [fork(target=work, args=(rank, Path(sys.argv[1]))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
