"""The bundled ImageNet labels, and what is compared with them."""

import json
from pathlib import Path

import pytest

from snzoo.data import imagenet
from snzoo.data.imagenet import check_ground_truth, check_published
from snzoo.errors import DataError

REAL = Path(__file__).parents[3] / "shared" / "data" / "imagenet_real_labels.json"
NAME = "ILSVRC2012_val_{:08}.JPEG"


def test_bundled_labels_are_fifty_of_each_class():
    counts = [0] * 1000
    for label in imagenet.validation_labels():
        counts[label] += 1
    assert counts == [50] * 1000
    assert imagenet.validation_labels()[:3].tolist() == [65, 970, 230]
    assert len(set(imagenet.wnids())) == 1000 and list(imagenet.wnids()) == sorted(imagenet.wnids())
    assert imagenet.wnids()[0] == "n01440764" and imagenet.class_names()[0] == "tench"


def test_real_labels_are_as_many_as_published():
    labels = imagenet.real_labels()
    assert len(labels) == 50_000 and sum(map(bool, labels)) == 46_837
    assert sum(map(len, labels)) == 57_553
    assert labels[:5] == ((), (970, 795), (230, 231), (809,), (516, 850))
    assert all(0 <= label < 1000 for image in labels for label in image)
    assert imagenet.real_labels() is labels


@pytest.mark.skipif(not REAL.is_file(), reason="../shared with the ReaL labels is absent")
def test_every_real_label_is_the_published_one():
    assert list(map(list, imagenet.real_labels())) == json.loads(REAL.read_text())


def test_the_license_of_the_real_labels_is_bundled():
    text = (imagenet.FOLDER / "LICENSE-Apache-2.0.txt").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text


@pytest.mark.parametrize(
    "name, number, wnid",
    [
        ("ILSVRC2012_val_00000001.JPEG", 1, None),
        ("a/b/ILSVRC2012_val_00050000.png", 50_000, None),
        ("ILSVRC2012_val_00000001_n01751748.JPEG", 1, "n01751748"),
        ("ILSVRC2012_val_00000000.JPEG", None, None),
        ("ILSVRC2012_val_00050001.JPEG", None, None),
        ("ILSVRC2012_val_0000000\uff11.JPEG", None, None),
        ("ILSVRC2012_val_00000001.JPEG\n", None, None),
        ("ILSVRC2012_val_00000001/a.JPEG", None, None),
        ("n01440764_10026.JPEG", None, None),
    ],
)
def test_the_numbers_of_validation_photos_are_in_their_names(name, number, wnid):
    assert imagenet.validation_number(name) == number
    assert imagenet.validation_wnid(name) == wnid


def test_labels_are_compared_with_the_published_ones():
    names = [NAME.format(number) for number in range(1, 50_001)]
    labels = list(imagenet.validation_labels())
    assert check_published(names, labels, where="x")
    assert not check_published(names[:-1], labels[:-1], where="x")
    assert not check_published([*names, "other.JPEG"], [*labels, 0], where="x")
    assert not check_published(["other.JPEG"], [7], where="x")
    labels[0], labels[9] = 7, 8
    with pytest.raises(DataError) as caught:
        check_published(names, labels, where="/val")
    assert str(caught.value) == (
        "/val: 2 of 50,000 labels contradict the published ones, e.g. ILSVRC2012_val_00000001 "
        "is class 65 (n01751748), not 7"
    )


def ground_truth():
    """Ids in an order of their own, one a class."""
    return [f"{(label * 7 + 3) % 1000 + 1}\n" for label in imagenet.validation_labels()]


def test_a_ground_truth_of_one_id_a_class_agrees():
    check_ground_truth(enumerate(ground_truth(), 1), path=Path("truth.txt"))


def id_of_two_classes(lines):
    lines[4] = lines[0]


def class_of_two_ids(lines):
    again = lines.index(lines[0], 1)
    lines[again] = next(line for line in lines if line not in lines[:again])


@pytest.mark.parametrize(
    "damage, message",
    [
        (id_of_two_classes, r"line 5: id 459 contra.* id 459 stood for n01751748 \(sea snake\)"),
        (class_of_two_ids, r"n01751748 \(sea snake\), since .* the id of that class was 459"),
        (lambda lines: lines.pop(), "must have 50,000 lines"),
        (lambda lines: lines.append("1\n"), "must have 50,000 lines"),
        (lambda lines: lines.clear(), "must have 50,000 lines"),
        (lambda lines: lines.insert(1, "0\n"), "line 2: expected an ILSVRC id from 1 to 1000"),
        (lambda lines: lines.insert(1, "1001\n"), "line 2: expected"),
        (lambda lines: lines.insert(1, "n01751748\n"), "line 2: .*got 'n01751748'"),
        (lambda lines: lines.insert(1, "²\n"), "line 2: expected"),
    ],
)
def test_a_ground_truth_that_contradicts_names_the_line(damage, message):
    lines = ground_truth()
    damage(lines)
    with pytest.raises(DataError, match=message):
        check_ground_truth(enumerate(lines, 1), path=Path("truth.txt"))
