"""Determine the classes of photos from the names of files and folders, or from webdataset shards.

A tree is the collection of the names in a folder or an archive. Labels depend on these names only,
so a folder and an archive of it get the same labels. A tree has at most two levels, and names of
folders end in a slash: ``n01440764/``, ``n01440764/a.JPEG``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from snzoo.data import imagenet
from snzoo.data.archives import Member, read_member
from snzoo.data.photos import is_hidden, is_image
from snzoo.errors import DataError

LONGEST_LABEL = 64  # bytes that are read of a .cls file
ACCEPTED = (
    "snzoo takes class folders, flat ILSVRC2012_val_*.JPEG or WNID_*.JPEG files, a tar or "
    "zip of either, webdataset or parquet shards, RecordIO, LOC_val_solution.csv, a text file of "
    "'path index' lines, or a csv of 'path,label'"
)

Classes = str | tuple[str, ...]  # "imagenet-1k", or the names of the classes


@dataclass(frozen=True)
class LabeledNames:
    """The names of photos and their class indices.

    ``labels[i]`` belongs to ``names[i]``. ``description`` says how many photos were found where.
    """

    names: tuple[str, ...]
    labels: tuple[int, ...]
    description: str


@cache
def class_indices(classes: Classes) -> Mapping[str, int]:
    """Return a mapping from folder names (wnids or names of classes) to class indices."""
    names = imagenet.wnids() if isinstance(classes, str) else classes
    return MappingProxyType({name: index for index, name in enumerate(names)})


def label_tree(
    tree: Collection[str], classes: Classes, *, where: str, found: str = ""
) -> LabeledNames:
    """Label photos in class folders, or photos of ImageNet without folders, by their names.

    Args:
        tree: the names in the tree.
        classes: ``"imagenet-1k"``, or the names of the classes.
        where: the path of the tree, for errors.
        found: the part of the path that the user did not name, for the description.

    Raises:
        DataError: no photo can be labeled; the message says what was found.
    """
    images = sorted((name for name in tree if is_image(name)), key=lambda name: name.split("/"))
    folders = sorted({name.split("/", 1)[0] for name in tree if "/" in name})
    ignored, part = len(tree) - len(images), ""
    if folders and not _are_flat(images, folders, classes):
        labels = _label_folders(images, folders, classes, where)
        ignored -= sum(name.endswith("/") and name.count("/") == 1 for name in tree)
        count = len(class_indices(classes))
        of_all = f" of {count:,}" if len(folders) < count else ""
        what = f"{len(images):,} images in {len(folders):,}{of_all} class folders"
    else:
        labels = _label_flat(images, classes, where)
        what = f"{len(images):,} flat images named by wnid"
        if all(map(imagenet.validation_number, images)):
            what = f"{len(images):,} flat validation images"
            if len(images) != imagenet.VALIDATION_IMAGES:
                part = f" (a part: {len(images):,} of {imagenet.VALIDATION_IMAGES:,})"
    of = f" of {found}" if found else ""
    left_out = f" ({ignored:,} other files or folders left out)" if ignored else ""
    return LabeledNames(tuple(images), labels, f"{what}{of}{part}{left_out}")


def _are_flat(images: list[str], folders: list[str], classes: Classes) -> bool:
    """Return whether the images are photos of ImageNet next to unrelated folders."""
    index = class_indices(classes)
    return (
        isinstance(classes, str)
        and bool(images)
        and all("/" not in name and imagenet.find_label(name) is not None for name in images)
        and not any(folder in index or imagenet.is_number(folder) for folder in folders)
    )


def _label_folders(
    images: list[str], folders: list[str], classes: Classes, where: str
) -> tuple[int, ...]:
    index = class_indices(classes)
    if unknown := [folder for folder in folders if folder not in index]:
        raise DataError(_explain_folders(images, folders, unknown, classes, where))
    if loose := [name for name in images if "/" not in name]:
        raise DataError(
            f"{where} holds class folders and {len(loose)} images beside them, e.g. "
            f"{loose[0]}; move one or the other away"
        )
    if not images:
        raise DataError(f"the {len(folders)} class folders in {where} hold no image")
    return tuple(index[name.split("/", 1)[0]] for name in images)


def _explain_folders(
    images: list[str], folders: list[str], unknown: list[str], classes: Classes, where: str
) -> str:
    """Return the message that folders are not class folders, and what to do."""
    expected = (
        "wnids (n01440764 …)" if isinstance(classes, str) else f"classes ({_first_3(classes)})"
    )
    message = (
        f"{where}: {len(unknown)} of {len(folders)} folders are not named by {expected}: "
        f"{_first_3(unknown)}"
    )
    if all(map(imagenet.is_number, unknown)):
        kind = "wnid" if isinstance(classes, str) else "class"
        return (
            f"{message}; {_explain_numbers(images, classes)}: name folders by {kind}, or name "
            "a csv of 'path,label' lines with class indices of the network as labels"
        )
    for name in ("val", "validation", "test", "train"):
        if name in unknown and Path(where).is_dir():
            return f"{message}; did you mean {Path(where) / name}?"
    return f"{message}; {ACCEPTED}"


def _explain_numbers(images: list[str], classes: Classes) -> str:
    """Return the reason why folders named by numbers are refused."""
    for folder, name in (image.split("/", 1) for image in images if "/" in image):
        number = imagenet.validation_number(name) if isinstance(classes, str) else None
        if number and imagenet.is_number(folder):
            label = imagenet.validation_labels()[number - 1]
            if int(folder) != label:
                return (
                    f"folder {folder} holds photos of {imagenet.describe(label)}, so these "
                    "numbers are not class indices"
                )
    return "numbers alone don't tell whose order they follow"


def _first_3(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")


def _label_flat(images: list[str], classes: Classes, where: str) -> tuple[int, ...]:
    if not images:
        raise DataError(f"{where} holds neither class folders nor images; {ACCEPTED}")
    if not isinstance(classes, str):
        raise DataError(
            f"{where} holds {len(images)} images without class folders ({_first_3(classes)}), so "
            f"nothing tells their classes; {ACCEPTED}"
        )
    labels = [imagenet.find_label(name) for name in images]
    if None in labels:
        raise DataError(
            f"{where} holds {len(images)} images without wnid folders, and the name "
            f"{images[labels.index(None)]} is neither like ILSVRC2012_val_00000001.JPEG (to "
            f"00050000) nor like n01440764_1.JPEG, so nothing tells its class; {ACCEPTED}"
        )
    return tuple(label for label in labels if label is not None)


def label_members(members: Iterable[Member], classes: Classes, *, where: str) -> dict[str, Member]:
    """Return a mapping from the names in the tree of an archive to its members.

    :func:`label_tree` accepts the names.

    A folder that holds all other members is dropped from the names, e.g. ``ILSVRC/val/``, unless
    its name is a class or a number.

    Raises:
        DataError: an image is not a regular file, or occurs twice.
    """
    index = class_indices(classes)
    entries = [(visible_parts(member.name), member) for member in members]
    entries = [(parts, member) for parts, member in entries if parts]
    while (top := _common_folder(entries)) and not (top in index or top.isdecimal()):
        entries = [(parts[1:], member) for parts, member in entries if len(parts) > 1]
    tree: dict[str, Member] = {}
    for parts, member in entries:
        name = "/".join(parts[:2])
        if len(parts) > 2 or member.is_folder:
            tree[f"{name}/"] = member
            continue
        if (member.flaw or name in tree) and is_image(name):
            if member.flaw:
                raise DataError(
                    f"{where}: {member.name} is {member.flaw}; pack the photos themselves"
                )
            raise DataError(f"{where} holds {member.name} twice")
        tree[name] = member
    return tree


def visible_parts(name: str) -> list[str]:
    """Return the parts of a path, or an empty list if one is hidden. ``..`` counts as hidden."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return [] if any(map(is_hidden, parts)) else parts


