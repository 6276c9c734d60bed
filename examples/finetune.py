"""Finetune a zoo network, or train one from random weights, on a folder of images.

    python examples/finetune.py DATA --model resnet50v1_sn_8x32 --pretrained

DATA holds ``train/`` and ``validation/`` (or ``val/``), each with a folder a class.
The checkpoint that does best on the validation photos is kept as safetensors, with
the class names, the preprocessing and this command line in its metadata, so that

    snzoo predict --model MODEL --weights finetuned.safetensors PHOTO

knows what it is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from tqdm import tqdm

import snzoo
from snzoo.data.decode import load_image
from snzoo.data.pixels import normalize, resize_and_crop
from snzoo.data.sources import read_file
from snzoo.errors import SnzooError
from snzoo.inference import choose_device
from snzoo.manifest import parse_description
from snzoo.models.resnet import ResNet
from snzoo.spec import ModelSpec


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder with train/ and validation/")
    add("--model", required=True, help="zoo or architecture name (see: snzoo list)")
    add("--pretrained", action="store_true", help="start from the zoo's weights")
    add("--weights", type=Path, help="start from this checkpoint instead")
    add("--freeze", type=whole(0), metavar="N", help="freeze the stem and N stages (nothing)")
    add("--width", type=whole(1), help="channels of the stem (the model's: 64)")
    add("--drop-rate", type=real(1), help="dropout before fc (the model's)")
    add("--epochs", type=whole(1), default=20, help="(20)")
    add("--batch-size", type=whole(1), default=32, help="(32)")
    add("--lr", type=real(), default=0.01, help="peak learning rate (0.01)")
    add("--weight-decay", type=real(), default=1e-4, help="not on norms and biases (1e-4)")
    add("--gate-lr", type=real(), help="peak learning rate of SN's gates (that of --lr)")
    add("--layer-decay", type=real(1), default=1.0, help="each layer's rate to the next one's (1)")
    add("--label-smoothing", type=real(1), default=0.1, help="(0.1)")
    add("--min-scale", type=real(1), default=0.35, help="least share of a photo in a crop (0.35)")
    add("--resize", type=whole(1), help="shorter side in validation, pixels (the model's: 256)")
    add("--crop", type=whole(1), help="side of the network's input, pixels (the model's: 224)")
    add("--workers", type=whole(0), default=2, help="processes that read photos (2)")
    add("--device", help="cpu, cuda, … (cuda where there is one)")
    add("--seed", type=whole(0), default=0, help="(0)")
    add("--half", action="store_true", help="store large weights in float16 (scored in float32)")
    add("--output", type=Path, default=Path("finetuned.safetensors"))
    return parser.parse_args()


def whole(least: int) -> Callable[[str], int]:
    """Argument type: a whole number from ``least``."""

    def convert(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least}, got {text!r}")
        return int(text)

    return convert


def real(most: float = math.inf) -> Callable[[str], float]:
    """Argument type: a finite number from 0 to ``most``."""

    def convert(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not (0 <= number <= most and math.isfinite(number)):
            raise argparse.ArgumentTypeError(f"must be a number from 0 to {most}, got {text!r}")
        return number

    return convert


def make_loaders(args: argparse.Namespace, resize: int, crop: int) -> tuple[DataLoader, DataLoader]:
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(crop, scale=(args.min_scale, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3),
            transforms.PILToTensor(),
        ]
    )
    plain = transforms.Compose(
        [partial(resize_and_crop, resize=resize, crop=crop), transforms.PILToTensor()]
    )
    train = ImageFolder(find_split(args.data, "train"), augment, loader=open_image)
    validation = ImageFolder(find_split(args.data, "validation", "val"), plain, loader=open_image)
    if train.classes != validation.classes:
        differ = ", ".join(sorted(set(train.classes) ^ set(validation.classes))[:5])
        raise SnzooError(f"train and validation differ in their class folders: {differ}")
    common: dict[str, Any] = {"batch_size": args.batch_size, "num_workers": args.workers}
    common["persistent_workers"] = args.workers > 0
    return (
        DataLoader(train, shuffle=True, drop_last=len(train) > args.batch_size, **common),
        DataLoader(validation, **common),
    )


def open_image(path: str) -> Image:
    return load_image(read_file(Path(path)), name=path)


def find_split(data: Path, *names: str) -> Path:
    for name in names:
        if (data / name).is_dir():
            return data / name
    raise SnzooError(f"{data} has no folder {' or '.join(names)} of class folders")


def learning_rate(step: int, *, warmup: int, total: int) -> float:
    """Linear warm-up, then a cosine to 0, as a share of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class Trainer:
    """A network, its optimizer and its schedule, on one device."""

    def __init__(self, args: argparse.Namespace, model: ResNet, steps: int, prepare) -> None:
        self.args, self.prepare = args, prepare
        # On the CPU it gains nothing, and torch 2.14 crashes in narrow networks with it.
        on_cuda = torch.device(args.device).type == "cuda"
        self.layout = torch.channels_last if on_cuda else torch.contiguous_format
        self.model = model.to(args.device, memory_format=self.layout)
        model.freeze(args.freeze)
        groups = snzoo.parameter_groups(
            model,
            lr=args.lr,
            weight_decay=args.weight_decay,
            gate_lr=args.gate_lr,
            layer_decay=args.layer_decay,
        )
        self.optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
        total = args.epochs * steps
        warmup = min(total // 10, 3 * steps)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate(step, warmup=warmup, total=total)
        )
        self.loss = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)

    def logits(self, images: Tensor) -> Tensor:
        x = self.prepare(images.to(self.args.device))
        return self.model(x.contiguous(memory_format=self.layout))

    def train_epoch(self, loader: DataLoader, title: str) -> float:
        """One pass over the training photos; returns the mean loss."""
        self.model.train()  # what is frozen stays in evaluation mode
        total = 0.0
        with tqdm(loader, desc=title, leave=False, disable=None) as bar:
            for images, labels in bar:
                loss = self.loss(self.logits(images), labels.to(self.args.device))
                if not loss.isfinite():
                    raise SnzooError(f"{title}: the loss became {loss.item()}; lower --lr")
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
                self.schedule.step()
                total += loss.item()
                bar.set_postfix(loss=f"{loss.item():.3f}")
        return total / len(loader)

    @torch.inference_mode()
    def count_correct(self, loader: DataLoader) -> int:
        self.model.eval()
        correct = 0
        for images, labels in loader:
            logits = self.logits(images)
            if not logits.isfinite().all():  # a network that diverged is no checkpoint to keep
                raise SnzooError("validation: the logits are not finite; lower --lr")
            correct += int((logits.argmax(1).cpu() == labels).sum())
        return correct


