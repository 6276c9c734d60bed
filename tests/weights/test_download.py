"""Bad networks, bad servers, bad disks: each ends in one plain line or in the right file."""

import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
from werkzeug import Response

from snzoo import http
from snzoo.weights import download

BY_HAND = ("download it by hand from https://example.org/made", "snzoo import FILE --model made")
HTML = b"\n<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"
MODIFIED = datetime(2018, 7, 1, tzinfo=UTC)
CUT = 300_000  # bytes: more than one chunk arrives


@pytest.mark.parametrize(
    "validator, if_range",
    [
        ({"etag": "one"}, '"one"'),
        ({"etag": None, "modified": MODIFIED}, "Sun, 01 Jul 2018 00:00:00 GMT"),
        ({"etag": None}, None),  # safe, because the checksum is known
    ],
)
def test_a_dropped_connection_is_resumed(zoo, mirror, state, content, validator, if_range):
    zoo.publish(content)
    mirror.answers(mirror.file(content, cut=CUT, **validator), mirror.file(content, **validator))
    zoo.holds(state, zoo.run("fetch", "made"))
    assert mirror.offsets == [None, download.CHUNK]
    assert mirror.seen[1].get("If-Range") == if_range


def test_nothing_is_resumed_that_no_validator_and_no_checksum_vouch_for(
    zoo, mirror, state, content
):
    zoo.publish(content, known=False)
    mirror.answers(mirror.file(content, cut=CUT, etag=None), mirror.file(content, etag=None))
    zoo.holds(state, zoo.run("fetch", "made"))
    assert mirror.offsets == [None, None]


def test_after_four_dropped_connections_another_process_goes_on(zoo, mirror, state, content):
    zoo.publish(content)
    mirror.answers(mirror.file(content, cut=CUT), mirror.file(content, cut=10))
    zoo.refuses(zoo.run("fetch", "made"), "connection closed", "gave up after 4", *BY_HAND)
    assert mirror.offsets == [None] + [download.CHUNK] * 3
    assert zoo.part.read_bytes() == content[: download.CHUNK]

    mirror.answers(mirror.file(content))
    zoo.holds(state, zoo.spawn("fetch", "made"))
    assert mirror.offsets == [download.CHUNK]


