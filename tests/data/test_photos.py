"""Which files are photos, and lists of them."""

import pytest
from PIL import Image

from snzoo.data import find_images, is_image, list_class_folders
from snzoo.errors import DataError


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a.jpg", True),
        ("n01440764/A.JPEG", True),
        (".cache/a.png", True),
        ("a.txt", False),
        ("jpg", False),
        ("._a.jpg", False),
        ("hat/._a.jpg", False),
        ("Thumbs.db", False),
    ],
)
def test_photos_are_told_by_their_names(name, expected):
    assert is_image(name) is expected


def test_images_are_a_file_or_those_in_a_folder(touch):
    path = touch("b.png", "a.jpg", "._a.jpg", "sub/c.jpg", "sub/.git/d.jpg", "notes.txt", "none/x")
    (path / "sub" / "loop").symlink_to(path)
    names = [str(image.relative_to(path)) for image in find_images(path)]
    assert names == ["a.jpg", "b.png"] and find_images(path / "b.png") == [path / "b.png"]
    names = [str(image.relative_to(path)) for image in find_images(path, recursive=True)]
    assert names == ["a.jpg", "b.png", "sub/c.jpg"]
    with pytest.raises(DataError, match="no image directly in"):
        find_images(path / "none")
    with pytest.raises(DataError, match="no image in or below"):
        find_images(path / "none", recursive=True)


@pytest.fixture
def training_set(touch):
    """Three photos in two class folders, among what systems leave there."""
    path = touch("shoes/._a.png", "hat/Thumbs.db", "__MACOSX/hat/._a.png", "hat/notes.txt", "x.txt")
    for name in ("shoes/a.png", "hat/b.png", "hat/a.png"):
        Image.new("RGB", (9, 9)).save(path / name)
    return path


def test_class_folders_are_listed_as_a_training_set(training_set):
    paths, labels, classes = list_class_folders(training_set)
    assert [str(path.relative_to(training_set)) for path in paths] == [
        "hat/a.png",
        "hat/b.png",
        "shoes/a.png",
    ]
    assert (labels, classes) == ((0, 0, 1), ("hat", "shoes"))


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("hat/c.jpg", b"\0\5\26\7", r"1 of 4 photos can't be used; .*hat/c.jpg: not an image"),
        ("hat/c.jpg", b"", "hat/c.jpg: not an image"),
        ("empty/notes.txt", b"", "no image directly in .*/empty"),
        ("c.jpg", b"", "1 photos beside class folders, e.g. c.jpg"),
    ],
)
def test_an_unfit_training_set_is_refused_before_any_training(training_set, name, content, message):
    (training_set / name).parent.mkdir(exist_ok=True)
    (training_set / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list_class_folders(training_set)


def test_a_folder_without_class_folders_is_refused(touch):
    for path in (touch("x.txt"), touch() / "missing"):
        with pytest.raises(DataError, match=r"must hold one folder of photos|can't read"):
            list_class_folders(path)


def test_photos_need_not_be_checked_again(training_set):
    (training_set / "hat" / "c.jpg").write_bytes(b"damaged")
    assert len(list_class_folders(training_set, check=False).paths) == 4
