"""Read the TensorFlow checkpoint of the ResNet-50 of TF-Slim as a torchvision state dict."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from snzoo.errors import CheckpointError, first_line
from snzoo.weights.archive import read_member
from snzoo.weights.tensorflow import read_tensorflow

SCOPE = "resnet_v1_50/"
MEMBER = "resnet_v1_50.ckpt"
UNUSED = {"global_step", SCOPE + "mean_rgb"}
PARAMETERS = {
    "weights": "weight",
    "BatchNorm/gamma": "weight",
    "BatchNorm/beta": "bias",
    "BatchNorm/moving_mean": "running_mean",
    "BatchNorm/moving_variance": "running_var",
}


def read_slim(path: Path, *, archived: bool, max_bytes: int) -> dict[str, Tensor]:
    """Return the state dict of a V1 checkpoint of TF-Slim, with the keys of torchvision.

    The step, the mean of the pixels and the optimizer's momentum are left out.

    Args:
        path: the path of the checkpoint, or of a tar archive with ``resnet_v1_50.ckpt``.
        archived: whether the file is an archive.
        max_bytes: the largest size of the checkpoint, and of its variables. It is checked before
            they are read.

    Raises:
        CheckpointError: the file is damaged or too large, or its variables are not those of
            ``resnet_v1_50`` in TF-Slim.
    """
    variables = _read_variables(path, archived, max_bytes)
    state: dict[str, Tensor] = {}
    for name, array in variables.items():
        if name in UNUSED or name.endswith("/Momentum"):
            continue
        key = _torchvision_key(name)
        if key is None or array.ndim != (4 if name.endswith("/weights") else 1):
            raise CheckpointError(
                f"{path}: unknown variable {name!r} of {array.ndim} dimensions, "
                "not the ResNet-50 of TF-Slim"
            )
        tensor = torch.from_numpy(array)
        if name.endswith("/weights"):
            tensor = tensor.permute(3, 2, 0, 1)  # the layout of TensorFlow is HWIO
        state[key] = tensor.flatten(1) if key == "fc.weight" else tensor
    if not state:
        raise CheckpointError(f"{path} holds no variable of the ResNet-50 of TF-Slim")
    return state


def _torchvision_key(name: str) -> str | None:
    """Return the key of a variable in torchvision, or None if the network has no such variable.

    For ``resnet_v1_50/block2/unit_1/bottleneck_v1/conv3/weights``, this is
    ``layer2.0.conv3.weight``.
    """
    logits = {f"{SCOPE}logits/weights": "fc.weight", f"{SCOPE}logits/biases": "fc.bias"}
    if name in logits:
        return logits[name]
    pattern = (
        rf"{SCOPE}(?:block([1-4])/unit_([1-9])/bottleneck_v1/(shortcut|conv[123])|conv1)/"
        rf"({'|'.join(PARAMETERS)})"
    )
    found = re.fullmatch(pattern, name)
    if found is None:
        return None
    block, unit, layer, parameter = found.groups()
    prefix = f"layer{block}.{int(unit) - 1}." if block else ""
    norm = "BatchNorm" in parameter
    if layer == "shortcut":
        module = f"downsample.{int(norm)}"
    else:
        module = (layer or "conv1").replace("conv", "bn" if norm else "conv")
    return f"{prefix}{module}.{PARAMETERS[parameter]}"


def _read_variables(path: Path, archived: bool, max_bytes: int) -> dict[str, NDArray[Any]]:
    try:
        content = read_member(path, MEMBER, max_bytes=max_bytes) if archived else path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"can't read {path}: {first_line(error)}") from None
    return read_tensorflow(content, where=path, max_bytes=max_bytes)
