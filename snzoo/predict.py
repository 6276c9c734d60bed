"""The best classes of single images: files, folders, URLs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
import torch
from torch import nn

from snzoo.data.imagenet import class_names
from snzoo.data.pixels import load_pixels, normalize
from snzoo.data.samples import find_images
from snzoo.errors import DownloadError, OfflineError
from snzoo.evaluate import predict_batch
from snzoo.manifest import Entry
from snzoo.weights.download import TIMEOUT

LARGEST_IMAGE = 64 << 20  # bytes


@dataclass(frozen=True)
class Prediction:
    """The ``k`` best classes of one image, best first."""

    source: str
    names: tuple[str, ...]
    indices: tuple[int, ...]
    probabilities: tuple[float, ...]


def names_of(entry: Entry) -> tuple[str, ...]:
    """Class names in the order of the logits."""
    return class_names() if isinstance(entry.classes, str) else entry.classes


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
    """
    content = _fetch(source) if is_url(source) else source
    pixels = load_pixels(content, entry.preprocessing, name=source)
    model.to(device).eval()
    x = normalize(pixels[None].to(device), entry.preprocessing)
    probabilities, indices = predict_batch(model, x, topk)
    order = tuple(int(i) for i in indices[0])
    names = names_of(entry)
    return Prediction(
        source, tuple(names[i] for i in order), order, tuple(float(p) for p in probabilities[0])
    )


def expand(sources: Sequence[str]) -> Iterator[str]:
    """Folders → the images directly in them; files and URLs as they are.

    Raises:
        DataError: a folder holds no image.
    """
    for source in sources:
        if is_url(source):
            yield source
        else:
            yield from (str(path) for path in find_images(Path(source)))


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _fetch(url: str) -> bytes:
    if os.environ.get("SNZOO_OFFLINE") == "1":
        raise OfflineError(f"can't fetch {url}: SNZOO_OFFLINE=1")
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
            content = bytearray()
            for chunk in response.iter_content(1 << 16):
                content += chunk
                if len(content) > LARGEST_IMAGE:
                    raise DownloadError(f"{url} is larger than {LARGEST_IMAGE >> 20} MiB")
            return bytes(content)
    except requests.RequestException as error:
        status = f"HTTP {error.response.status_code}" if error.response is not None else "no answer"
        raise DownloadError(f"can't fetch {url}: {status}") from None
