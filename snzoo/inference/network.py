"""Run networks on batches of pixels: device, precision, and batches that fit into memory."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.backends import cudnn, mkldnn
from torch.backends.cuda import matmul

from snzoo.data.batches import Batch
from snzoo.data.pixels import normalize
from snzoo.errors import ArgumentError, DeviceError, NonFiniteError, first_line
from snzoo.preprocessing import Preprocessing

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Tensors = TypeVar("Tensors", bound=tuple[Tensor | None, ...])
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TopK(NamedTuple):
    """The k most probable classes of n images, (n, k) each, most probable first."""

    probabilities: Tensor
    indices: Tensor


class Network:
    """A network with its preprocessing: resized pixels in, logits out.

    Args:
        model: a network; it is moved to ``device`` and put into evaluation mode.
        name: the name of the network in error messages.
        precision: the precision of the arithmetic; the weights keep their dtype. ``fp32``
            means float32 on a GPU too, where PyTorch would let convolutions use TF32. ``bf16`` and
            ``fp16`` use autocast.
        compile: use ``torch.compile``.
        channels_last: use the channels-last memory format for weights and activations.

    Raises:
        ArgumentError: the device does not have TF32.
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
            raise ArgumentError(f"precision tf32 needs a CUDA device, not {self.device}; use fp32")
        self.name = name
        self.preprocessing = preprocessing
        self.precision = precision
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        model = model.to(self.device).eval()
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        floating = (p.dtype for p in model.parameters() if p.is_floating_point())
        self.dtype = next(floating, torch.float32)
        self.model: Any = compile_network(model) if compile else model
        self.largest: int | None = None  # images per batch, once memory was too small

    def predict_logits(self, pixels: Tensor) -> Tensor:
        """Return the float32 logits (N, C) of RGB pixels (N, 3, H, W).

        The pixels are uint8, or float32 where white is 255.

        A batch that does not fit into the memory of the device is halved until it does.

        Raises:
            DeviceError: a single image does not fit.
            ArgumentError: the output is not one row of logits per image.
        """
        return self._compute(pixels, self.model)[0]

    def predict_embeddings(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (N, C) and the embeddings (N, D) of RGB pixels (N, 3, H, W).

        Both are float32 and come from one pass. The embedding of an image is the input of the
        network's last layer, the pooled last map, as the network computes it. The arguments and
        errors are those of :meth:`predict_logits`.

        Raises:
            ArgumentError: the network has no such embeddings.
        """
        logits, embeddings = self._compute(pixels, self._forward_both)
        return logits, embeddings

    @torch.inference_mode()
    def _compute(self, pixels: Tensor, forward: Callable[[Tensor], Any]) -> list[Tensor]:
        """Return the outputs of ``forward`` for pixels, in batches that fit into the memory."""
        pixels = pixels.to(self.device, non_blocking=True)
        while True:
            size = min(len(pixels), self.largest or len(pixels))
            try:
                parts = [self._forward(part, forward) for part in torch.split(pixels, size)]
            except torch.OutOfMemoryError:
                if size == 1:
                    raise DeviceError(
                        f"one image at a time does not fit into the memory of {self.device}"
                    ) from None
                self.largest = (size + 1) // 2
            else:
                return [torch.cat(outputs) for outputs in zip(*parts, strict=True)]

    def predict_topk(self, pixels: Tensor, k: int = 5) -> TopK:
        """Return the ``k`` most probable classes (at most all) of RGB pixels (N, 3, H, W).

        Raises:
            DeviceError, ArgumentError: see :meth:`predict_logits`.
        """
        return rank_classes(self.predict_logits(pixels), k)

    def digest(self) -> str:
        """Return the SHA-256 of what determines the results: structure, weights, preprocessing."""
        spec = getattr(self.model, "spec", None)
        structure = spec and (spec.architecture, sorted(spec.arguments.items()))
        digest = hashlib.sha256(repr((structure, self.preprocessing)).encode())
        for key, value in self.model.state_dict().items():
            values = value.detach().cpu().contiguous()
            digest.update(f"{key} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def _forward_both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not hasattr(self.model, "forward_features") or not hasattr(self.model, "forward_head"):
            raise ArgumentError(f"{self.name} has no embeddings; leave them out")
        features = self.model.forward_features(x)
        embeddings = self.model.forward_head(features, pre_logits=True)
        return self.model.forward_head(features), embeddings

    def _forward(self, pixels: Tensor, forward: Callable[[Tensor], Any]) -> list[Tensor]:
        half = HALF.get(self.precision)
        with (
            float32_precision(self.device, tf32=self.precision == "tf32"),
            torch.autocast(self.device.type, half, enabled=half is not None),
        ):
            x = normalize(pixels, self.preprocessing, memory_format=self.memory_format)
            found = forward(x.to(self.dtype))
        outputs = found if isinstance(found, tuple) else (found,)
        if not all(isinstance(output, Tensor) and output.ndim == 2 for output in outputs):
            raise ArgumentError(f"{self.name} returns no logits; is it a classifier?")
        return [output.float() for output in outputs]


@torch.inference_mode()
def rank_classes(logits: Tensor, k: int, among: Tensor | None = None) -> TopK:
    """Return the ``k`` most probable classes (at most all) of logits (N, C).

    Args:
        among: ascending indices of the classes that compete; the probabilities are a softmax over
            these classes only (default: all classes).

    The probabilities of an image are NaN if one of its logits is not finite.
    """
    finite = logits.isfinite().all(dim=1, keepdim=True)
    if among is not None:
        logits = logits[:, among]
    indices = logits.topk(min(k, logits.shape[1]), dim=1).indices
    probabilities = logits.softmax(1).gather(1, indices).where(finite, torch.nan)
    return TopK(probabilities, indices if among is None else among[indices])


def check_finite(probabilities: Tensor, name: str) -> None:
    """Check that the logits of the network called ``name`` were finite.

    Args:
        probabilities: the probabilities of :func:`rank_classes`.
        name: the name in the error.

    Raises:
        NonFiniteError: a logit was not finite.
    """
    if not probabilities.isfinite().all():
        raise NonFiniteError(f"the logits of {name} are not finite; are these its weights?")


def iter_ranked(
    batches: Iterable[Batch], rank: Callable[[Tensor], Sequence[Tensors]]
) -> Iterator[tuple[Batch, list[Tensors]]]:
    """Yield each batch with what ``rank`` returns for its pixels, on the CPU.

    ``rank`` returns named tuples of tensors, such as :class:`TopK`. A result is yielded after
    ``rank`` has started on the next batch. A GPU, which works asynchronously, thus does not wait
    until the caller has used the results.
    """
    pending: tuple[Batch, list[Tensors], Callable[[], None]] | None = None
    for batch in chain(batches, [None]):
        following = None
        if batch:
            ranked = list(rank(batch.pixels)) if batch.indices else []
            following = (batch, *_copy_to_cpu(ranked))
        if pending:
            done, copies, wait = pending
            wait()
            yield done, copies
        pending = following


def _copy_to_cpu(ranked: list[Tensors]) -> tuple[list[Tensors], Callable[[], None]]:
    """Start to copy results to the CPU; return the copies and a function that waits for them.

    A copy that started later would also wait for the work on the next batch.
    """

    def copy(result: Any) -> Any:
        values = (v if v is None else v.to("cpu", non_blocking=True) for v in result)
        return type(result)(*values)

    copies = list(map(copy, ranked))
    first = next((value for result in ranked for value in result if value is not None), None)
    if first is None or first.device.type != "cuda":
        return copies, lambda: None
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(first.device))
    return copies, copied.synchronize


def choose_device(name: str | None) -> str:
    """Return ``name`` if the device can be used; None means CUDA if available, else the CPU.

    Raises:
        DeviceError: the device cannot be used.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"device {name!r} can't be used: {first_line(error)}") from None
    return name


