"""Layouts of images: what is labelled, and what is refused with which reason."""

import pytest

from snzoo.data import imagenet
from snzoo.data.samples import find_images, find_samples
from snzoo.errors import DataError

CLOTHES = ("hat", "t-shirt")


@pytest.fixture
def touch(tmp_path):
    """Makes empty files below tmp_path, which it returns."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def labels(samples):
    return {path.name: label for path, label in zip(samples.paths, samples.labels, strict=True)}


def test_bundled_labels_are_fifty_of_each_class():
    counts = [0] * 1000
    for label in imagenet.validation_labels():
        counts[label] += 1
    assert counts == [50] * 1000
    assert imagenet.validation_labels()[:3].tolist() == [65, 970, 230]
    assert len(set(imagenet.wnids())) == 1000 and list(imagenet.wnids()) == sorted(imagenet.wnids())
    assert imagenet.wnids()[0] == "n01440764" and imagenet.class_names()[0] == "tench"


def test_a_part_of_the_wnid_folders_keeps_its_class_indices(touch):
    path = touch("n15075141/b.JPEG", "n01443537/a.JPEG", "n01443537/.hidden.jpg", "n15075141/x.txt")
    samples = find_samples(path)
    assert labels(samples) == {"a.JPEG": 1, "b.JPEG": 999}
    assert (
        samples.description
        == "2 images in 2 of 1,000 class folders (1 other files or folders left out)"
    )


def test_class_folders_follow_the_order_of_the_classes(touch):
    samples = find_samples(touch("t-shirt/1.png", "hat/2.png"), CLOTHES)
    assert labels(samples) == {"1.png": 1, "2.png": 0}


def test_flat_validation_files_are_labelled_by_number_and_a_part_is_said_to_be_one(touch):
    samples = find_samples(touch("ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00050000.JPEG"))
    assert samples.labels == (970, imagenet.validation_labels()[49_999])
    assert samples.description == "2 flat validation images (a part: 2 of 50,000)"


def test_all_fifty_thousand_flat_files_are_the_whole(touch):
    path = touch(*(f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 50_001)))
    samples = find_samples(path)
    assert samples.labels == tuple(imagenet.validation_labels())
    assert samples.description == "50,000 flat validation images"
    assert samples.dataset == "imagenet-1k-val"
    for image, label in zip(samples.paths[:], samples.labels, strict=True):
        folder = path / "sorted" / imagenet.wnids()[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.rename(folder / image.name)
    assert find_samples(path / "sorted").dataset == "imagenet-1k-val"
    image = next((path / "sorted" / "n01440764").iterdir())
    image.rename(path / "sorted" / "n01443537" / image.name)
    assert find_samples(path / "sorted").dataset is None


def test_a_list_file_names_paths_relative_to_itself(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("\ufeffa b.jpg 7\n\nsub/c.jpg\t999\n/abs.jpg 0\n", encoding="utf-8")
    samples = find_samples(path)
    assert samples.labels == (7, 999, 0)
    assert [str(p) for p in samples.paths] == [
        str(tmp_path / "a b.jpg"),
        str(tmp_path / "sub" / "c.jpg"),
        "/abs.jpg",
    ]


@pytest.mark.parametrize(
    "names, message",
    [
        ([], "neither class folders nor images"),
        (["notes.txt"], "neither class folders nor images"),
        (["val/n01440764/a.jpg"], r"did you mean .*/val\?"),
        (["1/a.jpg", "2/b.jpg"], "numbers alone don't tell"),
        (["cats/a.jpg", "n01440764/b.jpg"], "1 of 2 folders are not named by wnids .*: cats"),
        (["n99999999/a.jpg"], "not named by wnids"),
        (["n01440764/a.txt"], "hold no image"),
        (["n01440764/a.jpg", "b.jpg"], "1 images beside them, e.g. b.jpg"),
        (["a.jpg"], "a.jpg is not of the form ILSVRC2012_val"),
        (["ILSVRC2012_val_00050001.JPEG"], "to 00050000"),
        (["ILSVRC2012_val_00000000.JPEG"], "to 00050000"),
        (["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000001.png"], "00000001 2 times"),
    ],
)
def test_what_cannot_be_labelled_is_refused_saying_what_was_found(touch, names, message):
    path = touch(*names)
    with pytest.raises(DataError, match=message) as caught:
        find_samples(path)
    assert str(path) in str(caught.value)


def test_folders_below_a_class_are_counted_as_left_out(touch):
    samples = find_samples(touch("hat/a.jpg", "hat/deep/b.jpg", "hat/deep/c.jpg", "x.txt"), CLOTHES)
    assert samples.description.startswith("1 images in 1 of 2 class folders (2 other files or")


def test_broken_links_are_kept_to_be_reported(touch):
    path = touch("hat/a.jpg")
    (path / "hat" / "b.jpg").symlink_to("nowhere")
    assert len(find_samples(path, CLOTHES)) == 2


def test_photos_of_named_classes_need_their_folders(touch):
    with pytest.raises(DataError, match="without class folders"):
        find_samples(touch("a.jpg"), CLOTHES)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "lists no image"),
        ("a.jpg 1\nb.jpg\n", "line 2: expected 'path index'"),
        ("a.jpg 1000\n", "index from 0 to 999"),
        ("a.jpg -1\n", "line 1"),
        ("a.jpg ²\n", "line 1"),
        ("7\n", "line 1"),
    ],
)
def test_malformed_list_files_name_the_line(tmp_path, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        find_samples(path)


def test_binary_files_and_missing_paths_are_refused(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match="neither a folder nor a text file"):
        find_samples(path)
    with pytest.raises(DataError, match="does not exist"):
        find_samples(tmp_path / "none")


def test_find_images_takes_a_file_or_what_lies_directly_in_a_folder(touch):
    path = touch("b.png", "a.jpg", "sub/c.jpg", "notes.txt")
    assert [image.name for image in find_images(path)] == ["a.jpg", "b.png"]
    with pytest.raises(DataError, match="no image directly in"):
        find_images(touch("empty/x.txt") / "empty")
