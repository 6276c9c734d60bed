"""State dicts against a network's layout."""

import re

import pytest
import torch

from snzoo.errors import CheckpointError
from snzoo.weights.conform import check_fingerprint, conform_state_dict

STATE = {
    "conv1.weight": torch.arange(6.0).view(2, 3),
    "fc.weight": torch.ones(3, 2),
    "fc.bias": torch.tensor([0.5, 1.0, float("-inf")]),
}
LAYOUT = {key: value.to("meta") for key, value in STATE.items()}


def change(**tensors):
    return STATE | {f"fc.{key}": value for key, value in tensors.items()}


@pytest.mark.parametrize(
    "state, words",
    [
        ({"fc.weight": STATE["fc.weight"]}, "missing: conv1.weight, fc.bias"),
        (
            change(a=torch.ones(1), b=torch.ones(1), c=torch.ones(1), d=torch.ones(1)),
            "unexpected: fc.a, fc.b, fc.c and 1 more",
        ),
        (change(weight=torch.ones(1000, 2)), "different: fc.weight is (1000, 2), not (3, 2)"),
        (change(weight=torch.zeros(1).expand(10**14)), "fc.weight is (100000000000000,), not"),
        (change(bias=torch.zeros(3).long()), "fc.bias is torch.int64, not torch.float32"),
        (change(bias=torch.zeros(3).int()), "fc.bias is torch.int32, not torch.float32"),
        (change(bias=torch.zeros(3) + 0j), "fc.bias is torch.complex64, not torch.float32"),
        (
            {f"student.{key}": value for key, value in STATE.items()} | {"head.x": torch.ones(1)},
            "its keys begin with 'student.': save {k.removeprefix('student.'): v for",
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused_by_name(state, words):
    with pytest.raises(CheckpointError, match=re.escape(words)):
        conform_state_dict(state, LAYOUT, where="FILE")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_widths_are_converted_or_refused(dtype):
    state = {key: value.to(dtype) for key, value in STATE.items()}
    found = conform_state_dict(state, LAYOUT, where="FILE")
    assert all(torch.equal(found[key], state[key].float()) for key in STATE)
    with pytest.raises(CheckpointError, match=f"is {dtype}, not torch.float32"):
        conform_state_dict(state, LAYOUT, where="FILE", exact_dtypes=True)


def test_the_layout_gives_the_order_and_missing_batch_counts():
    layout = {"b": torch.zeros(2, device="meta"), "bn.num_batches_tracked": torch.tensor(0)}
    found = conform_state_dict({"b": torch.ones(2)}, layout, where="FILE")
    assert list(found) == ["b", "bn.num_batches_tracked"]
    assert found["bn.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    "shared",
    [
        pytest.param({"fc.bias": torch.ones(1).expand(3)}, id="repeated"),
        pytest.param({"fc.bias": torch.arange(9.0)[1:4]}, id="part of a larger one"),
        pytest.param({"fc.weight": STATE["conv1.weight"].T}, id="shared, not contiguous"),
        pytest.param({"fc.bias": torch.frombuffer(bytearray(16), dtype=torch.float32)[1:]},
                     id="not aligned"),
    ],
)  # fmt: skip
def test_each_tensor_gets_aligned_memory_of_its_own(shared):
    found = conform_state_dict(STATE | shared, LAYOUT, where="FILE")
    assert all(torch.equal(found[key], value) for key, value in (STATE | shared).items())
    storages = [value.untyped_storage() for value in found.values()]
    assert len({storage.data_ptr() for storage in storages}) == len(found)
    assert all(s.nbytes() == v.nbytes for s, v in zip(storages, found.values(), strict=True))
    assert all(v.data_ptr() % 64 == 0 and v.is_contiguous() for v in found.values())


@pytest.mark.parametrize(
    "key, published, fits",
    [
        ("fc.bias", (0.50009, 1.0, float("-inf")), False),  # infinity is near nothing
        ("conv1.weight", (0, 1, 2, 3, 4, 5.00009), True),
        ("conv1.weight", (0, 1, 2, 3, 4, 5.0002), False),
        ("conv1.weight", (0, 1, 2, 3, 4), False),
        ("no.such.key", (0.0,), False),
    ],
)
def test_a_fingerprint_is_held_to_four_decimals(key, published, fits):
    if fits:
        check_fingerprint(STATE, {key: published}, where="FILE")
        return
    with pytest.raises(CheckpointError, match=rf"FILE: {key} is .*published: "):
        check_fingerprint(STATE, {key: published}, where="FILE")
