"""Layers with random parameters and statistics, for several tests of the operator."""

import torch
from torch import nn

from snzoo.nn import SwitchNorm1d, SwitchNorm2d, SwitchNorm3d

LAYERS = {3: SwitchNorm1d, 4: SwitchNorm2d, 5: SwitchNorm3d}


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


LAYOUTS = [torch.Tensor.contiguous, channels_last]


def make_layer(shape, **options):
    """Return a layer for inputs of a shape."""
    layer = LAYERS[len(shape)](shape[1], **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    if layer.running_mean is not None:
        nn.init.normal_(layer.running_mean)
        nn.init.uniform_(layer.running_var, 0.5, 2)
    return layer
