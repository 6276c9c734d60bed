"""Folders, lists and tables: what is labeled, and what is refused with which reason."""

import os

import pytest

from snzoo.data import imagenet
from snzoo.data.samples import find_samples
from snzoo.errors import DataError

CLOTHES = ("hat", "t-shirt")
VALIDATION = "ILSVRC2012_val_{:08}.JPEG"


def solve(folder, labels, *, boxes=" 1 2 3 4"):
    """Kaggle's solution file for (number, label) pairs."""
    wnids = imagenet.wnids()
    lines = (f"ILSVRC2012_val_{number:08},{wnids[label]}{boxes}\n" for number, label in labels)
    path = folder / "LOC_val_solution.csv"
    path.write_text("ImageId,PredictionString\n" + "".join(lines))
    return path


def labels(samples):
    return dict(zip(samples.names, samples.labels, strict=True))


def test_a_part_of_the_wnid_folders_keeps_its_class_indices(touch):
    path = touch("n15075141/b.JPEG", "n01443537/a.JPEG", "n01443537/.hidden.jpg", "n15075141/x.txt")
    touch("n01443537/Thumbs.db", "lost+found/x", "__MACOSX/._a.JPEG", "@eaDir/a.JPEG")
    samples = find_samples(path)
    assert labels(samples) == {"n01443537/a.JPEG": 1, "n15075141/b.JPEG": 999}
    assert samples.classes_present == (1, 999)
    assert (
        samples.description
        == "2 images in 2 of 1,000 class folders (1 other files or folders left out)"
    )


@pytest.mark.parametrize(
    "names, labels, description",
    [
        (
            ["ILSVRC2012_val_00000001_n01751748.JPEG", "ILSVRC2012_val_00000002.JPEG"],
            (65, 970),
            "2 flat validation images (a part: 2 of 50,000)",
        ),
        (["n01440764_tench.JPEG", "n01443537_1.jpg"], (0, 1), "2 flat images named by wnid"),
        (
            ["ILSVRC2012_val_00000002.JPEG", "n01443537_1.jpg", "bbox/a.xml"],
            (970, 1),
            "2 flat images named by wnid (1 other files or folders left out)",
        ),
    ],
)
def test_flat_photos_are_labeled_by_their_names(touch, names, labels, description):
    samples = find_samples(touch(*names))
    assert (samples.labels, samples.description) == (labels, description)


@pytest.mark.slow
def test_all_fifty_thousand_are_the_whole_in_any_layout(touch):
    path = touch(*(VALIDATION.format(number) for number in range(1, 50_001)))
    samples = find_samples(path)
    assert samples.labels == tuple(imagenet.validation_labels())
    assert samples.description == "50,000 flat validation images"
    assert samples.dataset == "imagenet-1k-val"
    rows = zip(samples.names, samples.labels, strict=True)
    (path / "list").write_text("".join(f"{name} {label}\n" for name, label in rows))
    assert find_samples(path / "list").dataset == "imagenet-1k-val"
    solve(path, enumerate(imagenet.validation_labels(), 1))
    samples = find_samples(path)
    assert samples.description == "50,000 images labeled by LOC_val_solution.csv"
    assert samples.dataset == "imagenet-1k-val"
    for name, label in zip(samples.names, samples.labels, strict=True):
        folder = path / "val" / imagenet.wnids()[label]
        folder.mkdir(parents=True, exist_ok=True)
        (path / name).rename(folder / name)
    samples = find_samples(path)
    assert samples.description == "50,000 images in 1,000 class folders of val/"
    assert samples.dataset == "imagenet-1k-val"
    image = next((path / "val" / "n01440764").iterdir())
    image.rename(path / "val" / "n01443537" / image.name)
    with pytest.raises(DataError, match=r"val: 1 of 50,000 labels contradict the published ones"):
        find_samples(path / "val")
    (path / "val" / "n01443537" / image.name).unlink()
    assert find_samples(path / "val").dataset is None


