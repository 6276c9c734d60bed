"""Run a compiled function on the OpenMP threads of torch.

A second pool of threads would compete with torch's for the cores.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch


class OpenMP(NamedTuple):
    """The functions of the OpenMP library that torch has loaded.

    Attributes:
        run: ``GOMP_parallel(function, argument, threads, flags)``.
        addresses: those of ``omp_get_num_threads``, ``omp_get_thread_num``, ``GOMP_barrier``.
    """

    run: Any
    addresses: tuple[int, int, int]


@cache
def find_openmp() -> OpenMP | None:
    """Return torch's OpenMP library, or None where torch has another kind of threads."""
    # A symbol of this library is looked up in the libraries that it depends on, too.
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        library = ctypes.CDLL(str(path))
        run = library.GOMP_parallel
        functions = (
            library.omp_get_num_threads,
            library.omp_get_thread_num,
            library.GOMP_barrier,
        )
    except (OSError, AttributeError):
        return None
    run.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint]
    run.restype = None
    team, thread, barrier = (ctypes.cast(f, ctypes.c_void_p).value or 0 for f in functions)
    return OpenMP(run, (team, thread, barrier))


class TeamFunction:
    """A compiled function ``void f(const char *argument)`` that a team of threads runs."""

    def __init__(self, address: int, openmp: OpenMP) -> None:
        self._address = address
        self._run = openmp.run
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(address)

    def __call__(self, argument: bytes, threads: int) -> None:
        """Run the function to its end without the GIL. One thread needs no OpenMP.

        So a forked process with one thread, as a worker of a data loader is, can't wait for
        threads that only its parent has.
        """
        if threads == 1:
            self._alone(argument)
        else:
            self._run(self._address, argument, threads, 0)
