"""ResNet v1 and v2 (He et al. 2016, arXiv 1512.03385 and 1603.05027) over any norm layer.

State dicts have the published keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from snzoo.models.architectures import StemPool, StrideOn
from snzoo.models.backbone import STAGES, Backbone, Level, check_sizes
from snzoo.models.blocks import (
    Block,
    BlockV1,
    BlockV2,
    NormLayer,
    Sampling,
    conv2d,
    initialize_convs,
)


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
        padded = stem_pool == "padded"
        pool = nn.MaxPool2d(3, 2, padding=int(padded), ceil_mode=not padded)
        super().__init__(norm.prefix, pool=pool)
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
        initialize_convs(self)
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module
        self.reset_classifier(num_classes)

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
