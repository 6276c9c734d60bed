"""A ResNet-50, and its arrays and files as TF-Slim has them."""

import tarfile

import torch
from torch import nn

from snzoo.models.architectures import ARCHITECTURES
from snzoo.models.build import build

NARROW = {"width": 8, "num_classes": 3}


def modules():
    """Names of the layers in TF-Slim → the convolution and the batch norm in torchvision."""
    found = {"conv1": ("conv1", "bn1")}
    for block, units in enumerate((3, 4, 6, 3), start=1):
        for unit in range(units):
            slim, here = f"block{block}/unit_{unit + 1}/bottleneck_v1", f"layer{block}.{unit}"
            for i in (1, 2, 3):
                found[f"{slim}/conv{i}"] = (f"{here}.conv{i}", f"{here}.bn{i}")
            if unit == 0:
                found[f"{slim}/shortcut"] = (f"{here}.downsample.0", f"{here}.downsample.1")
    return found


@torch.no_grad()
def make_network(**options):
    """A network in which every array matters. It strides elsewhere than TF-Slim does."""
    generator = torch.Generator().manual_seed(5)
    network = build(ARCHITECTURES["resnet50v1_bn"], stride_on="1x1", **options).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1, generator=generator)
            nn.init.normal_(module.bias, std=0.2, generator=generator)
            nn.init.normal_(module.running_mean, std=0.5, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    return network


def variables(network):
    """The arrays of TF-Slim: HWIO kernels, a 1×1 convolution as the classifier."""
    arrays = {}
    for name, (conv, bn) in modules().items():
        conv, bn = network.get_submodule(conv), network.get_submodule(bn)
        arrays[f"{name}/weights"] = conv.weight.permute(2, 3, 1, 0)
        arrays[f"{name}/BatchNorm/gamma"] = bn.weight
        arrays[f"{name}/BatchNorm/beta"] = bn.bias
        arrays[f"{name}/BatchNorm/moving_mean"] = bn.running_mean
        arrays[f"{name}/BatchNorm/moving_variance"] = bn.running_var
    arrays["logits/weights"], arrays["logits/biases"] = network.fc.weight.T, network.fc.bias
    arrays = {f"resnet_v1_50/{name}": a.detach().numpy() for name, a in arrays.items()}
    arrays["resnet_v1_50/logits/weights"] = arrays["resnet_v1_50/logits/weights"][None, None]
    return arrays


def save(path, content):
    """Write a checkpoint, or an archive that holds it."""
    if path.suffix == ".ckpt":
        path.write_bytes(content)
    else:
        inner = path.parent / "resnet_v1_50.ckpt"
        inner.write_bytes(content)
        mode = "w:gz" if path.suffix == ".gz" else "w"
        with tarfile.open(
            path, mode, **({"compresslevel": 1} if path.suffix == ".gz" else {})
        ) as t:
            t.add(inner, inner.name)
        inner.unlink()
    return path
