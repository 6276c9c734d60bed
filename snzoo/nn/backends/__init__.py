"""The backends: passes over whole activations, and which of them serves an input.

In all of them ``x`` is (N, C, *positions); (N, C) is a single position. *Wide* is float32, or
float64 for float64 ``x``: the dtype of all statistics and coefficients, which are (N, C).
"""

import logging
import os
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol, cast

# Not "import torch": in this package, torch is the module of that name.
from torch import OutOfMemoryError, Tensor, device, zeros

from snzoo.nn._compat import is_traced
from snzoo.nn.backends import cpu, cpu_fused, torch
from snzoo.nn.functional import Config, LayerTensors, Mixture

# Triton reads it when the kernels are defined: they run on CPU tensors then, for tests.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Passes(Protocol):
    """The functions over whole activations that a training step needs.

    ``prepare`` gives the form of ``x`` that the others take. Their results of the shape of
    ``x`` have its dtype and its layout; ``grad`` has its shape, dtype and layout.
    """

    def prepare(self, x: Tensor) -> Tensor:
        """Return ``x`` contiguous or channels last, in a dtype that the passes compute with."""

    def moments(self, x: Tensor, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the wide mean and ``factor`` × the biased variance over positions, (N, C)."""

    def affine(self, x: Tensor, mean: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        """Return ``(x - mean) * scale + bias`` for (N, C) ``mean``, ``scale`` and (C,) ``bias``."""

    def gradient_sums(self, grad: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``sum(grad)`` and ``sum(grad * (x - mean))`` over positions, (N, C) each."""

    def input_gradient(
        self, grad: Tensor, x: Tensor, mean: Tensor, a: Tensor, b: Tensor, c: Tensor
    ) -> Tensor:
        """Return ``a * grad + b * (x - mean) + c``; the coefficients are (N, C)."""


class Mixing(Protocol):
    """The (N, C) part of a training step, which a backend may have too.

    All tensors are wide, and ``tensors`` are flat. IN statistics are over ``positions`` values.
    """

    def coefficients(
        self, mean: Tensor, var: Tensor, tensors: LayerTensors, config: Config, positions: int
    ) -> tuple[Mixture, Tensor]:
        """Return :func:`snzoo.nn.functional.mix`, and weight / sqrt(mixed variance + eps).

        ``mean`` and ``var`` are IN statistics.
        """

    def gradient_coefficients(
        self,
        total: Tensor,
        centered: Tensor,
        mixture: Mixture,
        mean: Tensor,
        tensors: LayerTensors,
        config: Config,
        positions: int,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
        """Return a, b and c of ``input_gradient``, and the gradients of the parameters.

        ``total`` and ``centered`` are the sums that ``gradient_sums`` gives, and ``mean`` is
        that of IN. The parameters are the first four of ``tensors``.
        """


class Step(Protocol):
    """The training step of a layer as a whole, which a backend may have for some inputs."""

    def forward(
        self, x: Tensor, tensors: LayerTensors, config: Config
    ) -> tuple[Tensor, Any, tuple[Tensor, ...]] | None:
        """Return the output, what ``backward`` needs, and with ``config.batch`` BN statistics.

        None if this step is not for these arguments.
        """

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        kept: Any,
        tensors: LayerTensors,
        config: Config,
        needs_x: bool,
    ) -> tuple[Tensor | None, Sequence[Tensor]] | None:
        """Return the gradients of ``x``, if it is needed, and of the four flat parameters.

        None if this step is not for these arguments.
        """


class Backend(Passes, Protocol):
    """The functions of a device: those of training, and a whole layer in evaluation mode."""

    def infer(
        self,
        x: Tensor,
        tensors: LayerTensors,
        config: Config,
        shortcut: Tensor | None = None,
        relu: bool = False,
        overwrite: bool = False,
    ) -> Tensor:
        """Return the layer's output, or with ``relu`` the ReLU of it [+ ``shortcut``].

        ``x`` has any strides and any floating dtype, which the output has too. ``shortcut``
        has the shape, dtype and device of ``x``. With ``overwrite`` the output may be written
        over ``x``.
        """


def select(x: Tensor) -> Backend | None:
    """Return the backend for ``x``, or None if the plain formula must be used.

    Compilers and transforms need the plain formula, and on tiny inputs it is as fast.
    """
    return None if is_traced(x) else select_untraced(x)


def select_untraced(x: Tensor) -> Backend | None:
    """Return the backend for ``x`` that nothing traces, or None if there is none."""
    if x.is_cpu and not _INTERPRETED:
        return cpu if cpu.supports(x) else None
    return _load_triton(x.device) if x.is_cuda or x.is_cpu else None


def select_step(passes: Passes, config: Config) -> Step | None:
    """Return the step that the backend of ``passes`` has, if it has one."""
    has_own = passes is cpu and config.group is None
    return cast(Step, cpu_fused) if has_own else None


def select_mixing(passes: Passes, config: Config) -> Mixing:
    """Return what computes the (N, C) part: ``passes`` if they can, else plain operations.

    Only those know groups of processes.
    """
    has_own = config.group is None and hasattr(passes, "gradient_coefficients")
    return cast(Mixing, passes) if has_own else torch


@cache
def _load_triton(where: device) -> Backend | None:
    """Return the Triton backend; None, with a warning, where it can't run there."""
    try:
        from snzoo.nn.backends import triton
    except ImportError:  # no Triton
        return None
    try:
        triton.moments(zeros(1, 1, 1, device=where))  # Triton needs a C compiler too
    except OutOfMemoryError:  # says nothing about Triton
        raise
    except Exception as error:  # what a compiler, a driver or an old device may raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        logging.getLogger("snzoo").warning(
            "SwitchNorm is slow on %s: Triton can't be used (%s)", where, reason
        )
        return None
    return triton
