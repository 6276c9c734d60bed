"""The residual blocks of ResNet v1 (post-activation) and v2 (pre-activation) over any norm layer.

He et al. 2016a (arXiv 1512.03385) and 2016b (arXiv 1603.05027). Norm layers are registered under
the prefix of their kind (``sn1``, ``bn1``), as the published state dicts name them.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor, nn

from snzoo.models.architectures import StrideOn
from snzoo.nn import norm_relu
from snzoo.nn.fused import keeps_no_output

ANY_NORM = "norm"  # the prefix of norms in networks whose keys do not name the kind


@dataclass(frozen=True)
class NormLayer:
    """A kind of normalization: its prefix in state dicts and a function that makes a layer of C."""

    prefix: str
    make: Callable[[int], nn.Module]


class Sampling(NamedTuple):
    """A block's stride, and its dilation before and after that stride.

    If ``output_stride`` replaces a stride, the dilation after it grows by the same factor.
    """

    stride: int
    dilation_in: int = 1
    dilation_out: int = 1


class Named(nn.Module):
    """A module with norms called ``<prefix><which>``, each followed by the ReLU ``relu<which>``.

    Args:
        prefix: That of the kind of norm (``sn``, ``bn``, …), or :data:`ANY_NORM` if the name is the
            same for all kinds.
        activation: The pattern of the names of the activations; default: ``relu{}``.
    """

    def __init__(self, prefix: str, *, activation: str = "relu{}") -> None:
        super().__init__()
        self.prefix = prefix
        self.activation = activation

    def add_norm(self, which: int | str, layer: nn.Module) -> None:
        self.add_module(f"{self.prefix}{which}", layer)
        # A module per activation, which tools can find, hook and replace.
        self.add_module(f"relu{which}", nn.ReLU())

    def rename_norms(self, prefix: str) -> None:
        """Register the norms under another prefix, after layers of another kind replaced them."""
        if self.prefix == ANY_NORM:
            return
        old = re.compile(rf"{self.prefix}(\d|_out)")
        modules = list(self._modules.items())
        self._modules.clear()
        for name, module in modules:
            found = old.fullmatch(name)
            self.add_module(f"{prefix}{found[1]}" if found else name, module)
        self.prefix = prefix

    def norm(self, which: int | str) -> nn.Module:
        layer: nn.Module = getattr(self, f"{self.prefix}{which}")
        return layer

    def norm_relu(
        self,
        which: int | str,
        x: Tensor,
        shortcut: Tensor | None = None,
        *,
        conv: nn.Module | None = None,
    ) -> Tensor:
        """Return ``relu(norm(x) [+ shortcut])``, in one pass if nothing hooks or traces it.

        With ``conv``, ``x`` is replaced by its convolution, which may be overwritten.
        """
        activation = getattr(self, self.activation.format(which))
        overwrite = conv is not None and keeps_no_output(conv)
        x = x if conv is None else conv(x)
        return norm_relu(self.norm(which), x, shortcut, activation, overwrite=overwrite)


class Block(Named, ABC):
    """Two 3×3 convolutions, or 1×1, 3×3, 1×1 with a fourfold expansion (bottleneck)."""

    downsample: nn.Module | None

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        sampling: Sampling,
        bottleneck: bool,
        norm: NormLayer,
        stride_on: StrideOn,
    ) -> None:
        super().__init__(norm.prefix)
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        self.out_channels = width * 4 if bottleneck else width
        self.channels = (in_channels, *(width,) * (len(kernels) - 1), self.out_channels)
        strided = 1 if bottleneck and stride_on != "1x1" else 0
        self.convs = len(kernels)
        for i, (kernel, (c_in, c_out)) in enumerate(
            zip(kernels, pairwise(self.channels), strict=True)
        ):
            stride = sampling.stride if i == strided else 1
            dilation = sampling.dilation_in if i <= strided else sampling.dilation_out
            self._add_conv(i + 1, conv2d(c_in, c_out, kernel, stride, dilation), norm)
        if in_channels != self.out_channels:
            self.downsample = self._projection(in_channels, sampling.stride, norm)
        elif sampling.stride > 1:  # only where a stage's last unit carries the stride (TF-Slim)
            self.downsample = nn.MaxPool2d(1, sampling.stride)
        else:
            self.downsample = None

    @abstractmethod
    def _add_conv(self, i: int, conv: nn.Conv2d, norm: NormLayer) -> None:
        """Register the i-th convolution and its norm, in the order of the state dict."""

    @abstractmethod
    def _projection(self, in_channels: int, stride: int, norm: NormLayer) -> nn.Module:
        """Make the shortcut that changes the number of channels."""

    def conv(self, i: int) -> nn.Module:
        conv: nn.Module = getattr(self, f"conv{i}")
        return conv


class BlockV1(Block):
    """conv → norm → ReLU …, with the last ReLU after the addition.

    ``norm_after_add`` moves the last norm after the addition and leaves the norm of a projection
    out, as in the ResNet-50 of fb.resnet.torch; ``last_gamma`` starts the last norm's scale at 0.
    """

    def __init__(
        self, *sizes: int, norm_after_add: bool = False, last_gamma: bool = False, **options: Any
    ) -> None:
        self.norm_after_add = norm_after_add  # before the projection is made
        super().__init__(*sizes, **options)
        if last_gamma:
            scale = self.norm(self.convs).weight
            assert isinstance(scale, nn.Parameter)
            nn.init.zeros_(scale)

    def _add_conv(self, i: int, conv: nn.Conv2d, norm: NormLayer) -> None:
        self.add_module(f"conv{i}", conv)
        self.add_norm(i, norm.make(conv.out_channels))

    def _projection(self, in_channels: int, stride: int, norm: NormLayer) -> nn.Module:
        conv = conv2d(in_channels, self.out_channels, 1, stride)
        return conv if self.norm_after_add else nn.Sequential(conv, norm.make(self.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        last = self.convs
        for i in range(1, last):
            x = self.norm_relu(i, x, conv=self.conv(i))
        if self.norm_after_add:
            return self.norm_relu(last, self.conv(last)(x) + shortcut)
        return self.norm_relu(last, x, shortcut, conv=self.conv(last))


class BlockV2(Block):
    """norm → ReLU → conv …; a projection reads the pre-activated tensor and has no norm."""

    def _add_conv(self, i: int, conv: nn.Conv2d, norm: NormLayer) -> None:
        self.add_norm(i, norm.make(conv.in_channels))
        self.add_module(f"conv{i}", conv)

    def _projection(self, in_channels: int, stride: int, norm: NormLayer) -> nn.Module:
        return conv2d(in_channels, self.out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.norm_relu(1, x)
        if self.downsample is not None:
            shortcut = self.downsample(x)
        for i in range(2, self.convs + 1):
            x = self.norm_relu(i, x, conv=self.conv(i - 1))
        x = self.conv(self.convs)(x)
        return x + shortcut


def conv2d(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, dilation: int = 1
) -> nn.Conv2d:
    padding = kernel // 2 * dilation
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding, dilation, bias=False)


def initialize_convs(network: nn.Module) -> None:
    """Draw the weights of all convolutions: normal, with the variance 2 / (k² · out_channels)."""
    for module in network.modules():
        # On "meta" there is nothing to fill, and trying would import torch's compiler.
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
