"""The compiled loops, for several instruction sets, against sums in NumPy and against Pillow."""

import mmap
import os
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import binding
from PIL import Image

import snzoo
from snzoo.data import loops, resample
from snzoo.data.loops import BITS, HALF
from snzoo.data.pixels import normalize

HOST = binding.get_host_cpu_features()
SETS = ["", "+ssse3", "+avx2", "+avx512bw"] if platform.machine() == "x86_64" else []
SETS = [None, *(s for s in SETS if not s or HOST.get(s[1:]))]  # None is all that the host has


@pytest.fixture(scope="module", params=SETS, ids=str)
def compiled(request):
    return loops.load() if request.param is None else loops.Loops("x86-64", request.param)


def random_taps(rng, length, count, most=20):
    """Any first pixels, and weights of sum one: any, quarters, which make ties, or one alone."""
    size = 4 * int(rng.integers(1, min(most, length) // 4 + 1))
    weights = np.zeros((count, size), np.int32)
    for line in weights:
        step = 1 << int(rng.choice([0, BITS - 2, BITS]))
        cuts = step * rng.integers(0, (1 << BITS) // step + 1, size - 1)
        line[:] = np.diff([0, *np.sort(cuts), 1 << BITS])
    return rng.integers(0, length - size + 1, count).astype(np.int32), weights


def weighted(rows, first, weights):
    """Return the rounded weighted sums of rows."""
    sums = [
        np.tensordot(w, rows[at : at + len(w)].astype(np.int64), 1)
        for at, w in zip(first, weights, strict=True)
    ]
    return ((np.stack(sums) + HALF) >> BITS).astype(np.uint8)


def random_pixels(rng, *shape):
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    return np.full_like(pixels, 255) if rng.random() < 0.1 else pixels


@pytest.mark.parametrize("seed", range(40))
def test_passes_are_weighted_sums(compiled, seed):
    rng = np.random.default_rng(seed)
    height, width, small = rng.integers(4, 60, 3)
    pixels = random_pixels(rng, height, width, 3)
    first, weights = random_taps(rng, width, small)
    out = np.empty((height, small, 3), np.uint8)
    compiled.across(pixels, first, weights, out)
    assert np.array_equal(out, weighted(pixels.swapaxes(0, 1), first, weights).swapaxes(0, 1))

    start = int(rng.integers(width))
    part = pixels[:, start:]  # rows need not be contiguous
    first, weights = random_taps(rng, height, small)
    out = np.empty((small, width - start, 3), np.uint8)
    compiled.down(part, first, weights, out)
    assert np.array_equal(out, weighted(part, first, weights))


@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (1, 3, 1, 1), (3, 3, 17, 33)])
def test_values_are_looked_up_in_any_layout(compiled, shape):
    rng = np.random.default_rng(0)
    table = rng.random((3, 256), np.float32)
    pixels = random_pixels(rng, *shape)
    n, c, h, w = shape
    expected = table[np.arange(3)[:, None, None], pixels]
    for source in (
        pixels,
        np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    ):
        for out in (
            np.zeros(shape, np.float32),
            np.zeros((n, h, w, c), np.float32).transpose(0, 3, 1, 2),
        ):
            compiled.look_up(source, table, out)
            assert np.array_equal(out, expected)


sides = st.one_of(st.integers(1, 90), st.sampled_from([1, 2, 3, 4, 5, 700]))


@settings(max_examples=150, deadline=None)
@given(st.tuples(sides, sides), st.tuples(sides, sides), st.data())
def test_any_resize_and_crop_gives_the_pixels_of_pillow(size, resized, data):
    # 1-pixel sides, both directions, long and thin ones, and crops that touch the borders
    left, top = (data.draw(st.sampled_from([0, side // 2, side - 1])) for side in resized)
    right = data.draw(st.integers(left + 1, resized[0]))
    bottom = data.draw(st.integers(top + 1, resized[1]))
    box = (left, top, right, bottom)
    pixels = random_pixels(np.random.default_rng(size), size[1], size[0], 3)
    image = Image.fromarray(pixels).resize(resized, Image.Resampling.BILINEAR)
    out = np.empty((bottom - top, right - left, 3), np.uint8)
    resample.resize_and_crop(pixels, resample.plan(size, resized, box), out)
    assert np.array_equal(out, np.asarray(image.crop(box)))
    part = np.repeat(pixels, 2, axis=1)[:, ::2]  # not contiguous
    resample.resize_and_crop(part, resample.plan(size, resized, box), out)
    assert np.array_equal(out, np.asarray(image.crop(box)))


def guard(lib, size):
    """Return memory of some pages between two pages that cannot be used."""
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 2) * mmap.PAGESIZE)
    array = np.frombuffer(memory, np.uint8)
    for page in (0, pages + 1):
        assert not lib.mprotect(array.ctypes.data + page * mmap.PAGESIZE, mmap.PAGESIZE, 0)
    return array[mmap.PAGESIZE : -mmap.PAGESIZE]


def check_bounds(features):
    """Run the loops on arrays that begin or end where memory ends; a mistake ends the process."""
    import ctypes

    lib = ctypes.CDLL(None)
    lib.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    compiled = loops.load() if features == "None" else loops.Loops("x86-64", features)
    inside, result = guard(lib, 40_000), guard(lib, 40_000)
    rng = np.random.default_rng(0)

    def place(memory, shape, at_end):
        size = int(np.prod(shape))
        return memory[len(memory) - size if at_end else 0 :][:size].reshape(shape)

    for case in range(300):
        height, width, small = (int(rng.integers(4, most)) for most in (14, 60, 60))
        at_end = bool(case % 2)
        pixels = place(inside, (height, width, 3), at_end)
        pixels[:] = random_pixels(rng, *pixels.shape)
        first, weights = random_taps(rng, width, small)
        first[[0, -1]] = 0, width - weights.shape[1]
        result[:] = 7
        out = place(result, (height, small, 3), at_end)
        compiled.across(pixels, first, weights, out)
        assert np.array_equal(out, weighted(pixels.swapaxes(0, 1), first, weights).swapaxes(0, 1))
        assert (result == 7).sum() - (out == 7).sum() == result.size - out.size

        first, weights = random_taps(rng, height, small)
        first[[0, -1]] = 0, height - weights.shape[1]
        result[:] = 7
        out = place(result, (small, width, 3), at_end)
        compiled.down(pixels, first, weights, out)
        assert np.array_equal(out, weighted(pixels, first, weights))
        assert (result == 7).sum() - (out == 7).sum() == result.size - out.size


@pytest.mark.parametrize("features", SETS, ids=str)
def test_nothing_is_read_or_written_beyond_the_arrays(features):
    run(f"test_loops.check_bounds({str(features)!r})")


def run(code):
    """Run code in a fresh process."""
    setup = "import sys; sys.path.insert(0, sys.argv[1]); import test_loops"
    command = [sys.executable, "-c", f"{setup}; {code}", os.path.dirname(__file__)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr)


def resize_one(seed=0):
    """Resize a photo with the loops, and return whether Pillow gives the same."""
    pixels = random_pixels(np.random.default_rng(seed), 300 + seed, 400, 3)
    size, resized = (400, 300 + seed), (310, 256)
    out = np.empty((256, 310, 3), np.uint8)
    resample.resize_and_crop(pixels, resample.plan(size, resized, (0, 0, *resized)), out)
    return np.array_equal(out, np.asarray(Image.fromarray(pixels).resize(resized, 2)))


def check_threads():
    """Let threads begin at the same time, before anything was compiled."""
    together = threading.Barrier(8)

    def work(seed):
        together.wait()
        return [resize_one(seed) for _ in range(20)]

    assert not loops.are_loaded()
    with ThreadPoolExecutor(8) as threads:
        assert all(map(all, threads.map(work, range(8))))


def check_fork():
    """Use the loops in a process, and in its child, while threads of the parent use them."""
    assert resize_one()
    with ThreadPoolExecutor(2) as threads:
        busy = [threads.submit(resize_one, seed) for seed in range(40)]
        child = os.fork()
        if not child:
            os._exit(0 if all(map(resize_one, range(5))) else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert all(task.result() for task in busy)


@pytest.mark.parametrize("check", ["threads", "fork"])
def test_the_loops_run_in(check):
    run(f"test_loops.check_{check}()")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 5, 7), (9, 3, 224, 224)])
def test_the_loops_normalize_to_the_same_bits(shape, memory_format):
    preprocessing = snzoo.get_info("resnet50v1_sn").preprocessing
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    loops.load()
    for source in (pixels, pixels.contiguous(memory_format=torch.channels_last)):
        x = normalize(source, preprocessing, memory_format=memory_format)
        assert torch.equal(x, pixels.float().div(255).sub(mean).div(std))
        assert x.is_contiguous(memory_format=memory_format) and x.data_ptr() % 64 == 0
