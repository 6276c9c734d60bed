"""Build a network from its architecture and options."""

import difflib
from functools import partial
from math import gcd
from typing import Any, get_args

from torch import nn

from snzoo.errors import ArgumentError, UnexpectedArgumentError
from snzoo.models.architectures import DEPTHS, Architecture, NetworkOptions, StemPool, StrideOn
from snzoo.models.blocks import NormLayer
from snzoo.models.resnet import ResNet, check_sizes
from snzoo.nn import SparseSwitchNorm2d, SwitchNorm2d

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
}


def build(architecture: Architecture, **options: Any) -> ResNet:
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
    bottleneck, layers = DEPTHS[architecture.depth]
    of_norm = {name: switches.pop(name) for name in ("using_bn", "using_moving_average")}
    if architecture.version == 2:
        switches = {"stride_on": switches["stride_on"]}
    return ResNet(
        architecture.version,
        layers,
        bottleneck=bottleneck,
        norm=_norm_layer(architecture, **of_norm),
        **switches,
        **{"stem_pool": STEM_POOLS.get(architecture.norm, "padded")}
        | {name: value for name, value in options.items() if name not in SWITCHES},
    )


def _norm_layer(architecture: Architecture, **switches: Any) -> NormLayer:
    if architecture.norm == "ssn":
        del switches["using_bn"]
        return NormLayer("sn", partial(SparseSwitchNorm2d, **switches))
    if architecture.norm == "sn":
        return NormLayer("sn", partial(SwitchNorm2d, **switches))
    if architecture.norm == "bn":
        return NormLayer("bn", nn.BatchNorm2d)
    return NormLayer("gn", lambda channels: nn.GroupNorm(_count_groups(channels), channels))


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
    applies = {"SN": architecture.norm == "sn", "v1": v1}
    applies["SN and sparse SN"] = architecture.norm in ("sn", "ssn")
    applies["v1 bottleneck"] = v1 and DEPTHS[architecture.depth][0]
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
