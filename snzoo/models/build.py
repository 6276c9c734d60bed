"""Architecture names → networks: the one place where the table meets the classes."""

from functools import partial
from math import gcd
from typing import Any

from torch import nn

from snzoo.errors import SnzooError
from snzoo.models.architectures import DEPTHS, Architecture
from snzoo.models.resnet import NormLayer, ResNetV1, ResNetV2, StrideOn
from snzoo.nn import SwitchNorm2d

ResNet = ResNetV1 | ResNetV2


def build(
    architecture: Architecture,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    width: int = 64,
    drop_rate: float = 0.0,
    using_bn: bool = True,
    using_moving_average: bool = True,
    last_gamma: bool = False,
    stride_on: StrideOn = "3x3",
    norm_after_add: bool = False,
) -> ResNet:
    """A new network, its weights at random.

    Args:
        num_classes: logits.
        in_chans: input channels.
        width: channels of the stem and the first stage's blocks.
        drop_rate: dropout probability before ``fc`` (the published SN networks: 0.5).
        using_bn: SN only: mix in batch statistics.
        using_moving_average: SN only, see :class:`snzoo.nn.SwitchNorm2d`.
        last_gamma: v1 only: start the last norm scale of each block at 0.
        stride_on: v1 bottlenecks only: ``3x3`` (torchvision, SN), ``1x1`` (MSRA), or
            ``last_unit`` of a stage (TF-Slim).
        norm_after_add: v1 only: the last norm of a block follows the addition.

    Raises:
        SnzooError: an option does not apply to this architecture.
    """
    bottleneck, layers = DEPTHS[architecture.depth]
    v1 = architecture.version == 1
    sn = architecture.norm == "sn"
    _require(architecture, "using_bn=False", using_bn or sn, "SN")
    _require(architecture, "using_moving_average=False", using_moving_average or sn, "SN")
    _require(architecture, "last_gamma=True", v1 or not last_gamma, "v1")
    _require(architecture, "norm_after_add=True", v1 or not norm_after_add, "v1")
    if stride_on not in ("3x3", "1x1", "last_unit"):
        raise SnzooError(f"stride_on must be '3x3', '1x1' or 'last_unit', got {stride_on!r}")
    movable = v1 and bottleneck
    _require(
        architecture, f"stride_on={stride_on!r}", stride_on == "3x3" or movable, "v1 bottleneck"
    )

    v1_only = {"norm_after_add": norm_after_add, "last_gamma": last_gamma} if v1 else {}
    return (ResNetV1 if v1 else ResNetV2)(
        layers,
        bottleneck=bottleneck,
        norm=_norm_layer(
            architecture, using_bn=using_bn, using_moving_average=using_moving_average
        ),
        num_classes=num_classes,
        in_chans=in_chans,
        width=width,
        drop_rate=drop_rate,
        stride_on=stride_on,
        **v1_only,
    )


def _norm_layer(architecture: Architecture, **switches: Any) -> NormLayer:
    if architecture.norm == "sn":
        return NormLayer("sn", partial(SwitchNorm2d, **switches))
    if architecture.norm == "bn":
        return NormLayer("bn", nn.BatchNorm2d)
    # 32 groups as in Wu & He 2018; a narrow network's channels may need fewer.
    return NormLayer("gn", lambda channels: nn.GroupNorm(gcd(32, channels), channels))


def _require(architecture: Architecture, option: str, applies: bool, where: str) -> None:
    if not applies:
        raise SnzooError(f"{option} applies to {where} networks only, not to {architecture.name}")
