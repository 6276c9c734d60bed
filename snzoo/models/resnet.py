"""ResNet v1 and v2 over any norm layer: a backbone, and what stands on it.

:class:`Backbone` is the stem and the four stages; :class:`ResNet` classifies with it and
:class:`FeaturePyramid` gives the maps of several stages, for detection and segmentation.
State dicts have the published keys in all three.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from numbers import Integral
from typing import Any, Literal, NamedTuple, Self

import torch.nn.functional as F
from torch import Tensor, nn

from snzoo.errors import ArgumentError
from snzoo.models.blocks import (
    Block,
    BlockV1,
    BlockV2,
    Named,
    NormLayer,
    Sampling,
    StrideOn,
    conv2d,
)
from snzoo.nn import norm_relu

STAGES = 4
LARGEST = 1_000_000  # more is a typing mistake rather than a size


class FeatureInfo(NamedTuple):
    """A map that the network can give: its channels, the pixels of the input a position.

    It is the output of ``module``, or where that is a norm, the ReLU of it.
    """

    module: str
    channels: int
    stride: int


class Backbone(Named):
    """Stem and four stages, for (N, in_chans, H, W) with H, W ≥ 32.

    Attributes:
        feature_info: the five maps that :meth:`forward_levels` gives: 0 is the stem's, behind
            its ReLU and before the max pool, 1 to 4 are the stages'.
        frozen_stages: see :meth:`freeze`; None where nothing is frozen.
        entry: the :class:`snzoo.manifest.Entry` that ``snzoo.create_model`` made it from.
    """

    entry: Any = None

    def __init__(
        self,
        version: Literal[1, 2],
        layers: Sequence[int],
        *,
        bottleneck: bool,
        norm: NormLayer,
        in_chans: int = 3,
        width: int = 64,
        stride_on: StrideOn = "3x3",
        output_stride: int = 32,
        **block_options: Any,
    ) -> None:
        super().__init__(norm)
        self.version = version
        self.frozen_stages: int | None = None
        block: Callable[..., Block] = partial(
            BlockV1 if version == 1 else BlockV2,
            bottleneck=bottleneck,
            norm=norm,
            stride_on=stride_on,
            **block_options,
        )
        self.conv1 = conv2d(in_chans, width, 7, 2)
        self.add_norm(1, norm.make(width))
        feature_info = [FeatureInfo(f"{self.prefix}1", width, 2)]
        channels = width
        for stage, (units, stride) in enumerate(_sampling(layers, stride_on, output_stride)):
            blocks: list[nn.Module] = []
            for sampling in units:
                unit = block(channels, width * 2**stage, sampling=sampling)
                channels = unit.out_channels
                blocks.append(unit)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
            feature_info.append(FeatureInfo(f"layer{stage + 1}", channels, stride))
        if version == 2:
            self.add_norm("_out", norm.make(channels))
            feature_info[-1] = feature_info[-1]._replace(module=f"{self.prefix}_out")
        self.feature_info = tuple(feature_info)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            # On "meta" there is nothing to fill, and trying would import torch's compiler.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_levels(self, x: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """The maps ``indices`` of ``feature_info``, from the shallowest; no stage behind is run.

        A v2 network's maps 1 to 3 are sums of residuals that no norm has seen yet; the last
        is behind ``sn_out`` and its ReLU.
        """
        x = norm_relu(self.norm(1), self.conv1(x))
        found = [x] if 0 in indices else []
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        for stage in range(1, 1 + max(indices)):
            x = self.get_submodule(f"layer{stage}")(x)
            if stage == STAGES and self.version == 2:
                x = norm_relu(self.norm("_out"), x)
            if stage in indices:
                found.append(x)
        return found

    def freeze(self, stages: int | None) -> None:
        """Freeze the stem and the first ``stages`` stages, and nothing else of the backbone.

        What is frozen gets no gradient and stays in evaluation mode, through :meth:`train`
        too: its running statistics don't move. Freeze before an optimizer,
        ``DistributedDataParallel`` or ``torch.compile`` takes the model.

        Args:
            stages: 0 (the stem alone) to 4 (all, v2's last norm too); None thaws everything.

        Raises:
            ArgumentError: another number.
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

    def train(self, mode: bool = True) -> Self:
        """As in torch, but for what is frozen."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [] if self.frozen_stages is None else self._modules_of(range(1 + self.frozen_stages))

    def layers(self) -> Iterator[list[nn.Module]]:
        """From the input on: the stem, one block after the other, v2's last norm."""
        yield self._modules_of([0])
        for module in self._modules_of(range(1, 1 + STAGES)):
            if isinstance(module, nn.Sequential):
                yield from ([block] for block in module)
            else:
                yield [module]

    def _modules_of(self, levels: Iterable[int]) -> list[nn.Module]:
        return [self.get_submodule(name) for name in self._names(levels)]

    def _names(self, levels: Iterable[int]) -> list[str]:
        """Of the children that lead to each map from the one before, if a pyramid kept them."""
        ends = {0: ["conv1", f"{self.prefix}1"], STAGES: [f"layer{STAGES}", f"{self.prefix}_out"]}
        names = [name for level in levels for name in ends.get(level, [f"layer{level}"])]
        return [name for name in names if hasattr(self, name)]


class ResNet(Backbone):
    """A :class:`Backbone`, the mean over positions, dropout and a linear classifier ``fc``.

    With ``num_classes`` 0 it gives the mean, (N, num_features).
    """

    def __init__(
        self,
        version: Literal[1, 2],
        layers: Sequence[int],
        *,
        num_classes: int = 1000,
        drop_rate: float = 0.0,
        **backbone: Any,
    ) -> None:
        super().__init__(version, layers, **backbone)
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module
        self.reset_classifier(num_classes)

    @property
    def num_features(self) -> int:
        """Channels of the last map."""
        return self.feature_info[-1].channels

    @property
    def num_classes(self) -> int:
        return self.fc.out_features if isinstance(self.fc, nn.Linear) else 0

    def get_classifier(self) -> nn.Module:
        """``fc``: an ``nn.Linear``, or an ``nn.Identity`` where there are no classes."""
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        """A new ``fc`` for so many classes, at random; none for 0. Their names are unknown then.

        Raises:
            ArgumentError: another number.
        """
        check_sizes(least=0, num_classes=num_classes)
        if self.entry is not None:
            self.entry = dataclasses.replace(self.entry, classes=())
        like = self.conv1.weight
        self.fc = (
            nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            if num_classes
            else nn.Identity()
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → the last map, (N, num_features, ⌈H/32⌉, ⌈W/32⌉)."""
        return self.forward_levels(x, [STAGES])[0]

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        """The last map → logits (N, num_classes), or what ``fc`` is given (N, num_features)."""
        # At 224×224 this is the published 7×7 average pool; the mean takes any other size.
        x = self.drop(x.mean((2, 3)))
        logits: Tensor = x if pre_logits else self.fc(x)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


class FeaturePyramid(Backbone):
    """A :class:`Backbone` that gives several of its maps; it ends behind the last of them.

    Attributes:
        out_indices: which of ``feature_info``, in increasing order.
    """

    def __init__(
        self,
        version: Literal[1, 2],
        layers: Sequence[int],
        *,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        **backbone: Any,
    ) -> None:
        super().__init__(version, layers, **backbone)
        self.out_indices = tuple(out_indices)
        for name in self._names(range(1 + max(self.out_indices), 1 + STAGES)):
            delattr(self, name)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the maps that it gives."""
        return tuple(self.feature_info[i].channels for i in self.out_indices)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the maps that it gives, in pixels of the input."""
        return tuple(self.feature_info[i].stride for i in self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, in_chans, H, W) → a map (N, channels, ⌈H/stride⌉, ⌈W/stride⌉) each."""
        return self.forward_levels(x, self.out_indices)


def check_sizes(*, least: int = 1, **sizes: int) -> None:
    """Raises ArgumentError naming a size that is no whole number from ``least`` to ``LARGEST``."""
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
    """Of each stage, what its units do, and the stride behind it.

    A unit strides while the whole stays within ``output_stride``; then what is behind it is
    dilated instead, so that each position sees what it saw (Yu et al. 2017, arXiv 1705.09914).
    """
    stride, dilation = 4, 1  # behind the stem's max pool
    for stage, depth in enumerate(layers):
        units = []
        for unit in range(depth):
            step = _unit_stride(stage, unit, depth, stride_on)
            kept = step if stride * step <= output_stride else 1
            units.append(Sampling(kept, dilation, dilation * step // kept))
            stride, dilation = stride * kept, dilation * step // kept
        yield units, stride


def _unit_stride(stage: int, unit: int, depth: int, stride_on: StrideOn) -> int:
    """Stages 2 to 4 halve the map in their first unit; in TF-Slim, 1 to 3 in their last."""
    if stride_on == "last_unit":
        return 2 if stage < STAGES - 1 and unit == depth - 1 else 1
    return 2 if stage > 0 and unit == 0 else 1
