"""Finetune a network of the zoo, or train one from random weights, on a folder of photos.

    python examples/finetune.py DATA --model resnet50v1_sn_8x32 --pretrained

DATA holds ``train/`` and ``validation/`` (or ``val/``), each with one folder of photos per class.
The checkpoint is written after each epoch that is at least as good on the validation photos as the
best epoch before. It stores the class names and the preprocessing for

    snzoo predict --weights finetuned.safetensors PHOTO
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

import snzoo
from snzoo.data import ClassFolders, list_class_folders
from snzoo.data.decode import load_image
from snzoo.errors import ArgumentError, DataError, NonFiniteError, SnzooError
from snzoo.files import check_writable
from snzoo.inference import choose_device

ALLOWED = {"epochs": (1, math.inf), "batch_size": (1, math.inf), "workers": (0, math.inf)}
ALLOWED |= {"label_smoothing": (0, 1), "min_scale": (0, 1)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="folder with train/ and validation/")
    add("--model", required=True, help="zoo or architecture name (see: snzoo list)")
    add("--pretrained", action="store_true", help="start from the zoo's weights")
    add("--weights", type=Path, help="start from this checkpoint instead")
    add("--freeze", type=int, metavar="N", help="freeze the stem and N stages (none)")
    add("--width", type=int, help="channels of the stem (the model's: 64)")
    add("--drop-rate", type=float, help="dropout before fc (the model's)")
    add("--epochs", type=int, default=20, help="(20)")
    add("--batch-size", type=int, default=32, help="(32)")
    add("--lr", type=float, default=0.01, help="peak learning rate (0.01)")
    add("--weight-decay", type=float, default=1e-4, help="except of norms and biases (1e-4)")
    add("--gate-lr", type=float, help="peak learning rate of SN's gates (that of --lr)")
    add("--layer-decay", type=float, default=1.0, help="rate of a layer over the next one's (1)")
    add("--label-smoothing", type=float, default=0.1, help="(0.1)")
    add("--min-scale", type=float, default=0.35, help="least share of a photo in a crop (0.35)")
    add("--resize", type=int, help="shorter side in validation, pixels")
    add("--crop", type=int, help="side of the network's input, pixels")
    add("--workers", type=int, default=2, help="processes that read photos (2)")
    add("--device", help="cpu, cuda, … (cuda if available)")
    add("--seed", type=int, default=0, help="(0)")
    add("--half", action="store_true", help="store large weights in float16")
    add("--output", type=Path, default=Path("finetuned.safetensors"), help="(%(default)s)")
    args = parser.parse_args()
    for name, allowed in ALLOWED.items():
        if not allowed[0] <= getattr(args, name) <= allowed[-1]:
            limits = " to ".join(f"{limit:g}" for limit in allowed if limit < math.inf)
            parser.exit(2, f"{parser.prog}: --{name.replace('_', '-')} must be from {limits}\n")
    return args


class Photos(Dataset):
    """Photos of class folders as (input tensor, label), turned upright as ``predict`` does."""

    def __init__(self, folders: ClassFolders, transform: Callable[[Image], Tensor]) -> None:
        self.folders, self.transform = folders, transform

    def __len__(self) -> int:
        return len(self.folders.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.folders.paths[index]
        image = load_image(path.read_bytes(), name=str(path), upright=True)
        return self.transform(image), self.folders.labels[index]


def find_photos(data: Path) -> tuple[ClassFolders, ClassFolders]:
    """Return the photos of both splits, after each photo was decoded once as a check."""
    splits = [data / "train", data / ("val" if (data / "val").is_dir() else "validation")]
    for split in splits:
        if not split.is_dir():
            raise DataError(f"{data} has no folder {split.name} of class folders")
    train, validation = map(list_class_folders, splits)
    differ = sorted(set(train.classes) ^ set(validation.classes))
    if differ:
        raise DataError(f"train and validation differ in their classes: {', '.join(differ[:5])}")
    return train, validation


def learning_rate(step: int, *, warmup: int, total: int) -> float:
    """Return the factor of the peak learning rate: linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def train_epoch(
    model: nn.Module, loader: DataLoader, loss_of: nn.Module, step: Callable[[], None]
) -> float:
    """Train for one epoch and return the mean loss. Frozen stages stay in evaluation mode."""
    device, total = next(model.parameters()).device, 0.0
    model.train()
    for images, labels in tqdm(loader, leave=False, disable=None):
        loss = loss_of(model(images.to(device)), labels.to(device))
        if not loss.isfinite():
            raise NonFiniteError(f"the loss became {loss.item()}; lower --lr")
        loss.backward()
        step()
        total += loss.item()
    return total / len(loader)


@torch.inference_mode()
def count_correct(model: nn.Module, loader: DataLoader) -> int:
    device, correct = next(model.parameters()).device, 0
    model.eval()
    for images, labels in loader:
        logits = model(images.to(device)).cpu()
        if not logits.isfinite().all():
            raise NonFiniteError("the logits are not finite in validation; lower --lr")
        correct += int((logits.argmax(1) == labels).sum())
    return correct


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    if args.output.suffix != ".safetensors":
        raise ArgumentError(f"--output {args.output}: name a .safetensors file")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    check_writable(args.output)
    train, validation = find_photos(args.data)
    model = snzoo.create_model(
        args.model,
        pretrained=args.pretrained,
        weights=args.weights,
        num_classes=len(train.classes),
        width=args.width,
        drop_rate=args.drop_rate,
    )
    preprocessing = model.spec.preprocessing.replace(resize=args.resize, crop=args.crop)
    # The checkpoint stores the spec.
    model.spec = dataclasses.replace(model.spec, classes=train.classes, preprocessing=preprocessing)
    model.to(choose_device(args.device)).freeze(args.freeze)

    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(preprocessing.crop, scale=(args.min_scale, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3),
            snzoo.create_transform(model, resize=preprocessing.crop),  # only normalizes
        ]
    )
    load = partial(DataLoader, batch_size=args.batch_size, num_workers=args.workers)
    drop_last = len(train.paths) > args.batch_size
    batches = load(Photos(train, augment), shuffle=True, drop_last=drop_last)
    held_out = load(Photos(validation, snzoo.create_transform(model)))

    groups = snzoo.parameter_groups(
        model,
        lr=args.lr,
        weight_decay=args.weight_decay,
        gate_lr=args.gate_lr,
        layer_decay=args.layer_decay,
    )
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    total = args.epochs * len(batches)
    factor = partial(learning_rate, warmup=min(total // 10, 3 * len(batches)), total=total)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    loss_of = nn.CrossEntropyLoss(label_smoothing=args.label_smoothing)

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()

    best, count = -1, len(validation.paths)
    for epoch in range(1, args.epochs + 1):
        loss = train_epoch(model, batches, loss_of, step)
        correct = count_correct(model, held_out)
        share = f"{correct}/{count} ({100 * correct / count:.2f} %)"
        print(f"epoch {epoch}: loss {loss:.3f}, validation {share}", flush=True)
        if correct >= best:
            best, state = correct, model.state_dict()
            if args.half:  # gates, scales and statistics are small and stay exact
                state = {k: v.half() if v.numel() > 10_000 else v for k, v in state.items()}
            snzoo.save_pretrained(model, args.output, state_dict=state)
    print(f"best: {best}/{count}, kept in {args.output}")


if __name__ == "__main__":
    try:
        main()
    except (SnzooError, OSError, ValueError) as error:
        sys.exit(f"finetune.py: {error}")
    except KeyboardInterrupt:
        sys.exit("finetune.py: interrupted; the best checkpoint so far is kept")
