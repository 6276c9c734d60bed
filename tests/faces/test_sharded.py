"""Processes with parts of the classes and of a batch against the whole head in one process.

The processes are this file, run as a script. Two of three form a group, in which they run all of
:data:`WORK`; the other one takes part where all processes do.
"""

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
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from snzoo.errors import ArgumentError
from snzoo.faces import ArcFace, CosFace, ShardedHead

HEADS = {
    "arcface": (ArcFace, {}),
    "published": (ArcFace, {"published": True, "scale": 16.0}),
    "cosface": (CosFace, {"margin": 0.3, "scale": 30.0}),
}
CLASSES = [7, 8, 2]
SPLITS = [3, 5, 0]  # images of the first process, of five
CASES = [*product(HEADS, CLASSES, SPLITS)]
MANY, RATE = 40, 0.4
GROUPS = {}  # those of a process


def make_batch(classes, *, dtype=torch.float64):
    """Return five embeddings, their labels, and all class centers."""
    generator = torch.Generator().manual_seed(classes)
    embeddings = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(classes, (5,), generator=generator)
    weight = torch.randn(classes, 6, dtype=torch.float64, generator=generator)
    return embeddings.to(dtype), labels, weight.to(dtype)


def part(x, split, rank):
    return x[:split] if rank == 0 else x[split:]


def run_head(head, embeddings, labels):
    """Return the loss and its gradients, those of the class centers by ``head``'s own rows."""
    embeddings = embeddings.clone().requires_grad_()
    head.zero_grad()
    loss = head(embeddings, labels)
    loss.backward()
    weight = head.head.weight
    return {"loss": loss.detach(), "embeddings": embeddings.grad, "weight": weight.grad.clone()}


def make_head(name, classes, *, group="pair", **more):
    kind, options = HEADS[name]
    group = GROUPS.get(group)
    head = ShardedHead(kind, 6, classes, process_group=group, **options, **more).double()
    head.load_weight(make_batch(classes)[2])
    return head


def run_split(rank, name, classes, split):
    embeddings, labels, _ = make_batch(classes)
    head = make_head(name, classes)
    found = run_head(head, part(embeddings, split, rank), part(labels, split, rank))
    return found | {"rows": len(head.head.weight), "whole": head.gather_weight()}


def run_in_all(rank):
    """Run in all three processes, which have 2, 2 and 3 classes, and 2, 3 and no images."""
    embeddings, labels, _ = make_batch(7)
    head = make_head("arcface", 7, group=None)
    own = [slice(2, 5), slice(5, 5), slice(0, 2)][rank]  # rank -1 is the first
    return run_head(head, embeddings[own], labels[own]) | {"whole": head.gather_weight()}


def run_alone(rank):
    """Run a group of one process, which needs nobody else."""
    embeddings, labels, _ = make_batch(7)
    head = make_head("arcface", 7, group="alone")
    found = run_head(head, embeddings[rank:], labels[rank:])
    return found | {"whole": head.gather_weight()}


def run_behind_ddp(rank):
    embeddings, labels, _ = make_batch(7)
    network = DistributedDataParallel(make_network(), process_group=GROUPS["pair"])
    head = make_head("arcface", 7, data_parallel=True)
    head(network(part(embeddings, 3, rank)), part(labels, 3, rank)).backward()
    return {"network": network.module.weight.grad, "weight": head.head.weight.grad}


def make_network():
    torch.manual_seed(0)
    return nn.Linear(6, 6, bias=False).double()


def run_samples(rank):
    """Return two training steps of a sampled head, and a pass in evaluation mode."""
    embeddings, labels, _ = make_batch(MANY)
    head = make_head("arcface", MANY, sample_rate=RATE)
    batch = part(embeddings, 3, rank), part(labels, 3, rank)
    state = torch.get_rng_state()
    steps = [run_head(head, *batch) for _ in range(2)]
    untouched = torch.equal(torch.get_rng_state(), state)
    head.step = 1
    steps.append(run_head(head, *batch))
    return {"steps": steps, "untouched": untouched, "all": run_head(head.eval(), *batch)}


def run_half(rank, dtype):
    embeddings, labels, weight = make_batch(7, dtype=dtype)
    head = ShardedHead(ArcFace, 6, 7, process_group=GROUPS["pair"], dtype=dtype)
    head.load_weight(weight)
    return run_head(head, part(embeddings, 3, rank), part(labels, 3, rank))


def run_first_centers(rank):
    torch.manual_seed(0)
    return [make_first_centers(seed) for seed in (0, 0, 1)]


