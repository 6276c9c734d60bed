"""What :mod:`snzoo.llvm` adds to llvmlite: loops over vectors, and bfloat16."""

import ctypes

import pytest
import torch

ir = pytest.importorskip("llvmlite.ir", reason="needs the extra [fast]")
llvm = pytest.importorskip("snzoo.llvm")


def compiled(emit):
    """Compile a function of two addresses and a number of values."""
    module = ir.Module()
    function = llvm.add_function(module, "f", ir.VoidType(), llvm.POINTER, llvm.POINTER, llvm.INT64)
    b = ir.IRBuilder(function.append_basic_block())
    emit(b, *function.args)
    b.ret_void()
    (address,) = llvm.compile_functions(module, ["f"])
    kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    return lambda x, y: kind(address)(x.data_ptr(), y.data_ptr(), x.numel())


@pytest.mark.parametrize("count", [0, 1, 7, 8, 31, 32, 41, 64, 103, 4097])
def test_vectors_cover_each_value_once(count):
    def double(b, x, y, n):
        def body(width, i):
            value = llvm.load(b, x, i, llvm.FLOAT, width)
            before = llvm.load(b, y, i, llvm.FLOAT, width)
            llvm.store(b, b.fadd(before, b.fadd(value, value)), y, i)

        llvm.for_lanes(b, llvm.size(0), n, body)

    x, y = torch.randn(count), torch.zeros(count)
    compiled(double)(x, y)
    assert torch.equal(y, 2 * x)


@pytest.mark.parametrize("start, count", [(0, 0), (0, 1), (0, 32), (0, 49), (3, 101), (5, 5)])
def test_a_sum_is_of_the_values_in_between(start, count):
    def add(b, x, y, n):
        def body(width, i, total):
            return [b.fadd(total, llvm.load(b, x, i, llvm.FLOAT, width))]

        (total,) = llvm.sum_over(b, llvm.FLOAT, llvm.size(start), n, body, 1)
        llvm.store(b, total, y, llvm.size(0))

    x, y = torch.arange(count).float(), torch.zeros(1)
    compiled(add)(x, y)
    assert y.item() == sum(range(start, count))


def test_bfloat16_is_rounded_as_torch_rounds_it():
    def convert(b, x, y, n):
        def convert_lanes(width, i):
            llvm.store_bfloats(b, llvm.load(b, x, i, llvm.FLOAT, width), y, i)

        llvm.for_lanes(b, llvm.size(0), n, convert_lanes)

    def convert_back(b, x, y, n):
        def convert_lanes(width, i):
            llvm.store(b, llvm.load_bfloats(b, x, i, width), y, i)

        llvm.for_lanes(b, llvm.size(0), n, convert_lanes)

    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    ends = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], dtype=torch.int32)
    x = (halves[:, None] | ends).flatten().view(torch.float32)
    y = torch.zeros(x.numel(), dtype=torch.bfloat16)
    compiled(convert)(x, y)
    right = x.bfloat16()
    assert torch.equal(y.isnan(), right.isnan())
    assert torch.equal(y.nan_to_num(), right.nan_to_num())
    wide = torch.zeros(y.numel())
    compiled(convert_back)(y, wide)
    assert torch.equal(wide.nan_to_num(), y.float().nan_to_num())