@pytest.mark.parametrize(
    "name, text",
    [
        ("list.txt", "\ufeffa b.jpg 7\n\nsub/c.jpg\tn15075141\n/abs.jpg tench\n"),
        ("x.csv", "a b.jpg,7\r\nsub/c.jpg,n15075141\r\n/abs.jpg,tench\r\n"),
        ("x.csv", "path,label\na b.jpg,7\n\nsub/c.jpg, 999\n/abs.jpg,0"),
        ("x", 'Label,split,Path\n7,test,"a b.jpg"\n"toilet tissue",val,sub/c.jpg\n0,val,/abs.jpg'),
    ],
)
def test_a_list_or_csv_names_paths_relative_to_itself(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8", newline="")
    samples = find_samples(path)
    assert labels(samples) == {"a b.jpg": 7, "sub/c.jpg": 999, "/abs.jpg": 0}
    assert [samples.locate(i) for i in range(3)] == [
        str(tmp_path / "a b.jpg"),
        str(tmp_path / "sub" / "c.jpg"),
        "/abs.jpg",
    ]
    assert samples.description == f"3 images listed in {name}"


def test_a_number_in_a_csv_is_an_index_whatever_the_names_of_the_classes(tmp_path):
    (tmp_path / "x.csv").write_text('a.jpg,1\nb.jpg,"big, red hat"\n')
    assert find_samples(tmp_path / "x.csv", ("1", "big, red hat")).labels == (1, 1)


@pytest.mark.parametrize("name", ["val", "validation"])
def test_a_validation_folder_is_taken_by_itself(touch, name):
    path = touch("train/n01440764/a.jpg", f"{name}/n01443537/b.jpg", f"{name}/c.txt", "notes.txt")
    samples = find_samples(path)
    assert labels(samples) == {"n01443537/b.jpg": 1}
    assert samples.locate(0) == str(path / name / "n01443537" / "b.jpg")
    assert samples.description == (
        f"1 images in 1 of 1,000 class folders of {name}/ (1 other files or folders left out)"
    )


def test_a_validation_folder_below_another_is_not(touch):
    path = touch("val/val/n01443537/b.jpg")
    with pytest.raises(DataError, match=r"/val: 1 of 1 folders are not named by wnids .*: val"):
        find_samples(path)
    (path / "val" / "loop").symlink_to(path)
    with pytest.raises(DataError, match="not named by wnids"):
        find_samples(path)


@pytest.mark.parametrize(
    "names, message",
    [
        ([], "neither class folders nor images"),
        (["notes.txt"], "neither class folders nor images"),
        (["train/n01440764/a.jpg"], r"did you mean .*/train\?"),
        (
            ["val/n01443537/b.jpg", "validation/n01443537/b.jpg"],
            "holds val and validation; name the one to use",
        ),
        (["test/a.jpg", "train/n01440764/a.jpg"], r"did you mean .*/test\?"),
        (
            ["1/a.jpg", "2/b.jpg"],
            r"numbers alone don't tell whose order they follow: name folders by wnid, or name a "
            "csv of 'path,label' lines",
        ),
        (["65/ILSVRC2012_val_00000001.JPEG"], "numbers alone don't tell"),
        (
            ["2/x.jpg", "490/ILSVRC2012_val_00000001.JPEG"],
            r"2 of 2 .*; folder 490 holds photos of n01751748 \(sea snake\), so these numbers "
            "are not class indices: name folders by wnid, or name a csv",
        ),
        (
            ["n01440764/ILSVRC2012_val_00000001.JPEG", "n01443537/a.jpg"],
            r"1 of 2 labels contradict .* ILSVRC2012_val_00000001 is class 65 \(n01751748\), not 0",
        ),
        (
            ["ILSVRC2012_val_00000001_n01440764.JPEG"],
            r"1 of 1 labels contradict .* is class 65 \(n01751748\), not n01440764",
        ),
        (
            ["cats/a.jpg", "n01440764/b.jpg"],
            r"1 of 2 folders are not named by wnids .*: cats; snzoo takes class folders, ",
        ),
        (["n99999999/a.jpg"], "not named by wnids"),
        (["n01440764/a.txt"], "hold no image"),
        (["n01440764/a.jpg", "b.jpg"], "1 images beside them, e.g. b.jpg"),
        (["a.jpg"], "a.jpg is neither like ILSVRC2012_val_.* tells its class; snzoo takes "),
        (["n99999999_1.JPEG", "n01440764_1.JPEG"], "n99999999_1.JPEG is neither like"),
        (["ILSVRC2012_val_00050001.JPEG"], "to 00050000"),
        (["ILSVRC2012_val_00000000.JPEG"], "to 00050000"),
        (["ILSVRC2012_val_00000001.JPEG", "ILSVRC2012_val_00000001.png"], "00000001 2 times"),
        (
            ["n01751748/ILSVRC2012_val_00000001.JPEG", "n01751748/ILSVRC2012_val_00000001.png"],
            "2 t",
        ),
        (["a\n\x1b.jpg"], r"a\\n\\x1b.jpg is neither like"),
    ],
)
def test_what_cannot_be_labeled_is_refused_saying_what_was_found(touch, names, message):
    path = touch(*names)
    with pytest.raises(DataError, match=message) as caught:
        find_samples(path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


def test_numbers_may_be_the_names_of_classes(touch):
    samples = find_samples(touch("2/a.jpg", "1/b.jpg"), ("2", "1"))
    assert labels(samples) == {"2/a.jpg": 0, "1/b.jpg": 1}
    with pytest.raises(DataError, match=r"numbers alone don't tell .*: name folders by class"):
        find_samples(touch(), CLOTHES)


def test_folders_below_a_class_are_counted_as_left_out(touch):
    samples = find_samples(touch("hat/a.jpg", "hat/deep/b.jpg", "hat/deep/c.jpg", "x.txt"), CLOTHES)
    assert samples.description.startswith("1 images in 1 of 2 class folders (2 other files or")


def test_broken_links_are_kept_to_be_reported(touch):
    path = touch("hat/a.jpg")
    (path / "hat" / "b.jpg").symlink_to("nowhere")
    assert len(find_samples(path, CLOTHES)) == 2


def test_kaggles_tree_is_taken_whether_its_photos_are_sorted_or_flat(touch):
    path = touch("ILSVRC/Data/CLS-LOC/val/n01440764/a.JPEG", "LOC_val_solution.csv")
    samples = find_samples(path)
    assert samples.labels == (0,) and "of ILSVRC/Data/CLS-LOC/val/" in samples.description


@pytest.mark.parametrize("text", ["n01440764_10026.JPEG 7", "x/n01440764_1.JPEG 1"])
def test_names_of_training_photos_must_agree_with_their_labels(tmp_path, text):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=r"named after class n01440764, but labeled n01"):
        find_samples(tmp_path / "list.txt")


def test_photos_of_named_classes_need_their_folders(touch):
    with pytest.raises(DataError, match="without class folders"):
        find_samples(touch("a.jpg"), CLOTHES)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "lists no image"),
        ("a.jpg 1\nb.jpg\n", "line 2: expected 'path index'"),
        ("a.jpg 1000\n", "line 1: '1000' is no class: neither an index from 0 to 999, nor a wnid"),
        ("a.jpg -1\n", "line 1: '-1' is no class"),
        ("a.jpg ²\n", "line 1: '²' is no class"),
        ("7\n", "line 1"),
        ("a.jpg 1\na.jpg 2\n", "line 2: 'a.jpg' is listed before"),
        ("ILSVRC2012_val_00000001.JPEG 489\n", "is class 65 .*, not 489"),
        ("a" * 70_000 + " 1\n", "line 1: 65,536 characters or more"),
        ("path,index\na.jpg,1\n", "line 1: expected 'path index'"),
        ("path,label\n", "lists no image"),
        ("path,label\na.jpg\n", "line 2: expected 2 columns, path and label among them"),
        ("path,label,split\na.jpg,1\n", "line 2: expected 3 columns"),
        ("path,label\n,1\n", "line 2: expected 2 columns"),
        ('path,label\na.jpg,"1\n', "line 2: unexpected end of data"),
        ("path,label\na.jpg,1\na.jpg,1\n", "line 3: 'a.jpg' is listed before"),
        ("path,label\na.jpg,cat\n", "line 2: 'cat' is no class"),
    ],
)
def test_malformed_lists_name_the_line(tmp_path, text, message):
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        find_samples(path)


