"""The HTTP API: its answers are those of snzoo.predict, its errors have one line."""

import asyncio
import base64
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import snzoo
from snzoo.gates import load_gates
from snzoo.serve import Decoder, Limits, LocalEngine, Metrics, create_app
from snzoo.serve.photos import FORMATS

DEMO = "resnet18v1_sn_clothing"
PREDICT = "/v1/predict"
PAGE = (Path(snzoo.__file__).parent / "serve/static/index.html").read_text(encoding="utf-8")


def as_parts(contents):
    return {"files": [("f", (name, content)) for name, content in contents.items()]}


def as_json(contents, **fields):
    images = [
        {"base64": base64.b64encode(content).decode(), "name": name}
        for name, content in contents.items()
    ]
    return {"json": {"images": images, **fields}}


def assert_equal(result, expected):
    """The result of a model is the prediction of snzoo.predict."""
    assert [c["name"] for c in result["classes"]] == list(expected.names)
    assert [c["index"] for c in result["classes"]] == list(expected.indices)
    found = [c["probability"] for c in result["classes"]]
    np.testing.assert_allclose(found, expected.probabilities, rtol=0, atol=1e-6)
    if expected.embedding is None:
        assert result["embedding"] is None
    else:
        np.testing.assert_allclose(result["embedding"], expected.embedding, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("body", [as_parts, as_json])
def test_answers_are_those_of_predict(make_app, ask, demo, contents, body):
    expected = snzoo.predict(demo.network.model, contents.values(), topk=3, embeddings=True)
    params = {"topk": 3, "embeddings": True}
    response = ask(make_app(), "POST", PREDICT, params=params, **body(contents))
    answer = response.json()
    assert response.status_code == 200 and 0 < answer["seconds"] < 60
    assert [photo["name"] for photo in answer["photos"]] == list(contents)
    for photo, one in zip(answer["photos"], expected, strict=True):
        assert photo["error"] is None and [p["model"] for p in photo["predictions"]] == [DEMO]
        assert_equal(photo["predictions"][0], one)


@pytest.mark.parametrize("kind", ["image/webp", "application/octet-stream"])
def test_a_body_may_be_one_image(make_app, ask, demo, contents, kind):
    content = contents["clear.webp"]
    [expected] = snzoo.predict(demo.network.model, content)
    response = ask(make_app(), "POST", PREDICT, content=content, headers={"Content-Type": kind})
    [photo] = response.json()["photos"]
    assert photo["name"] == "image 0"
    assert_equal(photo["predictions"][0], expected)


def test_several_models_prepare_photos_in_their_own_way(make_app, ask, demo, other, contents):
    app = make_app({DEMO: demo, "other": other})
    for params, names in (
        ({}, [DEMO, "other"]),
        ({"model": ["other", DEMO, "other"]}, ["other", DEMO]),
        ({"model": "other"}, ["other"]),
    ):
        answer = ask(app, "POST", PREDICT, params=params, **as_parts(contents)).json()
        models = {DEMO: demo, "other": other}
        for i, name in enumerate(names):
            expected = snzoo.predict(models[name].network.model, contents.values())
            for photo, one in zip(answer["photos"], expected, strict=True):
                assert [p["model"] for p in photo["predictions"]] == names
                assert_equal(photo["predictions"][i], one)


def test_fields_of_json_override_the_query(make_app, ask, demo, other, contents):
    app = make_app({DEMO: demo, "other": other})
    body = as_json(contents, models=["other"], topk=2, embeddings=True)
    params = {"model": DEMO, "topk": 4, "embeddings": False}
    [found] = ask(app, "POST", PREDICT, params=params, **body).json()["photos"][0]["predictions"]
    assert found["model"] == "other" and len(found["classes"]) == 2
    assert len(found["embedding"]) == other.network.model.num_features


def test_the_page_offers_the_formats_that_the_server_takes():
    Image.init()
    (accepted,) = re.findall(r'id="files"[^>]* accept="([^"]*)"', PAGE)
    types = {Image.MIME[name]: name for name in FORMATS} | Image.EXTENSION
    assert {types[each] for each in accepted.split(",")} == set(FORMATS)


@pytest.mark.parametrize(
    "encode",
    [
        base64.encodebytes,  # a line break after 76 characters
        lambda content: b"data:image/jpeg;charset=x;base64," + base64.b64encode(content),
        base64.urlsafe_b64encode,
        lambda content: b" \r\n" + base64.b64encode(content) + b"\t\n",
    ],
)
def test_base64_may_be_as_common_tools_write_it(make_app, ask, demo, contents, encode):
    content = contents["turned.jpg"]
    assert {b"+", b"/"} <= set(map(bytes, zip(base64.b64encode(content))))
    body = {"json": {"images": [{"base64": encode(content).decode()}]}}
    [photo] = ask(make_app(), "POST", PREDICT, **body).json()["photos"]
    assert_equal(photo["predictions"][0], *snzoo.predict(demo.network.model, content))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("/9j/4", "4"),
        ("/9j/4A", "padding"),
        ("/9j?", "base64"),
        ("é", "ascii"),
        ("data:image/jpeg,abcd", "base64"),
        ("data:" + "x" * 999 + ";base64,abcd", "base64"),
    ],
)
def test_wrong_base64_is_an_error_of_its_photo(make_app, ask, text, words):
    response = ask(make_app(), "POST", PREDICT, json={"images": [{"base64": text}]})
    [photo] = response.json()["photos"]
    assert response.status_code == 422 and photo["error"].isprintable()
    assert photo["error"].startswith("can't read image 0: its base64 is wrong: ")
    assert words in photo["error"]


