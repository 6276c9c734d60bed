"""Photos from URLs: only from public addresses, whatever a name or a redirect says."""

import ipaddress
import socket
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from snzoo.errors import DownloadError
from snzoo.serve import Limits, urls
from snzoo.serve.urls import check_public, fetch_public

OPTIONS = {"limit": 1 << 20, "timeout": 10}


class Host:
    """A server on all addresses of this machine; 127.0.0.1 counts as public in the tests."""

    def __init__(self):
        self.paths = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                host.paths.append(self.path)
                host.answer(self)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("0.0.0.0", 0), Handler)
        self.port = self.server.server_address[1]
        Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path, address="127.0.0.1"):
        return f"http://{address}:{self.port}/{path}"

    def answer(self, handler):
        path = handler.path.strip("/")
        if path.startswith("to-"):
            handler.send_response(302)
            handler.send_header("Location", self.url("photo", path.removeprefix("to-")))
            handler.end_headers()
            return
        handler.send_response(200)
        handler.end_headers()
        if path == "drip":
            with suppress(OSError):  # the client goes
                for _ in range(100):
                    handler.wfile.write(b"x")
                    time.sleep(0.1)
            return
        handler.wfile.write(b"x" * (2 << 20) if path == "large" else b"photo")


@pytest.fixture
def host():
    host = Host()
    yield host
    host.server.shutdown()
    host.server.server_close()


@pytest.fixture
def public(monkeypatch):
    """Let 127.0.0.1 count as public, and no other address of this machine."""

    def check(address):
        if address != "127.0.0.1":
            check_public(address)

    monkeypatch.setattr(urls, "check_public", check)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_public_addresses_pass(address):
    check_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.2.1", "198.18.0.1",
        "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1",
        "ff0e::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
        "2002:7f00:1::1", "::127.0.0.1", "::ffff:0:127.0.0.1", "fec0::1", "64:ff9b:1::a00:1",
    ],
)  # fmt: skip
def test_other_addresses_do_not(address):
    with pytest.raises(DownloadError, match="not public"):
        check_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://127.1:{port}/",
        "http://2130706433:{port}/", "http://0x7f000001:{port}/", "http://0:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/", "http://user@127.0.0.1:{port}/",
        "https://127.0.0.1:{port}/",
    ],
)  # fmt: skip
def test_no_request_reaches_this_machine(host, url):
    with pytest.raises(DownloadError, match="not public"):
        fetch_public(url.format(port=host.port), **OPTIONS)
    assert not host.paths


def test_content_arrives_and_proxies_of_the_environment_are_not_used(host, public, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fetch_public(host.url("photo"), **OPTIONS) == b"photo"
    assert fetch_public(host.url("to-127.0.0.1"), **OPTIONS) == b"photo"


def test_a_redirect_to_another_address_is_not_followed(host, public):
    with pytest.raises(DownloadError, match="not public"):
        fetch_public(host.url("to-127.0.0.2"), **OPTIONS)
    assert host.paths == ["/to-127.0.0.2"]


def test_a_name_whose_address_changes_is_refused_before_anything_is_sent(host, monkeypatch):
    """The name has a public address when it is checked, and a private one to connect to."""
    answers = ["8.8.8.8", "127.0.0.1"]

    def resolve(name, port, *_, **__):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(DownloadError, match="not public"):
        fetch_public(host.url("photo", "rebind.example"), **OPTIONS)
    assert not answers and not host.paths


def test_content_over_the_limit_is_refused(host, public):
    with pytest.raises(DownloadError, match="more than 1,048,576 bytes"):
        fetch_public(host.url("large"), **OPTIONS)


def test_content_that_drips_is_given_up(host, public):
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"no answer within 0\.5 s"):
        fetch_public(host.url("drip"), limit=1000, timeout=0.5)
    assert time.monotonic() - start < 3


def test_other_schemes_are_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"photo")
    for url in (f"file://{tmp_path}/photo.jpg", "ftp://8.8.8.8/a", "//8.8.8.8/a", "data:,x"):
        with pytest.raises(DownloadError, match="only http and https"):
            fetch_public(url, **OPTIONS)


def test_json_may_name_urls(host, public, make_app, ask, contents):
    host.answer = lambda handler: (
        handler.send_response(200), handler.end_headers(),
        handler.wfile.write(contents["turned.jpg"]),
    )  # fmt: skip
    app = make_app(allow_urls=True, limits=Limits(timeout=10))
    images = [{"url": host.url("a.jpg")}, {"url": host.url("a.jpg", "127.0.0.2"), "name": "b"}]
    images.append({"url": ""})
    response = ask(app, "POST", "/v1/predict", json={"images": images})
    good, bad, empty = response.json()["photos"]
    assert response.status_code == 200 and good["predictions"] and good["name"] == host.url("a.jpg")
    assert bad["name"] == "b" and "not public" in bad["error"]
    assert "only http and https URLs" in empty["error"]
    assert ipaddress.ip_address("127.0.0.1").is_loopback and len(host.paths) == 1


def test_a_connection_that_takes_longer_than_the_limit_is_closed(host, public, monkeypatch):
    """The time ends between the check of the address and the connection."""
    resolve = socket.getaddrinfo

    def resolve_slowly(*args, **options):
        time.sleep(0.2)
        return resolve(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_slowly)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"no answer within 0\.3 s"):
        fetch_public(host.url("drip"), limit=1000, timeout=0.3)
    assert time.monotonic() - start < 3
