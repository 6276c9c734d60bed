"""The operator at speed: which passes serve an input, and the gradient in closed form."""

import logging
import os
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from snzoo.nn import cpu, plain
from snzoo.nn.reference import (
    Parameters,
    Recipe,
    gate_gradients,
    mix,
    mix_backward,
    switch_norm,
)

Batch = tuple[Tensor, Tensor] | None

# Triton reads it when the kernels are defined: they run on CPU tensors then, for tests.
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def normalize(x: Tensor, parameters: Parameters, recipe: Recipe) -> tuple[Tensor, Batch]:
    """``x`` (N, C, *positions) normalized, and its batch statistics (C,) if they were mixed in."""
    # On two devices the plain formula raises; a kernel would read what is not there.
    passes = _passes(x) if parameters.weight.device == x.device else None
    if recipe.group is not None:
        return _normalize_in_step(x, parameters, recipe, passes or plain)
    if passes is None:
        y, mixture = switch_norm(x, parameters, recipe)
        return y, mixture.batch
    if recipe.batch or _needs_gradient(x, parameters):
        return _apply(x, parameters, recipe, passes)
    wide = _dense(passes, x)
    y = passes.infer(wide, parameters, recipe)
    return y if y.dtype == x.dtype else y.to(x.dtype), None


def _normalize_in_step(
    x: Tensor, parameters: Parameters, recipe: Recipe, passes: ModuleType
) -> tuple[Tensor, Batch]:
    """With the processes of a group: in all of them, whatever they have, as one node for autograd.

    Plain operations, that some would take and others not, have nodes of their own, between
    which DistributedDataParallel's collectives would come in another order.
    """
    if x.numel():
        return _apply(x, parameters, recipe, passes)
    y, batch = _apply(x.reshape(0, x.shape[1]), parameters, recipe, plain)
    return y.view(x.shape), batch


def _apply(
    x: Tensor, parameters: Parameters, recipe: Recipe, passes: ModuleType
) -> tuple[Tensor, Batch]:
    y, *batch = _SwitchNormFunction.apply(x, recipe, passes, *parameters)
    return y, (batch[0], batch[1]) if batch else None


def normalize_add_relu(
    x: Tensor, parameters: Parameters, recipe: Recipe, shortcut: Tensor | None
) -> Tensor | None:
    """ReLU of ``x`` normalized [+ ``shortcut``], for what :func:`fuses`; None in training."""
    passes = _passes(x)
    if passes is None or recipe.batch or _needs_gradient(x, (*parameters, shortcut)):
        return None
    if parameters.weight.device != x.device:
        return None
    y: Tensor = passes.infer(_dense(passes, x), parameters, recipe, shortcut, relu=True)
    return y


def fuses(x: Tensor) -> bool:
    """Whether the passes for ``x`` can take in what follows the layer."""
    return (_INTERPRETED or not x.is_cpu) and _passes(x) is not None


def _needs_gradient(x: Tensor, others: Iterable[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *others)
    )


