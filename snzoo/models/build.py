"""Architecture names → networks: the one place where the table meets the classes."""

from collections.abc import Sequence
from functools import partial
from math import gcd
from typing import Any, get_args

from torch import nn

from snzoo.errors import ArgumentError
from snzoo.models.architectures import DEPTHS, Architecture
from snzoo.models.blocks import NormLayer, StrideOn
from snzoo.models.resnet import STAGES, FeaturePyramid, ResNet, check_sizes
from snzoo.nn import SwitchNorm2d

OUTPUT_STRIDES = (8, 16, 32)


def build(
    architecture: Architecture,
    *,
    num_classes: int = 1000,
    drop_rate: float = 0.0,
    **backbone: Any,
) -> ResNet:
    """A new classifier, its weights at random.

    Args:
        num_classes: logits; 0: none, the network gives the mean of its last map.
        drop_rate: dropout probability before ``fc`` (the published SN networks: 0.5).
        backbone: of :func:`backbone_arguments`.

    Raises:
        ArgumentError: a size makes no sense, or an option does not apply to this architecture.
    """
    check_sizes(least=0, num_classes=num_classes)
    if type(drop_rate) not in (int, float) or not 0 <= drop_rate <= 1:
        raise ArgumentError(f"drop_rate must be from 0 to 1, got {drop_rate!r}")
    arguments = backbone_arguments(architecture, **backbone)
    return ResNet(**arguments, num_classes=num_classes, drop_rate=drop_rate)


def build_pyramid(
    architecture: Architecture, *, out_indices: Sequence[int] = (1, 2, 3, 4), **backbone: Any
) -> FeaturePyramid:
    """A new feature pyramid, its weights at random.

    Args:
        out_indices: the maps, in increasing order: 0 is the stem's, 1 to 4 are the stages'.
        backbone: of :func:`backbone_arguments`.

    Raises:
        ArgumentError: as :func:`build`, or ``out_indices`` are not such.
    """
    indices = list(out_indices) if isinstance(out_indices, Sequence) else []
    if not indices or indices != [i for i in range(1 + STAGES) if i in indices]:
        raise ArgumentError(
            f"out_indices must be increasing, from 0 (the stem) to {STAGES}, got {out_indices!r}"
        )
    return FeaturePyramid(**backbone_arguments(architecture, **backbone), out_indices=indices)


def backbone_arguments(
    architecture: Architecture,
    *,
    in_chans: int = 3,
    width: int = 64,
    output_stride: int = 32,
    using_bn: bool = True,
    using_moving_average: bool = True,
    last_gamma: bool = False,
    stride_on: StrideOn = "3x3",
    norm_after_add: bool = False,
) -> dict[str, Any]:
    """The arguments of :class:`snzoo.models.resnet.Backbone`, checked.

    Args:
        in_chans: input channels.
        width: channels of the stem and the first stage's blocks.
        output_stride: 8, 16 or 32, pixels a position of the last map; below 32 the last
            stages are dilated instead of striding.
        using_bn: SN only: mix in batch statistics.
        using_moving_average: SN only, see :class:`snzoo.nn.SwitchNorm2d`.
        last_gamma: v1 only: start the last norm scale of each block at 0.
        stride_on: v1 bottlenecks only: ``3x3`` (torchvision, SN), ``1x1`` (MSRA), or
            ``last_unit`` of a stage (TF-Slim).
        norm_after_add: v1 only: the last norm of a block follows the addition.

    Raises:
        ArgumentError: a size makes no sense, or an option does not apply to this architecture.
    """
    check_sizes(in_chans=in_chans, width=width)
    if type(output_stride) is not int or output_stride not in OUTPUT_STRIDES:
        raise ArgumentError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")
    _check_options(
        architecture,
        using_bn=using_bn,
        using_moving_average=using_moving_average,
        last_gamma=last_gamma,
        norm_after_add=norm_after_add,
        stride_on=stride_on,
    )
    bottleneck, layers = DEPTHS[architecture.depth]
    v1 = architecture.version == 1
    v1_only = {"norm_after_add": norm_after_add, "last_gamma": last_gamma} if v1 else {}
    norm = _norm_layer(architecture, using_bn=using_bn, using_moving_average=using_moving_average)
    return {
        "version": architecture.version,
        "layers": layers,
        "bottleneck": bottleneck,
        "norm": norm,
        "in_chans": in_chans,
        "width": width,
        "output_stride": output_stride,
        "stride_on": stride_on,
        **v1_only,
    }


def _norm_layer(architecture: Architecture, **switches: Any) -> NormLayer:
    if architecture.norm == "sn":
        return NormLayer("sn", partial(SwitchNorm2d, **switches))
    if architecture.norm == "bn":
        return NormLayer("bn", nn.BatchNorm2d)
    # 32 groups as in Wu & He 2018; a narrow network's channels may need fewer.
    return NormLayer("gn", lambda channels: nn.GroupNorm(gcd(32, channels), channels))


def _check_options(architecture: Architecture, **options: Any) -> None:
    """An option that would change nothing here is an error, not ignored."""
    v1, sn = architecture.version == 1, architecture.norm == "sn"
    bottleneck = DEPTHS[architecture.depth][0]
    rules = {
        "using_bn": (True, sn, "SN"),
        "using_moving_average": (True, sn, "SN"),
        "last_gamma": (False, v1, "v1"),
        "norm_after_add": (False, v1, "v1"),
        "stride_on": ("3x3", v1 and bottleneck, "v1 bottleneck"),
    }
    for name, (default, applies, where) in rules.items():
        value = options[name]
        if type(value) is not type(default):
            raise ArgumentError(f"{name} must be a {type(default).__name__}, got {value!r}")
        if value != default and not applies:
            raise ArgumentError(
                f"{name}={value!r} applies to {where} networks only, not to {architecture.name}"
            )
    if options["stride_on"] not in get_args(StrideOn):
        choices = ", ".join(get_args(StrideOn))
        raise ArgumentError(f"stride_on must be one of {choices}, got {options['stride_on']!r}")
