"""Mixup: each image of a batch is mixed with another one."""

from __future__ import annotations

import torch
from torch import Tensor

from snzoo.training.devices import copy_to


def mix_images(x: Tensor, y: Tensor, alpha: float) -> tuple[Tensor, Tensor, float]:
    """Mix each image with another one of the batch (mixup; Zhang et al., ICLR 2018).

    Equation 2 of `the paper <https://arxiv.org/abs/1710.09412>`_, with one share λ for the batch,
    as in its section 2. λ ~ Beta(α, α), or 1 − λ if that is larger, so that ``y`` is the label of
    the larger part. The random numbers are those of PyTorch's generator for the CPU.

    Args:
        x: images (N, C, H, W).
        y: their labels, int64 (N,).
        alpha: α, greater than 0.

    Returns:
        The mixtures, the labels of the other parts, and λ, from 0.5 to 1.
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    share = max(share, 1 - share)
    order = copy_to(x.device, torch.randperm(len(x)))
    return torch.lerp(x[order], x, share), y[order], share