def _accumulated(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _passes(x: Tensor) -> ModuleType | None:
    """The passes for ``x``; None where the plain formula serves."""
    if observed(x):
        return None
    if x.is_cpu and not _INTERPRETED:
        return cpu if cpu.serves(x) else None
    return _gpu(x.device) if x.is_cuda or x.is_cpu else None


def observed(x: Any) -> bool:
    """Whether something looks at the operations themselves: a compiler, exporter or transform.

    The private names are those of torch 2.11 to 2.14; torch has no public ones for them.
    """
    return (
        type(x) not in (Tensor, nn.Parameter)  # FakeTensor, DTensor, torch.fx.Proxy, ...
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def _is_batch(grad: Tensor) -> bool:
    """Whether it is several gradients at once: is_grads_batched, or vmap around the backward."""
    return not torch.compiler.is_compiling() and (  # which would not understand the questions
        torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(grad)
    )


@cache
def _gpu(device: torch.device) -> ModuleType | None:
    try:
        from snzoo.nn import gpu
    except ImportError:  # no Triton
        return None
    try:
        gpu.moments(torch.zeros(1, 1, 1, device=device))  # Triton needs a C compiler too
    except torch.OutOfMemoryError:  # says nothing of Triton
        raise
    except Exception as error:  # what a compiler, a driver or an old device may raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        logging.getLogger("snzoo").warning(
            "SwitchNorm is slow on %s: Triton can't be used (%s)", device, reason
        )
        return None
    return gpu


def _dense(passes: ModuleType, x: Tensor) -> Tensor:
    """``x`` contiguous or channels last; for torch's operations in float32 at least."""
    if passes in (cpu, plain) and x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    dense = x.is_contiguous() or x.movedim(1, -1).is_contiguous()
    return x if dense else x.contiguous()


def _like(x: Tensor, other: Tensor) -> Tensor:
    """``other`` in the layout and the dtype of ``x``."""
    if other.stride() == x.stride() and other.dtype == x.dtype:
        return other
    return torch.empty_like(x).copy_(other)


class _SwitchNormFunction(torch.autograd.Function):
    """Keeps one activation, its input; all else that it keeps is of (N, C).

    With r = (var + eps)^-½ and g the gradient of y = (x − mean)·r·weight + bias::

        dmean = −weight·r·Σg          dvar = −½·weight·r³·Σ g(x − mean)
        dweight = Σ_n r·Σ g(x − mean)    dbias = Σ_n Σg

    sums over positions. :func:`mix_backward` leads to dm and dv of the IN statistics m and v,
    and dx = weight·r·g + dm/P + 2·dv·f·(x − m)/P, f being :meth:`Recipe.variance_factor`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, recipe: Recipe, passes: ModuleType, *tensors: Any) -> Any:
        ctx.save_for_backward(x, *tensors)
        dtype, x = x.dtype, _dense(passes, x)
        parameters = Parameters(*tensors).flat(_accumulated(x.dtype))
        positions = x.shape[2:].numel()
        mean, var = passes.moments(x, recipe.variance_factor(positions))
        mixture = mix(mean, var, parameters, recipe, positions)
        rstd = torch.rsqrt(mixture.var + recipe.eps)
        y = passes.affine(x, mixture.mean, parameters.weight * rstd, parameters.bias)
        ctx.passes, ctx.recipe, ctx.statistics = passes, recipe, (mean, rstd, mixture)
        batch = mixture.batch or ()
        ctx.mark_non_differentiable(*batch)
        return y.to(dtype), *batch

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        x, *tensors = ctx.saved_tensors
        # With create_graph it is to be differentiated once more.
        if torch.is_grad_enabled() or _is_batch(grad):
            if ctx.recipe.group is not None:
                raise RuntimeError(
                    "SyncSwitchNorm has no gradient of the gradient (create_graph=True), and no "
                    "batches of gradients, over several processes: use SwitchNorm for them"
                )
            return _plain_gradient(ctx, grad, x, tensors)
        mean, rstd, mixture = ctx.statistics
        dtype, x = x.dtype, _dense(ctx.passes, x)
        grad = _like(x, grad)
        parameters = Parameters(*tensors).flat(rstd.dtype)
        scale = parameters.weight * rstd
        total, centered = ctx.passes.gradient_sums(grad, x, mixture.mean)
        mixed = -scale * total, -0.5 * scale * rstd**2 * centered
        to_x = None
        if ctx.needs_input_grad[0]:
            to_mean, to_var = mix_backward(*mixed, mixture, mean, parameters)
            positions = x.shape[2:].numel()
            b = to_var * (2 * ctx.recipe.variance_factor(positions) / positions)
            to_x = ctx.passes.input_gradient(grad, x, mean, scale, b, to_mean / positions)
            to_x = to_x.to(dtype)
        gates = gate_gradients(*mixed, mixture, parameters)
        flat_grads = (rstd * centered).sum(0), total.sum(0), *gates
        grads = (g.view_as(t).to(t.dtype) for g, t in zip(flat_grads, tensors, strict=False))
        return to_x, None, None, *grads, None, None


def _plain_gradient(
    ctx: Any, grad: Tensor, x: Tensor, tensors: list[Any]
) -> tuple[Tensor | None, ...]:
    """The gradient through the plain formula, which autograd can differentiate again."""
    create_graph = torch.is_grad_enabled()
    # Views: a parameter may be a function of x, whose gradient is not this layer's matter.
    with torch.enable_grad():
        inputs: list[Any] = [None if t is None else t.view_as(t) for t in (x, *tensors)]
        y, _ = switch_norm(inputs[0], Parameters(*inputs[1:]), ctx.recipe)
    needed = [i for i, tensor in enumerate(inputs) if tensor is not None and tensor.requires_grad]
    found = torch.autograd.grad(y, [inputs[i] for i in needed], grad, create_graph=create_graph)
    grads: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(needed, found, strict=True):
        grads[i] = gradient
    return grads[0], None, None, *grads[1:]
