"""Read the Keras files of the MSRA ResNet-50 as torchvision state dicts.

Two files have the name ``resnet50_weights_tf_dim_ordering_tf_kernels.h5``: that of
keras_applications, with layers such as ``conv2_block1_1_conv``, and an older one of
https://github.com/fchollet/deep-learning-models, with layers such as ``res2a_branch2a``.

The convolutions of the Keras network have biases, and the eps of its batch norm is another one. The
state dict expresses both exactly: the biases are subtracted from ``running_mean``, and the
difference in eps is added to ``running_var``.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from snzoo.environment import require_packages
from snzoo.errors import CheckpointError, first_line
from snzoo.weights.pytorch import too_large

KERAS_EPS, TORCH_EPS = 1.001e-5, 1e-5
# Keras 1.1 applied the older file with 1e-5, its default then and Caffe's, where the weights come
# from. Keras 1.2 changed the default to 1e-3 and kept the file.
OLD_EPS = 1e-5

# The names of arrays in the older file. Its ``running_std`` holds the variance.
OLD_NAMES = {"W": "kernel", "b": "bias"}
OLD_NAMES |= {"running_mean": "moving_mean", "running_std": "moving_variance"}

Layer = dict[str, Tensor]


def read_keras(path: Path, *, max_bytes: int) -> dict[str, Tensor]:
    """Return the state dict of either Keras file, with the keys of torchvision.

    Args:
        path: the path of the HDF5 file.
        max_bytes: the largest total size of the arrays in float32. It is checked before they are
            read.

    Raises:
        CheckpointError: the file is damaged or too large, or its layers are not those of the
            ResNet-50 of keras.applications.
        MissingPackageError: h5py is not installed.
    """
    require_packages("h5py", extra="keras", purpose=f"reading the HDF5 file {path}")
    layers = _read_layers(path, max_bytes)
    eps = OLD_EPS if "bn_conv1" in layers else KERAS_EPS
    names = {_rename_layer(name): name for name in layers}  # the name in the file, by the newer one
    layers = {name: layers[own] for name, own in names.items()}
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
                state[f"{bn}.running_var"] = norm["moving_variance"] + (eps - TORCH_EPS)
            elif not name.endswith("_bn"):
                state["fc.weight"], state["fc.bias"] = layer["kernel"].t(), layer["bias"]
        except (KeyError, RuntimeError, ValueError):
            raise CheckpointError(
                f"{path}: unknown layer {names[name]!r}, not the Keras ResNet-50"
            ) from None
    return state


def _rename_layer(name: str) -> str:
    """Return the newer name of a layer: ``conv3_block1_2_bn`` for ``bn3a_branch2b``.

    Branch 1 is the shortcut, convolution 0. Newer names stay as they are.
    """
    if name in ("conv1", "bn_conv1"):
        return "conv1_conv" if name == "conv1" else "conv1_bn"
    found = re.fullmatch(r"(res|bn)([2-5])([a-z])_branch(1|2[abc])", name)
    if found is None:
        return name
    kind, stage, block, branch = found.groups()
    i = ("1", "2a", "2b", "2c").index(branch)
    return f"conv{stage}_block{ord(block) - ord('a') + 1}_{i}_{'bn' if kind == 'bn' else 'conv'}"


def _torchvision_keys(name: str) -> tuple[str, str]:
    """Return the keys of a convolution and its batch norm in torchvision.

    For ``conv3_block1_2_conv``, these are ``layer2.0.conv2`` and ``layer2.0.bn2``. Convolution 0 of
    a block is the shortcut.
    """
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


def _read_layers(path: Path, max_bytes: int) -> dict[str, Layer]:
    """Return the arrays of each layer, by the last part of their newer names (``kernel``)."""
    import h5py

    layers: dict[str, Layer] = {}
    size = 0

    def collect(key: str, item: Any) -> None:
        nonlocal size
        if isinstance(item, h5py.Dataset):
            numel = max(item.size, math.prod(item.chunks or ()))  # a chunk is read as a whole
            size += numel * max(4, item.dtype.itemsize)  # as stored or as float32
            if size > max_bytes:
                raise ValueError(too_large(max_bytes))
            leaf = key.rsplit("/", 1)[-1].split(":")[0].removeprefix(f"{name}_")
            layer[OLD_NAMES.get(leaf, leaf)] = torch.from_numpy(item[()].astype("float32"))

    try:
        with h5py.File(path, "r") as file:
            for name, group in file.get("model_weights", file).items():
                if not isinstance(group, h5py.Group):
                    raise ValueError("it has an array outside of a layer, not the Keras ResNet-50")
                layer: Layer = {}
                group.visititems(collect)
                if layer:
                    layers[name] = layer
    except Exception as error:  # h5py raises almost anything on damaged files
        raise CheckpointError(f"can't read {path}: {first_line(error)}") from None
    return layers
