"""Convert batch norm to Switchable Normalization and back, in place."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils import parametrize

from snzoo.nn.sparse import SparseSwitchNorm2d
from snzoo.nn.switchnorm import SwitchNorm, SwitchNorm1d, SwitchNorm2d, SwitchNorm3d
from snzoo.nn.sync import SyncSwitchNorm1d, SyncSwitchNorm2d, SyncSwitchNorm3d

BatchNorm = nn.modules.batchnorm._BatchNorm

_SWITCH_NORMS: dict[type[nn.Module], type[SwitchNorm]] = {
    nn.BatchNorm1d: SwitchNorm1d,
    nn.BatchNorm2d: SwitchNorm2d,
    nn.BatchNorm3d: SwitchNorm3d,
    nn.SyncBatchNorm: SyncSwitchNorm2d,
}
_BATCH_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    **{switch: batch for batch, switch in _SWITCH_NORMS.items()},
    SparseSwitchNorm2d: nn.BatchNorm2d,
    SyncSwitchNorm1d: nn.SyncBatchNorm,
    SyncSwitchNorm3d: nn.SyncBatchNorm,
}
SIMPLIFY = "; for inference, snzoo.nn.simplify makes sparse SN layers cheaper"
_TENSORS = ("weight", "bias", "running_mean", "running_var")
# The attributes of a layer that a layer of the other kind does not have.
_SETTINGS = {"affine", "using_moving_average", "using_bn", "last_gamma", "bias_correction"}
_SETTINGS |= {"process_group", "batch_norm"}
_OTHERS = {"num_batches_tracked", "mean_weight", "var_weight", "mean_fixed", "var_fixed", "radius"}


class SwitchNormAct2d(SwitchNorm2d):
    """A :class:`SwitchNorm2d`, dropout and an activation: what timm's ``BatchNormAct2d`` becomes.

    Attributes:
        drop: the dropout, or an ``nn.Identity``.
        act: the activation, or an ``nn.Identity``.
        batch_norm: the class that it was.
    """

    drop: nn.Module
    act: nn.Module
    batch_norm: Any

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if isinstance(x, Proxy) and x.tracer.path_of_module(self):
            return y  # one node that calls this whole layer
        activated: Tensor = self.act(self.drop(y))
        return activated


def convert_to_switchnorm(model: nn.Module, *, share: float = 1 - 1e-12) -> nn.Module:
    """Make the batch norm layers of ``model`` SwitchNorm layers of the same function.

    Each layer stays the same object, with its hooks, training flag, running statistics, ``eps``,
    device and dtype. ``weight`` and ``bias`` become new parameters in the shape of SwitchNorm with
    the same values, and ``momentum`` keeps its meaning: 0.1 becomes 0.9. The gates give BN the
    share ``share`` in the mean and in the variance, and IN and LN equal parts of the rest. The
    gates of a frozen layer are frozen.

    With the default share, a network in evaluation mode computes what it did, apart from rounding,
    but its gates do not learn, because their gradient is proportional to ``share * (1 - share)``.
    ``docs/small-batches.md`` has measurements of smaller shares.

    Where statistics are the batch's (in training mode, or without running statistics), the default
    share leaves a difference: SwitchNorm's variance is unbiased over the P positions of a map (in
    1d, over all N·L values), so an output is smaller by the factor ``sqrt((P - 1) / P)``, or less.
    For maps of 14×14, that is 0.3 %; for 2×2, 13 %.

    ``BatchNorm1d``, ``2d`` and ``3d`` become ``SwitchNorm1d``, ``2d`` and ``3d``.
    ``SyncBatchNorm`` becomes ``SyncSwitchNorm2d``, so its input must have 4 dimensions. timm's
    ``BatchNormAct2d`` keeps its dropout and activation. Frozen batch norms
    (``FrozenBatchNorm2d``) are left alone. Where ``weight`` and ``bias`` are None, the layer gets
    constants, 1 and 0, that are not trained. Networks of snzoo change their architecture, e.g. from
    ``resnet50v1_bn`` to ``resnet50v1_sn``, and with it the keys of their state dict.

    Call this before an optimizer, ``DistributedDataParallel``, ``fully_shard`` or
    ``torch.compile`` receives the model.

    Args:
        model: a network or a layer; changed in place.
        share: the share of BN, greater than 0 and less than 1.

    Returns:
        ``model``

    Raises:
        ValueError: ``share`` has another value, there is no batch norm, or a layer cannot be
            converted: a subclass, a lazy, scripted, parametrized or sharded layer, further
            tensors, tensors that another kind of layer shares, ``momentum=None``, or one in
            ``DistributedDataParallel``. The message names the layer, and nothing is changed.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be greater than 0 and less than 1, got {share}")
    return _convert(model, BatchNorm, lambda layer, name: _plan_switchnorm(layer, name, share))