def test_binary_files_pipes_and_missing_paths_are_refused(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"neither a tar, a zip nor text in UTF-8; snzoo takes "):
        find_samples(path)
    with pytest.raises(DataError, match="does not exist"):
        find_samples(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")  # reading it would wait forever
    with pytest.raises(DataError, match="not a regular file"):
        find_samples(tmp_path / "pipe")


def ground_truth(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [f"{(label * 7 + 3) % 1000 + 1}\n" for label in imagenet.validation_labels()]
    path.write_text("".join(ids))
    return ids


@pytest.mark.parametrize("folder", ["", "ILSVRC2012_devkit_t12/data/"])
@pytest.mark.parametrize("images", ["", "val/"])
def test_flat_photos_are_compared_with_the_ground_truth_beside_them(touch, folder, images):
    path = touch(f"{images}ILSVRC2012_val_00000001.JPEG")
    truth = path / folder / "ILSVRC2012_validation_ground_truth.txt"
    ids = ground_truth(truth)
    samples = find_samples(path)
    assert samples.labels == (65,)
    assert samples.description == (
        f"1 flat validation images{' of val/' * bool(images)} (a part: 1 of 50,000), checked "
        "against ILSVRC2012_validation_ground_truth.txt"
    )
    truth.write_text("".join([*ids[:-1], ids[-2]]))
    with pytest.raises(DataError, match=r"ground_truth.txt, line 50000: id \d+ contradicts"):
        find_samples(path)


@pytest.mark.parametrize("folder", ["", "val/", "ILSVRC/Data/CLS-LOC/val/"])
def test_kaggles_solution_file_labels_the_photos_in_its_places(touch, folder):
    path = touch(f"{folder}ILSVRC2012_val_00000002.JPEG", f"{folder}ILSVRC2012_val_00000001.JPEG")
    solution = solve(path, [(2, 970), (1, 65)], boxes=" 1 2 3 4 ")
    for given in (path, solution):
        samples = find_samples(given)
        assert labels(samples) == {VALIDATION.format(1): 65, VALIDATION.format(2): 970}
        assert samples.locate(0) == str(path / folder / VALIDATION.format(1))
        assert samples.description == "2 images labeled by LOC_val_solution.csv"
    solve(path, [(2, 970), (1, 65), (3, 230)])
    assert find_samples(path).description == (
        "2 images labeled by LOC_val_solution.csv (a part: 1 that it names are not there)"
    )


def test_several_boxes_of_one_class_are_one_label(touch):
    path = touch("a.JPEG")
    text = "ImageId,PredictionString\r\na,n01443537 1 2 3 4 n01443537 5 6 7 8 \r\n"
    (path / "LOC_val_solution.csv").write_text("\ufeff" + text, encoding="utf-8")
    assert labels(find_samples(path)) == {"a.JPEG": 1}


def test_class_folders_need_no_solution_file(touch):
    path = touch("n01443537/a.JPEG")
    solve(path, [(1, 65)])
    assert labels(find_samples(path)) == {"n01443537/a.JPEG": 1}


@pytest.mark.parametrize(
    "rows, message",
    [
        ("", "lists no image"),
        ("../a,n01443537 1 2 3 4\n", "line 2: expected 'ImageId,wnid"),
        ("b/a,n01443537 1 2 3 4\n", "line 2: expected 'ImageId,wnid"),
        ("/etc/a,n01443537 1 2 3 4\n", "line 2: expected 'ImageId,wnid"),
        ("a\n", "line 2: expected 'ImageId,wnid"),
        ("a,\n", "line 2: expected 'ImageId,wnid"),
        ("a,n01443537 1 2 3 4,5\n", "line 2: expected 'ImageId,wnid"),
        ("a,n01443537 1 2 3 4\nb,n99999999 1 2 3 4\n", "line 3: 'n99999999' is no class"),
        ("a,1 2 3 4 5\n", "line 2: expected 'ImageId,wnid"),
        ("a,n01443537 1 2 3 4 n01440764 5 6 7 8\n", "line 2: expected .* with one wnid"),
        ("a,n01443537 1 2 3 4\na,n01443537 1 2 3 4\n", "line 3: 'a.JPEG' is listed before"),
        ('a,"n01443537 1 2 3 4\n', "line 2: unexpected end of data"),
        ("a," + "n01443537 1 2 3 4 " * 5000, "line 2: 65,536 characters or more"),
        ("c,n01443537 1 2 3 4\n", "none of the 1 images that .* names is beside it"),
        ("ILSVRC2012_val_00000001,n01443537 1 2 3 4\n", "1 of 1 labels contradict .* not 1"),
    ],
)
def test_a_malformed_solution_file_is_refused_naming_the_line(touch, rows, message):
    path = touch("a.JPEG", "b.JPEG", VALIDATION.format(1))
    (path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + rows)
    for given in (path, path / "LOC_val_solution.csv"):
        with pytest.raises(DataError, match=message) as caught:
            find_samples(given)
        assert str(path / "LOC_val_solution.csv") in str(caught.value)
