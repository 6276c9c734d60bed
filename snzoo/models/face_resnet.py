"""The face ResNet: images of aligned faces to embeddings of length 1, over any norm layer.

The backbone of the face-recognition framework that was published with Switchable Normalization,
https://github.com/switchablenorms/Switchable-Normalization, a reproduction of ArcFace (Deng et al.
2019, arXiv 1801.07698). State dicts have the published keys, which do not name the kind of norm.

It differs from the network of ArcFace's authors: a PReLU has one slope, which both activations of a
block share, and one of these follows the addition.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from snzoo.errors import ArgumentError
from snzoo.models.architectures import EMBEDDING_SIZE
from snzoo.models.backbone import STAGES, Backbone, Level
from snzoo.models.blocks import ANY_NORM, NormLayer, conv2d, initialize_convs
from snzoo.nn._compat import is_traced
from snzoo.nn.convert import convert_to_batchnorm

SIDE = 112  # pixels of an image
LAST_SIDE = SIDE // 2**STAGES  # positions of the last map
REDUCTION = 16  # channels of a map per channel inside of SqueezeExcitation


class SqueezeExcitation(nn.Module):
    """Scales of the channels, computed from their means (Hu et al. 2018, arXiv 1709.01507)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // REDUCTION)
        self.fc1 = conv2d(channels, squeezed, 1)
        self.pelu = nn.PReLU()  # the published key
        self.fc2 = conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3), keepdim=True)
        scales: Tensor = self.fc2(self.pelu(self.fc1(means))).sigmoid()
        return x * scales


class FaceBlock(nn.Module):
    """norm → 3×3 convolution → norm → PReLU → 3×3 convolution → norm, and the PReLU of the sum."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, *, norm: NormLayer, se: bool
    ) -> None:
        super().__init__()
        self.norm1 = norm.make(in_channels)
        self.conv1 = conv2d(in_channels, channels, 3)
        self.norm2 = norm.make(channels)
        self.conv2 = conv2d(channels, channels, 3, stride)
        self.norm3 = norm.make(channels)
        self.prelu = nn.PReLU()
        self.se = SqueezeExcitation(channels) if se else None
        self.downsample = (
            nn.Sequential(conv2d(in_channels, channels, 1, stride), norm.make(channels))
            if stride > 1
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.prelu(self.norm2(self.conv1(self.norm1(x))))
        x = self.norm3(self.conv2(x))
        if self.se is not None:
            x = self.se(x)
        activated: Tensor = self.prelu(x + shortcut)
        return activated


class FaceResNet(Backbone):
    """A face network: a backbone without a pool, and a linear layer between two norms.

    Args:
        layers: The number of blocks in each of the four stages. Each stage strides by 2.
        norm: The norm layer, also that of ``output_layer.0``. ``output_layer.4`` is always an
            ``nn.BatchNorm1d`` with PyTorch's defaults.
        drop_rate: The probability of dropout before the linear layer.
        in_chans: The number of input channels.
        width: The number of channels of the stem and of the first stage.
        se: Whether blocks have squeeze-and-excitation.

    Attributes:
        feature_info: The five maps, see :class:`snzoo.models.backbone.Level`: the stem's, then the
            stages'.
        embedding_size: The length of an embedding, 512.
        num_classes: 0, because the classes of a training set are in the head of its loss.
    """

    embedding_size = EMBEDDING_SIZE
    num_classes = 0

    def __init__(
        self,
        layers: Sequence[int],
        *,
        norm: NormLayer,
        drop_rate: float = 0.4,
        in_chans: int = 3,
        width: int = 64,
        se: bool = False,
    ) -> None:
        super().__init__(ANY_NORM, pool=nn.Identity(), activation="prelu")
        self.conv1 = conv2d(in_chans, width, 3)
        self.norm1 = norm.make(width)
        self.prelu = nn.PReLU()
        levels = [Level(module="prelu", num_chs=width, reduction=1)]
        before = width
        for stage, depth in enumerate(layers):
            channels = width * 2**stage
            blocks = [FaceBlock(before, channels, 2, norm=norm, se=se)]
            blocks += [FaceBlock(channels, channels, 1, norm=norm, se=se) for _ in range(depth - 1)]
            name = f"layer{stage + 1}"
            self.add_module(name, nn.Sequential(*blocks))
            levels.append(Level(module=name, num_chs=channels, reduction=2 ** (stage + 1)))
            before = channels
        self.feature_info = tuple(levels)
        linear = nn.Linear(before * LAST_SIDE**2, EMBEDDING_SIZE)
        self.output_layer = nn.Sequential(
            norm.make(before),
            nn.Dropout(drop_rate),
            nn.Flatten(),
            linear,
            nn.BatchNorm1d(EMBEDDING_SIZE),
        )
        initialize_convs(self)
        if not linear.weight.is_meta:
            nn.init.kaiming_uniform_(linear.weight, nonlinearity="linear")  # ±sqrt(3 / in_features)
            nn.init.zeros_(linear.bias)

    @property
    def num_features(self) -> int:
        """Number of channels of the last map."""
        return self.feature_info[-1]["num_chs"]

    def rename_norms(self, prefix: str) -> None:
        if prefix != "bn":  # only the norms of maps are of the new kind
            convert_to_batchnorm(self.output_layer[4], tolerance=1)
        super().rename_norms(prefix)

    def reset_classifier(self, num_classes: int) -> None:
        """Raise an ArgumentError, because the network has no classifier."""
        raise ArgumentError("a face network has no classifier to reset; it returns embeddings")

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last map, (N, num_features, ⌈H/16⌉, ⌈W/16⌉), of images (N, in_chans, H, W)."""
        return self.forward_levels(x, [STAGES])[0]

    def forward_head(self, x: Tensor) -> Tensor:
        """Return the embeddings (N, 512), of length 1, of the last map (N, num_features, 7, 7)."""
        return F.normalize(self.output_layer(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings (N, 512), of length 1, of faces (N, in_chans, 112, 112).

        Args:
            x: Aligned faces, RGB, from -1 to 1.

        Raises:
            ArgumentError: The images have another size.
        """
        if not is_traced(x) and x.shape[2:] != (SIDE, SIDE):
            raise ArgumentError(
                f"a face network takes images (N, C, {SIDE}, {SIDE}), got {tuple(x.shape)}"
            )
        return self.forward_head(self.forward_features(x))
