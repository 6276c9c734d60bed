"""ResNet v1 and v2 (He et al. 2016, arXiv 1512.03385 and 1603.05027) over any norm layer.

State dicts have the published keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict

from torch import Tensor, nn

from snzoo.errors import ArgumentError
from snzoo.models.architectures import StemPool, StrideOn
from snzoo.models.blocks import (
    Block,
    BlockV1,
    BlockV2,
    Named,
    NormLayer,
    Sampling,
    conv2d,
)
from snzoo.models.stem import adapt_input
from snzoo.nn.convert import BatchNorm
from snzoo.nn.switchnorm import SwitchNorm

if TYPE_CHECKING:
    from snzoo.manifest import Entry

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
    """A stem and up to four stages, for images (N, in_chans, H, W) with H, W ≥ 32.

    Subclasses add the modules: ``conv1``, the norm ``sn1`` (or ``bn1``, ``gn1``), ``layer1`` to
    ``layer4`` and, in v2, the norm ``sn_out``.

    Attributes:
        frozen_stages: See :meth:`freeze`; None if nothing is frozen.
        frozen_statistics: See :meth:`freeze_statistics`.
        spec: What the network is: its name, options, classes and preprocessing. None if it was
            not made by ``snzoo.create_model``.
    """

    spec: Entry | None = None
    conv1: nn.Conv2d

    def __init__(
        self, version: Literal[1, 2], prefix: str, *, stem_pool: StemPool = "padded"
    ) -> None:
        super().__init__(prefix)
        self.version = version
        self.frozen_stages: int | None = None
        self.frozen_statistics = False
        padded = stem_pool == "padded"
        self.maxpool = nn.MaxPool2d(3, 2, padding=int(padded), ceil_mode=not padded)

    def rename_norms(self, prefix: str) -> None:
        super().rename_norms(prefix)
        if self.spec is not None:
            # The default of a norm may be another pool.
            pool = {"stem_pool": "ceil"} if self.maxpool.ceil_mode else {}
            self.spec = self.spec.with_norm(prefix, **pool)

    def forward_levels(self, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Return the maps ``indices``, in increasing order; later stages are not computed.

        Map 0 is the stem's, after its ReLU and before the max pool; 1 to 4 are the stages'. In
        v2, maps 1 to 3 are sums of residuals before any norm; the last one is normalized.
        """
        x = self.norm_relu(1, self.conv1(x))
        found = [x] if 0 in indices else []
        x = self.maxpool(x)
        for stage in range(1, 1 + max(indices)):
            x = getattr(self, f"layer{stage}")(x)  # get_submodule is not traced by torch 2.6
            if stage == STAGES and self.version == 2:
                x = self.norm_relu("_out", x)
            if stage in indices:
                found.append(x)
        return found

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
            0: ["conv1", f"{self.prefix}1", "relu1"],
            STAGES: [f"layer{STAGES}", f"{self.prefix}_out", "relu_out"],
        }
        names = [name for level in levels for name in ends.get(level, [f"layer{level}"])]
        return [name for name in names if hasattr(self, name)]


