"""A path → images with their class indices, or an error that says what lies there instead."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from snzoo.data import imagenet
from snzoo.errors import DataError

# What Pillow opens and people keep photos in; other files are counted, not taken for photos.
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"}
VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})\.[A-Za-z]+", re.ASCII)
VALIDATION_SET = "imagenet-1k-val"

Classes = str | tuple[str, ...]  # "imagenet-1k", or the names of the classes


@dataclass(frozen=True)
class Samples:
    """Labelled images: ``labels[i]`` is the class index of ``paths[i]``.

    ``description`` tells people what was found, e.g. "250 images in 98 class folders";
    ``dataset`` names the set where these images are known to be all of it.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    description: str
    dataset: str | None = None

    def __len__(self) -> int:
        return len(self.paths)


def find_samples(path: str | Path, classes: Classes = "imagenet-1k") -> Samples:
    """Label the images under ``path``: class folders, flat validation files, or a list file.

    - class folders: named by wnid for ImageNet (any part of the 1,000), else by class name;
    - flat: ``ILSVRC2012_val_00000001.JPEG`` … (any part of the 50,000), by bundled labels;
    - a list file: ``path index`` a line, relative to the file's folder.

    Args:
        classes: ``"imagenet-1k"``, or the names of the classes in the order of the logits.

    Raises:
        DataError: nothing there can be labelled; the message says what was found.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise DataError(f"{path} does not exist")
        if not path.is_dir():
            return _from_list(path, 1000 if isinstance(classes, str) else len(classes))
        folders = sorted(item for item in _visible(path) if item.is_dir())
        if folders:
            return _from_folders(path, folders, classes)
        return _from_flat(path, classes)
    except OSError as error:
        raise DataError(f"can't read {error.filename or path}: {error.strerror}") from None


def find_images(path: str | Path) -> list[Path]:
    """The image, or every image directly in the folder, sorted.

    Raises:
        DataError: there is none, or the folder can't be read.
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return [path]
        found, _ = _images_in(path)
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror}") from None
    if not found:
        raise DataError(f"no image directly in {path}")
    return found


def _from_folders(path: Path, folders: list[Path], classes: Classes) -> Samples:
    names = imagenet.wnids() if isinstance(classes, str) else classes
    index = {name: i for i, name in enumerate(names)}
    if unknown := [folder.name for folder in folders if folder.name not in index]:
        raise DataError(_why_not(path, folders, unknown, classes))
    loose, ignored = _images_in(path)
    ignored -= len(folders)
    if loose:
        raise DataError(
            f"{path} holds class folders and {len(loose)} images beside them, e.g. "
            f"{loose[0].name}; move one or the other away"
        )
    paths: list[Path] = []
    labels: list[int] = []
    for folder in folders:
        images, others = _images_in(folder)
        paths += images
        labels += [index[folder.name]] * len(images)
        ignored += others
    if not paths:
        raise DataError(f"the {len(folders)} class folders in {path} hold no image")
    of = f" of {len(names):,}" if len(folders) < len(names) else ""
    return Samples(
        tuple(paths),
        tuple(labels),
        f"{len(paths):,} images in {len(folders):,}{of} class folders{_left_out(ignored)}",
        VALIDATION_SET if isinstance(classes, str) and _is_validation_set(paths, labels) else None,
    )


def _why_not(path: Path, folders: list[Path], unknown: list[str], classes: Classes) -> str:
    expected = (
        "wnids (n01440764 …)" if isinstance(classes, str) else f"classes ({', '.join(classes)})"
    )
    shown = ", ".join(unknown[:3]) + (" …" if len(unknown) > 3 else "")
    message = (
        f"{path}: {len(unknown)} of {len(folders)} folders are not named by {expected}: {shown}"
    )
    if all(name.isdecimal() for name in unknown):
        return f"{message}; numbers alone don't tell whose order they follow: name folders by wnid"
    for name in ("val", "validation", "test", "train"):
        if name in unknown:
            return f"{message}; did you mean {path / name}?"
    return message


def _from_flat(path: Path, classes: Classes) -> Samples:
    images, ignored = _images_in(path)
    if not images:
        raise DataError(f"{path} holds neither class folders nor images")
    if not isinstance(classes, str):
        raise DataError(
            f"{path} holds {len(images)} images without class folders ({', '.join(classes)}), "
            "so nothing tells their classes"
        )
    numbers = [_validation_number(image) for image in images]
    if None in numbers:
        raise DataError(
            f"{path} holds {len(images)} images without wnid folders, and the name "
            f"{images[numbers.index(None)].name} is not of the form "
            "ILSVRC2012_val_00000001.JPEG (to 00050000), so nothing tells its class"
        )
    number, count = Counter(numbers).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path} holds {images[numbers.index(number)].stem} {count} times")
    labels = imagenet.validation_labels()
    whole = len(images) == len(labels)
    part = "" if whole else f" (a part: {len(images):,} of {len(labels):,})"
    return Samples(
        tuple(images),
        tuple(labels[number - 1] for number in numbers if number),
        f"{len(images):,} flat validation images{part}{_left_out(ignored)}",
        VALIDATION_SET if whole else None,
    )


def _from_list(path: Path, classes: int) -> Samples:
    paths, labels = [], []
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                *rest, index = line.strip().rsplit(maxsplit=1)
                if (
                    not rest
                    or not re.fullmatch(r"\d{1,9}", index, re.ASCII)
                    or int(index) >= classes
                ):
                    raise DataError(
                        f"{path}, line {number}: expected 'path index' with an index from 0 to "
                        f"{classes - 1}, got {line.strip()[:80]!r}"
                    )
                paths.append(path.parent / rest[0])
                labels.append(int(index))
    except UnicodeDecodeError:
        raise DataError(
            f"{path} is neither a folder nor a text file of 'path index' lines"
        ) from None
    if not paths:
        raise DataError(f"{path} lists no image")
    return Samples(tuple(paths), tuple(labels), f"{len(paths):,} images listed in {path.name}")


def _validation_number(image: Path) -> int | None:
    """1 to 50,000, or None where the name is not one of the validation set."""
    found = VALIDATION_NAME.fullmatch(image.name)
    number = int(found[1]) if found else 0
    return number if 1 <= number <= imagenet.VALIDATION_IMAGES else None


def _is_validation_set(paths: Sequence[Path], labels: Sequence[int]) -> bool:
    numbers = {_validation_number(path): label for path, label in zip(paths, labels, strict=True)}
    truth = dict(enumerate(imagenet.validation_labels(), 1))
    return len(paths) == len(truth) and numbers == truth


def _left_out(ignored: int) -> str:
    return f" ({ignored:,} other files or folders left out)" if ignored else ""


def _visible(folder: Path) -> list[Path]:
    return [item for item in folder.iterdir() if not item.name.startswith(".")]


def _images_in(folder: Path) -> tuple[list[Path], int]:
    """Images, broken links too (they are reported when read), and how many other items."""
    items = _visible(folder)
    images = sorted(i for i in items if i.suffix.lower() in SUFFIXES and not i.is_dir())
    return images, len(items) - len(images)
