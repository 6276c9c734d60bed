"""Connections over loopback: heads that are slow or long, bodies that nobody reads."""

import signal
import socket
import threading
import time

import pytest

from snzoo.serve import Limits, protocol, run
from snzoo.serve.run import bind, configure

POST = b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n"
GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def connect(make_app, monkeypatch):
    """Return connections to a server in a thread whose heads must arrive in 0.4 s."""
    monkeypatch.setattr(protocol, "SECONDS", 0.4)
    app = make_app(limits=Limits(body=100_000, timeout=0.6))
    server = run._Server(configure(app), app)
    listener = bind("127.0.0.1", 0)
    listener.listen()
    address = listener.getsockname()
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    opened = []

    def make():
        opened.append(socket.create_connection(address, timeout=10))
        return opened[-1]

    make.server = server
    yield make
    for each in opened:
        each.close()
    server.should_exit = True
    thread.join()


def read_all(connection):
    """What comes until the server closes the connection."""
    chunks = []
    try:
        while chunk := connection.recv(1 << 16):
            chunks.append(chunk)
    except ConnectionResetError:
        pass
    return b"".join(chunks)


@pytest.mark.parametrize("start", [b"", b"GET", b"\r\n", GET[:-2]], ids=repr)
def test_a_head_that_does_not_end_is_given_up(connect, start):
    connection = connect()
    connection.sendall(start)
    begun = time.monotonic()
    assert read_all(connection) == b"" and time.monotonic() - begun < 5


def test_a_head_that_drips_is_given_up_after_another_request_too(connect):
    connection = connect()
    connection.sendall(GET)
    assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
    begun = time.monotonic()
    with pytest.raises(OSError):
        for byte in GET * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.1)
            if time.monotonic() - begun > 0.2 and not is_open(connection):
                raise ConnectionResetError
    assert time.monotonic() - begun < 2


def is_open(connection):
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    finally:
        connection.settimeout(10)


@pytest.mark.parametrize("part", [b"x", b"a: b\r\n"], ids=["one line", "many lines"])
def test_a_head_that_is_too_long_is_given_up(connect, part):
    connection = connect()
    with pytest.raises(OSError):
        connection.sendall(GET[:-2])
        for _ in range(200):
            connection.sendall(part * (100_000 // len(part)))
            time.sleep(0.001)


@pytest.mark.parametrize(("size", "answered"), [(60_000, True), (100_000, False)])
def test_a_head_that_arrives_at_once_is_limited_too(connect, size, answered):
    connection = connect()
    connection.sendall(GET[:-2] + b"a: " + b"x" * size + b"\r\nConnection: close\r\n\r\n")
    assert read_all(connection).startswith(b"HTTP/1.1 200") == answered


def test_a_body_may_follow_a_head_at_once(connect):
    connection = connect()
    body = b"x" * 90_000
    connection.sendall(POST + b"Connection: close\r\nContent-Length: 90000\r\n\r\n" + body)
    assert read_all(connection).startswith(b"HTTP/1.1 422")


def test_several_requests_share_a_connection(connect):
    connection = connect()
    for _ in range(5):
        connection.sendall(GET)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        time.sleep(0.15)
    connection.sendall(GET * 3)
    time.sleep(0.3)
    assert connection.recv(1 << 16).count(b"200 OK") == 3


@pytest.mark.parametrize(
    "length", [b"Content-Length: 400000\r\n", b"Transfer-Encoding: chunked\r\n"]
)
def test_the_answer_to_a_body_over_the_limit_arrives(connect, length):
    """The server reads on for a while; else the client would see a reset connection only."""
    connection = connect()
    connection.sendall(POST + length + b"\r\n")
    chunk = b"x" * 40_000
    for _ in range(10):
        connection.sendall(chunk if b"Content" in length else b"9c40\r\n" + chunk + b"\r\n")
    assert b" 413 " in connection.recv(1 << 16).split(b"\r\n")[0]


def test_a_body_that_never_ends_is_given_up_after_its_answer(connect):
    connection = connect()
    connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
    begun = time.monotonic()
    with pytest.raises(OSError):
        while time.monotonic() - begun < 8:
            connection.sendall(b"9c40\r\n" + b"x" * 40_000 + b"\r\n")
            time.sleep(0.01)
    assert time.monotonic() - begun < 5


def test_a_body_that_drips_is_answered_408(connect):
    connection = connect()
    connection.sendall(POST + b"Content-Length: 1000\r\n\r\n")
    for _ in range(5):
        connection.sendall(b"x")
        time.sleep(0.2)
    assert b" 408 " in connection.recv(1 << 16).split(b"\r\n")[0]


def test_a_body_that_arrives_while_the_server_stops_is_waited_for_shortly(connect, monkeypatch):
    monkeypatch.setattr(run, "SLOW", 0.3)
    slow, quick = connect(), connect()
    for each in (slow, quick):
        each.sendall(POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 500)
    time.sleep(0.1)
    connect.server.handle_exit(signal.SIGTERM, None)
    quick.sendall(b"x" * 500)
    assert b" 422 " in read_all(quick).split(b"\r\n")[0]
    answer = read_all(slow)
    assert b" 503 " in answer.split(b"\r\n")[0]
    assert answer.endswith(b'{"detail":"the server is stopping"}')
