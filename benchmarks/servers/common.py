"""The network and the transform of the peers: snzoo's network, torchvision's transform."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn
from torchvision import transforms

from snzoo.spec import ModelSpec


def read_arguments() -> tuple[nn.Module, Any, int]:
    """Return the network, the transform and the port that the arguments name."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    spec = ModelSpec.find(args.model, weights=args.weights)
    recipe = spec.preprocessing
    resize, crop = transforms.Resize(recipe.resize), transforms.CenterCrop(recipe.crop)
    normalize = transforms.Normalize(recipe.mean, recipe.std)
    transform = transforms.Compose([resize, crop, transforms.ToTensor(), normalize])
    return spec.load().eval(), transform, args.port