def convert_to_batchnorm(model: nn.Module, *, tolerance: float = 1e-3) -> nn.Module:
    """Make the SwitchNorm layers of ``model`` batch norm layers, where the gates allow it.

    It is the opposite of :func:`convert_to_switchnorm`, and keeps the same things. The shares of
    IN and LN are dropped, and with them what they contribute to the output.

    Args:
        model: a network or a layer; changed in place.
        tolerance: the largest share of IN and LN together, in the mean and in the variance, from 0
            to 1.

    Returns:
        ``model``

    Raises:
        ValueError: ``tolerance`` has another value, there is no SwitchNorm, or a layer cannot be
            converted: the share of IN and LN is larger, there is no BN, the running statistics
            are sums, or for a reason of :func:`convert_to_switchnorm`. The message names the
            layer, and nothing is changed.
    """
    if not 0 <= tolerance <= 1:
        raise ValueError(f"tolerance must be from 0 to 1, got {tolerance}")
    return _convert(model, SwitchNorm, lambda layer, name: _plan_batchnorm(layer, name, tolerance))


def _convert(
    model: nn.Module, kind: type[nn.Module], plan: Callable[[Any, str], nn.Module]
) -> nn.Module:
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(f"{name or 'the model'} is scripted; convert it before that")
        if isinstance(module, nn.parallel.DistributedDataParallel):
            # It would not average the gradients of the new parameters.
            raise ValueError(
                f"{name or 'the model'} is DistributedDataParallel; convert its module before that"
            )
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, kind)}
    if not layers:
        found = sorted({type(m).__name__ for m in model.modules() if "Norm" in type(m).__name__})
        what = f"its norms are {', '.join(found)}" if found else "it has no norms"
        wanted = "SwitchNorm" if kind is SwitchNorm else "batch norm"
        hint = SIMPLIFY if SparseSwitchNorm2d.__name__ in found else ""
        raise ValueError(f"there is no {wanted} to convert in {type(model).__name__}: {what}{hint}")
    for name, layer in layers.items():
        check_tensors(layer, name or "the layer")
    planned = {layer: plan(layer, name or "the layer") for name, layer in layers.items()}
    _check_shared(model, planned)
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    for layer, new in planned.items():
        if like is not None and not [*layer.parameters(), *layer.buffers()]:
            new.to(like)
    shared: dict[nn.Parameter, nn.Parameter] = {}
    for layer, new in planned.items():
        _become(layer, new, shared)
    for module in model.modules():
        # A network or a block of snzoo, whose norms have the name of their kind.
        rename: Any = getattr(module, "rename_norms", None)
        if rename is not None and not planned.keys().isdisjoint(module.children()):
            rename("bn" if kind is SwitchNorm else "sn")
    return model


def _plan_switchnorm(layer: Any, name: str, share: float) -> nn.Module:
    """Return a new layer with the settings and the gates that ``layer`` is to have."""
    kind = type(layer)
    new_kind = _SWITCH_NORMS.get(kind)
    if kind.__name__ == "BatchNormAct2d" and kind.__module__.startswith("timm."):
        new_kind = SwitchNormAct2d
    if new_kind is None:
        raise ValueError(
            f"{name} is a {kind.__name__}, which is not one of PyTorch's batch norms; replace it "
            "by one of these first"
        )
    if layer.momentum is None:
        raise ValueError(
            f"{name} has momentum=None (a cumulative average), which SwitchNorm does not have; "
            "set its momentum first, e.g. to 0.1"
        )
    new = new_kind(layer.num_features, **_settings(layer))
    new.track_running_stats = layer.track_running_stats
    if isinstance(new, SwitchNormAct2d):
        new.batch_norm = kind
    others = len(new.mean_weight) - 1
    learns = layer.weight is None or layer.weight.requires_grad or layer.bias.requires_grad
    for gates in (new.mean_weight, new.var_weight):
        nn.init.zeros_(gates)
        nn.init.constant_(gates[-1:], math.log(share * others / (1 - share)))
        gates.requires_grad_(learns)
    return new


