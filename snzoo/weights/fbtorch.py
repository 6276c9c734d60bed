"""Read the ResNet-50 of fb.resnet.torch (``resnet-50.t7``) as a state dict with snzoo's keys.

In this network (https://github.com/facebookarchive/fb.resnet.torch, ``pretrained``), the last batch
norm of a block follows the addition, and no norm follows the convolution of a shortcut. Biases of
convolutions are subtracted from the ``running_mean`` of the next batch norm, and another eps than
that of PyTorch is added to its ``running_var``. Both are exact.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snzoo.errors import CheckpointError, first_line
from snzoo.weights.pytorch import too_large
from snzoo.weights.torch7 import Module, read_torch7

TORCH_EPS = 1e-5

# A letter for each class, nn or cudnn. The letters of a network, depth-first, spell its structure.
LETTERS = {
    "SpatialConvolution": "c",
    "SpatialConvolutionMM": "c",
    "SpatialBatchNormalization": "n",
    "ReLU": "r",
    "SpatialMaxPooling": "m",
    "ConcatTable": "(",
    "Identity": "i",
    "CAddTable": "+",
    "SpatialAveragePooling": "a",
    "View": "v",
    "Linear": "l",
    "Sequential": "",
}
CONTAINERS = ("ConcatTable", "Sequential")
BLOCK = r"\(cnrcnrc([ci])\+nr"  # two branches, the second one a convolution or the identity
NETWORK = re.compile(rf"cnrm(?:{BLOCK})+avl")
MAX_MODULES = 2000  # a ResNet-50 has some 250
ARRAYS = ("weight", "bias", "running_mean", "running_var", "running_std")


def read_fbtorch(path: Path, *, max_bytes: int) -> dict[str, Tensor]:
    """Return the state dict of a file of Torch7, for a network with ``norm_after_add``.

    Args:
        path: the path of the file.
        max_bytes: the largest total size of the tensors, in float32 if they are float16. It is
            checked before they are copied.

    Raises:
        CheckpointError: the file is damaged or too large, or its modules are not those of the
            ResNet-50 of fb.resnet.torch.
    """
    content = read_torch7(path)
    try:
        modules = _list_modules(content)
        if sum(map(_count_bytes, modules)) > max_bytes:
            raise CheckpointError(f"can't read {path}: {too_large(max_bytes)}")
        return _convert(modules)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not the ResNet-50 of fb.resnet.torch: {first_line(error)}"
        ) from None


def _list_modules(root: Any) -> list[Module]:
    """Return the modules of a network depth-first, without recursion."""
    modules: list[Module] = []
    stack = [root]
    while stack:
        module = stack.pop()
        if not isinstance(module, Module):
            raise ValueError("it holds another value in place of a module")
        if _kind(module) not in LETTERS:
            raise ValueError(f"it holds a {module.name}")
        modules.append(module)
        if _kind(module) in CONTAINERS:
            children = module.fields.get("modules")
            numbers = range(1, 1 + len(children)) if isinstance(children, dict) else ()
            if not isinstance(children, dict) or children.keys() != set(numbers):
                raise ValueError(f"a {module.name} has no list of modules")
            stack += [children[number] for number in reversed(numbers)]
        if len(modules) + len(stack) > MAX_MODULES:  # also where a module contains itself
            raise ValueError(f"it has more than {MAX_MODULES:,} modules")
    return modules


def _convert(modules: list[Module]) -> dict[str, Tensor]:
    """Return the state dict of the modules of a network, after a check of their structure."""
    structure = "".join(LETTERS[_kind(module)] for module in modules)
    if not NETWORK.fullmatch(structure):
        raise ValueError("its modules are others, or in another order")

    def select(*letters: str) -> list[Module]:
        return [module for module in modules if LETTERS[_kind(module)] in letters]

    (pool,), (average,), (linear,) = select("m"), select("a"), select("l")
    _check_numbers(pool, kernel=3, stride=2, padding=1)
    _check_numbers(average, kernel=7)
    names = _list_layers(re.findall(BLOCK, structure))
    state: dict[str, Tensor] = {}
    biases: list[Tensor] = []  # of the convolutions since the last norm
    for (key, kernel, stride), layer in zip(names, select("c", "n"), strict=True):
        if kernel is None:
            state |= {f"{key}.{name}": t for name, t in _convert_norm(layer, biases).items()}
            biases.clear()
            continue
        _check_numbers(layer, kernel=kernel, stride=stride, padding=kernel // 2)
        weight = _read_tensor(layer, "weight")  # two-dimensional in SpatialConvolutionMM
        state[f"{key}.weight"] = weight.reshape(len(weight), -1, kernel, kernel)
        if layer.fields.get("bias") is not None:
            biases.append(_read_tensor(layer, "bias"))
    return state | {f"fc.{name}": _read_tensor(linear, name) for name in ("weight", "bias")}


def _list_layers(shortcuts: list[str]) -> Iterator[tuple[str, int | None, int]]:
    """Yield the key of each layer, its kernel (None for a norm) and stride, as the file has them.

    Args:
        shortcuts: for each block, "c" if its shortcut is a convolution, which starts a stage, or
            "i".
    """
    yield from [("conv1", 7, 2), ("bn1", None, 1)]
    stage, unit = 1, -1
    for block, shortcut in enumerate(shortcuts):
        stage, unit = (stage + 1, 0) if shortcut == "c" and block else (stage, unit + 1)
        here = f"layer{stage}.{unit}"
        stride = 2 if stage > 1 and unit == 0 else 1
        yield from [(f"{here}.conv1", 1, 1), (f"{here}.bn1", None, 1)]
        yield from [(f"{here}.conv2", 3, stride), (f"{here}.bn2", None, 1)]
        yield f"{here}.conv3", 1, 1
        if shortcut == "c":
            yield f"{here}.downsample", 1, stride
        yield f"{here}.bn3", None, 1


def _convert_norm(norm: Module, biases: list[Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a batch norm of PyTorch that normalizes without the biases.

    Very old files have ``running_std`` in place of ``running_var``: 1 / sqrt(var + eps).
    """
    eps = norm.fields.get("eps")
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ValueError(f"the eps of a {norm.name} is not between 0 and 1")
    tensors = {name: _read_tensor(norm, name) for name in ("weight", "bias", "running_mean")}
    dtype = tensors["running_mean"].dtype
    if norm.fields.get("running_var") is not None:
        variance = _read_tensor(norm, "running_var").double() + (eps - TORCH_EPS)
    else:
        inverse = _read_tensor(norm, "running_std").double()
        if not (inverse.isfinite() & (inverse > 0)).all():
            raise ValueError(f"the running_std of a {norm.name} is not positive")
        variance = inverse**-2 - TORCH_EPS
    tensors["running_var"] = variance.to(dtype)
    if len({tensor.shape for tensor in (*tensors.values(), *biases)}) > 1:
        raise ValueError(f"the tensors of a {norm.name}, or the biases before it, differ in shape")
    mean = tensors["running_mean"].double()
    tensors["running_mean"] = (mean - sum(bias.double() for bias in biases)).to(dtype)
    return tensors


