"""What a layer computes: a backend's passes with the gradient in closed form, or the formula."""

from typing import Any

import torch
from torch import Tensor

from snzoo.nn import backends
from snzoo.nn._compat import is_batched_gradient, is_jit_tracing, is_traced
from snzoo.nn.backends import Passes
from snzoo.nn.backends import torch as torch_passes
from snzoo.nn.backends._layout import add_relu_, are_alike, lay_out_like
from snzoo.nn.functional import (
    Config,
    LayerTensors,
    Mixture,
    num_positions,
    switch_norm,
    to_logits,
)

BatchStats = tuple[Tensor, Tensor] | None


def normalize(
    x: Tensor,
    tensors: LayerTensors,
    config: Config,
    shortcut: Tensor | None = None,
    relu: bool = False,
    overwrite: bool = False,
) -> tuple[Tensor, BatchStats]:
    """Return the layer's output, and the BN statistics (C,) of ``x`` if ``config.batch``.

    With ``relu``, which is not for traced ``x``, the output is the ReLU of the layer's [+
    ``shortcut``]. With ``overwrite`` it may be written over ``x``.
    """
    batch: BatchStats = None
    if config.group is not None:
        y, batch = _normalize_in_group(x, tensors, config)
    elif (relu or not is_jit_tracing()) and x.numel() == 0:
        y = _normalize_nothing(x, tensors)
    else:
        select = backends.select_untraced if relu else backends.select
        # On two devices the plain formula raises; a kernel would read invalid memory.
        backend = select(x) if tensors.weight.device == x.device else None
        if backend is None:
            if not is_traced(x):
                tensors = _keep_running(x, tensors)
            y, mixture = switch_norm(x, tensors, config)
            batch = mixture.batch_stats()
        elif config.batch or _needs_gradient(x, *tensors):
            y, batch = _apply(x, _keep_running(x, tensors), config, backend)
        else:
            if config.shares:  # backends take logits
                mean, var = to_logits(tensors.mean_weight), to_logits(tensors.var_weight)
                tensors = tensors._replace(mean_weight=mean, var_weight=var)
                config = config._replace(shares=False)
            if shortcut is None or (are_alike(x, shortcut) and not _needs_gradient(shortcut)):
                return backend.infer(x, tensors, config, shortcut, relu, overwrite), None
            y = backend.infer(x, tensors, config, overwrite=overwrite)
    return add_relu_(y, shortcut) if relu else y, batch


def _normalize_nothing(x: Tensor, tensors: LayerTensors) -> Tensor:
    """Return the output for ``x`` without elements, which has no statistics.

    The gradients of the mixing logits are 0 rather than None: DistributedDataParallel would
    wait for them.
    """
    weight, bias, mean_weight, var_weight, *_ = tensors.flat(x.dtype)
    shape = 1, -1, *(1,) * (x.ndim - 2)
    nothing = 0 * (mean_weight.sum() + var_weight.sum())
    return x * weight.view(shape) + (bias + nothing).view(shape)


def _normalize_in_group(
    x: Tensor, tensors: LayerTensors, config: Config
) -> tuple[Tensor, BatchStats]:
    """Return the output with the statistics of a group of processes.

    Every process runs one autograd node, also for an empty ``x``. With plain
    operations, processes would have different autograd nodes, and would run the collectives of
    DistributedDataParallel in different orders.
    """
    if x.numel():
        return _apply(x, tensors, config, backends.select(x) or torch_passes)
    y, batch = _apply(x.reshape(0, x.shape[1]), tensors, config, torch_passes)
    return y.view(x.shape), batch


def _apply(
    x: Tensor, tensors: LayerTensors, config: Config, passes: Passes
) -> tuple[Tensor, BatchStats]:
    y, *batch = _SwitchNormFunction.apply(x, config, passes, *tensors)
    return y, (batch[0], batch[1]) if batch else None


def _needs_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _keep_running(x: Tensor, tensors: LayerTensors) -> LayerTensors:
    """Return ``tensors`` with copies of the running statistics, if a gradient needs them.

    A training step may change them before the backward pass.
    """
    if tensors.running_mean is None or not _needs_gradient(x, *tensors):
        return tensors
    weight, bias, mean_weight, var_weight, *running = tensors
    copies = (None if t is None else t.clone() for t in running)
    return LayerTensors(weight, bias, mean_weight, var_weight, *copies)


def _as(parameter: Tensor, grad: Tensor) -> Tensor:
    """Return ``grad`` in the shape and the dtype of a parameter."""
    if grad.shape == parameter.shape and grad.dtype == parameter.dtype:
        return grad
    return grad.view_as(parameter).to(parameter.dtype)


