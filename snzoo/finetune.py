"""What finetuning wants of an optimizer: which parameters decay, and how fast each one learns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from snzoo.errors import SnzooError
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
    """Parameter groups for a ``torch.optim`` optimizer, of a network or of a model that holds one.

    SN's parameters never decay, nor does any other of one dimension: norms' and biases. What
    needs no gradient is left out: freeze first.

    Args:
        lr: learning rate of the head, and of all that is not a zoo backbone.
        weight_decay: of all others, convolutions and linear weights.
        gate_lr: learning rate of SN's gates, where it is another; a tenth of ``lr`` is used
            for sparse SN.
        layer_decay: factor by which each layer of a backbone (stem, blocks, v2's last norm)
            learns more slowly than the one behind it, gates too.

    Raises:
        SnzooError: ``layer_decay`` is not in (0, 1].
    """
    from snzoo.nn.switchnorm import SwitchNorm

    if not 0 < layer_decay <= 1:
        raise SnzooError(f"layer_decay must be above 0 and at most 1, got {layer_decay!r}")
    depths = _layers_to_the_head(model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            switch = isinstance(module, SwitchNorm)
            rate = lr if gate_lr is None or not (switch and name in GATES) else gate_lr
            rate *= layer_decay ** depths.get(module, 0)
            decay = 0.0 if switch or parameter.ndim <= 1 else weight_decay
            groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _layers_to_the_head(model: nn.Module) -> dict[nn.Module, int]:
    """Of each module inside a zoo backbone: 1 in its last layer, and one more in each before."""
    from snzoo.models.resnet import Backbone

    depths: dict[nn.Module, int] = {}
    for backbone in model.modules():
        if isinstance(backbone, Backbone):
            layers = list(backbone.layers())
            for i, layer in enumerate(layers):
                for part in layer:
                    depths |= dict.fromkeys(part.modules(), len(layers) - i)
    return depths
