"""What the contenders share: the random crops in training, and the peers' evaluation loop."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jobs import Job
from torch import Tensor, nn

SCALE, RATIO, FLIP = (0.08, 1.0), (3 / 4, 4 / 3), 0.5  # of random crops and flips
SEED, EPOCH = 0, 0


def count(
    model: nn.Module, loader: Iterable[tuple[Tensor, Tensor]], job: Job
) -> tuple[int, int, int]:
    """Return the number of images, top-1 and top-5.

    As in the scripts of both peers, the loop computes the loss too, and waits for the device at
    every batch, as needed to log the figures.
    """
    images = top1 = top5 = 0
    criterion = nn.CrossEntropyLoss().to(job.device)
    with torch.inference_mode():
        for x, target in loader:
            x = x.to(job.device, non_blocking=True)
            target = target.to(job.device, non_blocking=True)
            logits = model(x.flip(1) if job.preprocessing.channel_order == "BGR" else x)
            criterion(logits, target).item()
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
            top1 += int(hits[:, 0].sum().item())
            top5 += int(hits.sum().item())
            images += len(x)
    return images, top1, top5
