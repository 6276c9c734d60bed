"""A model of the zoo as data: its file, its published figures and its recipe."""

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from snzoo.errors import ManifestError
from snzoo.preprocessing import Preprocessing
from snzoo.recipes import Recipe
from snzoo.typed_json import freeze


def check_class_names(classes: str | tuple[str, ...]) -> None:
    seen: set[str] = set()
    for name in () if isinstance(classes, str) else classes:
        if not isinstance(name, str) or not name.isprintable() or name in seen:
            raise ManifestError(f"class names must be printable and differ, got {name!r}")
        seen.add(name)


def check_hex(value: str | None, digits: int) -> None:
    if value is not None and not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        raise ManifestError(f"{value!r} is not {digits} lower-case hexadecimal digits")


def stays_inside(path: str) -> bool:
    parts = path.split("/")
    return all(re.fullmatch(r"[\w+(),.-]+", part) for part in parts) and ".." not in parts


@dataclass(frozen=True)
class File:
    """A published weights file. A field is None if its value was never published.

    Attributes:
        name: the name of the file.
        format: the format of the file.
        urls: the URLs of the file.
        pages: the web pages from which users can download the file.
        sha256: the sha256 of the file.
        md5: the md5 of the file.
        size: the size of the file in bytes.
        fingerprint: the published values of some tensors, by key.
        bundled: the path of the file in the package, or None if it is not bundled.
    """

    name: str | None
    format: Literal["pytorch", "safetensors", "keras", "tensorflow", "torch7"]
    urls: tuple[str, ...]
    pages: tuple[str, ...]
    sha256: str | None
    md5: str | None
    size: int | None
    fingerprint: dict[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    bundled: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and ("/" in self.name or not stays_inside(self.name)):
            raise ManifestError(f"{self.name!r} is not a plain file name")
        if self.bundled is not None and not stays_inside(self.bundled):
            raise ManifestError(f"{self.bundled!r} is not a path inside the package")
        for url in (*self.urls, *self.pages):
            try:
                parts = urlsplit(url)
            except ValueError:  # e.g. http://[
                parts = urlsplit("")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ManifestError(f"{url!r} is not an http(s) URL")
        check_hex(self.sha256, 64)
        check_hex(self.md5, 32)
        if self.size is not None and self.size < 1:
            raise ManifestError(f"size must be positive, got {self.size}")

    @property
    def has_checksum(self) -> bool:
        """Whether a sha256 or an md5 is published. Keras publishes an md5 only."""
        return self.sha256 is not None or self.md5 is not None


@dataclass(frozen=True)
class Result:
    """A published accuracy, in percent, on ``images`` photos of ``dataset``."""

    dataset: str
    images: int
    top1: float
    top5: float
    source: str

    def __post_init__(self) -> None:
        if self.images < 1 or not 0 <= self.top1 <= self.top5 <= 100:
            raise ManifestError("images must be positive, and 0 <= top1 <= top5 <= 100")


@dataclass(frozen=True)
class Identification:
    """A published rank-1 identification rate of faces, in percent.

    It is the share of ``probes`` photos whose nearest other photo shows the same person, among that
    person's other photos and ``distractors`` photos of strangers.
    """

    dataset: str
    probes: int
    distractors: int
    rank1: float
    source: str

    def __post_init__(self) -> None:
        if self.probes < 1 or self.distractors < 0 or not 0 <= self.rank1 <= 100:
            raise ManifestError(
                "probes must be positive, distractors at least 0, and 0 <= rank1 <= 100"
            )

    def describe(self) -> str:
        """Return the figure and how it was measured, as a phrase."""
        return (
            f"rank-1 {self.rank1:.2f} of {self.probes:,} probes among {self.distractors:,} "
            f"distractors of {self.dataset}"
        )


@dataclass(frozen=True)
class Entry:
    """A model of the zoo, or a bare architecture if ``file`` is None.

    ``published`` has its accuracy as a classifier, and ``identification`` its figures as a face
    network. ``recipe`` has all values of its training, and ``training`` what else is known of it.
    """

    name: str
    architecture: str
    arguments: dict[str, Any]
    num_params: int | None
    classes: Literal["imagenet-1k"] | tuple[str, ...]
    preprocessing: Preprocessing
    file: File | None
    published: tuple[Result, ...]
    training: dict[str, Any] | None
    license: str | None
    provenance: str
    recipe: Recipe | None = None
    identification: tuple[Identification, ...] = ()

    def __post_init__(self) -> None:
        for name in ("arguments", "training"):
            object.__setattr__(self, name, freeze(getattr(self, name)))
        check_class_names(self.classes)

    def with_norm(self, norm: str, **arguments: Any) -> Self:
        """Return the description of this network after its norms were converted to another kind.

        Args:
            norm: the new kind.
            arguments: what the new architecture needs to remain the same network otherwise.
        """
        name = f"{self.architecture.rpartition('_')[0]}_{norm}"
        return dataclasses.replace(
            self,
            name=name,
            architecture=name,
            arguments=self.arguments | arguments,
            num_params=None,
            file=None,
            published=(),
            identification=(),
            training=None,
            recipe=None,
            provenance=f"Converted from {self.name}.",
        )

    @property
    def num_classes(self) -> int:
        return 1000 if isinstance(self.classes, str) else len(self.classes)