def default_batch_size(device: torch.device) -> int:
    """Return the fastest batch size. On a CPU, small batches keep activations in the cache."""
    return 16 if device.type == "cpu" else 128


def resize_device(device: torch.device) -> torch.device | None:
    """Return the device that resizes photos, or None if the threads that decode resize them."""
    return device if device.type == "cuda" else None


def local_cores() -> int:
    """Return the number of cores for this process. Processes on one machine share its cores."""
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux: the cores that taskset allows
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def compile_network(model: nn.Module) -> Any:
    """Compile separately for each batch size, so that a batch gives the same bits in any run."""
    options: dict[str, Any] = {"dynamic": False}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # torch 2.14 or newer
        options["isolate_recompiles"] = True  # from other networks of this class
    return torch.compile(model, **options)


@contextmanager
def float32_precision(device: torch.device, *, tf32: bool) -> Iterator[None]:
    """Compute float32 as float32, or as TF32 if ``tf32``; restore the settings afterwards."""
    before = torch.get_float32_matmul_precision()
    # torch 2.9 and newer have a second interface to the same settings.
    places: list[Any] = [matmul, getattr(mkldnn, "matmul", None)]
    newer = [where for where in places if hasattr(where, "fp32_precision")]
    precisions = [where.fp32_precision for where in newer]
    others = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        on_gpu = device.type == "cuda"
        with cudnn.flags(**others, allow_tf32=tf32) if on_gpu else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(before)
        for where, precision in zip(newer, precisions, strict=True):
            where.fp32_precision = precision
