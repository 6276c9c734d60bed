"""What downloads of weights and of images share: redirects, sizes, errors in plain words."""

import shutil
import ssl
import subprocess

import pytest
import requests
from pytest_httpserver import HTTPServer
from werkzeug import Response

from snzoo.data.remote import fetch_image
from snzoo.errors import DownloadError
from snzoo.http import explain, iter_body, open_url


@pytest.fixture
def https(tmp_path, monkeypatch):
    """A server whose certificate requests trusts."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    command = ["openssl", "req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    monkeypatch.setenv("NO_PROXY", "*")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with HTTPServer(host="localhost", ssl_context=context) as server:
        yield server


def read(url, limit=100):
    try:
        with open_url(url) as response:
            return b"".join(iter_body(response, 10, limit=limit))
    except requests.RequestException as error:
        raise DownloadError(explain(error)) from None


def redirect(server, path, target):
    server.expect_request(path).respond_with_data(status=302, headers={"Location": target})
    return server.url_for(path)


@pytest.mark.parametrize("get", [read, fetch_image], ids=["weights", "images"])
def test_a_redirect_from_https_to_http_is_refused_before_it_is_followed(https, httpserver, get):
    asked = []
    good = https.url_for("/good")
    https.expect_request("/good").respond_with_data(b"content")
    httpserver.expect_request("/plain").respond_with_handler(lambda request: asked.append(1))
    for target in (httpserver.url_for("/plain"), redirect(httpserver, "/back", good)):
        with pytest.raises(DownloadError, match="redirected from https to http; refused"):
            get(redirect(https, f"/{len(target)}{target[-4:]}", target))
    assert not asked
    assert get(redirect(https, "/relative", "good")) == b"content"
    assert get(redirect(httpserver, "/upgrade", good)) == b"content"
    with pytest.raises(DownloadError, match="too many redirects"):
        get(redirect(https, "/circle", "circle"))


@pytest.mark.parametrize("chunked", [True, False])
def test_a_body_is_bounded(httpserver, chunked):
    def answer(request):
        return Response(iter([b"x" * 50, b"x" * 51]) if chunked else b"x" * 101)

    httpserver.expect_request("/x").respond_with_handler(answer)
    assert len(read(httpserver.url_for("/x"), limit=101)) == 101
    with pytest.raises(DownloadError, match="more than 100 bytes"):
        read(httpserver.url_for("/x"))