class _PassByPass:
    """A training step that is put together of the passes of a backend; see ``backends.Step``."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes

    def forward(
        self, x: Tensor, tensors: LayerTensors, config: Config
    ) -> tuple[Tensor, tuple[Tensor, Mixture], tuple[Tensor, ...]]:
        dtype, x = x.dtype, self._passes.prepare(x)
        flat = tensors.flat(torch.promote_types(dtype, torch.float32))
        positions = num_positions(x)
        mean, var = self._passes.moments(x, config.variance_factor(positions))
        mixing = backends.select_mixing(self._passes, config)
        mixture, scale = mixing.coefficients(mean, var, flat, config, positions)
        y = self._passes.affine(x, mixture.mean, scale, flat.bias)
        return y.to(dtype), (mean, mixture), mixture.batch_stats() or ()

    def backward(
        self,
        grad: Tensor,
        x: Tensor,
        kept: tuple[Tensor, Mixture],
        tensors: LayerTensors,
        config: Config,
        needs_x: bool,
    ) -> tuple[Tensor | None, tuple[Tensor, ...]]:
        mean, mixture = kept
        dtype, x = x.dtype, self._passes.prepare(x)
        grad = lay_out_like(x, grad)
        total, centered = self._passes.gradient_sums(grad, x, mixture.mean)
        mixing = backends.select_mixing(self._passes, config)
        (a, b, c), grads = mixing.gradient_coefficients(
            total, centered, mixture, mean, tensors.flat(mean.dtype), config, num_positions(x)
        )
        if not needs_x:
            return None, grads
        return self._passes.input_gradient(grad, x, mean, a, b, c).to(dtype), grads


class _SwitchNormFunction(torch.autograd.Function):
    """The layer with its gradient in closed form.

    It keeps one activation, its input; all else that it keeps is (N, C). With
    r = (var + eps)^-½ and g the gradient of y = (x − mean)·r·weight + bias::

        dmean = −weight·r·Σg          dvar = −½·weight·r³·Σ g(x − mean)
        dweight = Σ_n r·Σ g(x − mean)    dbias = Σ_n Σg

    where Σ sums over positions. :func:`mix_backward` gives dm and dv of the IN statistics m and
    v, and dx = weight·r·g + dm/P + 2·dv·f·(x − m)/P, where f is :meth:`Config.variance_factor`
    and P the number of positions.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, config: Config, passes: Passes, *tensors: Any) -> Any:
        ctx.save_for_backward(x, *tensors)
        layer = LayerTensors(*tensors)
        step = backends.select_step(passes, config)
        found = step.forward(x, layer, config) if step else None
        if found is None:
            step = _PassByPass(passes)
            found = step.forward(x, layer, config)
        y, ctx.kept, batch = found
        ctx.step, ctx.config = step, config
        ctx.mark_non_differentiable(*batch)
        ctx.set_materialize_grads(False)  # zeros for the batch's statistics cost two launches
        return y, *batch

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> Any:
        x, *tensors = ctx.saved_tensors
        grad = torch.zeros_like(x) if grad is None else grad
        # With create_graph this gradient is to be differentiated once more.
        if torch.is_grad_enabled() or is_batched_gradient(grad):
            if ctx.config.group is not None:
                raise RuntimeError(
                    "SyncSwitchNorm has no gradient of the gradient (create_graph=True), and no "
                    "batches of gradients, over several processes: use SwitchNorm for them"
                )
            return _plain_gradient(ctx, grad, x, tensors)
        needs_x = ctx.needs_input_grad[0]
        found = ctx.step.backward(grad, x, ctx.kept, LayerTensors(*tensors), ctx.config, needs_x)
        if found is None:
            return _plain_gradient(ctx, grad, x, tensors)
        to_x, flat = found
        grads = (_as(t, g) for t, g in zip(tensors[:4], flat, strict=True))
        return to_x, None, None, *grads, None, None


def _plain_gradient(
    ctx: Any, grad: Tensor, x: Tensor, tensors: list[Any]
) -> tuple[Tensor | None, ...]:
    """Return the gradient through the plain formula, which autograd can differentiate again."""
    create_graph = torch.is_grad_enabled()
    # Views: a parameter may depend on x, and that gradient must not be counted here.
    with torch.enable_grad():
        inputs: list[Any] = [None if t is None else t.view_as(t) for t in (x, *tensors)]
        y, _ = switch_norm(inputs[0], LayerTensors(*inputs[1:]), ctx.config)
    needed = [i for i, tensor in enumerate(inputs) if tensor is not None and tensor.requires_grad]
    found = torch.autograd.grad(y, [inputs[i] for i in needed], grad, create_graph=create_graph)
    grads: list[Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(needed, found, strict=True):
        grads[i] = gradient
    return grads[0], None, None, *grads[1:]
