"""The timed layers and networks of every contender, checked against the textbook first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from textbook import convert
from torch import Tensor, nn

import snzoo
from snzoo.errors import SnzooError
from snzoo.nn import SwitchNorm2d

Shape = tuple[int, int, int, int]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CLASSES = 1000


@dataclass(frozen=True)
class Case:
    """An input (N, C, H, W) for a layer, or for a network such as ``resnet50v1``."""

    training: bool
    shape: Shape
    layout: str
    network: str | None = None

    @property
    def part(self) -> str:
        return ("networks" if self.network else "layers") + ("-training" if self.training else "")

    @property
    def label(self) -> str:
        """The name of the case, without its batch size and layout."""
        channels, height, width = self.shape[1:]
        size = f"{height}×{width}"
        return f"{self.network}, {size}" if self.network else f"{channels} × {size}"


@dataclass(frozen=True)
class Setting:
    """The device and the precision; inference wholly uses the precision, training uses autocast."""

    device: str
    precision: str
    compile: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]


@dataclass(frozen=True)
class Contender:
    """The timed work ``step`` on ``x``; ``forward`` is its part before the backward pass."""

    x: Tensor
    forward: Callable[[], Tensor]
    step: Callable[[], object]


def prepare(case: Case, setting: Setting) -> dict[str, Contender]:
    """Return the contenders by name, all with the same input, after their results agree."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        modules = _modules(case)
        # The means of channels differ, as those of activations do.
        x = torch.randn(case.shape) + torch.randn(1, case.shape[1], 1, 1)
        gradient = torch.randn(case.shape)
    layout = LAYOUTS[case.layout]
    for module in modules.values():
        module.train(case.training).to(setting.device).to(memory_format=layout)
    x = x.to(setting.device, memory_format=layout)
    gradient = gradient.to(setting.device, memory_format=layout)
    check_agreement(modules["snzoo"], modules["textbook"], case, x, gradient)
    if setting.compile:
        torch._dynamo.reset()  # or, after 8 cases, layers are no longer compiled
        for module in modules.values():
            module.compile(dynamic=False, fullgraph=True)
    make = _training if case.training else _inference
    return {name: make(module, x, gradient, case, setting) for name, module in modules.items()}


def check_agreement(
    ours: nn.Module, textbook: nn.Module, case: Case, x: Tensor, gradient: Tensor
) -> None:
    """Check in float32 that outputs agree; if a layer is trained, also the gradient of its input.

    Values may differ by 1e-4 of the largest value; those of networks on CUDA by 1e-2, because
    convolutions round to TF32, which magnifies small differences.
    """
    tolerance = 1e-2 if case.network and x.is_cuda else 1e-4
    results = (_results(module, case, x, gradient) for module in (ours, textbook))
    for what, mine, expected in zip(("output", "gradient"), *results, strict=False):
        difference = float((mine - expected).abs().max() / expected.abs().max())
        if not difference <= tolerance:  # also refuses NaN
            raise SnzooError(
                f"{case.label} × {case.shape[0]}, {case.layout}, {case.part}: the {what} "
                f"differs from the textbook's by {difference:.1e} of the largest value; "
                "nothing more was timed"
            )


def _results(module: nn.Module, case: Case, x: Tensor, gradient: Tensor) -> list[Tensor]:
    with torch.inference_mode(not case.training):
        if not case.training or case.network:
            return [module(x).detach()]
        x = x.detach().requires_grad_()
        y = module(x)
        return [y.detach(), *torch.autograd.grad(y, x, gradient)]


def _modules(case: Case) -> dict[str, nn.Module]:
    if case.network is None:
        channels = case.shape[1]
        ours = _shuffled(SwitchNorm2d(channels))
        return {"textbook": convert(ours), "bn": nn.BatchNorm2d(channels), "snzoo": ours}
    import torchvision

    ours = _shuffled(snzoo.create_model(f"{case.network}_sn"))
    return {
        "textbook": convert(ours),
        "bn": snzoo.create_model(f"{case.network}_bn"),
        "torchvision": getattr(torchvision.models, case.network.removesuffix("v1"))(),
        "snzoo": ours,
    }


def _shuffled(module: nn.Module) -> nn.Module:
    """Return the module with distinct random values for SN's parameters and statistics."""
    for layer in module.modules():
        if isinstance(layer, SwitchNorm2d):
            for value in layer.state_dict().values():
                value.uniform_(0.5, 1.5)
    return module


def _inference(
    module: nn.Module, x: Tensor, gradient: Tensor, case: Case, setting: Setting
) -> Contender:
    module, x = module.to(setting.dtype), x.to(setting.dtype)

    def infer() -> Tensor:
        with torch.inference_mode():
            y: Tensor = module(x)
            return y

    return Contender(x, infer, infer)


def _training(
    module: nn.Module, x: Tensor, gradient: Tensor, case: Case, setting: Setting
) -> Contender:
    """Return a forward and backward pass. A layer's input has a convolution's output type."""
    inputs: list[Tensor] = [*module.parameters()]
    labels = torch.arange(case.shape[0], device=x.device) % CLASSES
    if case.network is None:
        x = x.to(setting.dtype).detach().requires_grad_()
        inputs.append(x)

    def forward() -> Tensor:
        low = setting.dtype != torch.float32
        with torch.autocast(setting.device, setting.dtype, enabled=low):
            y: Tensor = module(x)
            return F.cross_entropy(y, labels) if case.network else y

    upstream = None if case.network else gradient.to(forward().dtype)

    def step() -> object:
        return torch.autograd.grad(forward(), inputs, upstream)

    return Contender(x, forward, step)
