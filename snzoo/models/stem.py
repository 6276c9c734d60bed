"""Adapt the weights of a stem to another number of input channels."""

from torch import Tensor


def adapt_input(weight: Tensor, in_chans: int) -> Tensor:
    """Return the weight of a convolution, (O, C, kH, kW), for ``in_chans`` input channels.

    Channels repeat cyclically: for C = 3, the fourth channel is the first again. Copies of a
    channel share its weight evenly, and for fewer channels the weights are summed. So an image
    whose channels are all alike gives the same output as before.

    >>> import torch
    >>> adapt_input(torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1), 4).flatten().tolist()
    [0.5, 2.0, 4.0, 0.5]
    """
    channels = weight.shape[1]
    if channels == in_chans:
        return weight
    adapted = weight.new_zeros(weight.shape[0], in_chans, *weight.shape[2:])
    for i in range(max(channels, in_chans)):
        copies = len(range(i % channels, in_chans, channels)) or 1
        adapted[:, i % in_chans] += weight[:, i % channels] / copies
    return adapted