@pytest.mark.parametrize("sent, status", [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_after_a_process_was_stopped_another_goes_on(zoo, mirror, state, content, sent, status):
    stopped = threading.Event()

    def stall(request):
        def body():
            yield content[:CUT]
            stopped.wait(60)

        return Response(body(), headers={"Content-Length": str(len(content)), "ETag": '"one"'})

    zoo.publish(content)
    mirror.answers(stall, mirror.file(content))
    process = subprocess.Popen(
        [sys.executable, "-m", "snzoo", "fetch", "made"], stderr=subprocess.PIPE, text=True
    )
    wait_until(lambda: zoo.part.exists() and zoo.part.stat().st_size)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    stopped.set()
    assert process.returncode == status
    assert err == ("snzoo: interrupted\n" if sent == signal.SIGINT else "")
    assert zoo.kept() == {}
    zoo.holds(state, zoo.run("fetch", "made"))
    assert mirror.offsets == [None, download.CHUNK]


def rest(start, end, total):
    """A 206 with that Content-Range, and zeros."""
    where = {"Content-Range": f"bytes {start}-{end}/{total}"}
    return lambda request: Response(bytes(end - start + 1), 206, where)


@pytest.mark.parametrize(
    "second",
    [
        pytest.param(lambda m, c: m.file(c, ranges=False), id="range ignored"),
        pytest.param(lambda m, c: m.file(c, etag="two"), id="changed meanwhile"),
        pytest.param(lambda m, c: rest(1, len(c) - 1, len(c)), id="another range"),
        pytest.param(lambda m, c: rest(download.CHUNK, len(c) - 2, len(c)), id="less"),
        pytest.param(lambda m, c: rest(download.CHUNK, len(c) - 1, len(c)), id="other bytes"),
        pytest.param(lambda m, c: m.reply(206, c), id="no range named"),
        pytest.param(lambda m, c: m.reply(416), id="416"),
    ],
)
def test_a_resume_that_does_not_fit_starts_over(zoo, mirror, state, content, second):
    zoo.publish(content)
    mirror.answers(
        mirror.file(content, cut=CUT),
        second(mirror, content),
        mirror.file(content, etag="two"),
    )
    zoo.holds(state, zoo.run("fetch", "made"))
    assert mirror.offsets in ([None, download.CHUNK], [None, download.CHUNK, None])


def test_a_file_that_changed_meanwhile_is_never_mixed_with_its_start(zoo, mirror, saved, state):
    old, new = saved({key: value + 1 for key, value in state.items()}), saved(state)
    zoo.publish(known=False)
    mirror.answers(mirror.file(old, etag="one", cut=CUT), mirror.file(new, etag="two"))
    zoo.holds(state, zoo.run("fetch", "made"))


def endless(request):
    def body():
        while True:
            yield bytes(65536)

    return Response(body(), mimetype="application/octet-stream")


WRONG = {
    "longer than published": ({}, lambda m, c: m.file(c + b"x"), "bytes instead of"),
    "shorter than published": ({}, lambda m, c: m.file(c[:-1]), "bytes instead of"),
    "endless": ({}, lambda m, c: endless, "more than"),
    "of another sha256": ({}, lambda m, c: m.file(b"x" * len(c)), "sha256 is"),
    "of another md5": ({"sha256": None, "md5": "0" * 32}, lambda m, c: m.file(c), "md5 is"),
    "web page": ({}, lambda m, c: m.reply(200, HTML, Content_Type="text/html"), "a web page"),
    "web page in disguise": ({"size": None}, lambda m, c: m.reply(200, HTML), "a web page"),
    "compressed": ({}, lambda m, c: m.reply(200, c, Content_Encoding="gzip"), "compressed"),
    "not there": ({}, lambda m, c: m.reply(404), "HTTP 404 NOT FOUND"),
    "forbidden": ({}, lambda m, c: m.reply(403), "HTTP 403 FORBIDDEN"),
    "elsewhere": ({}, lambda m, c: m.reply(302, Location="file:///etc/passwd"), "file:"),
}


@pytest.mark.parametrize("fields, answer, words", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_ends_it_at_once(zoo, mirror, state, content, fields, answer, words):
    zoo.publish(content, **fields)
    mirror.answers(answer(mirror, content))
    zoo.refuses(zoo.run("fetch", "made"), "made: localhost: ", words, *BY_HAND)
    assert len(mirror.seen) == 1 and not zoo.part.exists()

    zoo.publish(content)
    zoo.holds(state, zoo.run("fetch", "made"))


def test_the_endless_file_of_an_unknown_size_ends_too(zoo, mirror, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 1_000_000)
    zoo.publish(known=False)
    mirror.answers(endless)
    zoo.refuses(zoo.run("fetch", "made"), "more than 1,000,000 bytes", *BY_HAND)
    mirror.answers(mirror.file(bytes(1_000_001)))
    zoo.refuses(zoo.run("fetch", "made"), "1,000,001 bytes are too many", *BY_HAND)
    assert not zoo.part.exists()


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_server_in_trouble_is_asked_again_four_times(zoo, mirror, state, content, status):
    zoo.publish(content)
    mirror.answers(mirror.reply(status))
    zoo.refuses(zoo.run("fetch", "made"), f"HTTP {status}", "gave up after 4 attempts", *BY_HAND)
    assert len(mirror.seen) == 4

    mirror.answers(mirror.reply(status), mirror.file(content))
    zoo.holds(state, zoo.run("fetch", "made"))
    assert len(mirror.seen) == 2


def test_each_new_attempt_waits_twice_as_long(zoo, mirror, monkeypatch):
    monkeypatch.setattr(download, "BACKOFF", 0.1)
    zoo.publish(known=False)
    mirror.answers(mirror.reply(503))
    start = time.monotonic()
    zoo.run("fetch", "made")
    assert time.monotonic() - start >= 0.1 + 0.2 + 0.4


def silent(connection):
    """No answer, and the line stays open."""


def closing(connection):
    connection.close()


def babbling(connection):
    connection.sendall(b"220 this is no web server\r\n")
    connection.close()


def stalling(connection):
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + bytes(1000))


def resetting(connection):
    stalling(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.fixture
def raw_url():
    """Serves one behavior, byte by byte, on a socket of its own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        connections = []

        def serve(behave):
            def accept():
                while True:
                    try:
                        connection = listener.accept()[0]
                    except OSError:  # the test is over
                        return
                    connections.append(connection)
                    connection.recv(65536)
                    behave(connection)

            threading.Thread(target=accept, daemon=True).start()
            return f"http://127.0.0.1:{listener.getsockname()[1]}/made.pth"

        yield serve
        listener.shutdown(socket.SHUT_RDWR)
    for connection in connections:
        connection.close()


@pytest.mark.parametrize(
    "behave, words",
    [
        (silent, "no answer"),
        (closing, "the connection failed"),
        (babbling, "the connection failed"),
        (stalling, "Read timed out"),
        (resetting, "connection closed"),
    ],
)
def test_a_server_that_breaks_http_is_given_up(
    zoo, state, content, monkeypatch, raw_url, behave, words
):
    patience = 0.3 if behave in (silent, stalling) else 10
    monkeypatch.setattr(http, "TIMEOUT", (10, patience))
    zoo.publish(known=False, urls=[raw_url(behave)])
    zoo.refuses(zoo.run("fetch", "made"), words, "gave up after 4 attempts", *BY_HAND)

    zoo.publish(content)
    zoo.holds(state, zoo.run("fetch", "made"))


def test_a_server_that_is_down_is_named(zoo):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    zoo.publish(known=False, urls=[f"http://127.0.0.1:{port}/made.pth"])
    zoo.refuses(
        zoo.run("fetch", "made"), "127.0.0.1: the connection failed (Connection refused)", *BY_HAND
    )


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(lambda m, c: m.reply(404), id="404"),
        pytest.param(lambda m, c: m.reply(503), id="503"),
        pytest.param(lambda m, c: m.file(b"x" * len(c)), id="wrong file"),
        pytest.param(lambda m, c: m.reply(200, HTML, Content_Type="text/html"), id="web page"),
        pytest.param(lambda m, c: m.file(c, cut=CUT, ranges=False), id="dropping"),
    ],
)
def test_the_second_mirror_stands_in_for_the_first(zoo, mirrors, state, content, bad):
    first, second = mirrors
    zoo.publish(content, urls=[first.url, second.url])
    first.answers(bad(first, content))
    second.answers(second.file(content))
    zoo.holds(state, zoo.run("fetch", "made"))
    assert second.offsets == [None]


def test_where_every_mirror_fails_each_reason_is_named(zoo, mirrors, content):
    first, second = mirrors
    zoo.publish(content, urls=[first.url, second.url])
    first.answers(first.reply(404))
    second.answers(second.file(b"x" * len(content)))
    zoo.refuses(zoo.run("fetch", "made"), "HTTP 404", "; localhost: sha256 is", *BY_HAND)


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