def save(model: nn.Module, path: Path, description: dict[str, Any], *, half: bool) -> None:
    """Write the checkpoint whole or not at all; what snzoo reads is under ``snzoo``."""
    state = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    if half:  # gates, scales and statistics are small and stay exact
        large = {key for key, value in state.items() if value.numel() > 10_000}
        state = {key: value.half() if key in large else value for key, value in state.items()}
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(state, partial, {"snzoo": json.dumps(description)})
        partial.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes it private
        partial.replace(path)
    except SafetensorError as error:  # it does not say which file
        raise SnzooError(f"can't write {path}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def check_output(path: Path) -> None:
    """Fail before the training rather than after its first epoch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if (path.exists() and not path.is_file()) or not os.access(path.parent, os.W_OK):
        raise SnzooError(f"--output {path}: name a file in a folder that you may write")


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    args.device = choose_device(args.device)
    check_output(args.output)
    entry = ModelSpec.find(args.model, weights=args.weights)
    recipe = entry.preprocessing.replace(resize=args.resize, crop=args.crop)
    train, validation = make_loaders(args, recipe.resize, recipe.crop)
    classes = train.dataset.classes
    overrides = {"width": args.width, "drop_rate": args.drop_rate}
    overrides = {key: value for key, value in overrides.items() if value is not None}
    model = snzoo.create_model(
        args.model,
        pretrained=args.pretrained,
        weights=args.weights,
        num_classes=len(classes),
        **overrides,
    )
    trainer = Trainer(args, model, len(train), lambda images: normalize(images, recipe))
    description = {
        "model": entry.name,
        "arguments": entry.arguments | overrides,
        "classes": classes,
        "preprocessing": recipe.as_dict(),
        "command": shlex.join(["python", "examples/finetune.py", *sys.argv[1:]]),
    }
    # What it says now must be readable later.
    parse_description(json.loads(json.dumps(description)), str(args.data))
    best, count = -1, len(validation.dataset)
    for epoch in range(1, args.epochs + 1):
        loss = trainer.train_epoch(train, f"epoch {epoch}/{args.epochs}")
        correct = trainer.count_correct(validation)
        share = f"{correct}/{count} ({100 * correct / count:.2f} %)"
        print(f"epoch {epoch}: loss {loss:.3f}, validation {share}", flush=True)
        if correct >= best:
            best = correct
            result = {"epoch": epoch, "validation_top1": f"{correct}/{count}"}
            save(model, args.output, description | result, half=args.half)
    print(f"best: {best}/{count}, kept in {args.output}")


if __name__ == "__main__":
    try:
        main()
    except (SnzooError, SafetensorError, OSError, ValueError) as error:
        # A reading process sends its traceback along; the last line says what was wrong.
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        sys.exit(f"finetune.py: {last.removeprefix('snzoo.errors.DataError: ')}")
    except KeyboardInterrupt:
        print("finetune.py: interrupted; the best checkpoint so far is kept", file=sys.stderr)
        sys.exit(130)
