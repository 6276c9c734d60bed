"""Find and label the photos at a path, in any of the accepted forms."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from snzoo.data.archives import Archived, list_members
from snzoo.data.imagenet import check_ground_truth, check_published, is_number
from snzoo.data.labels import (
    ACCEPTED,
    Classes,
    LabeledNames,
    class_indices,
    label_members,
    label_shards,
    label_tree,
)
from snzoo.data.layouts import (
    KAGGLE_FOLDER,
    VALIDATION_FOLDERS,
    Layout,
    find_layout,
    solution_folder,
)
from snzoo.data.nested import is_nested, list_photos
from snzoo.data.parquet import Parquet
from snzoo.data.photos import is_image, list_names
from snzoo.data.recordio import open_recordio
from snzoo.data.sources import Files, Source, unreadable
from snzoo.data.tables import is_solution, number_lines, read_table
from snzoo.errors import DataError, printable

VALIDATION_SET = "imagenet-1k-val"
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
DEVKIT = "ILSVRC2012_devkit_t12"


@dataclass(frozen=True)
class Samples:
    """Labeled photos.

    Attributes:
        source: the files or archives that the photos are read from.
        labels: the class index of each photo.
        description: what was found, e.g. "250 images in 98 class folders".
        dataset: the name of a known data set if these photos are exactly its photos, else None.
    """

    source: Source
    labels: tuple[int, ...]
    description: str
    dataset: str | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def names(self) -> Sequence[str]:
        return self.source.names

    @property
    def classes_present(self) -> tuple[int, ...]:
        """The indices of the classes that occur, sorted."""
        return tuple(sorted(set(self.labels)))

    def read(self, index: int) -> bytes:
        return self.source.read(index)

    def locate(self, index: int) -> str:
        return self.source.locate(index)


def find_samples(path: str | Path, classes: Classes = "imagenet-1k") -> Samples:
    """Find and label the photos at ``path``.

    ``path`` may be:

    - class folders, named by wnid for ImageNet (any of the 1,000), or else by class name;
    - a folder of validation files ``ILSVRC2012_val_00000001.JPEG`` … (any of the 50,000), which get
      the bundled labels; if the devkit's ground truth is there too, it is compared with them;
    - an uncompressed tar or a zip file of either, or a folder with ``ILSVRC2012_img_val.tar``;
    - ``ILSVRC2012_img_train.tar``, a tar of one tar per class;
    - webdataset shards (tars with a ``KEY.cls`` next to each ``KEY.jpg``): a folder, one file, or
      several files as ``NAME-{0000..0063}.tar`` or ``NAME-*.tar``;
    - parquet files with the columns of Hugging Face: a folder, one file, or several files as above;
    - a RecordIO file of MXNet, ``NAME.rec`` with ``NAME.idx`` beside it, in which a label is the
      name of a class if all names are numbers, and else a class index;
    - a list of ``path index`` lines, or a csv with the columns ``path`` and ``label``, where
      paths are relative to the file's folder;
    - Kaggle's ``LOC_val_solution.csv``, or the folder that holds it;
    - a folder with one of these in its ``val/`` or ``validation/``.

    Archives are read in place.

    Args:
        path: the path of the photos.
        classes: ``"imagenet-1k"``, or the names of the classes in the order of the logits.

    Raises:
        DataError: no photo can be labeled, or labels contradict the published ones. The message
            says what was found and what is accepted.
    """
    with printable_errors(path):
        return read_layout(find_layout(Path(path), classes), classes)


@contextmanager
def printable_errors(path: str | Path) -> Iterator[None]:
    """Convert errors to a DataError of one line. An OSError without a file names ``path``."""
    try:
        yield
    except DataError as error:
        raise DataError(printable(str(error))) from None  # names may hold line breaks
    except OSError as error:
        raise unreadable(error.filename or path, error) from None


def read_layout(layout: Layout, classes: Classes, *, by_number: bool = False) -> Samples:
    """Return the labeled photos of a layout; see :func:`find_samples`.

    Args:
        layout: the layout.
        classes: ``"imagenet-1k"``, or the names of the classes in the order of the logits.
        by_number: see :func:`~snzoo.data.tables.read_table`. Only lists and csv files use it.

    Raises:
        DataError: see :func:`find_samples`.
        OSError: a file or a folder cannot be read.
    """
    read: dict[str, Callable[[Layout, Classes], tuple[Source, LabeledNames]]] = {
        "folder": _read_folder,
        "archives": _read_archives,
        "parquet": _read_parquet,
        "recordio": _read_recordio,
        "text": partial(_read_text, by_number=by_number),
    }
    source, labeled = read[layout.kind](layout, classes)
    whole = isinstance(classes, str) and check_published(
        labeled.names, labeled.labels, where=str(layout.where)
    )
    dataset = VALIDATION_SET if whole else None
    return Samples(source, labeled.labels, labeled.description, dataset)


def _read_folder(layout: Layout, classes: Classes) -> tuple[Source, LabeledNames]:
    folder, index = layout.where, class_indices(classes)
    tree = [name for name in list_names(folder) if name not in (GROUND_TRUTH, f"{DEVKIT}/")]
    for name in tree[:]:
        if name.endswith("/") and (name[:-1] in index or name[:-1].isdecimal()):
            tree += (name + inner for inner in list_names(folder / name))
    labeled = label_tree(tree, classes, where=str(folder), found=layout.found)
    inside = folder.name in VALIDATION_FOLDERS
    labeled = _compare_ground_truth(labeled, [folder, folder.parent] if inside else [folder])
    return Files(folder, labeled.names), labeled


def _read_archives(layout: Layout, classes: Classes) -> tuple[Source, LabeledNames]:
    members = [member for path in layout.paths for member in list_members(path)]
    if is_nested(members):
        members = list_photos(members)
    if len(layout.paths) > 1 or any(member.name.endswith(".cls") for member in members):
        labeled, photos = label_shards(members, classes, found=layout.found)
        return Archived(labeled.names, photos), labeled
    where = str(layout.where)
    tree = label_members(members, classes, where=where)
    labeled = label_tree(tree.keys(), classes, where=where, found=layout.found)
    labeled = _compare_ground_truth(labeled, [layout.where.parent])
    return Archived(labeled.names, [tree[name] for name in labeled.names]), labeled


def _read_parquet(layout: Layout, classes: Classes) -> tuple[Source, LabeledNames]:
    source, count, first = Parquet(layout.paths), len(class_indices(classes)), layout.paths[0]
    if source.class_count not in (None, count):
        raise DataError(f"{first} has labels of {source.class_count} classes, not of {count:,}")
    labels = []
    for i, label in enumerate(source.labels):
        if label is None or not 0 <= label < count:
            raise DataError(f"{source.locate(i)}: label {label} is not from 0 to {count - 1}")
        labels.append(label)
    if not labels:
        raise DataError(f"{first} holds no image")
    description = f"{len(labels):,} images in {layout.found}"
    return source, LabeledNames(source.paths, tuple(labels), description)


def _read_recordio(layout: Layout, classes: Classes) -> tuple[Source, LabeledNames]:
    source, index = open_recordio(layout.where), class_indices(classes)
    by_name = all(map(is_number, index))
    positions = {int(name) if by_name else i: i for name, i in index.items()}
    labels = []
    for i, label in enumerate(source.labels.tolist()):
        if label not in positions:
            raise DataError(f"{source.locate(i)}: label {label} is none of {len(index):,} classes")
        labels.append(positions[label])
    description = f"{len(labels):,} images in {layout.found}"
    return source, LabeledNames(tuple(source.names), tuple(labels), description)


def _read_text(layout: Layout, classes: Classes, *, by_number: bool) -> tuple[Source, LabeledNames]:
    path = layout.where
    try:
        with open(path, encoding="utf-8-sig") as file:
            kaggle = is_solution(file.readline(99))
            file.seek(0)
            table = read_table(file, classes, path=path, by_number=by_number)
    except UnicodeDecodeError:
        raise DataError(f"{path} is neither a tar, a zip nor text in UTF-8; {ACCEPTED}") from None
    if kaggle:
        return _find_kaggle_photos(path, table)
    description = f"{len(table):,} images listed in {path.name}"
    labeled = LabeledNames(tuple(table), tuple(table.values()), description)
    return Files(path.parent, labeled.names), labeled


def _find_kaggle_photos(path: Path, table: dict[str, int]) -> tuple[Source, LabeledNames]:
    """Return the photos that Kaggle's solution file names and a folder holds, with their labels."""
    folder = solution_folder(path.parent)
    in_folder = list_names(folder) if folder else []
    names = tuple(name for name in sorted(in_folder) if name in table)
    if not folder or not names:
        raise DataError(
            f"none of the {len(table):,} images that {path} names is beside it, in val/ or in "
            f"{KAGGLE_FOLDER}/; class folders need no csv: name the folder that holds them"
        )
    missing, more = len(table) - len(names), sum(map(is_image, in_folder)) - len(names)
    part = f" (a part: {missing:,} that it names are not there)" if missing else ""
    left_out = f" ({more:,} images that it does not name left out)" if more else ""
    description = f"{len(names):,} images labeled by {path.name}{part}{left_out}"
    labels = tuple(table[name] for name in names)
    return Files(folder, names), LabeledNames(names, labels, description)


def _compare_ground_truth(labeled: LabeledNames, folders: Collection[Path]) -> LabeledNames:
    """Compare validation photos with the devkit's ground truth, if one of the folders holds it.

    Return ``labeled``. If there was a comparison, the description says so.
    """
    if any("/" in name for name in labeled.names):
        return labeled
    for folder in folders:
        for path in (folder / GROUND_TRUTH, folder / DEVKIT / "data" / GROUND_TRUTH):
            if path.is_file():
                with open(path, encoding="utf-8-sig", errors="replace") as file:
                    check_ground_truth(number_lines(file, path), path=path)
                description = f"{labeled.description}, checked against {GROUND_TRUTH}"
                return replace(labeled, description=description)
    return labeled