@pytest.mark.parametrize("body", [as_parts, as_json])
def test_a_broken_photo_spoils_its_own_answer_only(make_app, ask, demo, contents, body):
    good = contents["turned.jpg"]
    cut = good[: len(good) // 2]
    mixed = {"text.jpg": b"no photo", "a.jpg": good, "cut.jpg": cut, "empty.jpg": b""}
    response = ask(make_app(), "POST", PREDICT, **body(mixed))
    photos = response.json()["photos"]
    assert response.status_code == 200
    assert [bool(photo["predictions"]) for photo in photos] == [False, True, False, False]
    assert [bool(photo["error"]) for photo in photos] == [True, False, True, True]
    assert "can't read text.jpg" in photos[0]["error"]
    assert_equal(photos[1]["predictions"][0], *snzoo.predict(demo.network.model, good))
    none = ask(make_app(), "POST", PREDICT, **body({"text.jpg": b"no photo"}))
    assert none.status_code == 422 and none.json()["photos"][0]["error"]


def raw_png(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + header + end + b"\0\0\0\0IDAT"


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (raw_png(8_000, 8_000), "8000x8000 pixels, more than 1,000,000"),
        (raw_png(60_000, 60_000), "more than 178,956,970 pixels, which may be a decompression"),
        (b"", "the file is empty"),
        (raw_png(2, 20_000), "2x20000 pixels are too narrow"),
        (EPS, "not a photo in a format that the server takes: JPEG, PNG, WEBP, GIF, BMP"),
    ],
    ids=["large", "huge", "empty", "narrow", "program"],
)
def test_photos_are_refused_by_their_headers(make_app, ask, monkeypatch, content, words):
    app = make_app(limits=Limits(pixels=1_000_000))
    monkeypatch.setattr("snzoo.serve.photos.load_pixels", None)  # nothing may be decoded
    response = ask(app, "POST", PREDICT, **as_parts({"p": content}))
    assert response.status_code == 422 and words in response.json()["photos"][0]["error"]


