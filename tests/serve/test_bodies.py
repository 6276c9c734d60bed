"""Bodies and queries of requests: all forms are read, and mistakes are named in one line."""

import base64
import struct
import zlib

import pytest
from photo_requests import DEMO, PREDICT, as_json, as_parts, assert_equal

import snzoo
from snzoo.serve import Limits


@pytest.mark.parametrize("kind", ["image/webp", "application/octet-stream"])
def test_a_body_may_be_one_image(make_app, ask, demo, contents, kind):
    content = contents["clear.webp"]
    [expected] = snzoo.predict(demo.network.model, content)
    response = ask(make_app(), "POST", PREDICT, content=content, headers={"Content-Type": kind})
    [photo] = response.json()["photos"]
    assert photo["name"] == "image 0"
    assert_equal(photo["predictions"][0], expected)


def test_fields_of_json_override_the_query(make_app, ask, demo, other, contents):
    app = make_app({DEMO: demo, "other": other})
    body = as_json(contents, models=["other"], topk=2, embeddings=True)
    params = {"model": DEMO, "topk": 4, "embeddings": False}
    [found] = ask(app, "POST", PREDICT, params=params, **body).json()["photos"][0]["predictions"]
    assert found["model"] == "other" and len(found["classes"]) == 2
    assert len(found["embedding"]) == other.network.model.num_features


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