def _common_folder(entries: list[tuple[list[str], Member]]) -> str | None:
    """Return the top-level folder that holds all members, or None."""
    tops = {parts[0] for parts, _ in entries}
    loose = any(len(parts) == 1 and not member.is_folder for parts, member in entries)
    return tops.pop() if len(tops) == 1 and not loose else None


def label_shards(
    members: Iterable[Member], classes: Classes, *, found: str
) -> tuple[LabeledNames, list[Member]]:
    """Return the labels of the photos in webdataset shards, and the members of the photos.

    ``KEY.cls`` holds the class index of the photo ``KEY.jpg``. A key ends at the first dot of a
    file's name. Other files with the same key are ignored.

    Raises:
        DataError: a photo has no class index, or a key has two photos.
    """
    photos: dict[tuple[Path, str], Member] = {}
    class_files: dict[tuple[Path, str], Member] = {}
    for member in members:
        parts = visible_parts(member.name)
        stem, dot, suffix = parts[-1].partition(".") if parts else ("", "", "")
        key = member.path, "/".join([*parts[:-1], stem])
        kind = photos if is_image(f"x{dot}{suffix}") and "." not in suffix else class_files
        if kind is photos or suffix.lower() == "cls":
            if member.flaw or key in kind:
                reason = member.flaw or "not the only one of its key"
                raise DataError(f"{member}: it is {reason}")
            kind[key] = member
    labels = []
    for key, photo in photos.items():
        if key not in class_files:
            raise DataError(f"{photo}: no {key[1]}.cls tells its class")
        labels.append(_read_class_index(class_files[key], classes))
    if not photos:
        raise DataError(f"no image in {found}")
    counts = Counter(photo.name for photo in photos.values())
    names = tuple(
        photo.name if counts[photo.name] == 1 else f"{photo.path.name}/{photo.name}"
        for photo in photos.values()
    )
    description = f"{len(names):,} images in {found}"
    return LabeledNames(names, tuple(labels), description), list(photos.values())


def _read_class_index(member: Member, classes: Classes) -> int:
    text = read_member(member)[:LONGEST_LABEL].decode("ascii", "replace").strip()
    count = len(class_indices(classes))
    if not imagenet.is_number(text) or int(text) >= count:
        raise DataError(f"{member}: expected a class index from 0 to {count - 1}, got {text!r}")
    return int(text)
