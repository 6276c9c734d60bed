"""Photos on a local Ray cluster get the answers of `snzoo.predict`."""

import asyncio
import base64
import gc
import re
import secrets
import shutil
import socket
import tarfile
from functools import reduce
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

import snzoo
from snzoo.errors import ArgumentError

ray = pytest.importorskip("ray")
pytest.importorskip("ray.serve")
from snzoo.integrations.ray import PhotoClassifier, app  # noqa: E402

pytestmark = pytest.mark.slow
DEMO = Path(snzoo.__file__).parent / "demo" / "photos"
CLASSES = ("a", "b", "c")
RAW = {"Content-Type": "image/jpeg"}


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))  # or Ray saves one in the home folder
        options = {"include_dashboard": False, "log_to_driver": False}
        ray.init("local", num_cpus=2, object_store_memory=200 << 20, **options)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folders of two small networks."""
    folders = [tmp_path_factory.mktemp("models") / f"small{seed}" for seed in range(2)]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        model = snzoo.create_model("resnet18v1_sn", width=8, num_classes=len(CLASSES))
        snzoo.save_pretrained(model, folder, classes=CLASSES)
    return list(map(str, folders))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Seven photos, one of them turned by EXIF, one of them a PNG file, and one broken."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    found = sorted(DEMO.glob("*/*.jpg"))[:6]
    for i, path in enumerate(found):
        shutil.copy(path, folder / f"{i}.jpg")
    with Image.open(found[0]) as image:
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(folder / "0.jpg", exif=exif)
        image.save(folder / "6.png")
    (folder / "5.jpg").write_bytes(found[5].read_bytes()[:1000])
    return sorted(folder.iterdir())


def expect(model, photos, **options):
    """The prediction or the error of each photo, by its stem."""
    errors = []
    found = snzoo.predict(model, photos, on_error=errors.append, **options)
    expected = {Path(prediction.source).stem: prediction for prediction in found}
    assert len(errors) == 1 and len(expected) == len(photos) - 1
    return expected | {"5": str(errors[0])}


def read_folder(photos, folder):
    return ray.data.read_binary_files(str(photos[0].parent), include_paths=True)


def read_tar(photos, folder):
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for photo in photos:
            tar.add(photo, photo.name)
    return ray.data.read_webdataset(str(folder / "photos.tar"), decoder=None)


def read_structs(photos, folder):
    """Parquet files as of Hugging Face."""
    (folder / "parquet").mkdir()
    for half, chosen in enumerate((photos[:3], photos[3:])):
        images = [{"bytes": photo.read_bytes(), "path": photo.name} for photo in chosen]
        table = pa.table({"image": images, "label": [half] * len(images)})
        parquet.write_table(table, folder / "parquet" / f"{half}.parquet")
    return ray.data.read_parquet(str(folder / "parquet"))


def read_store(photos, folder):
    """A binary column, from a file system of pyarrow."""
    (folder / "bucket").mkdir()
    parquet.write_table(make_table(photos), folder / "bucket" / "photos.parquet")
    store = SubTreeFileSystem(str(folder), LocalFileSystem())
    return ray.data.read_parquet("bucket/photos.parquet", filesystem=store)


def make_table(photos):
    contents = [photo.read_bytes() for photo in photos]
    return pa.table({"bytes": contents, "path": [photo.name for photo in photos]})


def check_row(row, expected):
    if isinstance(expected, str):
        reason = re.escape(expected.split(": ")[1])
        assert re.fullmatch(f"can't read .*5(.jpg)?: {reason}", row["error"])
        assert row["class1"] is row["name2"] is row["probability1"] is None
        return
    assert row["error"] is None
    assert (row["class1"], row["class2"]) == expected.indices
    assert (row["name1"], row["name2"]) == expected.names
    close = pytest.approx(expected.probabilities, abs=1e-6)
    assert (row["probability1"], row["probability2"]) == close


# The blocks of tars are of pandas; Ray does not unite them with those of pyarrow.
@pytest.mark.parametrize("readers", [(read_folder, read_structs, read_store), (read_tar,)])
def test_ray_data_classifies_photos(cluster, models, photos, tmp_path, readers):
    datasets = (read(photos, tmp_path) for read in readers)
    rows = (
        reduce(ray.data.Dataset.union, datasets)
        .map_batches(
            PhotoClassifier,
            fn_constructor_kwargs={"models": models[0], "topk": 2},
            batch_format="pyarrow",
            batch_size=4,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        .take_all()
    )
    expected = expect(models[0], photos, topk=2)
    stems = [Path(row["image"]).stem for row in rows]
    assert sorted(stems) == sorted(len(readers) * list(expected))
    labels = {None, 0, 1} if read_structs in readers else {None}
    assert {row.get("label") for row in rows} == labels
    assert not {"bytes", "jpg", "png"} & {column for row in rows for column in row}
    for stem, row in zip(stems, rows, strict=True):
        check_row(row, expected[stem])


@pytest.fixture
def make_classifier(monkeypatch):
    """A classifier in this process, which is not a worker of Ray."""
    monkeypatch.setattr("snzoo.integrations.ray.data.count_cpus", lambda: 2)
    return PhotoClassifier


def test_each_model_has_a_row(models, photos, make_classifier):
    classifier = make_classifier(models, topk=2, embeddings=True)
    rows = classifier(make_table(photos)).to_pylist()
    assert [Path(row["path"]).stem for row in rows] == [p.stem for p in photos for _ in models]
    for number, model in enumerate(models):
        expected = expect(model, photos, topk=2, embeddings=True)
        for row in rows[number::2]:
            assert row["model"] == Path(model).name
            check_row(row, prediction := expected[Path(row["path"]).stem])
            if row["error"] is None:
                assert row["embedding"] == pytest.approx(prediction.embedding.tolist(), abs=1e-5)


def test_a_network_in_training_mode_is_evaluated(models, photos, make_classifier):
    classifier = make_classifier(snzoo.create_model(models[0]).train(), topk=2)
    gc.collect()
    expected = expect(models[0], photos, topk=2)
    for row in classifier(make_table(photos)).to_pylist():
        check_row(row, expected[Path(row["path"]).stem])


def test_photos_are_kept_on_request(models, photos, make_classifier):
    structs = [{"bytes": photos[0].read_bytes(), "path": "a.jpg"}, None]
    table = make_classifier(models[0], keep_photos=True)(pa.table({"image": structs}))
    assert table["image"].to_pylist() == structs
    assert table["error"].to_pylist() == [None, "can't read image 1: it has no bytes"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"photo": [b""]}, "no column of photos among photo; name it with columns="),
        ({"jpg": [[1, 2]]}, "column jpg holds list, .*unless decoder=None"),
        ({"jpg": [b""], "model": [1]}, "have a column model already; call rename_columns"),
    ],
)
def test_columns_that_cannot_be_used_are_named(models, make_classifier, columns, message):
    with pytest.raises(ArgumentError, match=message):
        make_classifier(models[0])(pa.table(columns))


def test_batches_of_another_format_are_refused(models, photos, make_classifier):
    with pytest.raises(ArgumentError, match="batch_format='pyarrow'"):
        make_classifier(models[0])(make_table(photos).to_pandas())


@pytest.mark.parametrize("token", ["", "two words"])
def test_a_token_that_cannot_be_used_opens_no_server(monkeypatch, token):
    monkeypatch.setenv("SNZOO_SERVE_TOKEN", token)
    with pytest.raises(ArgumentError, match="SNZOO_SERVE_TOKEN must have a token"):
        app({})


@pytest.fixture(scope="module")
def url(cluster, models):
    """The address of two networks; with CPUs, the replica would keep them from Ray Data."""
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    options = {"max_batch": "8", "max_wait": "0.2"}  # text, as `serve run` gives it
    limits = {"max_ongoing_requests": 8, "max_queued_requests": 8}
    ray_options = {"ray_actor_options": {"num_cpus": 0}}
    serve.run(app({"models": ",".join(models), **options, **limits, **ray_options}))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def to_parts(photos):
    return {"files": [("photo", (photo.name, photo.read_bytes())) for photo in photos]}


def to_json(photos):
    contents = [base64.b64encode(photo.read_bytes()).decode() for photo in photos]
    names = (photo.name for photo in photos)
    pairs = zip(names, contents, strict=True)
    return {"json": {"images": [{"name": name, "base64": text} for name, text in pairs]}}


def check_photo(photo, expected):
    """Compare the first model of an answer."""
    if isinstance(expected, str):
        assert photo["predictions"] == [] and photo["error"].startswith("can't read")
        return
    classes = photo["predictions"][0]["classes"]
    assert tuple(each["name"] for each in classes) == expected.names
    close = pytest.approx(expected.probabilities, abs=1e-6)
    assert tuple(each["probability"] for each in classes) == close


@pytest.mark.parametrize("make_body", [to_parts, to_json])
def test_ray_serve_classifies_photos_of_a_request(url, models, photos, make_body):
    answer = httpx.post(f"{url}/v1/predict", **make_body(photos), timeout=60)
    assert answer.status_code == 200
    found = answer.json()["photos"]
    expected = [expect(model, photos) for model in models]
    assert [photo["name"] for photo in found] == [photo.name for photo in photos]
    for photo in found:
        check_photo(photo, expected[0][Path(photo["name"]).stem])
        photo["predictions"].reverse()
        check_photo(photo, expected[1][Path(photo["name"]).stem])


def send_together(url, photos, *, model):
    """Send each photo in a request of its own, all at once."""

    async def send():
        async with httpx.AsyncClient(timeout=60) as client:
            posts = [
                client.post(url, params={"model": model}, content=photo.read_bytes(), headers=RAW)
                for photo in photos
            ]
            return await asyncio.gather(*posts)

    return asyncio.run(send())


def count_batches(url, model):
    figures = httpx.get(f"{url}/metrics").text
    found = re.search(rf'snzoo_batch_size_count{{model="{model}"}} (\S+)', figures)
    return float(found[1]) if found else 0


def test_concurrent_requests_go_through_the_network_together(url, models, photos):
    good = [photo for photo in photos if photo.stem != "5"]
    before = count_batches(url, "small0")
    answers = send_together(f"{url}/v1/predict", good, model="small0")
    expected = expect(models[0], photos)
    for photo, answer in zip(good, answers, strict=True):
        check_photo(answer.json()["photos"][0], expected[photo.stem])
    assert 1 <= count_batches(url, "small0") - before < len(good)


def test_requests_beyond_the_queue_of_ray_are_refused(url, photos):
    answers = send_together(f"{url}/v1/predict", photos[:1] * 64, model="small1")
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503} and statuses.count(200) >= 8
