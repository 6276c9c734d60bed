"""The operator at speed: which passes serve an input, and the gradient in closed form."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from snzoo.nn import cpu
from snzoo.nn.reference import Parameters, Recipe, mix, mix_backward, switch_norm

Batch = tuple[Tensor, Tensor] | None


def normalise(
    x: Tensor,
    parameters: Parameters,
    recipe: Recipe,
    shortcut: Tensor | None = None,
    relu: bool = False,
) -> tuple[Tensor, Batch]:
    """``x`` (N, C, *positions) normalised, and its batch statistics (C,) if they were mixed in.

    ``shortcut`` (of x's shape and dtype) and ``relu`` only where :func:`infers` is true.
    """
    passes = _passes(x)
    if passes is None:
        y, mixture = switch_norm(x, parameters, recipe)
        return y, mixture.batch
    if not recipe.batch and not _needs_gradient(x, parameters):
        return _infer(passes, x, parameters, recipe, shortcut, relu), None
    y, *batch = _SwitchNormFunction.apply(x, recipe, *parameters)
    return y, (batch[0], batch[1]) if batch else None


def infers(x: Tensor, parameters: Parameters, recipe: Recipe) -> bool:
    """Whether :func:`normalise` takes the path that fuses what follows the layer."""
    return not recipe.batch and not _needs_gradient(x, parameters) and _passes(x) is not None


def _needs_gradient(x: Tensor, parameters: Parameters) -> bool:
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (x, *parameters)
    )


def _passes(x: Tensor) -> ModuleType | None:
    """The passes for ``x``; None where something looks at the operations, or on other devices."""
    looked_at = (
        type(x) not in (Tensor, nn.Parameter)  # FakeTensor, DTensor, ...
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )
    return cpu if x.device.type == "cpu" and not looked_at else None


def _flatten(passes: ModuleType, x: Tensor) -> Tensor:
    """(N, C, P), contiguous or channels last; on the CPU in float32 at least."""
    flat = x.unsqueeze(2) if x.ndim == 2 else x.flatten(2)
    if passes is cpu:
        flat = flat.to(torch.promote_types(x.dtype, torch.float32))
    return flat if flat.transpose(1, 2).is_contiguous() else flat.contiguous()


def _like(flat: Tensor, other: Tensor) -> Tensor:
    """``other`` in the layout of ``flat``."""
    if other.is_contiguous() == flat.is_contiguous():
        return other
    return torch.empty_like(flat, dtype=other.dtype).copy_(other)


def _infer(
    passes: ModuleType,
    x: Tensor,
    parameters: Parameters,
    recipe: Recipe,
    shortcut: Tensor | None,
    relu: bool,
) -> Tensor:
    flat = _flatten(passes, x)
    parameters = parameters.flat(torch.promote_types(flat.dtype, torch.float32))
    if shortcut is not None:
        shortcut = _flatten(passes, shortcut)
    mean, var = passes.moments(flat)
    mean, scale = passes.coefficients(mean, var, parameters, recipe, flat.shape[2])
    y: Tensor = passes.affine(flat, mean, scale, parameters.bias, shortcut, relu)
    return y.view(x.shape).to(x.dtype)


class _SwitchNormFunction(torch.autograd.Function):
    """Keeps one activation, its input; all else that it keeps is of (N, C).

    With r = (var + eps)^-½ and g the gradient of y = (x − mean)·r·weight + bias::

        dmean = −weight·r·Σg          dvar = −½·weight·r³·Σ g(x − mean)
        dweight = Σ_n r·Σ g(x − mean)    dbias = Σ_n Σg

    sums over positions. :func:`mix_backward` leads to dm and dv of the IN statistics m and v,
    and dx = weight·r·g + dm/P + 2·dv·f·(x − m)/P, f being :meth:`Recipe.variance_factor`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, recipe: Recipe, *tensors: Any) -> Any:
        passes = _passes(x)
        assert passes is not None
        flat = _flatten(passes, x)
        parameters = Parameters(*tensors).flat(torch.promote_types(flat.dtype, torch.float32))
        mean, var = passes.moments(flat)
        var = var * recipe.variance_factor(flat.shape[2])
        mixture = mix(mean, var, parameters, recipe, flat.shape[2])
        rstd = torch.rsqrt(mixture.var + recipe.eps)
        y = passes.affine(flat, mixture.mean, parameters.weight * rstd, parameters.bias)
        ctx.save_for_backward(x, *tensors)
        ctx.passes, ctx.recipe, ctx.statistics = passes, recipe, (mean, rstd, mixture)
        batch = mixture.batch or ()
        ctx.mark_non_differentiable(*batch)
        # No view as far as autograd knows: the ReLU may write over it.
        return torch.ops.aten._unsafe_view(y, x.shape).to(x.dtype), *batch

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        x, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: to be differentiated once more
            return _differentiable_gradient(ctx, grad, x, tensors)
        mean, rstd, mixture = ctx.statistics
        flat = _flatten(ctx.passes, x)
        grad = _like(flat, _flatten(ctx.passes, grad))
        parameters = Parameters(*tensors).flat(rstd.dtype)
        scale = parameters.weight * rstd
        total, centred = ctx.passes.gradient_sums(grad, flat, mixture.mean)
        to_mean, to_var, *gates = mix_backward(
            -scale * total, -0.5 * scale * rstd**2 * centred, mixture, mean, parameters
        )
        positions = flat.shape[2]
        to_x = None
        if ctx.needs_input_grad[0]:
            b = to_var * (2 * ctx.recipe.variance_factor(positions) / positions)
            to_x = ctx.passes.input_gradient(grad, flat, mean, scale, b, to_mean / positions)
            to_x = to_x.view(x.shape).to(x.dtype)
        flat_grads = (rstd * centred).sum(0), total.sum(0), *gates
        grads = (g.view_as(t).to(t.dtype) for g, t in zip(flat_grads, tensors, strict=False))
        return to_x, None, *grads, None, None


def _differentiable_gradient(
    ctx: Any, grad: Tensor, x: Tensor, tensors: list[Any]
) -> tuple[Tensor | None, ...]:
    """The gradient through the plain formula, which autograd can differentiate again."""
    # Views: a parameter may be a function of x, whose gradient is not this layer's matter.
    inputs: list[Any] = [
        None if tensor is None else tensor.view_as(tensor) for tensor in (x, *tensors)
    ]
    y, _ = switch_norm(inputs[0], Parameters(*inputs[1:]), ctx.recipe)
    needed = [i for i, tensor in enumerate(inputs) if tensor is not None and tensor.requires_grad]
    found = torch.autograd.grad(y, [inputs[i] for i in needed], grad, create_graph=True)
    grads: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(needed, found, strict=True):
        grads[i] = gradient
    return grads[0], None, *grads[1:]