BOUNDARY = "multipart/form-data; boundary=x"
PART = b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.jpg"\r\n\r\ndata\r\n'


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        ({"params": {"topk": 0}}, 400, "topk"),
        ({"params": {"topk": "many"}}, 400, "topk"),
        ({"params": {"top_k": 3}}, 400, "unknown option top_k; did you mean 'topk'?"),
        ({"params": {"k\n": 3}}, 400, "unknown option k\\n; the options are model, topk, emb"),
        ({"params": {"topk": [3, 4]}}, 400, "topk is given more than once"),
        ({"params": {"model": "nobody"}}, 404, "no model named 'nobody'"),
        ({"content": b"data", "headers": {}}, 415, "multipart/form-data"),
        ({"content": b"a=1", "headers": {"Content-Type": "text/html"}}, 415, "image/*"),
        ({"content": b"", "headers": {"Content-Type": BOUNDARY}}, 400, "cut short"),
        ({"content": PART, "headers": {"Content-Type": BOUNDARY}}, 400, "cut short"),
        ({"content": b"--x--", "headers": {"Content-Type": BOUNDARY}}, 400, "no photo"),
        ({"content": PART, "headers": {"Content-Type": BOUNDARY[:20]}}, 400, "boundary"),
        ({"content": b"--xy\r\n\r\n--x--", "headers": {"Content-Type": BOUNDARY}}, 400, "headers"),
        ({"content": b"--x\r\n\r\n--x--", "headers": {"Content-Type": BOUNDARY}}, 400, "headers"),
        ({"files": [("topk", (None, "3"))]}, 400, "?topk=3"),
        ({"files": [("f", ("a", b""))] * 5}, 413, "more than 4 photos"),
        ({"files": [("f", ("a", b""))] * 500}, 413, "more than 4 photos"),
        ({"json": {"images": [{"base64": ""}] * 5}}, 413, "more than 4 photos"),
        ({"json": {"images": [{}] * 9999}}, 413, "more than 4 photos"),
        ({"json": {"images": []}}, 400, "no photo"),
        ({"json": {"images": [{"base64": "", "url": "http://a"}]}}, 400, "either base64 or url"),
        ({"json": {"images": [{"base64": ""}], "topk": 0}}, 400, "topk"),
        ({"json": {"images": [{"base64": ""}], "top": 1}}, 400, "top"),
        ({"json": {"images": [{"base64": ""}], "models": ["no"]}}, 404, "no model named 'no'"),
        ({"json": {"images": [{"url": "http://127.0.0.1/"}]}}, 403, "no URLs"),
        ({"json": {"images": [{"url": "file:///etc/passwd"}]}}, 403, "no URLs"),
        ({"json": {"images": [{"url": ""}]}}, 403, "no URLs"),
        ({"content": b"[" * 400, "headers": {"Content-Type": "application/json"}}, 413, "photos"),
        ({"content": b"[" * 200, "headers": {"Content-Type": "application/json"}}, 400, "JSON"),
    ],
)
def test_errors_have_one_line(make_app, ask, contents, options, status, words):
    if "params" in options:
        options = options | as_parts({"a.jpg": contents["turned.jpg"]})
    app = make_app(limits=Limits(photos=4))
    response = ask(app, "POST", PREDICT, **options)
    [(key, detail)] = response.json().items()
    assert response.status_code == status and key == "detail", response.text
    assert words in detail and "\n" not in detail


