"""The photos of both splits and their classes, in every layout, and what is refused."""

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from snzoo.data.augment import Augmentation
from snzoo.data.splits import find_classes, find_split, find_splits
from snzoo.data.training_batches import read_training_batches
from snzoo.errors import DataError

FACES = Path(__file__).parents[3] / "shared" / "data" / "faces"
CLOTHES = ("hat", "t-shirt")
TRAIN = ("hat/a.jpg", "hat/b.jpg", "t-shirt/c.jpg")
HELD_OUT = ("hat/x.jpg", "t-shirt/y.jpg")


def content(name):
    """What the photo of a name holds in these tests, which decode none."""
    return f"content of {name}".encode()


def tar(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for info, data in members:
            info = tarfile.TarInfo(info) if isinstance(info, str) else info
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def as_folder(path, name, names):
    for photo in names:
        (path / name / photo).parent.mkdir(parents=True, exist_ok=True)
        (path / name / photo).write_bytes(content(photo))


def as_tar(path, name, names):
    tar(path / f"{name}.tar", [(f"{name}/{photo}", content(photo)) for photo in names])


def as_zip(path, name, names):
    with zipfile.ZipFile(path / f"{name}.zip", "w") as file:
        for photo in names:
            file.writestr(photo, content(photo))


def as_csv(path, name, names):
    as_folder(path, "photos", names)
    lines = (f"photos/{photo},{photo.split('/')[0]}\n" for photo in names)
    (path / f"{name}.csv").write_text("path,label\n" + "".join(lines))


def as_list(path, name, names):
    as_folder(path, "photos", names)
    lines = (f"photos/{photo} {photo.split('/')[0]}\n" for photo in names)
    (path / f"{name}.txt").write_text("".join(lines))


def as_parquet(path, name, names):
    as_shards(path, name, names, shards=1)
    (path / "data" / f"{name}-00000-of-00001.parquet").rename(path / f"{name}.parquet")


def as_shards(path, name, names, shards=2, folder="data"):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    (path / folder).mkdir(exist_ok=True)
    features = {"label": {"names": list(CLOTHES)}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for shard in range(shards):
        part = names[shard::shards]
        columns = {
            "image": [{"bytes": content(photo), "path": photo} for photo in part],
            "label": [CLOTHES.index(photo.split("/")[0]) for photo in part],
        }
        table = pa.table(columns).replace_schema_metadata(metadata)
        parquet.write_table(table, path / folder / f"{name}-{shard:05}-of-{shards:05}.parquet")


def as_loose_shards(path, name, names):
    as_shards(path, name, names, folder=".")


def as_webdataset(path, name, names):
    for shard in range(2):
        members = []
        for photo in names[shard::2]:
            label, file = photo.split("/")
            members.append((f"{label}-{file}", content(photo)))
            members.append((f"{label}-{file[:-4]}.cls", str(CLOTHES.index(label)).encode()))
        tar(path / f"{name}-{shard:04}.tar", members)


NAMED = [as_folder, as_tar, as_zip, as_csv, as_list, as_parquet, as_shards, as_loose_shards]


def contents(samples):
    return {samples.read(i): label for i, label in enumerate(samples.labels)}


def expected(names):
    return {content(name): CLOTHES.index(name.split("/")[0]) for name in names}


@pytest.mark.parametrize("validation", ["val", "validation"])
@pytest.mark.parametrize("write", [*NAMED, as_webdataset])
def test_both_splits_are_found_in_every_layout(tmp_path, write, validation):
    write(tmp_path, "train", TRAIN)
    write(tmp_path, validation, HELD_OUT)
    (tmp_path / "README.txt").write_text("notes")
    train, held_out = find_splits(tmp_path, CLOTHES)
    assert contents(train) == expected(TRAIN)
    assert contents(held_out) == expected(HELD_OUT)
    assert contents(find_split(tmp_path, "train", CLOTHES)) == expected(TRAIN)
    if write is as_webdataset:
        with pytest.raises(DataError, match=r"doesn't name its classes; .* add --classes FILE"):
            find_classes(tmp_path)
    else:
        assert find_classes(tmp_path) == CLOTHES


@pytest.mark.parametrize("write", [as_folder, as_tar, as_zip, as_csv, as_parquet])
def test_a_path_may_be_the_split_itself(tmp_path, write):
    write(tmp_path, "some", TRAIN)
    write(tmp_path, "other", HELD_OUT)
    some, other = (
        next(p for p in tmp_path.iterdir() if p.stem == stem and p.name != "photos")
        for stem in ("some", "other")
    )
    train, held_out = find_splits(some, CLOTHES, validation=other)
    assert contents(train) == expected(TRAIN) and contents(held_out) == expected(HELD_OUT)
    assert find_classes(some) == CLOTHES
    with pytest.raises(DataError, match="can't be the training and the validation photos at once"):
        find_splits(some, CLOTHES)


def test_classes_of_lists_with_indices_must_be_named_in_a_file(tmp_path):
    (tmp_path / "train.txt").write_text("a.jpg 0\nb.jpg hat\n")
    with pytest.raises(DataError, match=r"train.txt doesn't name its classes"):
        find_classes(tmp_path)


def test_parquet_without_names_says_to_write_them_into_a_file(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table({"image": [{"bytes": b"x"}], "label": [0]})
    parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train.parquet doesn't name its classes"):
        find_classes(tmp_path)


def harm_nothing(path):
    as_folder(path, "train", TRAIN)
    as_folder(path, "val", HELD_OUT)


def no_train(path):
    as_folder(path, "val", HELD_OUT)


def no_validation(path):
    as_shards(path, "train", TRAIN)


def no_photo_of_a_class(path):
    as_folder(path, "train", TRAIN)
    as_folder(path, "val", HELD_OUT[:1])


def an_empty_class(path):
    as_folder(path, "train", TRAIN[:2])
    (path / "train" / "t-shirt").mkdir()
    as_folder(path, "val", HELD_OUT)


def another_class(path):
    harm_nothing(path)
    as_folder(path, "val", ["shoe\n/a.jpg"])


def loose_photos(path):
    harm_nothing(path)
    (path / "train" / "e.jpg").touch()


def two_names(path):
    harm_nothing(path)
    as_folder(path, "validation", HELD_OUT)


def nothing_at_all(path):
    (path / "train").mkdir()
    as_folder(path, "val", HELD_OUT)


@pytest.mark.parametrize(
    "write, message",
    [
        (no_train, r"holds no training photos: neither train/ nor"),
        (no_validation, r"holds no validation photos: neither val/ nor validation/ nor"),
        (no_photo_of_a_class, r"1 of 2 classes have no validation photo .*: t-shirt"),
        (an_empty_class, r"1 of 2 classes have no training photo .*: t-shirt"),
        (another_class, r"val: 1 of 3 folders are not named by classes .*: shoe\\n"),
        (loose_photos, r"holds class folders and 1 images beside them, e.g. e.jpg"),
        (two_names, r"holds val and validation; name the one to use"),
        (nothing_at_all, r"train holds neither class folders nor images"),
        (lambda path: None, "neither class folders nor images"),
    ],
)
def test_unfit_data_are_refused(tmp_path, write, message):
    write(tmp_path)
    with pytest.raises(DataError, match=message) as error:
        find_splits(tmp_path, CLOTHES)
    assert "\n" not in str(error.value)


def test_one_class_is_not_enough(tmp_path):
    as_folder(tmp_path, "train", TRAIN[:2])
    with pytest.raises(DataError, match=r"one class only, hat; training needs two"):
        find_classes(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        find_classes(tmp_path / "missing")


def test_kaggles_layout_has_both_splits(tmp_path):
    root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    as_folder(root, "train", ["n01440764/n01440764_1.JPEG", "n15075141/n15075141_2.JPEG"])
    as_folder(root, "val", ["ILSVRC2012_val_00000001.JPEG"])
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\nILSVRC2012_val_00000001,n01751748 1 2 3 4\n"
    )
    train, held_out = find_splits(tmp_path, "imagenet-1k")
    assert train.labels == (0, 999) and held_out.labels == (65,)
    assert find_classes(tmp_path) == ("n01440764", "n15075141")


def test_numbers_of_a_list_are_names_where_they_may_be(tmp_path):
    labels = {"a.jpg": "007", "b.jpg": "10", "c.jpg": "9", "d.jpg": "7"}
    for name, separator in (("train.txt", " "), ("train.csv", ",")):
        path = tmp_path / name
        path.write_text("".join(f"{photo}{separator}{i}\n" for photo, i in labels.items()))
        assert find_classes(path, by_number=True) == ("7", "9", "10")
        photos = find_split(path, "train", ("7", "9", "10"), by_number=True)
        assert photos.labels == (0, 2, 1, 0)
        with pytest.raises(DataError, match=r"doesn't name its classes; .* add --classes FILE"):
            find_classes(path)
        path.write_text(path.read_text() + f"e.jpg{separator}Ann\n")  # which number has Ann?
        with pytest.raises(DataError, match="doesn't name its classes"):
            find_classes(path, by_number=True)
        path.write_text(f"a.jpg{separator}Bob\nb.jpg{separator}Ann\n")
        assert find_classes(path, by_number=True) == ("Ann", "Bob")


def test_a_number_that_is_no_name_is_refused(tmp_path):
    (tmp_path / "train.txt").write_text("a.jpg 7\nb.jpg 1\n")
    with pytest.raises(DataError, match=r"train.txt, line 2: '1' is no class"):
        find_split(tmp_path, "train", ("7", "9", "10"), by_number=True)
    assert find_split(tmp_path, "train", tuple("abcdefgh")).labels == (7, 1)


def copy_faces(path, people):
    """One folder per person in each split."""
    for person in people:
        for split, photo in (("train", "neutral.jpg"), ("val", "smiling.jpg")):
            (path / split / person).mkdir(parents=True)
            shutil.copy(FACES / person / photo, path / split / person)


def list_faces(path, people):
    """A list file of ``relative/path label`` lines for each split."""
    (path / "imgs").symlink_to(FACES)
    for split, photo in (("train", "neutral.jpg"), ("val", "smiling.jpg")):
        lines = [f"imgs/{person}/{photo} {label}\n" for label, person in enumerate(people)]
        (path / f"{split}.txt").write_text("".join(lines))


@pytest.mark.skipif(not FACES.is_dir(), reason="needs the photos of shared/data/faces")
@pytest.mark.parametrize("write", [copy_faces, list_faces])
def test_faces_of_112_pixels_are_training_photos_of_people(tmp_path, write):
    people = sorted(path.name for path in FACES.iterdir() if path.is_dir())
    write(tmp_path, people)
    train, held_out = find_splits(tmp_path, tuple(people))
    assert train.labels == held_out.labels == tuple(range(102))
    augmentation = Augmentation(112, 112, (1, 1), (1, 1), 0.5, (0, 0, 0), "none", 0, "center")
    options = {"seed": 0, "epoch": 0, "workers": 2}
    (batch,) = read_training_batches(train, augmentation, [range(102)], **options)
    assert batch.indices == list(range(102)) and not batch.errors
    for person, pixels in zip(people, batch.pixels, strict=True):
        photo = np.asarray(Image.open(FACES / person / "neutral.jpg"))
        pixels = pixels.permute(1, 2, 0).numpy()
        assert any(np.array_equal(pixels, either) for either in (photo, photo[:, ::-1]))
