"""Thumbnails of the example images of confused pairs, embedded in the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

from snzoo.data.decode import load_image
from snzoo.data.demo import demo_samples
from snzoo.data.samples import find_samples
from snzoo.errors import SnzooError
from snzoo.evaluation.results import Results
from snzoo.manifest import Photos

SIDE = 120  # pixels


@dataclass(frozen=True)
class Thumbnails:
    """The ``data:`` URIs by the names of images, and a note about images that are missing."""

    uris: dict[str, str] = field(default_factory=dict)
    note: str | None = None


def find_thumbnails(
    results: Results, *, images: Path | None = None, demo: Photos | None = None
) -> Thumbnails:
    """Return thumbnails of the examples of confused pairs.

    A results document may come from an untrusted source, and a page may be shared. The path in
    the document could name any images on this machine, so it is never opened.

    Args:
        results: the results of an evaluation.
        images: the path of the evaluated images, as for :func:`snzoo.evaluate`. An image is shown
            only if its name and class are those in the results.
        demo: the bundled photos, which are shown if the results are for them.

    Raises:
        DataError: ``images`` cannot be read, or has no labels of these classes.
    """
    pairs = [pair for model in results.models for pair in model.confused]
    labels = {name: pair.label for pair in pairs for name in pair.examples}
    if not labels:
        return Thumbnails()
    if images is not None:
        samples = find_samples(images, results.data.classes)
    elif results.data.path is None and demo is not None:
        try:
            samples = demo_samples(demo, results.data.classes)
        except SnzooError as error:  # e.g. a demo with other classes
            return Thumbnails(note=f"The images are not shown: {error}.")
    else:
        return Thumbnails(note="To show the images: snzoo report RESULTS --images PATH.")
    uris = {}
    for index, name in enumerate(samples.names):
        if labels.get(name) == samples.labels[index]:
            try:
                uris[name] = _encode(samples.read(index), name)
            except SnzooError:
                continue  # counted as missing
    missing = sorted(set(labels) - set(uris))
    if not missing:
        return Thumbnails(uris)
    count = f"{len(missing)} of {len(labels)} images could not be found or read"
    return Thumbnails(uris, f"{count}, e.g. {missing[0]}.")


def _encode(content: bytes, name: str) -> str:
    """Return the central square of an image as a ``data:`` URI."""
    image = load_image(content, name=name, shrink_to=SIDE)
    small = ImageOps.fit(image, (SIDE, SIDE), Image.Resampling.LANCZOS)
    jpeg = io.BytesIO()
    small.save(jpeg, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode("ascii")
