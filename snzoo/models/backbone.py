"""What the networks of snzoo have in common: a stem, four stages, and what can be frozen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, Self, TypedDict

from torch import Tensor, nn

from snzoo.errors import ArgumentError
from snzoo.models.blocks import Named
from snzoo.models.stem import adapt_input
from snzoo.nn.convert import BatchNorm
from snzoo.nn.switchnorm import SwitchNorm

if TYPE_CHECKING:
    from snzoo.entry import Entry

STAGES = 4
LARGEST = 1_000_000  # a larger size is a typing mistake


class Level(TypedDict):
    """A map that the network computes, described with timm's keys.

    ``num_chs`` is its number of channels and ``reduction`` its stride in pixels of the input. It
    is the output of ``module``.
    """

    module: str
    num_chs: int
    reduction: int


class Backbone(Named):
    """A stem, a pool and up to four stages, for images (N, in_chans, H, W) with H, W ≥ 32.

    Subclasses add the modules: ``conv1``, its norm (``sn1``, ``bn1``, …) and activation, ``layer1``
    to ``layer4`` and, in ResNet v2, the norm ``sn_out``.

    Args:
        prefix, activation: See :class:`snzoo.models.blocks.Named`.
        pool: What follows the stem.

    Attributes:
        frozen_stages: See :meth:`freeze`; None if nothing is frozen.
        frozen_statistics: See :meth:`freeze_statistics`.
        spec: What the network is: its name, options, classes and preprocessing. None if it was
            not made by ``snzoo.create_model``.
    """

    spec: Entry | None = None
    conv1: nn.Conv2d

    def __init__(self, prefix: str, *, pool: nn.Module, activation: str = "relu{}") -> None:
        super().__init__(prefix, activation=activation)
        self.frozen_stages: int | None = None
        self.frozen_statistics = False
        self.maxpool = pool

    def rename_norms(self, prefix: str) -> None:
        super().rename_norms(prefix)
        if self.spec is not None:
            changed: dict[str, Any] = {}
            if getattr(self.maxpool, "ceil_mode", False):
                changed["stem_pool"] = "ceil"  # the default of a norm may be another pool
            if self.spec.arguments.get("hard_gates"):
                changed["hard_gates"] = False
            self.spec = self.spec.with_norm(prefix, **changed)

    def forward_levels(self, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Return the maps ``indices``, in increasing order; later stages are not computed.

        Map 0 is the stem's, after its ReLU and before the max pool; 1 to 4 are the stages'. In
        v2, maps 1 to 3 are sums of residuals before any norm; the last one is normalized.
        """
        x = self.norm_relu(1, x, conv=self.conv1)
        found = [x] if 0 in indices else []
        x = self.maxpool(x)
        for stage in range(1, 1 + max(indices)):
            x = getattr(self, f"layer{stage}")(x)  # get_submodule is not traced by torch 2.6
            if stage == STAGES and hasattr(self, f"{self.prefix}_out"):
                x = self.norm_relu("_out", x)
            if stage in indices:
                found.append(x)
        return found

    def reset_input(self, in_chans: int) -> None:
        """Adapt the stem's weights to another number of input channels.

        See :func:`snzoo.models.stem.adapt_input`.
        """
        weight = adapt_input(self.conv1.weight.detach(), in_chans)
        self.conv1.weight = nn.Parameter(weight, self.conv1.weight.requires_grad)
        self.conv1.in_channels = in_chans

    def freeze(self, stages: int | None) -> None:
        """Freeze the stem and the first ``stages`` stages, and unfreeze the rest.

        Frozen modules get no gradient and stay in evaluation mode, even after :meth:`train`, so
        their running statistics do not change. Call it before an optimizer,
        ``DistributedDataParallel`` or ``torch.compile`` receives the model.

        Args:
            stages: 0 (the stem alone) to 4 (all, including v2's last norm), or None (nothing).

        Raises:
            ArgumentError: ``stages`` is another value.
        """
        if stages is not None and not (_is_whole(stages) and 0 <= stages <= STAGES):
            raise ArgumentError(f"freeze takes 0 (the stem) to {STAGES} stages, got {stages!r}")
        self.frozen_stages = stages
        frozen = self._frozen()
        for module in self._modules_of(range(1 + STAGES)):
            module.requires_grad_(module not in frozen)
            if module in frozen:
                module.zero_grad()  # or an optimizer would take one more step with it
        self.train(self.training)

    def freeze_statistics(self, frozen: bool = True) -> None:
        """Make the norms use their running statistics in training too, and not change them.

        Scales, biases and gates are still trained. It is for batches that are too small for the
        statistics of BN. Group norm has no running statistics, so nothing changes for it.
        """
        self.frozen_statistics = frozen
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training mode as ``nn.Module.train`` does, except for what is frozen."""
        super().train(mode)
        frozen = self._frozen()
        if self.frozen_statistics:
            frozen += [m for m in self.modules() if isinstance(m, (SwitchNorm, BatchNorm))]
        for module in frozen:
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [] if self.frozen_stages is None else self._modules_of(range(1 + self.frozen_stages))

    def layers(self) -> Iterator[list[nn.Module]]:
        """Yield the modules of each layer from the input: the stem, each block, v2's last norm."""
        yield self._modules_of([0])
        for module in self._modules_of(range(1, 1 + STAGES)):
            if isinstance(module, nn.Sequential):
                yield from ([block] for block in module)
            elif not isinstance(module, nn.ReLU):
                yield [module]

    def _modules_of(self, levels: Iterable[int]) -> list[nn.Module]:
        return [self.get_submodule(name) for name in self.module_names(levels)]

    def module_names(self, levels: Iterable[int]) -> list[str]:
        """Return the names of the submodules that compute each level, without missing ones."""
        ends = {
            0: ["conv1", f"{self.prefix}1", self.activation.format(1)],
            STAGES: [f"layer{STAGES}", f"{self.prefix}_out", "relu_out"],
        }
        names = [name for level in levels for name in ends.get(level, [f"layer{level}"])]
        return [name for name in names if hasattr(self, name)]


def check_sizes(*, least: int = 1, **sizes: int) -> None:
    """Raise an ArgumentError for a size that is no whole number from ``least`` to ``LARGEST``."""
    for name, size in sizes.items():
        if not (_is_whole(size) and least <= size <= LARGEST):
            raise ArgumentError(
                f"{name} must be a whole number from {least} to {LARGEST:,}, got {size!r}"
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
