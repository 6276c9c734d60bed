"""ResNet v1 (post-activation) and v2 (pre-activation) over any norm layer.

He et al. 2016a (arXiv 1512.03385) and 2016b (arXiv 1603.05027). Norm layers are
registered under the prefix of their kind (``sn1``, ``bn1``), because that is how the
published state dicts name them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from snzoo.nn import norm_relu

StrideOn = Literal["3x3", "1x1", "last_unit"]


@dataclass(frozen=True)
class NormLayer:
    """A kind of normalisation: its prefix in state dicts and how a layer of C channels is made."""

    prefix: str
    make: Callable[[int], nn.Module]


class _Named(nn.Module):
    """A module whose norms are called ``<prefix><which>``."""

    def __init__(self, norm: NormLayer) -> None:
        super().__init__()
        self.prefix = norm.prefix

    def add_norm(self, which: int | str, layer: nn.Module) -> None:
        self.add_module(f"{self.prefix}{which}", layer)

    def norm(self, which: int | str) -> nn.Module:
        layer: nn.Module = getattr(self, f"{self.prefix}{which}")
        return layer


class _Block(_Named, ABC):
    """Two 3×3 convolutions, or 1×1, 3×3, 1×1 with a fourfold expansion (bottleneck)."""

    downsample: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        bottleneck: bool,
        norm: NormLayer,
        stride_on: StrideOn,
    ) -> None:
        super().__init__(norm)
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        self.out_channels = width * 4 if bottleneck else width
        self.channels = (in_channels, *(width,) * (len(kernels) - 1), self.out_channels)
        strided = 1 if bottleneck and stride_on != "1x1" else 0
        self.convs = len(kernels)
        for i, (kernel, (c_in, c_out)) in enumerate(
            zip(kernels, pairwise(self.channels), strict=True)
        ):
            self._add_conv(i + 1, _conv(c_in, c_out, kernel, stride if i == strided else 1), norm)
        if in_channels != self.out_channels:
            self.downsample = self._projection(in_channels, stride, norm)
        elif stride > 1:  # only where the last unit of a stage carries the stride (TF-Slim)
            self.downsample = nn.MaxPool2d(1, stride)
        else:
            self.downsample = None

    @abstractmethod
    def _add_conv(self, i: int, conv: nn.Conv2d, norm: NormLayer) -> None:
        """Register ``conv`` as the i-th, and its norm, in the order of the state dict."""

    @abstractmethod
    def _projection(self, in_channels: int, stride: int, norm: NormLayer) -> nn.Module:
        """The shortcut where the number of channels changes."""

    def conv(self, i: int) -> nn.Module:
        conv: nn.Module = getattr(self, f"conv{i}")
        return conv


class BlockV1(_Block):
    """conv → norm → ReLU …, the last ReLU after the addition.

    ``norm_after_add`` moves the last norm behind the addition, as in the ResNet-50 of
    fb.resnet.torch; ``last_gamma`` starts that norm's scale at 0.
    """

    def __init__(
        self, *sizes: int, norm_after_add: bool = False, last_gamma: bool = False, **options: Any
    ) -> None:
        super().__init__(*sizes, **options)
        self.norm_after_add = norm_after_add
        if last_gamma:
            scale = self.norm(self.convs).weight
            assert isinstance(scale, nn.Parameter)
            nn.init.zeros_(scale)

    def _add_conv(self, i: int, conv: nn.Conv2d, norm: NormLayer) -> None:
        self.add_module(f"conv{i}", conv)
        self.add_norm(i, norm.make(conv.out_channels))

    def _projection(self, in_channels: int, stride: int, norm: NormLayer) -> nn.Module:
        return nn.Sequential(
            _conv(in_channels, self.out_channels, 1, stride), norm.make(self.out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        last = self.convs
        for i in range(1, last):
            x = norm_relu(self.norm(i), self.conv(i)(x))
        x = self.conv(last)(x)
        if self.norm_after_add:
            return norm_relu(self.norm(last), x + shortcut)
        return norm_relu(self.norm(last), x, shortcut)


class BlockV2(_Block):
    """norm → ReLU → conv …; a projection reads the pre-activated tensor and has no norm."""

    def _add_conv(self, i: int, conv: nn.Conv2d, norm: NormLayer) -> None:
        self.add_norm(i, norm.make(conv.in_channels))
        self.add_module(f"conv{i}", conv)

    def _projection(self, in_channels: int, stride: int, norm: NormLayer) -> nn.Module:
        return _conv(in_channels, self.out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        for i in range(1, self.convs + 1):
            x = norm_relu(self.norm(i), x)
            if i == 1 and self.downsample is not None:
                shortcut = self.downsample(x)
            x = self.conv(i)(x)
        return x + shortcut


class _ResNet(_Named):
    """Stem, four stages and a linear head, for (N, in_chans, H, W) with H, W ≥ 32."""

    block: type[_Block]

    def __init__(
        self,
        layers: tuple[int, int, int, int],
        *,
        bottleneck: bool,
        norm: NormLayer,
        num_classes: int = 1000,
        in_chans: int = 3,
        width: int = 64,
        drop_rate: float = 0.0,
        stride_on: StrideOn = "3x3",
        **block_options: bool,
    ) -> None:
        super().__init__(norm)
        self.conv1 = _conv(in_chans, width, 7, 2)
        self.add_norm(1, norm.make(width))
        channels = width
        for stage, depth in enumerate(layers):
            blocks: list[nn.Module] = []
            for unit in range(depth):
                block = self.block(
                    channels,
                    width * 2**stage,
                    stride=_unit_stride(stage, unit, depth, stride_on),
                    bottleneck=bottleneck,
                    norm=norm,
                    stride_on=stride_on,
                    **block_options,
                )
                channels = block.out_channels
                blocks.append(block)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self._add_final_norm(channels, norm)
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(channels, num_classes)
        self._initialise()

    def _add_final_norm(self, channels: int, norm: NormLayer) -> None:
        """v2 normalises once more behind the last stage."""

    def _initialise(self) -> None:
        for module in self.modules():
            # On "meta" there is nothing to fill, and trying would import torch's compiler.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → (N, C, ⌈H/32⌉, ⌈W/32⌉), C the input width of ``fc``."""
        x = norm_relu(self.norm(1), self.conv1(x))
        x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → logits (N, num_classes)."""
        x = self.forward_features(x)
        # At 224×224 this is the published 7×7 average pool; the mean takes any other size.
        logits: Tensor = self.fc(self.drop(x.mean((2, 3))))
        return logits


class ResNetV1(_ResNet):
    block = BlockV1


class ResNetV2(_ResNet):
    block = BlockV2

    def _add_final_norm(self, channels: int, norm: NormLayer) -> None:
        self.add_norm("_out", norm.make(channels))

    def forward_features(self, x: Tensor) -> Tensor:
        return norm_relu(self.norm("_out"), super().forward_features(x))


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def _unit_stride(stage: int, unit: int, depth: int, stride_on: StrideOn) -> int:
    """Stages 2 to 4 halve the map in their first unit; in TF-Slim, 1 to 3 in their last."""
    if stride_on == "last_unit":
        return 2 if stage < 3 and unit == depth - 1 else 1
    return 2 if stage > 0 and unit == 0 else 1
