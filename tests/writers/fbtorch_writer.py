"""The ResNet-50 of fb.resnet.torch in layers of PyTorch, and what Torch7 saves for it."""

from functools import partial

import torch
from torch import nn
from torch7_writer import Object, Storage, array_of


class Block(nn.Module):
    """What fb.resnet.torch published: the last norm after the addition, a bare projection."""

    def __init__(self, conv, channels, width, stride):
        super().__init__()
        self.main = nn.Sequential(
            *(conv(channels, width, 1), nn.BatchNorm2d(width), nn.ReLU()),
            *(conv(width, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()),
            conv(width, 4 * width, 1),
        )
        projects = channels != 4 * width
        self.shortcut = conv(channels, 4 * width, 1, stride) if projects else nn.Identity()
        self.out = nn.Sequential(nn.BatchNorm2d(4 * width), nn.ReLU())

    def forward(self, x):
        return self.out(self.main(x) + self.shortcut(x))


def resnet50(width=8, classes=5, bias=True, eps=1e-5):
    """The network from the layers of PyTorch. Every tensor matters to its logits."""
    conv = partial(nn.Conv2d, bias=bias)
    stem = [conv(3, width, 7, 2, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    stages, channels = [], width
    for stage, depth in enumerate((3, 4, 6, 3)):
        stages.append(nn.Sequential())
        for unit in range(depth):
            stride = 2 if stage and not unit else 1
            stages[-1].append(Block(conv, channels, width << stage, stride))
            channels = 4 * width << stage
    head = [nn.AvgPool2d(7, 1), nn.Flatten(), nn.Linear(channels, classes)]
    network = nn.Sequential(*stem, *stages, *head)
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if bias:
                nn.init.normal_(module.bias, std=0.5, generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            module.eps = eps
            nn.init.uniform_(module.weight, 0.5, 1, generator=generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)
            nn.init.normal_(module.running_mean, std=0.5, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    network[1].running_var *= 1e-4  # so small that eps matters
    network[1].weight.data *= 1e-2
    return network.eval()


def numbers(layer):
    """The fields of the kernel, the stride and the padding."""
    fields = {}
    named = {"k": layer.kernel_size, "d": layer.stride, "pad": layer.padding}
    for name, value in named.items():
        high, wide = value if isinstance(value, tuple) else (value, value)
        fields |= {f"{name}H": high, f"{name}W": wide}
    return fields


def torch7_of(module, *, kind="Float", old=False, library="nn"):
    """The object that Torch saves for a module. ``old``: 2-D weights and running_std."""
    convert = partial(torch7_of, kind=kind, old=old, library=library)

    def arrays(**tensors):
        return {
            name: None if tensor is None else array_of(tensor.detach().numpy(), kind)
            for name, tensor in tensors.items()
        }

    def listed(*children):
        return {"modules": dict(enumerate(children, 1))}

    name, fields = type(module).__name__, {}
    if isinstance(module, nn.Sequential):
        fields = listed(*map(convert, module))
    elif isinstance(module, Block):
        branches = listed(convert(module.main), convert(module.shortcut))
        add = Object("nn.CAddTable", {"inplace": True})
        name = "Sequential"
        fields = listed(Object("nn.ConcatTable", branches), add, *map(convert, module.out))
    elif isinstance(module, nn.Conv2d):
        name = "SpatialConvolutionMM" if old else "SpatialConvolution"
        weight = module.weight.flatten(1) if old else module.weight
        fields = arrays(weight=weight, bias=module.bias) | numbers(module)
    elif isinstance(module, nn.BatchNorm2d):
        name = "SpatialBatchNormalization"
        fields = arrays(weight=module.weight, bias=module.bias, running_mean=module.running_mean)
        if old:
            fields |= arrays(running_std=(module.running_var + module.eps) ** -0.5)
        else:
            fields |= arrays(running_var=module.running_var)
        fields["eps"] = module.eps
    elif isinstance(module, nn.Linear):
        fields = arrays(weight=module.weight, bias=module.bias, gradWeight=module.weight)
    elif isinstance(module, nn.MaxPool2d):
        name, fields = "SpatialMaxPooling", numbers(module) | {"ceil_mode": False}
    elif isinstance(module, nn.AvgPool2d):
        name, fields = "SpatialAveragePooling", numbers(module)
    elif isinstance(module, nn.Flatten):
        name, fields = "View", {"size": Storage("Long", [-1]), "numElements": 7}
    prefix = library if name in ("SpatialConvolution", "ReLU") else "nn"
    return Object(f"{prefix}.{name}", {"_type": f"torch.{kind}Tensor", "train": False} | fields)