def _plan_batchnorm(layer: Any, name: str, tolerance: float) -> Any:
    kind = getattr(layer, "batch_norm", None) or _BATCH_NORMS.get(type(layer))
    if kind is None:
        raise ValueError(f"{name} is a {type(layer).__name__}, which is not a layer of snzoo.nn")
    if not layer.using_bn:
        raise ValueError(f"{name} has using_bn=False, so it has no batch statistics")
    if layer.running_mean is not None and not layer.using_moving_average:
        raise ValueError(
            f"{name} has using_moving_average=False, so its running statistics may be sums; call "
            "snzoo.nn.update_bn_statistics and set using_moving_average to True first"
        )
    for what, shares in zip(("mean", "variance"), layer.shares(), strict=True):
        share = float(shares[-1])
        if not 1 - share <= tolerance:
            raise ValueError(
                f"{name} takes {share:.1%} of its {what} from BN; at least {1 - tolerance:.1%} is "
                f"required (tolerance={tolerance})"
                f"{SIMPLIFY if isinstance(layer, SparseSwitchNorm2d) else ''}"
            )
    new = kind(layer.num_features, **_settings(layer))
    new.track_running_stats = layer.track_running_stats
    return new


def _settings(layer: Any) -> dict[str, Any]:
    """Return the arguments of a new layer, with the opposite meaning of ``momentum``."""
    settings = {
        "eps": layer.eps,
        "momentum": round(1 - layer.momentum, 12),  # without the rounding error of 1 - 0.9
        "track_running_stats": layer.running_mean is not None,
    }
    known = [tensor for tensor in (layer.weight, layer.running_mean) if tensor is not None]
    if known:
        settings |= {"device": known[0].device, "dtype": known[0].dtype}
    if hasattr(layer, "process_group"):
        settings["process_group"] = layer.process_group
    return settings


def check_tensors(layer: nn.Module, name: str) -> None:
    """Raise a ValueError unless the tensors of a layer are the usual ones, and its own."""
    if parametrize.is_parametrized(layer):
        raise ValueError(
            f"{name} is parametrized; call torch.nn.utils.parametrize.remove_parametrizations first"
        )
    own = {*layer._parameters, *layer._buffers}
    if odd := sorted({*_TENSORS} - own or own - {*_TENSORS} - _OTHERS):
        raise ValueError(
            f"{name} has no plain {odd[0]}; remove weight norm or pruning first"
            if odd[0] in _TENSORS
            else f"{name} has a further tensor, {odd[0]}; remove it first"
        )
    if "forward" in vars(layer):
        raise ValueError(f"the forward of {name} was replaced; restore it first")
    for tensor in layer.parameters():
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{name} is lazy; run the network once first")
        if hasattr(tensor, "full_tensor"):
            raise ValueError(f"{name} is sharded; convert the network before fully_shard")


def _check_shared(model: nn.Module, planned: dict[nn.Module, nn.Module]) -> None:
    """Raise a ValueError if a parameter would have different shapes in two modules."""
    shapes: dict[nn.Parameter, tuple[str, torch.Size]] = {}
    for name, module in model.named_modules():
        for which, parameter in module.named_parameters(recurse=False):
            new = planned.get(module)
            like = new.get_parameter(which) if new and which in _TENSORS else parameter
            first, other = shapes.setdefault(parameter, (f"{name}.{which}", like.shape))
            if other != like.shape:
                raise ValueError(
                    f"{name}.{which} and {first} are one parameter of two kinds of layers; give "
                    "each its own first"
                )


def _become(layer: Any, new: Any, shared: dict[nn.Parameter, nn.Parameter]) -> None:
    """Make ``layer`` what ``new`` is, with its own hooks, training flag and values.

    Args:
        layer: the layer of the model.
        new: a layer of the other kind.
        shared: the new parameter of each parameter, so that layers still share it.
    """
    for name in ("weight", "bias"):
        parameter, like = layer._parameters[name], new._parameters[name]
        if parameter is None:
            like.requires_grad_(False)
            continue
        if parameter not in shared:
            values = parameter.detach().view_as(like)
            shared[parameter] = nn.Parameter(values, requires_grad=parameter.requires_grad)
            if parameter.grad is not None:
                shared[parameter].grad = parameter.grad.view_as(like)
        new._parameters[name] = shared[parameter]
    for name in ("running_mean", "running_var"):
        buffer, like = layer._buffers[name], new._buffers[name]
        new._buffers[name] = None if buffer is None else buffer.view_as(like)
    for name in _SETTINGS - vars(new).keys():
        vars(layer).pop(name, None)
    layer.__class__ = type(new)
    layer._parameters, layer._buffers = new._parameters, new._buffers
    vars(layer).update(
        {k: v for k, v in vars(new).items() if not k.startswith("_")} | {"training": layer.training}
    )