def make_first_centers(seed):
    head = ShardedHead(ArcFace, 6, 8, seed=seed, process_group=GROUPS["pair"])
    return head.head.weight.detach()


def run_too_few_classes(rank):
    try:
        ShardedHead(ArcFace, 6, 1, process_group=GROUPS["pair"])
    except ArgumentError as error:
        return str(error)


WORK = [(run_in_all, ()), *((run_split, case) for case in CASES)]
WORK += [(run_half, (dtype,)) for dtype in (torch.float32, torch.float16, torch.bfloat16)]
WORK += [(run_alone, ()), (run_behind_ddp, ()), (run_samples, ()), (run_first_centers, ())]
WORK += [(run_too_few_classes, ())]


def work(rank, folder):
    where = (folder / "rendezvous").as_uri()
    patience = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=3, timeout=patience)
    GROUPS["pair"] = dist.new_group([1, 2])
    GROUPS["alone"] = [dist.new_group([other]) for other in range(3)][rank]
    mine = WORK if rank else WORK[:1]
    torch.save([function(rank - 1, *case) for function, case in mine], folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Return a function that gives the results of a piece of work in its processes."""
    folder = tmp_path_factory.mktemp("processes")
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-6000:]
    (first,), *pair = (torch.load(folder / f"{rank}.pt") for rank in range(3))
    both = zip(*pair, strict=True)
    results = {(function, *case): pair for (function, case), pair in zip(WORK, both, strict=True)}
    results[run_in_all,] = (first, *results[run_in_all,])
    return lambda *piece: results[piece]


def run_whole(name, embeddings, labels, weight):
    """Return what the unsplit head and PyTorch's cross entropy give in one process."""
    kind, options = HEADS[name]
    head = kind(6, len(weight), **options).double()
    head.load_state_dict({"weight": weight})
    embeddings = embeddings.clone().requires_grad_()
    loss = F.cross_entropy(head(embeddings, labels), labels)
    loss.backward()
    return {"loss": loss.detach(), "embeddings": embeddings.grad, "weight": head.weight.grad}


def assert_near(actual, expected, error=1e-10):
    torch.testing.assert_close(actual, expected, rtol=0, atol=error)


def assert_is_the_whole(parts, whole, **error):
    for process in parts:
        assert_near(process["loss"].to(whole["loss"].dtype), whole["loss"], **error)
        assert torch.equal(process["loss"], parts[0]["loss"])
    for key in ("embeddings", "weight"):
        joined = torch.cat([process[key] for process in parts])
        assert_near(joined.to(whole[key].dtype), whole[key], **error)


@pytest.mark.parametrize("name, classes, split", CASES)
def test_loss_and_gradients_are_those_of_the_whole_head(found, name, classes, split):
    parts = found(run_split, name, classes, split)
    embeddings, labels, weight = make_batch(classes)
    assert_is_the_whole(parts, run_whole(name, embeddings, labels, weight))
    assert [process["rows"] for process in parts] == [classes // 2, -(-classes // 2)]
    assert torch.equal(parts[0]["whole"], weight) and parts[1]["whole"] is None


@pytest.mark.parametrize(
    "dtype, error", [(torch.float32, 1e-4), (torch.float16, 0.1), (torch.bfloat16, 0.8)]
)
def test_other_dtypes_are_near(found, dtype, error):
    embeddings, labels, weight = make_batch(7, dtype=dtype)
    whole = run_whole("arcface", embeddings.double(), labels, weight.double())
    assert whole["loss"] > 10 and whole["weight"].abs().max() > 2
    assert_is_the_whole(found(run_half, dtype), whole, error=error)


def test_all_processes_are_the_default_group(found):
    embeddings, labels, weight = make_batch(7)
    parts = found(run_in_all)
    assert_is_the_whole(parts, run_whole("arcface", embeddings, labels, weight))
    assert torch.equal(parts[0]["whole"], weight)
    assert [len(process["weight"]) for process in parts] == [2, 2, 3]
    assert parts[1]["whole"] is parts[2]["whole"] is None


def test_a_group_of_one_process_needs_nobody_else(found):
    embeddings, labels, weight = make_batch(7)
    for rank, process in enumerate(found(run_alone)):
        whole = run_whole("arcface", embeddings[rank:], labels[rank:], weight)
        assert_is_the_whole([process], whole)
        assert torch.equal(process["whole"], weight)


def test_averages_of_ddp_are_the_gradients_of_the_loss(found):
    embeddings, labels, weight = make_batch(7)
    network = make_network()
    head = ArcFace(6, 7).double()
    head.load_state_dict({"weight": weight})
    F.cross_entropy(head(network(embeddings), labels), labels).backward()
    parts = found(run_behind_ddp)
    assert_near(torch.cat([process["weight"] for process in parts]), head.weight.grad)
    for process in parts:
        assert_near(process["network"], network.weight.grad)


def test_the_same_seed_gives_each_process_other_centers(found):
    (first, again, other), (second, *_) = found(run_first_centers)
    assert torch.equal(first, again)
    assert not torch.isclose(first, second).any() and not torch.isclose(first, other).any()


def test_each_process_needs_a_class(found):
    assert found(run_too_few_classes) == ("2 processes need as many classes, got 1",) * 2


def assert_is_a_sample(parts, *, rows):
    """Check a sampled step, and return the classes of the sample."""
    embeddings, labels, weight = make_batch(MANY)
    gradient = torch.cat([process["weight"] for process in parts])
    sample = gradient.any(1).nonzero()[:, 0]
    assert set(labels.tolist()) < set(sample.tolist()) and len(sample) == rows
    places = torch.searchsorted(sample, labels)
    whole = run_whole("arcface", embeddings, places, weight[sample])
    whole["weight"] = torch.zeros_like(weight).index_copy(0, sample, whole["weight"])
    assert_is_the_whole(parts, whole)
    return sample.tolist()


def test_a_sampled_step_is_the_whole_head_of_the_sampled_classes(found):
    parts = found(run_samples)
    first, second, again = (
        assert_is_a_sample([process["steps"][i] for process in parts], rows=16) for i in range(3)
    )
    assert first != second == again
    assert all(process["untouched"] for process in parts)
    assert sum(row < 20 for row in first) == 8
    assert [row for row in first if row < 20] != [row - 20 for row in first if row >= 20]
    whole = run_whole("arcface", *make_batch(MANY))
    assert_is_the_whole([process["all"] for process in parts], whole)


@pytest.mark.parametrize(
    "classes, rate, rows",
    [(40, 0.5, 20), (40, 0.2, 8), (40, 0.01, 5), (40, 0.999, 40), (3, 0.5, 3)],
)
def test_one_process_samples_too(classes, rate, rows):
    embeddings, labels, _ = make_batch(classes)
    labels[:2] = labels[3]  # fewer labels than images
    head = make_head("arcface", classes, sample_rate=rate)
    found = run_head(head, embeddings, labels)
    sample = found["weight"].any(1)
    assert sample.sum() == rows and sample[labels].all()


def test_every_class_is_sampled_in_turn():
    embeddings, labels, _ = make_batch(MANY)
    head = make_head("cosface", MANY, sample_rate=0.25)
    steps = [run_head(head, embeddings, labels)["weight"].any(1) for _ in range(400)]
    shares = torch.stack(steps).double().mean(0)
    negatives = torch.ones(MANY).index_fill(0, labels, 0).bool()
    expected = (10 - (~negatives).sum()) / negatives.sum()
    assert (shares[~negatives] == 1).all()
    assert ((shares[negatives] - expected).abs() < 0.1).all()  # 5 standard deviations


@pytest.mark.parametrize("name, classes", list(product(HEADS, CLASSES)))
def test_one_process_needs_no_process_group(name, classes):
    embeddings, labels, weight = make_batch(classes)
    head = make_head(name, classes)
    found = run_head(head, embeddings, labels)
    assert_is_the_whole([found], run_whole(name, embeddings, labels, weight))
    assert torch.equal(head.gather_weight(), weight)


@pytest.mark.parametrize("rate", [0, -0.1, 1.01, float("nan")])
def test_a_wrong_rate_is_refused(rate):
    with pytest.raises(ArgumentError, match="sample_rate must be above 0 and up to 1, got"):
        ShardedHead(ArcFace, 6, 7, sample_rate=rate)


def test_wrong_labels_and_centers_are_refused():
    head = ShardedHead(ArcFace, 6, 7)
    with pytest.raises(ArgumentError, match="labels must be from 0 to 6, got 7"):
        head(torch.ones(1, 6), torch.tensor([7]))
    with pytest.raises(ArgumentError, match=r"must have shape \(7, 6\), got \(6, 7\)"):
        head.load_weight(torch.ones(6, 7))


if __name__ == "__main__":
    # Forked, as the import of PyTorch takes longer than the work.
    fork = multiprocessing.get_context("fork").Process
    processes = [fork(target=work, args=(rank, Path(sys.argv[1]))) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
