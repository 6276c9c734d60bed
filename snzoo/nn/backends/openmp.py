"""The OpenMP library whose threads torch computes with.

Compiled loops run on these threads: others would compete with them for the cores.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch


class OpenMP(NamedTuple):
    """The addresses of functions of the library."""

    parallel: int  # GOMP_parallel(function, argument, threads, flags)
    barrier: int
    num_threads: int
    thread_num: int


NAMES = "GOMP_parallel", "GOMP_barrier", "omp_get_num_threads", "omp_get_thread_num"


@cache
def find_openmp() -> OpenMP | None:
    """Return the functions, or None where torch has threads of another kind."""
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # A name is looked up in the libraries that this one depends on, too.
        library = ctypes.CDLL(str(path))
        functions = [getattr(library, name) for name in NAMES]
    except (OSError, AttributeError):
        return None
    return OpenMP(*(ctypes.cast(f, ctypes.c_void_p).value or 0 for f in functions))
