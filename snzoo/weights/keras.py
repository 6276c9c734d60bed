"""The Keras file of the MSRA ResNet-50 → a torchvision state dict.

Keras's network has biases in its convolutions and a batch-norm eps of 1.001e-5; both
fold exactly into batch norm: the bias into ``running_mean``, the rest of eps into
``running_var``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snzoo.errors import CheckpointError

KERAS_EPS, TORCH_EPS = 1.001e-5, 1e-5

Layer = dict[str, Tensor]


def read_keras(path: Path) -> dict[str, Tensor]:
    """State dict under torchvision's keys.

    Raises:
        CheckpointError: h5py is missing, the file is damaged, or has other layers than
            the ResNet-50 of keras.applications.
    """
    layers = _read_layers(path)
    state: dict[str, Tensor] = {}
    for name, layer in layers.items():
        try:
            if name.endswith("_conv"):
                norm = layers[name.removesuffix("conv") + "bn"]
                conv, bn = _torchvision_keys(name)
                state[f"{conv}.weight"] = layer["kernel"].permute(3, 2, 0, 1)
                state[f"{bn}.weight"] = norm["gamma"]
                state[f"{bn}.bias"] = norm["beta"]
                state[f"{bn}.running_mean"] = norm["moving_mean"] - layer["bias"]
                state[f"{bn}.running_var"] = norm["moving_variance"] + (KERAS_EPS - TORCH_EPS)
            elif not name.endswith("_bn"):
                state["fc.weight"], state["fc.bias"] = layer["kernel"].T, layer["bias"]
        except (KeyError, RuntimeError, ValueError):
            raise CheckpointError(
                f"{path}: unknown layer {name!r}, not the Keras ResNet-50"
            ) from None
    return state


def _torchvision_keys(name: str) -> tuple[str, str]:
    """``conv3_block1_2_conv`` → ``layer2.0.conv2``, ``layer2.0.bn2``; i = 0 is the shortcut."""
    if name == "conv1_conv":
        return "conv1", "bn1"
    found = re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_conv", name)
    if found is None:
        raise KeyError(name)
    stage, block, i = (int(number) for number in found.groups())
    prefix = f"layer{stage - 1}.{block - 1}"
    if i == 0:
        return f"{prefix}.downsample.0", f"{prefix}.downsample.1"
    return f"{prefix}.conv{i}", f"{prefix}.bn{i}"


def _read_layers(path: Path) -> dict[str, Layer]:
    """Layer name → its arrays by their last name (``kernel``), layers without any left out."""
    try:
        import h5py
    except ImportError:
        raise CheckpointError(f"{path} is an HDF5 file; to read it: pip install h5py") from None
    layers: dict[str, Layer] = {}
    try:
        with h5py.File(path, "r") as file:
            for name, group in file.get("model_weights", file).items():
                arrays: Layer = {}

                def collect(key: str, item: Any, arrays: Layer = arrays) -> None:
                    if isinstance(item, h5py.Dataset):
                        leaf = key.rsplit("/", 1)[-1].split(":")[0]
                        arrays[leaf] = torch.from_numpy(item[()].astype("float32"))

                group.visititems(collect)
                if arrays:
                    layers[name] = arrays
    except Exception as error:  # h5py raises almost anything on damaged files
        raise CheckpointError(f"can't read {path}: {error}") from None
    return layers
