"""Replace the gates of SN layers by their argmax."""

import torch
from torch import nn

from snzoo.nn.functional import to_logits
from snzoo.nn.sparse import SparseSwitchNorm2d
from snzoo.nn.switchnorm import SwitchNorm


@torch.no_grad()
def harden_gates(model: nn.Module) -> nn.Module:
    """Give all shares of the SN layers of ``model`` to the largest gates, and return ``model``.

    Afterwards each layer takes its mean from one of IN, LN and BN, and its variance from one of
    them, in training and in evaluation mode. If gates are equal, the first one counts as the
    largest. The shares are exactly 1 and 0, so the gradient of the gates is zero. The gates are
    frozen too (``requires_grad`` is False), so that weight decay does not change them.

    The authors of SN published a network whose gates were replaced so before it was finetuned
    ("ARGMAX"), but no code for it. This function follows their description only.

    The keys of the state dict do not change, and a second call changes nothing.

    Args:
        model: a network or a layer; changed in place. Load its weights first, and call this before
            an optimizer or ``DistributedDataParallel`` receives it.
    """
    for layer in model.modules():
        if not isinstance(layer, SwitchNorm):
            continue
        for gates in (layer.mean_weight, layer.var_weight):
            one_hot = torch.zeros_like(gates).scatter_(0, gates.argmax(0, keepdim=True), 1.0)
            # Locked gates of sparse SN are the shares themselves.
            sparse = isinstance(layer, SparseSwitchNorm2d)
            gates.copy_(one_hot if sparse else to_logits(one_hot))
            gates.requires_grad_(False)
        if isinstance(layer, SparseSwitchNorm2d):
            layer.mean_fixed.fill_(1)
            layer.var_fixed.fill_(1)
    return model
