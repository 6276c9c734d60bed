"""The network and the transform of the peers: snzoo's network, torchvision's transform."""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
from torch import nn
from torchvision import transforms

from snzoo.spec import ModelSpec


class Setup(NamedTuple):
    """What a peer serves, and where."""

    model: nn.Module
    transform: Any
    port: int


def read_arguments() -> Setup:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, help="threads of PyTorch")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    spec = ModelSpec.find(args.model, weights=args.weights)
    recipe = spec.preprocessing
    transform = transforms.Compose(
        [
            transforms.Resize(recipe.resize),
            transforms.CenterCrop(recipe.crop),
            transforms.ToTensor(),
            transforms.Normalize(recipe.mean, recipe.std),
        ]
    )
    return Setup(spec.load().eval(), transform, args.port)