def test_an_error_of_the_engine_is_no_answer_of_a_photo(make_app, demo, contents, monkeypatch):
    monkeypatch.setattr(demo, "score", lambda *_, **__: 1 / 0)
    app = make_app()

    async def go():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as session:
            return await session.post(PREDICT, **as_parts(contents))

    response = asyncio.run(go())
    assert response.status_code == 500 and "log" in response.json()["detail"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/predict", "/metrics"])
def test_a_token_guards_what_computes_and_tells(make_app, ask, path):
    app = make_app(token="secret")
    method = "POST" if path == PREDICT else "GET"
    for header in (None, "Bearer wrong", "Bearer ", "secret", "Basic secret", "Bearer sécret"):
        headers = {} if header is None else {"Authorization": header.encode("latin-1")}
        refused = ask(app, method, path, headers=headers)
        assert refused.status_code == 401 and refused.headers["WWW-Authenticate"] == "Bearer"
        assert refused.json() == {"detail": "the token is missing or wrong"}
    passed = ask(app, method, path, headers={"Authorization": "Bearer secret"})
    assert passed.status_code == (415 if path == PREDICT else 200)
    assert ask(app, "GET", "/healthz").status_code == 200


def test_every_answer_forbids_guessing_its_type_and_other_origins(make_app, ask):
    app = make_app(token="secret")
    for method, path in (
        ("GET", "/healthz"),
        ("GET", "/nowhere"),
        ("POST", PREDICT),
        ("DELETE", PREDICT),
    ):
        response = ask(app, method, path, headers={"Origin": "http://elsewhere"})
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert not any(name.startswith("access-control") for name in response.headers)


def test_pages_that_load_scripts_from_elsewhere_are_off(make_app, ask):
    app = make_app()
    assert ask(app, "GET", "/docs").status_code == ask(app, "GET", "/redoc").status_code == 404
    document = ask(app, "GET", "/openapi.json").json()
    body = document["paths"][PREDICT]["post"]["requestBody"]["content"]
    assert {"multipart/form-data", "application/json", "image/*"} <= set(body)
    assert {"PredictRequest", "ImageInput", "PredictResponse"} <= set(
        document["components"]["schemas"]
    )


def test_probes_follow_the_life_of_the_server(demo, ask, contents):
    engine = LocalEngine({DEMO: demo}, metrics=Metrics(), max_batch=2)
    app = create_app(engine)
    assert ask(app, "GET", "/readyz").status_code == 503
    engine.warm_up()
    assert ask(app, "GET", "/readyz").status_code == 200
    app.state.stopping = True
    assert ask(app, "GET", "/readyz").status_code == 503
    assert ask(app, "GET", "/healthz").status_code == 200
    refused = ask(app, "POST", PREDICT, **as_parts(contents))
    assert refused.status_code == 503 and refused.headers["Retry-After"] == "1"


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
def test_probes_may_ask_for_headers_only(make_app, ask, path):
    response = ask(make_app(), "HEAD", path)
    assert response.status_code == 200 and response.headers["Content-Type"].startswith("text/")


def test_models_are_described_with_their_gates(make_app, ask, demo, other):
    first, second = ask(make_app({DEMO: demo, "other": other}), "GET", "/v1/models").json()[
        "models"
    ]
    assert (first["name"], first["classes"], first["input"]) == (DEMO, 10, 128)
    assert first["parameters"] == snzoo.get_info(DEMO).num_params
    assert first["license"] == "CC0-1.0"
    gates = load_gates(DEMO)
    assert [gate["layer"] for gate in first["gates"]] == [gate.name for gate in gates]
    for found, gate in zip(first["gates"], gates, strict=True):
        assert tuple(found["stats"]) == gate.stats
        np.testing.assert_allclose([found["mean"], found["var"]], [gate.mean, gate.var])
    assert (second["classes"], second["input"], second["gates"]) == (12, 32, None)


def test_figures_count_requests_and_photos(make_app, ask, contents):
    app = make_app()
    ask(app, "POST", PREDICT, **as_parts(contents | {"bad": b""}))
    ask(app, "POST", PREDICT)
    ask(app, "GET", "/wp-login.php")
    text = ask(app, "GET", "/metrics").text
    samples = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples[("snzoo_requests_total", "/v1/predict", "200")] == 1
    assert samples[("snzoo_requests_total", "/v1/predict", "415")] == 1
    assert samples[("snzoo_requests_total", "404", "other")] == 1
    assert samples[("snzoo_photos_total", "classified", DEMO)] == len(contents)
    assert samples[("snzoo_photos_total", "failed", DEMO)] == 1
    assert samples[("snzoo_batch_size_sum", DEMO)] == len(contents)
    assert samples[("snzoo_decoding_seconds_count",)] == len(contents)
    assert samples[("snzoo_waiting_seconds_count",)] == len(contents)
    assert samples[("snzoo_queue_length",)] == 0


def test_sixty_four_photos_at_once_share_passes_and_get_their_own_answers(
    demo, monkeypatch, tmp_path
):
    rng = np.random.default_rng(1)
    colors = rng.integers(0, 256, (64, 1, 1, 3))
    photos = (colors + rng.integers(-40, 40, (64, 40, 50, 3))).clip(0, 255).astype(np.uint8)
    expected = snzoo.predict(demo.network.model, list(photos), embeddings=True)
    sizes = []
    score = demo.score

    def count(pixels, **options):
        sizes.append(len(pixels))
        return score(pixels, **options)

    monkeypatch.setattr(demo, "score", count)
    metrics = Metrics()
    decoder = Decoder(workers=2, metrics=metrics)
    engine = LocalEngine(
        {DEMO: demo}, metrics=metrics, max_batch=16, coming=lambda: decoder.pending, threads=2
    )
    app = create_app(engine, decoder=decoder, metrics=metrics)

    async def go():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as session:
            return await asyncio.gather(
                *(
                    session.post(
                        PREDICT,
                        params={"embeddings": i % 2, "topk": 1 + i % 5},
                        files={"f": (f"{i}.png", to_png(photo))},
                    )
                    for i, photo in enumerate(photos)
                )
            )

    responses = asyncio.run(go())
    assert sum(sizes) == 64 and max(sizes) <= 16 and len(sizes) <= 32, sizes
    for i, (response, one) in enumerate(zip(responses, expected, strict=True)):
        [photo] = response.json()["photos"]
        found = photo["predictions"][0]
        k = 1 + i % 5
        assert photo["name"] == f"{i}.png" and len(found["classes"]) == k
        cut = snzoo.inference.Prediction(
            "",
            one.names[:k],
            one.indices[:k],
            one.probabilities[:k],
            one.embedding if i % 2 else None,
        )
        assert_equal(found, cut)


def to_png(pixels):
    import io

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_other_commands_do_not_import_the_server():
    code = (
        "import sys, snzoo\nfrom snzoo.cli.main import build_parser\nbuild_parser()\n"
        "found = {'fastapi', 'uvicorn', 'prometheus_client', 'torch'} & set(sys.modules)\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
