"""Finetune a network in a loop of your own, over the public API. ``snzoo train`` does more.

    python examples/finetune.py DATA --model resnet50v1_sn_8x32 --pretrained

DATA holds ``train/`` and ``val/`` (or ``validation/``) with one folder of photos per class.
"""

import argparse
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

import snzoo


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="DATA holds train/ and val/.")
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--model", default="resnet18v1_sn_clothing", help="(%(default)s)")
    parser.add_argument("--pretrained", action="store_true", help="start from the zoo's weights")
    parser.add_argument("--epochs", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="(%(default)s)")
    parser.add_argument("--lr", type=float, default=0.01, help="(%(default)s)")
    parser.add_argument("--output", default="finetuned.safetensors", help="(%(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    split = "val" if (args.data / "val").is_dir() else "validation"
    classes = ImageFolder(args.data / "train").classes
    model = snzoo.create_model(args.model, pretrained=args.pretrained, num_classes=len(classes))
    model.freeze(1)  # the stem and the first stage

    to_input = snzoo.create_transform(model)  # resizes, crops and normalizes as the model needs it
    side = to_input.preprocessing.crop
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(side, scale=(0.35, 1.0)),
            transforms.RandomHorizontalFlip(),
            snzoo.create_transform(model, resize=side),  # only normalizes
        ]
    )
    train = ImageFolder(args.data / "train", augment)
    validation = ImageFolder(args.data / split, to_input)
    batches = DataLoader(train, args.batch_size, shuffle=True, drop_last=True, num_workers=2)
    if not batches:
        raise SystemExit(f"{len(train)} photos are fewer than --batch-size: make it smaller")
    held_out = DataLoader(validation, args.batch_size, num_workers=2)

    # Norms, biases and SN's gates have no weight decay.
    groups = snzoo.parameter_groups(model, lr=args.lr, weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    steps = args.epochs * len(batches)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    for epoch in range(1, args.epochs + 1):
        model.train()  # frozen stages stay in evaluation mode
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        with torch.inference_mode():
            correct = sum((model(x).argmax(1) == y).sum().item() for x, y in held_out)
        print(f"epoch {epoch}: validation {correct}/{len(validation)}")

    snzoo.save_pretrained(model, args.output, classes=classes)
    print(f"snzoo predict --weights {args.output} PHOTO")


if __name__ == "__main__":
    main()
