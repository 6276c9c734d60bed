"""The HTTP API: its answers are those of snzoo.predict, its errors have one line."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from photo_requests import DEMO, PREDICT, as_json, as_parts, assert_equal
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import snzoo
from snzoo.gates import load_gates
from snzoo.serve import Decoder, LocalEngine, Metrics, create_app
from snzoo.serve.photos import FORMATS

PAGE = (Path(snzoo.__file__).parent / "serve/static/index.html").read_text(encoding="utf-8")


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


def test_the_page_offers_the_formats_that_the_server_takes():
    Image.init()
    (accepted,) = re.findall(r'id="files"[^>]* accept="([^"]*)"', PAGE)
    types = {Image.MIME[name]: name for name in FORMATS} | Image.EXTENSION
    assert {types[each] for each in accepted.split(",")} == set(FORMATS)


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
