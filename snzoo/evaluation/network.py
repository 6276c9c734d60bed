"""A network as it is evaluated: on its device, at its precision, in batches that fit."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.backends import cudnn, mkldnn
from torch.backends.cuda import matmul

from snzoo.data.pixels import normalize
from snzoo.errors import SnzooError
from snzoo.manifest import Preprocessing

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Best(NamedTuple):
    """Probabilities and class indices of the best classes, (N, k) each, best first."""

    probabilities: Tensor
    indices: Tensor


class Network:
    """A network with its preprocessing: uint8 pixels in, best classes out.

    Args:
        model: moved to ``device`` and put into evaluation mode.
        name: what errors call it.
        precision: of the arithmetic; the weights stay float32. ``fp32`` is that on a GPU
            too, where PyTorch would let convolutions use TF32; bf16 and fp16 are autocast.
        compile: with ``torch.compile``.
        channels_last: keep activations in that memory format.

    Raises:
        SnzooError: TF32 on a device without it.
    """

    def __init__(
        self,
        model: nn.Module,
        preprocessing: Preprocessing,
        *,
        name: str = "the network",
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
        compile: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.device = torch.device(device)
        if precision == "tf32" and self.device.type != "cuda":
            raise SnzooError(f"precision tf32 needs a CUDA device, not {self.device}; use fp32")
        self.name = name
        self.preprocessing = preprocessing
        self.precision = precision
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        model = model.to(self.device).to(memory_format=self.memory_format).eval()
        self.model: Any = _compile(model) if compile else model
        self.largest: int | None = None  # images at a time, once memory was short

    def best(self, pixels: Tensor, k: int = 5) -> Best:
        """The ``k`` best classes, at most all, of uint8 RGB (N, 3, H, W).

        A batch that doesn't fit into the memory of the device is halved until it does.

        Raises:
            SnzooError: one image doesn't fit.
        """
        pixels = pixels.to(self.device, non_blocking=True)
        while True:
            size = min(len(pixels), self.largest or len(pixels))
            try:
                parts = [self._forward(part, k) for part in torch.split(pixels, size)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise SnzooError(
                        f"one image at a time does not fit into the memory of {self.device}"
                    ) from None
                self.largest = (size + 1) // 2
            else:
                return Best(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def digest(self) -> str:
        """sha256 of what decides over the results: the weights and the preprocessing."""
        digest = hashlib.sha256(repr(self.preprocessing).encode())
        for key, value in self.model.state_dict().items():
            values = value.detach().cpu().contiguous()
            digest.update(f"{key} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def _forward(self, pixels: Tensor, k: int) -> Best:
        half = HALF.get(self.precision)
        with (
            _tf32(self.device, allowed=self.precision == "tf32"),
            torch.autocast(self.device.type, half, enabled=half is not None),
        ):
            x = normalize(pixels, self.preprocessing, memory_format=self.memory_format)
            return best_classes(self.model, x, k)


@torch.inference_mode()
def best_classes(model: nn.Module, x: Tensor, k: int) -> Best:
    """The ``k`` best classes, at most all, of each normalized image of (N, 3, H, W).

    A probability is NaN where a logit of its image is not finite.
    """
    logits = model(x).float()
    indices = logits.topk(min(k, logits.shape[1]), dim=1).indices
    probabilities = logits.softmax(1).gather(1, indices)
    finite = logits.isfinite().all(dim=1, keepdim=True)
    return Best(probabilities.where(finite, torch.nan), indices)


def check_finite(best: Best, name: str) -> None:
    """Raises SnzooError where a logit of the network called ``name`` was not finite."""
    if not best.probabilities.isfinite().all():
        raise SnzooError(f"the logits of {name} are not finite; are these its weights?")


def choose_device(name: str | None) -> str:
    """``name``, checked, or CUDA where there is one.

    Raises:
        SnzooError: there is no such device here.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        raise SnzooError(
            f"device {name!r} can't be used: {str(error).partition(chr(10))[0]}"
        ) from None
    return name


def _compile(model: nn.Module) -> Any:
    """Compiled for every size of batch by itself, so that a batch is computed as in any run."""
    options: dict[str, Any] = {"dynamic": False}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # torch 2.14
        options["isolate_recompiles"] = True  # of other networks of the same class
    return torch.compile(model, **options)


@contextmanager
def _tf32(device: torch.device, *, allowed: bool) -> Iterator[None]:
    """Whether float32 may be computed as TF32 inside; afterwards it is as it was before."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    both = (matmul, getattr(mkldnn, "matmul"))  # noqa: B009  (its stub lacks it)
    newer = [(where, where.fp32_precision) for where in both]
    others = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    try:
        with cudnn.flags(**others, allow_tf32=allowed):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        for where, precision in newer:  # of PyTorch's newer interface to the same settings
            where.fp32_precision = precision
