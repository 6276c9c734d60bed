"""What depends on the device of a training: copies, random generators, and memory."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor


class Figures:
    """The figures of one step in this process, which the device may still be computing.

    Args:
        loss: The sum of the losses of the images.
        correct: The number of correct answers.
        images: The number of images.
    """

    def __init__(self, loss: Tensor, correct: Tensor, images: int) -> None:
        self.images = images
        both = torch.stack([loss, correct.to(loss.dtype)])
        self._values = both.to("cpu", non_blocking=True)
        self._copied: Any = None
        if both.is_cuda:  # reading the values must not wait for the step after this one
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record(torch.cuda.current_stream(both.device))

    def read(self) -> tuple[float, float]:
        """Return the sum of the losses and the number of correct answers, when they are ready."""
        if self._copied is not None:
            self._copied.synchronize()
        loss, correct = self._values.tolist()
        return loss, correct


def seed_generators(device: torch.device, *numbers: int) -> None:
    """Seed the generators of the CPU and of a device by numbers.

    Dropout in a step therefore does not depend on the steps before it.
    """
    digest = hashlib.sha256(" ".join(map(str, numbers)).encode()).digest()
    seed = int.from_bytes(digest[:7], "big")
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def copy_to(device: torch.device, tensor: Tensor) -> Tensor:
    """Copy a tensor from the CPU. A copy to a GPU is asynchronous, from pinned memory."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of PyTorch says that memory is too small, on a GPU or the CPU."""
    cpu = "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError) or cpu
