"""A head whose class centers are split over processes, for more classes than one GPU holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from snzoo.errors import ArgumentError
from snzoo.faces.heads import MarginHead, check_batch
from snzoo.processes import split_evenly

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class ShardedHead(nn.Module):
    """The cross entropy of a head whose rows are split over the processes of a group.

    Each process has a contiguous part of the class centers, in ``head.weight``, and gives its
    own images. The loss is the mean over the images of all processes, and the same in each. It
    and its gradients are those of the whole head in one process, however classes and images are
    spread. Logits are never gathered: a process computes those of its own classes for all
    images, and the softmax over all classes needs two numbers per image and process.

    All processes must run the head, also those with an empty batch. A step has four collective
    operations forward, and one backward if embeddings need gradients. It waits for the device
    once, to learn the sizes of the batches. Leave the head out of ``DistributedDataParallel``,
    which would make all parts the same::

        backbone = DistributedDataParallel(backbone)
        head = ShardedHead(ArcFace, 512, 1_000_000, data_parallel=True, device="cuda")
        loss = head(backbone(images), labels)

    Without ``torch.distributed`` and in a group of one process, it needs no collectives.

    With ``sample_rate`` below 1, the softmax of a training step is over a random part of the
    classes, as in Partial FC (An et al., arXiv 2010.05222 and 2203.15565): all labels of the
    batch, and other classes up to that share of each process's rows, but at least as many
    classes as the batch has images. The other rows have gradients of 0; an optimizer with
    momentum or weight decay still moves them. In evaluation mode all classes count.

    Args:
        kind: :class:`ArcFace` or :class:`CosFace`.
        features: Length of an embedding.
        classes: Number of classes, in all processes together.
        process_group: The processes; by default all.
        data_parallel: Whether the gradients of the network are averaged over the processes, as
            by ``DistributedDataParallel``. Gradients of embeddings are then multiplied by the
            number of processes, so that the average is the gradient of the loss.
        sample_rate: Share of the classes that a training step uses, above 0 and up to 1.
        seed: Seed of the first class centers and of the sampling. It may be the same in all
            processes, whose numbers differ nevertheless.
        options: Further arguments of ``kind``.

    Attributes:
        head: The head of this process's rows.
        step: Number of steps that have sampled. The sample depends on it, on the seed and on the
            process only: set it to continue a run.

    Raises:
        ArgumentError: an argument is out of range. From ``forward``: see :class:`ArcFace`.
    """

    def __init__(
        self,
        kind: type[MarginHead],
        features: int,
        classes: int,
        *,
        process_group: ProcessGroup | None = None,
        data_parallel: bool = False,
        sample_rate: float = 1.0,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        exists = dist.is_available() and dist.is_initialized()
        self.process_group = process_group
        self.rank = dist.get_rank(process_group) if exists else 0
        self.world_size = dist.get_world_size(process_group) if exists else 1
        if classes < self.world_size:
            raise ArgumentError(f"{self.world_size} processes need as many classes, got {classes}")
        if not 0 < sample_rate <= 1:
            raise ArgumentError(f"sample_rate must be above 0 and up to 1, got {sample_rate}")
        self.classes, self.sample_rate = classes, sample_rate
        self.data_parallel, self.seed, self.step = data_parallel, seed, 0
        self.parts = split_evenly(range(classes), self.world_size)
        self.head = kind(features, len(self.parts[self.rank]), **options)
        self.head.reset_parameters(self._make_generator(0))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy over the images of all processes, a scalar.

        Args:
            embeddings: Embeddings of this process's images, (N, features); N may differ between
                the processes.
            labels: Their classes among all, int64, (N,).
        """
        check_batch(embeddings, labels, features=self.head.features, classes=self.classes)
        if self.world_size > 1:
            embeddings, labels = self._gather_batch(embeddings, labels)
        weight: Tensor = self.head.weight
        labels = labels - self.parts[self.rank][0]
        labels = torch.where((labels >= 0) & (labels < len(weight)), labels, -1)  # -1: elsewhere
        if self.training and self.sample_rate < 1:
            rows, labels = self._sample(labels)
            weight = weight[rows]
        logits = self.head.compute_logits(embeddings, weight, labels)
        target = logits.gather(1, labels.clamp_min(0)[:, None])[:, 0]
        # A label in no process, which devices do not check, makes the loss infinite.
        target = torch.where(labels >= 0, target, -torch.inf)
        summary = [torch.stack([logits.logsumexp(1), target])]
        if self.world_size > 1:
            summary = self._gather_summaries(summary[0])
        normalizers, targets = torch.stack(summary, 1).unbind()
        return (normalizers.logsumexp(0) - targets.amax(0)).mean()

    def gather_weight(self) -> Tensor | None:
        """Return all class centers (classes, features) on the CPU, in the first process.

        All processes must call this; the others get None. A process needs memory for the rows
        of one other process on its device, and the first for the whole on the CPU.
        """
        weight = self.head.weight.detach()
        parts = []
        for rank, rows in enumerate(self.parts):
            part = weight if rank == self.rank else weight.new_empty(len(rows), weight.shape[1])
            if self.world_size > 1:
                group: Any = self.process_group or dist.group.WORLD
                dist.broadcast(part, dist.get_global_rank(group, rank), group=group)
            if self.rank == 0:
                parts.append(part.cpu())
        return torch.cat(parts) if parts else None

    def load_weight(self, weight: Tensor) -> None:
        """Copy this process's rows of all class centers (classes, features).

        Raises:
            ArgumentError: the shape is wrong.
        """
        shape = (self.classes, self.head.features)
        if weight.shape != shape:
            raise ArgumentError(
                f"the class centers must have shape {shape}, got {tuple(weight.shape)}"
            )
        own = self.parts[self.rank]
        with torch.no_grad():
            self.head.weight.copy_(weight[own[0] : own[-1] + 1])

    def extra_repr(self) -> str:
        return f"classes={self.classes}, rank={self.rank} of {self.world_size}"

    def _gather_batch(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings and labels of all processes."""
        group = self.process_group
        lengths = [labels.new_empty(1) for _ in self.parts]
        dist.all_gather(lengths, labels.new_tensor([len(labels)]), group=group)
        sizes: list[int] = torch.cat(lengths).tolist()
        factor = self.world_size if self.data_parallel else 1
        gathered: Tensor = _GatherRows.apply(embeddings, sizes, self.rank, factor, group)
        return gathered, gather_rows(labels, sizes, group)

    def _gather_summaries(self, own: Tensor) -> list[Tensor]:
        """Return the values of all processes, of which this process's have gradients.

        All processes compute the same loss from them, so each has the gradients of its own.
        """
        summaries = [torch.empty_like(own) for _ in self.parts]
        dist.all_gather(summaries, own.detach(), group=self.process_group)
        summaries[self.rank] = own
        return summaries

    def _sample(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of a sample, (K,), and the labels' places in it, -1 for absent ones.

        K does not depend on the labels' values, for which the host would wait.
        """
        count = len(self.head.weight)
        size = min(count, max(round(self.sample_rate * count), len(labels)))
        self.step += 1
        generator = self._make_generator(self.step)
        # Absent labels, -1, put their score into the last element, which is no row.
        score = torch.rand(count + 1, generator=generator, device=labels.device)
        score[labels] = 2
        rows = score[:-1].topk(size).indices
        places = labels.new_full((count + 1,), -1)
        places[rows] = torch.arange(size, device=labels.device)
        return rows, places[labels]

    def _make_generator(self, step: int) -> torch.Generator:
        seeds = np.random.SeedSequence((self.seed, self.rank, step)).generate_state(1)
        return torch.Generator(self.head.weight.device).manual_seed(int(seeds[0]))


class _GatherRows(torch.autograd.Function):
    """The rows of all processes; the gradient is the sum of the processes' gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        own: Tensor,
        sizes: Sequence[int],
        rank: int,
        factor: int,
        group: ProcessGroup | None,
    ) -> Tensor:
        ctx.place = sum(sizes[:rank]), sizes[rank]
        ctx.factor, ctx.group = factor, group
        return gather_rows(own, sizes, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad, group=ctx.group)
        return grad.narrow(0, *ctx.place) * ctx.factor, None, None, None, None


def gather_rows(own: Tensor, sizes: Sequence[int], group: ProcessGroup | None) -> Tensor:
    """Return the rows of all processes, which have ``sizes`` rows, in each process."""
    padded = own.new_zeros(max(sizes), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded, group=group)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])
