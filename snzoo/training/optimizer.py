"""The optimizer of a recipe: which parameters decay, and which have a rate of their own."""

from __future__ import annotations

import torch
from torch import nn

from snzoo.finetune import parameter_groups
from snzoo.nn.switchnorm import SwitchNorm
from snzoo.recipes import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """Return the optimizer of a recipe, whose groups have their ``factor`` of the rate."""
    if recipe.decay == "all":  # as published: one group
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups = [{"params": parameters, "lr": 1.0, "weight_decay": recipe.weight_decay}]
    elif recipe.decay == "not_gates":
        gates = find_gates(model)
        known = set(gates)
        others = [p for p in model.parameters() if p.requires_grad and p not in known]
        groups = [
            {"params": others, "lr": 1.0, "weight_decay": recipe.weight_decay},
            {"params": gates, "lr": recipe.gate_lr_factor, "weight_decay": 0.0},
        ]
    else:
        groups = parameter_groups(
            model,
            lr=1.0,
            weight_decay=recipe.weight_decay,
            gate_lr=None if recipe.gate_lr_factor == 1 else recipe.gate_lr_factor,
            layer_decay=recipe.layer_decay,
        )
    for group in groups:
        group["factor"] = group["lr"]
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)


def find_gates(model: nn.Module) -> list[nn.Parameter]:
    """Return the gates of SN that learn."""
    layers = [layer for layer in model.modules() if isinstance(layer, SwitchNorm)]
    gates = [gate for layer in layers for gate in (layer.mean_weight, layer.var_weight)]
    return [gate for gate in gates if gate.requires_grad]