class ResNet(Backbone):
    """A classifier: a backbone, the mean over positions, dropout and a linear layer ``fc``.

    With ``num_classes`` 0 it returns the mean, (N, num_features).

    Attributes:
        feature_info: The five maps, see :class:`Level`: the stem's, then the stages'.
    """

    feature_info: tuple[Level, ...]

    def __init__(
        self,
        version: Literal[1, 2],
        layers: Sequence[int],
        *,
        bottleneck: bool,
        norm: NormLayer,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        in_chans: int = 3,
        width: int = 64,
        stride_on: StrideOn = "3x3",
        output_stride: int = 32,
        stem_pool: StemPool = "padded",
        **block_options: Any,
    ) -> None:
        super().__init__(version, norm.prefix, stem_pool=stem_pool)
        block: Callable[..., Block] = partial(
            BlockV1 if version == 1 else BlockV2,
            bottleneck=bottleneck,
            norm=norm,
            stride_on=stride_on,
            **block_options,
        )
        self.conv1 = conv2d(in_chans, width, 7, 2)
        self.add_norm(1, norm.make(width))
        levels = [Level(module="relu1", num_chs=width, reduction=2)]
        channels = width
        for stage, (units, stride) in enumerate(_sampling(layers, stride_on, output_stride)):
            blocks: list[nn.Module] = []
            for sampling in units:
                unit = block(channels, width * 2**stage, sampling=sampling)
                channels = unit.out_channels
                blocks.append(unit)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            levels.append(Level(module=f"layer{stage + 1}", num_chs=channels, reduction=stride))
        if version == 2:
            self.add_norm("_out", norm.make(channels))
            levels[-1]["module"] = "relu_out"
        self.feature_info = tuple(levels)
        self._initialize()
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module
        self.reset_classifier(num_classes)

    def _initialize(self) -> None:
        for module in self.modules():
            # On "meta" there is nothing to fill, and trying would import torch's compiler.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def num_features(self) -> int:
        """Number of channels of the last map."""
        return self.feature_info[-1]["num_chs"]

    @property
    def num_classes(self) -> int:
        """Number of logits; of a head that the user built, that of its last linear layer."""
        linear = [module for module in self.fc.modules() if isinstance(module, nn.Linear)]
        return linear[-1].out_features if linear else 0

    def get_classifier(self) -> nn.Module:
        """Return ``fc``: an ``nn.Linear``, or an ``nn.Identity`` if there are no classes."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """Replace ``fc`` by a new one with random weights; 0 removes it.

        The names of the classes are unknown afterwards.

        Raises:
            ArgumentError: ``num_classes`` is no whole number from 0.
        """
        check_sizes(least=0, num_classes=num_classes)
        if self.spec is not None:
            self.spec = dataclasses.replace(self.spec, classes=())
        like = self.conv1.weight
        self.fc = (
            nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        )

    def reset_input(self, in_chans: int) -> None:
        """Adapt the stem's weights to another number of input channels.

        See :func:`snzoo.models.stem.adapt_input`.
        """
        weight = adapt_input(self.conv1.weight.detach(), in_chans)
        self.conv1.weight = nn.Parameter(weight, self.conv1.weight.requires_grad)
        self.conv1.in_channels = in_chans

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map, (N, num_features, ⌈H/32⌉, ⌈W/32⌉), of images (N, in_chans, H, W)."""
        return self.forward_levels(x, [STAGES])[0]

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return the logits (N, num_classes) of the last map.

        Args:
            x: The last map, (N, num_features, h, w).
            pre_logits: Return the input of ``fc`` instead, (N, num_features).
        """
        # At 224×224 this is the published 7×7 average pool; the mean takes any other size.
        x = self.drop(x.mean((2, 3)))
        logits: Tensor = x if pre_logits else self.fc(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, num_classes) of normalized images (N, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


def check_sizes(*, least: int = 1, **sizes: int) -> None:
    """Raise an ArgumentError for a size that is no whole number from ``least`` to ``LARGEST``."""
    for name, size in sizes.items():
        if not (_is_whole(size) and least <= size <= LARGEST):
            raise ArgumentError(
                f"{name} must be a whole number from {least} to {LARGEST:,}, got {size!r}"
            )


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _sampling(
    layers: Sequence[int], stride_on: StrideOn, output_stride: int
) -> Iterator[tuple[list[Sampling], int]]:
    """Yield, for each stage, the sampling of its units and the stride after it.

    A unit strides while the total stride stays within ``output_stride``. After that, later
    convolutions are dilated instead, so that each output keeps its receptive field (Yu et al.
    2017, arXiv 1705.09914).
    """
    stride, dilation = 4, 1  # after the stem's max pool
    for stage, depth in enumerate(layers):
        units = []
        for unit in range(depth):
            step = _unit_stride(stage, unit, depth, stride_on)
            kept = step if stride * step <= output_stride else 1
            units.append(Sampling(kept, dilation, dilation * step // kept))
            stride, dilation = stride * kept, dilation * step // kept
        yield units, stride


def _unit_stride(stage: int, unit: int, depth: int, stride_on: StrideOn) -> int:
    """Return the stride of a unit: stages 2 to 4 stride first; in TF-Slim, 1 to 3 stride last."""
    if stride_on == "last_unit":
        return 2 if stage < STAGES - 1 and unit == depth - 1 else 1
    return 2 if stage > 0 and unit == 0 else 1
