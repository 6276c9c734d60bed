"""The images of confused pairs, small enough to be part of the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

from snzoo.data.decode import load_image
from snzoo.data.demo import demo_samples
from snzoo.data.samples import Samples, find_samples
from snzoo.errors import SnzooError
from snzoo.evaluation.results import Data, Results
from snzoo.manifest import Photos

SIDE = 120  # pixels


@dataclass(frozen=True)
class Thumbnails:
    """Name of an image → its ``data:`` URI; ``note`` tells people what is missing, and why."""

    uris: dict[str, str] = field(default_factory=dict)
    note: str | None = None


def find_thumbnails(results: Results, photos: Photos | None) -> Thumbnails:
    """The examples of the confused pairs, as far as they are still where they were.

    An image counts as there only if its class is the recorded one. ``photos`` are the demo.
    """
    pairs = [pair for model in results.models for pair in model.confused]
    labels = {name: pair.label for pair in pairs for name in pair.examples}
    if not labels:
        return Thumbnails()
    where = results.data.path or "their place in snzoo"
    try:
        samples = _find(results.data, photos)
    except SnzooError as error:
        return Thumbnails(note=f"The images are not at {where} any more ({error}).")
    uris = {}
    for index, name in enumerate(samples.names):
        if labels.get(name) == samples.labels[index]:
            try:
                uris[name] = _uri(samples.read(index), name)
            except SnzooError:
                continue  # counted below
    missing = sorted(set(labels) - set(uris))
    if not missing:
        return Thumbnails(uris)
    count = f"{len(missing)} of these {len(labels)} images are"
    return Thumbnails(uris, f"{count} not at {where} any more, e.g. {missing[0]}.")


def _find(data: Data, photos: Photos | None) -> Samples:
    if data.path is not None:
        return find_samples(Path(data.path), data.classes)
    if photos is None:
        raise SnzooError("this manifest has no demo")
    return demo_samples(photos, data.classes)


def _uri(content: bytes, name: str) -> str:
    """The central square, as small as it is shown."""
    image = load_image(content, name=name, shrink_to=SIDE)
    small = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii")
