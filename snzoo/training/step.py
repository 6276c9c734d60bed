"""One optimizer step: forward and backward passes over its photos, then the update."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from snzoo.data.augment import apply_noise
from snzoo.data.pixels import normalize
from snzoo.data.training_batches import TrainingBatch
from snzoo.errors import DeviceError
from snzoo.inference.network import HALF, compile_network
from snzoo.models.build import AnyResNet
from snzoo.nn import SyncSwitchNorm2d
from snzoo.processes import Processes, split_evenly
from snzoo.recipes import Recipe
from snzoo.training.config import TrainingConfig
from snzoo.training.devices import Figures, copy_to, is_out_of_memory, seed_generators
from snzoo.training.face_classifier import FaceClassifier, network_of
from snzoo.training.optimizer import find_gates, make_optimizer

T = TypeVar("T")


def split_step(images: Sequence[int], recipe: Recipe, processes: Processes) -> list[Sequence[int]]:
    """Return the images of each forward pass of this process, for one optimizer step.

    All processes have the same number of passes, as synchronized norms require.
    """
    largest_share = -(-len(images) // processes.count)
    passes = -(-largest_share // (recipe.images_per_gpu or largest_share))
    return split_evenly(processes.share(images), passes)


class Stepper:
    """The network in training: it runs optimizer steps and holds all that they change.

    The arithmetic is the mean of the loss over all images of a step, whatever the number of
    processes and of forward passes per step.

    Attributes:
        model: The network, with the head of its loss if it is a face network.
        optimizer: SGD over the parameter groups. ``group["factor"]`` is the rate of a group over
            that of the schedule.
        scaler: The gradient scaler, which is active with fp16 only.
        average: The moving average of the weights, or None.

    Args:
        model: The network, on the CPU; it is moved to ``device``.
        recipe: The recipe.
        config: The seed, the precision, the memory format, and whether norms are synchronized.
        device: The device.
        processes: The processes of the run.
    """

    def __init__(
        self,
        model: AnyResNet | FaceClassifier,
        recipe: Recipe,
        config: TrainingConfig,
        device: torch.device,
        processes: Processes,
    ) -> None:
        self.recipe, self.device, self.processes = recipe, device, processes
        self.seed = config.seed
        self.half = HALF.get(config.precision)
        self.dtype = torch.float64 if config.precision == "fp64" else torch.float32
        self.memory_format = (
            torch.channels_last if config.channels_last else torch.contiguous_format
        )
        self.model = model.to(device, self.dtype).to(memory_format=self.memory_format)
        self.synchronized = processes.count > 1 and any(
            isinstance(module, (SyncSwitchNorm2d, nn.SyncBatchNorm)) for module in model.modules()
        )
        self.average = None
        if recipe.ema_decay is not None:
            average = get_ema_multi_avg_fn(recipe.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self.optimizer = make_optimizer(model, recipe)
        self._has_margin = isinstance(model, FaceClassifier)
        self._fewest = 2 if self._has_margin else 1  # images that BatchNorm1d can normalize
        self._gates = find_gates(model)
        self._counters = find_counters(model, self.average)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._module: Any = self.model
        if processes.count > 1:
            self._module = wrap_in_ddp(model, device)
        if config.compile:
            self._module = compile_network(self._module)

    @property
    def network(self) -> AnyResNet:
        """The network without the head of a face network, as it is validated and saved."""
        network: AnyResNet = network_of(self.model)
        return network

    @property
    def averaged_network(self) -> AnyResNet:
        """The network with the averaged weights if there are any, else the network."""
        model = self.model if self.average is None else self.average.module
        network: AnyResNet = network_of(model)
        return network

    def run(
        self,
        batches: Iterable[TrainingBatch],
        labels: Tensor,
        *,
        step: int,
        images: int,
        rate: float,
    ) -> Figures:
        """Run one step and return its figures in this process.

        Args:
            batches: The photos of each forward pass.
            labels: The labels of all training photos, on the CPU.
            step: The number of the step, from 0.
            images: The number of photos of the step in all processes. The gradient is that of the
                sum of the losses over this number, even if some photos cannot be read.
            rate: The learning rate.

        Raises:
            DeviceError: the photos of a pass do not fit into the memory.
            SnzooError: a photo cannot be read, see ``read_training_batches``.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        read = 0
        for number, (batch, last) in enumerate(mark_last(batches)):
            y = copy_to(self.device, labels[batch.indices])
            seed_generators(self.device, self.seed, step, number, self.processes.rank)
            too_large = None
            try:
                with self._synchronize(last=last):
                    part, right = self._forward_backward(self._prepare(batch), y, images)
            except RuntimeError as error:  # also torch.OutOfMemoryError
                if not is_out_of_memory(error):
                    raise
                too_large = len(y)
            if too_large:  # here the traceback no longer holds the tensors of the pass
                raise DeviceError(self._explain_memory(too_large))
            loss += part
            correct += right
            read += len(batch.indices)
        if read or self.processes.count > 1:  # the others may have read photos
            self._update()
        return Figures(loss, correct, read)

    def _prepare(self, batch: TrainingBatch) -> Tensor:
        """Return the normalized images of a batch on the device."""
        assert self.network.spec is not None
        preprocessing = self.network.spec.preprocessing
        x = normalize(
            copy_to(self.device, batch.pixels), preprocessing, memory_format=self.memory_format
        )
        if self.recipe.lighting != "none":
            x = apply_noise(x, batch.noise, preprocessing)
        return x.to(self.dtype)

    def _forward_backward(self, x: Tensor, y: Tensor, images: int) -> tuple[Tensor, Tensor]:
        if len(x) < self._fewest:
            if not self.synchronized:
                return self._run_nothing(x, y)
            x, y = x[:0], y[:0]  # synchronized norms need all processes, also without images
        others, share = y, 1.0
        if self.recipe.mixup:
            x, others, share = mix_images(x, y, self.recipe.mixup)
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            logits = self._compute_logits(self._module, x, y)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        smoothing = self.recipe.label_smoothing
        loss = F.cross_entropy(logits, y, label_smoothing=smoothing, reduction="sum")
        if share < 1:
            other = F.cross_entropy(logits, others, label_smoothing=smoothing, reduction="sum")
            loss = share * loss + (1 - share) * other
        # DistributedDataParallel divides the sum of the gradients by the number of processes.
        self._backward(loss * (self.processes.count / images))
        return loss.detach(), (logits.detach().argmax(1) == y).sum()

    def _compute_logits(self, module: Any, x: Tensor, y: Tensor) -> Tensor:
        logits: Tensor = module(x, y) if self._has_margin else module(x)
        return logits

    def _run_nothing(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Take part in the collective operations of a pass without images."""
        if self.processes.count > 1:
            self.model.eval()  # the running statistics must not see the blank image
            blank, label = x.new_zeros(1, *x.shape[1:]), y.new_zeros(1)
            self._backward(0 * self._compute_logits(self._module, blank, label).sum())
            self.model.train()
        return x.new_zeros(()), torch.zeros((), dtype=torch.int64, device=x.device)

    def _backward(self, loss: Tensor) -> None:
        scaled: Any = self.scaler.scale(loss)
        scaled.backward()

    def _synchronize(self, *, last: bool) -> AbstractContextManager[None]:
        """Return a context that adds up gradients over the processes in the last pass only."""
        if last or self.processes.count == 1:
            return nullcontext()
        module = getattr(self._module, "_orig_mod", self._module)
        context: AbstractContextManager[None] = module.no_sync()
        return context

    def _update(self) -> None:
        of_gates, of_all = self.recipe.gate_clip_norm, self.recipe.clip_norm
        if of_gates is not None or of_all is not None:
            self.scaler.unscale_(self.optimizer)
        if of_gates is not None:
            nn.utils.clip_grad_norm_(self._gates, of_gates)
        if of_all is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, of_all)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
            for counter, of_average in self._counters:
                of_average.copy_(counter)

    def _explain_memory(self, images: int) -> str:
        """Return the message that a forward pass does not fit, with the size that would fit."""
        size, fits = images, False
        while size > 1 and not fits:
            size //= 2
            # The other processes would not take part in the trials of synchronized norms.
            fits = self.synchronized or self._fits(size)
        where = f"{images} images in a forward pass do not fit into the memory of {self.device}"
        if not fits:
            return f"{where}, and no fewer do; choose a smaller network or a smaller crop"
        may = "may" if self.synchronized else "do"
        return (
            f"{where}; {size} {may}: --images-per-gpu {size} (a step keeps its number of images, "
            "but batch statistics are over fewer)"
        )

    def _fits(self, images: int) -> bool:
        """Return whether a forward and a backward pass over ``images`` fit into the memory."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        crop = self.recipe.crop or 224
        try:
            x = torch.zeros(images, 3, crop, crop, dtype=self.dtype, device=self.device)
            labels = torch.zeros(images, dtype=torch.int64, device=self.device)
            with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
                x = x.contiguous(memory_format=self.memory_format)
                total: Any = self._compute_logits(self.model, x, labels).sum()
                total.backward()
        except RuntimeError as error:
            if is_out_of_memory(error):
                return False
            raise
        return True


def mix_images(x: Tensor, y: Tensor, alpha: float) -> tuple[Tensor, Tensor, float]:
    """Mix each image with another one of the batch (mixup; Zhang et al., ICLR 2018).

    Equation 2 of `the paper <https://arxiv.org/abs/1710.09412>`_, with one share λ for the batch,
    as in its section 2. λ ~ Beta(α, α), or 1 − λ if that is larger, so that ``y`` is the label of
    the larger part. The random numbers are those of PyTorch's generator for the CPU.

    Args:
        x: images (N, C, H, W).
        y: their labels, int64 (N,).
        alpha: α, greater than 0.

    Returns:
        The mixtures, the labels of the other parts, and λ, from 0.5 to 1.
    """
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    share = max(share, 1 - share)
    order = copy_to(x.device, torch.randperm(len(x)))
    return torch.lerp(x[order], x, share), y[order], share


def wrap_in_ddp(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """Return the model wrapped so that gradients are averaged over the processes.

    Buffers are left alone: each process has the running statistics of its own images.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    ids = [device.index] if device.type == "cuda" else None
    options: dict[str, Any] = {name: False}
    return DistributedDataParallel(model, device_ids=ids, **options)


def mark_last(items: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Yield each item, and whether it is the last one."""
    iterator = iter(items)
    for item in iterator:
        for following in iterator:
            yield item, False
            item = following
        yield item, True


def find_counters(model: nn.Module, average: AveragedModel | None) -> list[tuple[Tensor, Tensor]]:
    """Return the integer buffers of a model and of its average, which PyTorch would truncate."""
    if average is None:
        return []
    pairs = zip(model.buffers(), average.module.buffers(), strict=True)
    return [(own, other) for own, other in pairs if not own.is_floating_point()]
