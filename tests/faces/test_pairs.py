"""Verification sets: .bin files, lists of pairs and folders of people."""

import pickle
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snzoo.data.batches import read_batches
from snzoo.errors import DataError
from snzoo.faces import pairs as module
from snzoo.faces.pairs import balance, check_folds, read_pairs
from snzoo.preprocessing import Preprocessing

FACES = Path(__file__).parents[3] / "shared" / "data" / "faces"
FACES_PREPROCESSING = Preprocessing(112, 112, "RGB", 1, (0.5,) * 3, (0.5,) * 3)


def make_people(folder, counts, suffix=".jpg"):
    """One folder per person, with as many photos as ``counts`` says."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(1, count + 1):
            (folder / name / f"{name}_{i:04}{suffix}").write_bytes(f"{name} {i}".encode())
    return folder


def list_pairs(pairs):
    """The pairs as the names of photos, in order."""
    names = [Path(pairs.photos.locate(i)).stem for i in range(len(pairs.photos))]
    return [
        (names[i], names[j], bool(flag))
        for i, j, flag in zip(pairs.first, pairs.second, pairs.same, strict=True)
    ]


def fold_shares(pairs):
    """The numbers of genuine pairs in the contiguous folds."""
    return [int(fold.sum()) for fold in np.array_split(pairs.same, pairs.folds)]


def test_a_bin_set_has_its_photos_two_by_two(tmp_path):
    photos = [b"a", b"b", b"c", b"d", b"e", b"f"]
    (tmp_path / "agedb_30.bin").write_bytes(pickle.dumps((photos, [True, False, True])))
    pairs = read_pairs(tmp_path / "agedb_30.bin")
    assert (pairs.name, pairs.folds) == ("agedb_30", 10)
    assert [pairs.photos.read(i) for i in pairs.first] == [b"a", b"c", b"e"]
    assert [pairs.photos.read(i) for i in pairs.second] == [b"b", b"d", b"f"]
    assert pairs.same.tolist() == [True, False, True]
    assert pairs.first.dtype == pairs.second.dtype == np.int64 and pairs.same.dtype == np.bool_


LFW = """2\t2
Ann\t1\t2
Bo\t1\t3
Ann\t1\tBo\t2
Bo\t3\tCy\t1
Ann\t2\t3
Bo\t2\t3
Cy\t1\tBo\t1
Cy\t1\tAnn\t2
"""
LFW_PAIRS = [
    ("Ann_0001", "Ann_0002", True),
    ("Bo_0001", "Bo_0003", True),
    ("Ann_0001", "Bo_0002", False),
    ("Bo_0003", "Cy_0001", False),
    ("Ann_0002", "Ann_0003", True),
    ("Bo_0002", "Bo_0003", True),
    ("Cy_0001", "Bo_0001", False),
    ("Cy_0001", "Ann_0002", False),
]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png"])
@pytest.mark.parametrize("convert", [str, lambda t: t.replace("\t", " ").replace("\n", "\r\n")])
def test_pairs_of_lfw_keep_the_order_and_the_folds_of_the_list(tmp_path, suffix, convert):
    folder = make_people(tmp_path / "lfw", {"Ann": 3, "Bo": 3, "Cy": 1}, suffix)
    (folder / "pairs.txt").write_bytes(convert(LFW).encode())
    pairs = read_pairs(folder)
    assert list_pairs(pairs) == LFW_PAIRS
    assert (pairs.name, pairs.folds, len(pairs.photos)) == ("lfw", 2, 7)
    assert balance(pairs) is pairs


def test_a_list_of_labels_names_photos_by_paths(tmp_path):
    make_people(tmp_path, {"Ann": 2, "Bo": 1})
    lines = "Ann/Ann_0001.jpg Ann/Ann_0002.jpg 1\n\nBo/Bo_0001.jpg ./Ann/Ann_0002.jpg 0\n"
    (tmp_path / "pairs_label.txt").write_text("\ufeff" + lines, encoding="utf-8")
    assert list_pairs(read_pairs(tmp_path)) == [
        ("Ann_0001", "Ann_0002", True),
        ("Bo_0001", "Ann_0002", False),
    ]


def with_lfw(lines):
    return {"pairs.txt": lines.replace("  ", "\t")}


def with_labels(lines):
    return {"pairs_label.txt": lines}


@pytest.mark.parametrize(
    "files, message",
    [
        (with_lfw(""), "pairs.txt, line 1: expected the numbers of folds"),
        (with_lfw("10\nAnn  1  2\n"), "line 1: expected the numbers of folds .* got '10'"),
        (with_lfw("0  5\n"), "line 1: expected"),
        (with_lfw("10  99999999\n"), "line 1: expected"),
        (with_lfw("1  1\nAnn  1  2\n"), r"lists 1 pairs, but its first line says 1 · 2 · 1"),
        (with_lfw("1  1\nAnn  1  2\nAnn  x  Bo  1\n"), "line 3: expected 'NAME i j' or"),
        (with_lfw("1  1\nAnn  1  2\nAnn  1  Bo  0\n"), "line 3: expected 'NAME i j' or"),
        (with_lfw("1  1\nAnn  1  2\nAnn  1\n"), "line 3: expected 'NAME i j' or"),
        (with_lfw("1  1\nAnn  1  2\nAnn  1  Bo  7\n"), "line 3: .* no photo Bo/Bo_0007.jpg nor"),
        (
            with_lfw("1  1\nAnn  1  2\nAnn  1  ../Ann  1\n"),
            "line 3: '../Ann/../Ann_0001' may leave",
        ),
        (with_lfw("1  1\nAnn  1  2\nAnn  1  /Bo  1\n"), "line 3: '/Bo//Bo_0001' may leave"),
        (with_lfw("1  1\nAnn  1  2\nAnn  1  Eve  1\n"), "line 3: .*Eve_0001.jpg is a link out of"),
        (with_lfw("1  1\nAnn  1  2\nAnn  1  Bo\0  1\n"), "line 3: "),
        (with_lfw("1  1\nAnn  1  2\nAnn  1  " + "x" * 999 + "  1\n"), "line 3: File name too long"),
        (with_lfw("x" * 70_000), "line 1: 65,536 characters or more"),
        (with_lfw("2  1\nAnn  1  2\nAnn  1  2\nAnn  1  2\nAnn  1  2"), "all pairs show the same"),
        (with_labels("Ann/Ann_0001.jpg Ann/Ann_0002.jpg 2"), "line 1: expected 'PATH1 PATH2 1'"),
        (with_labels("Ann/Ann_0001.jpg 1"), "line 1: expected 'PATH1 PATH2 1'"),
        (with_labels("\nAnn/Ann_0001.jpg Ann/no.jpg 1"), "line 2: .* no photo Ann/no.jpg; copy it"),
        (with_labels("Ann/Ann_0001.jpg ../x.jpg 1"), "line 1: '../x.jpg' may leave the folder"),
        (with_labels("Ann/Ann_0001.jpg Eve/Eve_0001.jpg 1"), "Eve_0001.jpg is a link out of"),
        (with_labels("Ann/Ann_0001.jpg Ann/Ann_0001.jpg 0"), "all pairs show different people"),
        (with_labels("\n"), "pairs_label.txt lists no pair"),
        ({"pairs.txt": b"1 1\n\xff", "x": ""}, "pairs.txt is no text in UTF-8"),
        ({"pairs.txt": "", "pairs_label.txt": ""}, "holds pairs.txt and pairs_label.txt; move"),
        ({"pairs.txt/x": ""}, "pairs.txt is not a regular file"),
        ({"loose.jpg": ""}, "1 images beside them, e.g. loose.jpg"),
        ({}, "Eve_0001.jpg is a link out of .*; copy the photo there"),
    ],
)
def test_improper_lists_and_folders_are_refused(tmp_path, files, message):
    outside = make_people(tmp_path / "outside", {"Eve": 1})
    folder = make_people(tmp_path / "set", {"Ann": 2, "Bo": 1})
    (folder / "Eve").symlink_to(outside / "Eve")
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        read_pairs(folder)
    assert str(caught.value).isprintable() and str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["none", "none.bin", "note.txt"])
def test_other_paths_are_refused(tmp_path, name):
    (tmp_path / "note.txt").touch()
    with pytest.raises(DataError, match=f"{name}(: No such file| is no verification set; name a)"):
        read_pairs(tmp_path / name)
    with pytest.raises(DataError, match=r"holds neither pairs.txt nor pairs_label.txt nor folders"):
        read_pairs(tmp_path)


def test_folders_of_people_give_all_pairs(tmp_path):
    counts = {"Ann": 3, "Bo": 1, "Cy": 2, "Di": 4}
    pairs = read_pairs(make_people(tmp_path / "team", counts))
    photos = [f"{name}_{i:04}" for name, count in counts.items() for i in range(1, count + 1)]
    expected = {(a, b, a.split("_")[0] == b.split("_")[0]) for a, b in combinations(photos, 2)}
    listed = list_pairs(pairs)
    assert set(listed) == expected and len(listed) == len(expected) == 45
    assert pairs.name == "team"
    sizes = [5] * 5 + [4] * 5
    assert sum(fold_shares(pairs)) == 3 + 0 + 1 + 6
    for share, size in zip(fold_shares(pairs), sizes, strict=True):
        assert abs(share - 10 * size / 45) < 1


def test_balanced_pairs_have_both_kinds_equally_in_every_fold(tmp_path):
    pairs = read_pairs(make_people(tmp_path / "team", {f"p{i:02}": 2 for i in range(30)}))
    balanced = balance(pairs)
    assert set(list_pairs(balanced)) <= set(list_pairs(pairs))
    assert len(set(list_pairs(balanced))) == 60 and balanced.same.sum() == 30
    assert fold_shares(balanced) == [3] * 10
    assert balanced.photos is pairs.photos
    assert list_pairs(balance(pairs)) == list_pairs(balanced)
    assert list_pairs(balance(pairs, seed=1)) != list_pairs(balanced)


@pytest.mark.parametrize(
    "counts, words",
    [
        ({"Ann": 2, "Bo": 2, "Cy": 2, "Di": 2}, "4 genuine pairs only.* 10 folds needs 5 or more"),
        ({"Ann": 6, "Bo": 1}, None),  # 15 genuine and 6 impostor pairs
        ({"Ann": 4, "Bo": 1}, "4 impostor pairs only"),
    ],
)
def test_folds_need_pairs(tmp_path, counts, words):
    pairs = read_pairs(make_people(tmp_path / "team", counts))
    if words is None:
        check_folds(pairs, tmp_path)
        assert len(balance(pairs)) >= pairs.folds
    else:
        assert len(balance(pairs)) < pairs.folds
        with pytest.raises(DataError, match=words):
            check_folds(pairs, tmp_path)
    with pytest.raises(DataError, match="has one fold of pairs"):
        check_folds(replace(pairs, folds=1), tmp_path)


def test_many_pairs_are_drawn_and_the_name_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MOST_PAIRS", 40)
    folder = make_people(tmp_path / "team", {f"p{i}": 10 for i in range(6)})
    every = set(combinations(range(60), 2))
    pairs = read_pairs(folder)
    assert pairs.name == "team, 40 of 270 genuine pairs, 40 of 1,500 impostor pairs"
    listed = set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))
    assert listed <= every and len(listed) == 80 and pairs.same.sum() == 40
    assert (pairs.same == (pairs.first // 10 == pairs.second // 10)).all()
    assert list_pairs(read_pairs(folder)) == list_pairs(pairs)
    assert len(np.unique(pairs.second[~pairs.same])) > 15  # they are not the first ones


@pytest.mark.skipif(not FACES.is_dir(), reason="needs the photos of shared/data/faces")
def test_pairs_of_102_people_are_read_to_exact_pixels():
    pairs = read_pairs(FACES)
    assert len(pairs.photos) == 204
    assert (pairs.same.sum(), (~pairs.same).sum()) == (102, 20_604)
    assert set(fold_shares(pairs)) == {10, 11}
    batches = read_batches(pairs.photos, FACES_PREPROCESSING, batch_size=64, workers=2)
    for batch in batches:
        assert not batch.errors
        for index, pixels in zip(batch.indices, batch.pixels, strict=True):
            photo = np.asarray(Image.open(pairs.photos.locate(index)).convert("RGB"))
            assert np.array_equal(pixels.permute(1, 2, 0).numpy(), photo)
