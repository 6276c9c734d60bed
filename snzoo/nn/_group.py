"""BN statistics over the samples of several processes: one collective forward, one back.

Only sums of size (C,) are sent. Every sample weighs the same, however the samples are spread. A
process that has none takes part all the same, because the others wait for it.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:  # a build of torch may lack it
    from torch.distributed import ProcessGroup


class GroupStatistics(NamedTuple):
    """A group of processes, and their total numbers of samples and values, as scalar tensors."""

    group: "ProcessGroup"
    samples: Tensor
    values: Tensor  # of one channel

    def average(self, mean_terms: Tensor, var_terms: Tensor) -> tuple[Tensor, Tensor]:
        """Return two (N, C) tensors averaged over the samples of all processes, (1, C) each."""
        sums = torch.stack([mean_terms.sum(0, keepdim=True), var_terms.sum(0, keepdim=True)])
        dist.all_reduce(sums, group=self.group)
        sums /= self.samples.clamp_min(1)
        return sums[0], sums[1]


def pool(
    mean: Tensor, var: Tensor, count: int, group: "ProcessGroup"
) -> tuple[Tensor, Tensor, GroupStatistics]:
    """Return the BN mean and biased variance (1, C) over the samples of all processes.

    Each process gives the IN statistics (N, C), over ``count`` positions, of its own samples.
    The law of total variance joins them, which cannot cancel. All processes get the same bits.
    Autograd does not see through this: :func:`snzoo.nn.functional.mix_backward` has the gradient.
    """
    n, channels = mean.shape
    if n:
        spread, own_mean = torch.var_mean(mean, 0, correction=0)
        sizes = mean.new_full((1,), n), mean.new_full((1,), n * count)
        own = torch.cat([*sizes, own_mean, var.mean(0) + spread])
    else:
        own = mean.new_zeros(2 + 2 * channels)
    rows = own.new_empty(dist.get_world_size(group), len(own))
    dist.all_gather(list(rows.unbind()), own, group=group)
    samples, values, means, variances = torch.split(rows, [1, 1, channels, channels], 1)
    together = GroupStatistics(group, samples.sum(), values.sum())
    shares = samples / together.samples.clamp_min(1)
    pooled = (shares * means).sum(0, keepdim=True)
    distances = means - pooled
    return pooled, (shares * (variances + distances**2)).sum(0, keepdim=True), together
