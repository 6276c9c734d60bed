"""Build a network from its architecture and options."""

import difflib
from collections.abc import Callable
from functools import partial
from math import gcd
from typing import Any, TypeAlias, get_args

from torch import nn

from snzoo.errors import ArgumentError, UnexpectedArgumentError
from snzoo.models.architectures import (
    SWITCH_NORMS,
    Architecture,
    NetworkOptions,
    StemPool,
    StrideOn,
)
from snzoo.models.backbone import check_sizes
from snzoo.models.blocks import ANY_NORM, NormLayer
from snzoo.models.face_resnet import FaceResNet
from snzoo.models.resnet import ResNet
from snzoo.nn import SparseSwitchNorm2d, SwitchNorm2d, SyncSwitchNorm2d, harden_gates

AnyResNet: TypeAlias = ResNet | FaceResNet

OUTPUT_STRIDES = (8, 16, 32)
# Arguments of snzoo.create_model that do not reach build(), for the hint on a misspelled one.
CREATE_ARGUMENTS = ("pretrained", "weights", "averaged", "features_only", "out_indices")
STEM_POOLS: dict[str, StemPool] = {"ssn": "ceil"}  # as published; the other norms: padded
# Option -> its default, and where it applies; elsewhere another value is an error.
SWITCHES: dict[str, tuple[Any, str]] = {
    "using_bn": (True, "SN"),
    "using_moving_average": (True, "SN and sparse SN"),
    "last_gamma": (False, "v1"),
    "norm_after_add": (False, "v1"),
    "stride_on": ("3x3", "v1 bottleneck"),
    "hard_gates": (False, "SN and sparse SN"),
    "se": (False, "face"),
}
NOT_FOR_FACES = ("num_classes", "output_stride", "stem_pool")
# As published. In PyTorch, this momentum of batch norm keeps 10 % of the running statistics, and
# that of SN keeps 90 %.
FACE_NORM = {"eps": 2e-5, "momentum": 0.9}


def build(architecture: Architecture, **options: Any) -> AnyResNet:
    """Build a network with random weights.

    Args:
        architecture: Depth, version and norm.
        options: See :class:`snzoo.models.architectures.NetworkOptions`.

    Raises:
        UnexpectedArgumentError: there is no such option.
        ArgumentError: a value is not allowed, or the option does not apply to the architecture.
    """
    known = NetworkOptions.__annotations__
    if unknown := sorted(set(options) - set(known)):
        near = difflib.get_close_matches(unknown[0], [*known, *CREATE_ARGUMENTS], n=1)
        hint = f"did you mean {near[0]!r}? It" if near else "it"
        raise UnexpectedArgumentError(
            f"{architecture.name} takes no argument {unknown[0]!r}; {hint} takes "
            f"{', '.join([*CREATE_ARGUMENTS, *sorted(known)])}"
        )
    options = {name: value for name, value in options.items() if value is not None}
    _check_sizes(**options)
    _check_choice("stem_pool", options.get("stem_pool", "padded"), StemPool)
    switches = _check_switches(architecture, options)
    sizes = {name: value for name, value in options.items() if name not in SWITCHES}
    of_norm = {name: switches[name] for name in ("using_bn", "using_moving_average")}
    norm = _norm_layer(architecture, **of_norm)
    model: AnyResNet
    if architecture.is_face:
        sizes = _face_sizes(architecture, sizes)
        model = FaceResNet(architecture.stages[1], norm=norm, se=switches["se"], **sizes)
    else:
        model = _build_resnet(architecture, norm, switches, sizes)
    if switches["hard_gates"]:
        harden_gates(model)
    return model


def _build_resnet(
    architecture: Architecture, norm: NormLayer, switches: dict[str, Any], sizes: dict[str, Any]
) -> ResNet:
    assert architecture.version != "face"
    names = ["stride_on", *(["last_gamma", "norm_after_add"] if architecture.version == 1 else [])]
    bottleneck, layers = architecture.stages
    return ResNet(
        architecture.version,
        layers,
        bottleneck=bottleneck,
        norm=norm,
        **{"stem_pool": STEM_POOLS.get(architecture.norm, "padded")} | sizes,
        **{name: switches[name] for name in names},
    )


def _face_sizes(architecture: Architecture, sizes: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a face network; one that it does not have is an error."""
    if sizes.get("num_classes") == 0:
        sizes = {name: value for name, value in sizes.items() if name != "num_classes"}
    if unfit := [name for name in sizes if name in NOT_FOR_FACES]:
        raise ArgumentError(
            f"{architecture.name} takes no {unfit[0]}: a face network has no classes and takes "
            "images of 112×112 pixels; it returns embeddings"
        )
    return sizes


def _norm_layer(architecture: Architecture, **switches: Any) -> NormLayer:
    """Return the norm layer of a network. The switches are those of SN."""
    if architecture.norm == "ssn":
        del switches["using_bn"]
    kinds = {"sn": SwitchNorm2d, "ssn": SparseSwitchNorm2d, "syncsn": SyncSwitchNorm2d}
    settings: dict[str, Any] = FACE_NORM if architecture.is_face else {}
    make: Callable[[int], nn.Module]
    if architecture.norm in kinds:
        make = partial(kinds[architecture.norm], **settings, **switches)
    else:
        make = partial(nn.BatchNorm2d, **settings) if architecture.norm == "bn" else _group_norm
    if architecture.is_face:
        return NormLayer(ANY_NORM, make)
    return NormLayer("sn" if architecture.norm == "ssn" else architecture.norm, make)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_count_groups(channels), channels)


def _count_groups(channels: int) -> int:
    """Return 32 as in Wu & He 2018, or fewer, so that a group has at least two channels."""
    return gcd(32, channels, max(1, channels // 2))


def _check_sizes(
    *, drop_rate: float = 0.0, output_stride: int = 32, num_classes: int = 1000, **others: Any
) -> None:
    check_sizes(least=0, num_classes=num_classes)
    check_sizes(**{name: others[name] for name in ("in_chans", "width") if name in others})
    if type(drop_rate) not in (int, float) or not 0 <= drop_rate <= 1:
        raise ArgumentError(f"drop_rate must be from 0 to 1, got {drop_rate!r}")
    if type(output_stride) is not int or output_stride not in OUTPUT_STRIDES:
        raise ArgumentError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")


def _check_switches(architecture: Architecture, options: dict[str, Any]) -> dict[str, Any]:
    """Return the value of every switch. One that would change nothing is an error."""
    v1 = architecture.version == 1
    applies = {
        "SN": architecture.norm in ("sn", "syncsn"),
        "SN and sparse SN": architecture.norm in SWITCH_NORMS,
        "v1": v1,
        "v1 bottleneck": v1 and architecture.stages[0],
        "face": architecture.is_face,
    }
    values = {}
    for name, (default, where) in SWITCHES.items():
        value = values[name] = options.get(name, default)
        if type(value) is not type(default):
            raise ArgumentError(f"{name} must be a {type(default).__name__}, got {value!r}")
        if value != default and not applies[where]:
            raise ArgumentError(
                f"{name}={value!r} applies to {where} networks only, not to {architecture.name}"
            )
    _check_choice("stride_on", values["stride_on"], StrideOn)
    if values["norm_after_add"] and values["last_gamma"]:
        raise ArgumentError(
            "last_gamma with norm_after_add would make every block return 0: leave one of them out"
        )
    return values


def _check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in get_args(choices):
        raise ArgumentError(f"{name} must be one of {', '.join(get_args(choices))}, got {value!r}")
