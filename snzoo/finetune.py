"""Parameter groups for finetuning: which parameters decay, and how fast each one learns."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

from snzoo.errors import ArgumentError
from snzoo.gates.shares import GATES

if TYPE_CHECKING:
    from torch import nn


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float = 1e-4,
    gate_lr: float | None = None,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Return the parameter groups of a model for an optimizer of ``torch.optim``.

    Parameters of SN and all one-dimensional parameters (norms, biases) have no weight decay.
    Parameters that need no gradient are left out, so freeze the model before this call.

    Args:
        model: A network, or a model that contains one.
        lr: Learning rate of the head, and of everything that is not a backbone of the zoo.
        weight_decay: Weight decay of the other parameters: convolutions and linear weights.
        gate_lr: Learning rate of SN's gates (default: ``lr``). Sparse SN uses a tenth of ``lr``.
        layer_decay: Factor by which the learning rate decreases from each layer of a backbone
            (stem, blocks, v2's last norm) to the layer before it.

    Raises:
        ArgumentError: a rate is negative or not a finite number, ``layer_decay`` is not in (0, 1],
            or the model has nothing that ``gate_lr`` or ``layer_decay`` would change.
    """
    from snzoo.nn.switchnorm import SwitchNorm

    gates = {} if gate_lr is None else {"gate_lr": gate_lr}
    _check(model, lr=lr, weight_decay=weight_decay, layer_decay=layer_decay, **gates)
    depths = _layers_to_the_head(model) if layer_decay != 1 else {}
    if layer_decay != 1 and not depths:
        raise ArgumentError("layer_decay needs a backbone of snzoo.create_model, and there is none")
    if gate_lr is not None and not any(isinstance(m, SwitchNorm) for m in model.modules()):
        raise ArgumentError("gate_lr needs Switchable Normalization, and no layer has it")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            switch = isinstance(module, SwitchNorm)
            own = lr if gate_lr is None or not (switch and name in GATES) else gate_lr
            rate = own * layer_decay ** depths.get(module, 0)
            decay = 0.0 if switch or parameter.ndim <= 1 else weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _check(model: nn.Module, *, layer_decay: float, **rates: float) -> None:
    if not hasattr(model, "modules"):
        raise ArgumentError("parameter_groups takes a model, not its parameters")
    for name, rate in rates.items():
        if not (_is_number(rate) and 0 <= rate < math.inf):
            raise ArgumentError(f"{name} must be a number from 0, got {rate!r}")
    if not (_is_number(layer_decay) and 0 < layer_decay <= 1):
        raise ArgumentError(f"layer_decay must be above 0 and at most 1, got {layer_decay!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _layers_to_the_head(model: nn.Module) -> dict[nn.Module, int]:
    """Return the distance of each module in a backbone from the head. The last layer has 1."""
    from snzoo.models.backbone import Backbone

    depths: dict[nn.Module, int] = {}
    for backbone in model.modules():
        if isinstance(backbone, Backbone):
            layers = list(backbone.layers())
            for i, layer in enumerate(layers):
                for part in layer:
                    depths |= dict.fromkeys(part.modules(), len(layers) - i)
    return depths
