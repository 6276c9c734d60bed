"""Which files are photos, and lists of them."""

import pytest
from PIL import Image

from snzoo.data import find_images, is_image
from snzoo.data.photos import SUFFIXES, check_photos
from snzoo.data.sources import PhotoList
from snzoo.errors import DataError


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a.jpg", True),
        ("n01440764/A.JPEG", True),
        (".cache/a.png", True),
        ("a.AVIF", True),
        ("a.jp2", True),
        ("a.jpe", True),
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


def test_photos_have_the_suffixes_of_formats_that_pillow_opens():
    Image.init()
    opened = {suffix for suffix, name in Image.EXTENSION.items() if name in Image.OPEN}
    # The opener of JPEG opens MPO, too. Old releases of Pillow lack AVIF.
    assert SUFFIXES - opened <= {".mpo", ".avif"}


def test_linked_folders_and_photos_are_found_and_loops_are_left(touch, tmp_path_factory):
    path = touch("a/x/1.jpg", "b/2.jpg")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "3.jpg").touch()
    (path / "a" / "far").symlink_to(elsewhere)
    (path / "a" / "near").symlink_to(path / "b")
    (path / "b" / "3.jpg").symlink_to(elsewhere / "3.jpg")
    (path / "b" / "back").symlink_to(path / "a")
    (path / "a" / "x" / "loop").symlink_to("..")
    (elsewhere / "self").symlink_to(elsewhere)
    names = [str(image.relative_to(path)) for image in find_images(path, recursive=True)]
    in_a = ["far/3.jpg", "near/2.jpg", "near/3.jpg", "x/1.jpg"]
    in_b = ["2.jpg", "3.jpg", "back/far/3.jpg", "back/x/1.jpg"]
    assert names == [*(f"a/{name}" for name in in_a), *(f"b/{name}" for name in in_b)]


def test_damaged_photos_are_found_and_named_with_their_number(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(70)]
    for path in paths:
        Image.new("RGB", (9, 9)).save(path)
    check_photos(PhotoList(paths), workers=2)
    paths[1].write_bytes(b"\0\5\26\7")
    paths[66].write_bytes(b"")
    message = r"2 of 70 photos can't be used; .*/1\.png: not an image.*/66\.png: the file is empty"
    with pytest.raises(DataError, match=message):
        check_photos(PhotoList(paths), workers=2)


def test_every_photo_can_be_decoded_before_the_training(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    good, bad = str(tmp_path / "good.png"), str(tmp_path / "bad.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    check_photos(PhotoList([good] * 100), workers=3)
    check_photos(PhotoList([]), workers=3)
    with pytest.raises(DataError, match=r"^5 of 104 photos can't be used; .*bad.png") as error:
        check_photos(PhotoList([good] * 99 + [bad] * 5), workers=3)
    assert str(error.value).count("bad.png") == 3
