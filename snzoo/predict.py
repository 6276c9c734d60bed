"""The best classes of single images: files, folders, URLs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from snzoo.data import find_images
from snzoo.data.imagenet import names_of
from snzoo.data.pixels import load_pixels
from snzoo.data.remote import fetch_image, is_url
from snzoo.data.sources import read_file
from snzoo.errors import DataError
from snzoo.evaluation.network import Network, check_finite
from snzoo.manifest import Entry


@dataclass(frozen=True)
class Prediction:
    """The ``k`` best classes of one image, best first."""

    source: str
    names: tuple[str, ...]
    indices: tuple[int, ...]
    probabilities: tuple[float, ...]


def predict(
    model: nn.Module,
    source: str,
    entry: Entry,
    *,
    topk: int = 5,
    device: str | torch.device = "cpu",
) -> Prediction:
    """Classify one image file or http(s) URL.

    Args:
        model: a network of ``entry``; moved to ``device`` and put into evaluation mode.
        topk: how many classes, at most all.

    Raises:
        DataError: the image can't be read.
        DownloadError: the URL gives none; OfflineError under ``SNZOO_OFFLINE=1``.
        SnzooError: the network gives logits that are not finite.
    """
    content = fetch_image(source) if is_url(source) else read_file(Path(source))
    pixels = torch.tensor(load_pixels(content, entry.preprocessing, name=source))
    network = Network(model, entry.preprocessing, name=entry.name, device=device)
    best = network.best(pixels.permute(2, 0, 1)[None], topk)
    check_finite(best, entry.name)
    probabilities, indices = (values[0].tolist() for values in best)
    names = names_of(entry.classes)
    return Prediction(
        source, tuple(names[i] for i in indices), tuple(indices), tuple(probabilities)
    )


def expand(sources: Sequence[str]) -> Iterator[str]:
    """Folders → the images directly in them; files and URLs as they are.

    Raises:
        DataError: a folder holds no image.
    """
    for source in sources:
        if not source:
            raise DataError("one of the names is empty; name a file, a folder or a URL")
        if is_url(source):
            yield source
        else:
            yield from map(str, find_images(source))