def _check_numbers(module: Module, **expected: int) -> None:
    """Raise a ValueError if the kernel, the stride or the padding is another."""
    for name, value in expected.items():
        for direction in "WH":
            field = {"kernel": "k", "stride": "d", "padding": "pad"}[name] + direction
            found = module.fields.get(field)
            if not isinstance(found, float) or found != value:
                raise ValueError(f"the {field} of a {module.name} is not {value}")
    if module.fields.get("ceil_mode") is True:
        raise ValueError(f"a {module.name} rounds up")


def _read_tensor(module: Module, name: str) -> Tensor:
    """Return a copy of a tensor, in float32 if it is float16."""
    array = module.fields.get(name)
    if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
        raise ValueError(f"a {module.name} has no {name}")
    dtype = np.promote_types(array.dtype, np.float32)
    return torch.from_numpy(np.array(array, dtype, order="C"))


def _count_bytes(module: Module) -> int:
    arrays = [module.fields.get(name) for name in ARRAYS]
    return sum(a.size * max(4, a.itemsize) for a in arrays if isinstance(a, np.ndarray))


def _kind(module: Module) -> str:
    """Return the class of a module without ``nn`` or ``cudnn``, or its whole name."""
    return re.sub(r"^(nn|cudnn)\.", "", module.name)
