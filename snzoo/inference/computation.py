"""What the results of networks depend on: packages, devices, and the pixels that they share."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import nn

from snzoo.errors import ArgumentError
from snzoo.inference.network import Network, choose_device
from snzoo.preprocessing import Preprocessing
from snzoo.processes import local_device
from snzoo.spec import ModelSpec

PACKAGES = ("snzoo", "torch", "torchvision", "numpy", "pillow", "simplejpeg", "llvmlite")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect pixels and logits."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(cudnn)}
    return found


def device_name(device: str) -> str:
    """Return the name of the GPU; the names of other devices are returned unchanged."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def choose_shared_device(device: str | torch.device | None, models: Iterable[object]) -> str:
    """Return the device for several models.

    Args:
        device: the device (default: that of the first model that is a network; if all are names,
            CUDA if available).
        models: the networks, or the names of networks.

    Raises:
        DeviceError: the device cannot be used.
    """
    networks = (model for model in models if isinstance(model, nn.Module))
    if device is None and (network := next(networks, None)) is not None:
        return str(next(network.parameters(), torch.empty(0)).device)
    return choose_device(local_device(None if device is None else str(device)))


def find_shared_preprocessing(networks: Sequence[Network]) -> Preprocessing:
    """Return the preprocessing of the pixels that all networks share.

    Raises:
        ArgumentError: the networks take images of different sizes or rules of resizing.
    """
    first = networks[0]
    shared = first.preprocessing
    for other in networks[1:]:
        own = other.preprocessing
        same_size = (own.resize, own.crop) == (shared.resize, shared.crop)
        if not same_size or own.resampling != shared.resampling:
            what = "rules of resizing" if same_size else "sizes"
            raise ArgumentError(
                f"{first.name} and {other.name} take images of different {what}; run them one "
                "after the other"
            )
    return shared


def check_names(specs: Sequence[ModelSpec]) -> None:
    """Check that no two models have the same name in predictions and in APIs.

    Raises:
        ArgumentError: two have the same.
    """
    names = [spec.called for spec in specs]
    for name in names:
        if names.count(name) > 1:
            raise ArgumentError(f"two models are called {name}; rename a folder or a file")


def number_names(specs: Sequence[ModelSpec]) -> list[str]:
    """Return the names of models in predictions, with a number if several share a name."""
    return _tell_apart([spec.called for spec in specs], range(1, len(specs) + 1))


def distinct_names(specs: Sequence[ModelSpec]) -> list[str]:
    """Return the names of models, with the weights or a number if several models share a name."""
    marks = [spec.weights or i for i, spec in enumerate(specs, 1)]
    return _tell_apart([spec.name for spec in specs], marks)


def _tell_apart(names: Sequence[str], marks: Sequence[object]) -> list[str]:
    """Return the names, with its mark after each that is there more than once."""
    return [
        f"{name} ({mark})" if names.count(name) > 1 else name
        for name, mark in zip(names, marks, strict=True)
    ]
