"""``snzoo serve`` as a process: its address, its token, its end."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from PIL import Image

import snzoo
from snzoo.cli import main
from snzoo.cli.main import build_parser

DOCKERFILE = (
    (Path(__file__).parents[2] / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
)
TOKEN = "a-token"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def process():
    """A server of the demo network on a port that it chose; and its URL."""
    command = [sys.executable, "-m", "snzoo", "serve", "--port", "0", "--device", "cpu"]
    environment = os.environ | {"SNZOO_SERVE_TOKEN": TOKEN}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as server:
        line = server.stdout.readline()
        [url] = re.findall(r"http://127\.0\.0\.1:\d+", line)
        yield server, url
        server.kill()


def post(url, content, count=1):
    files = [("f", (f"{i}.jpg", content)) for i in range(count)]
    return requests.post(f"{url}/v1/predict", files=files, headers=HEADERS, timeout=60)


def read_figures(url):
    """The number of requests that were answered 200, and the photos in the queue."""
    text = requests.get(f"{url}/metrics", headers=HEADERS, timeout=60).text
    answered = re.findall(r'path="/v1/predict",status="200"} (\S+)', text)
    [queue] = re.findall(r"^snzoo_queue_length (\S+)", text, re.MULTILINE)
    return sum(map(float, answered)), float(queue)


def test_it_serves_the_demo_network_behind_its_token(process, contents, demo):
    _, url = process
    assert requests.get(f"{url}/readyz", timeout=60).status_code == 200
    assert requests.get(f"{url}/v1/models", timeout=60).status_code == 401
    answer = post(url, contents["turned.jpg"]).json()
    [found] = answer["photos"][0]["predictions"]
    [expected] = snzoo.predict(demo.network.model, contents["turned.jpg"])
    assert found["model"] == "resnet18v1_sn_clothing"
    assert tuple(c["name"] for c in found["classes"]) == expected.names


def test_the_container_starts_this_server_and_asks_whether_it_lives(process):
    _, url = process
    entry, check = (
        json.loads(words)
        for words in re.findall(
            r"^(?:ENTRYPOINT|HEALTHCHECK.*CMD) (\[.*?\])$", DOCKERFILE, re.DOTALL | re.MULTILINE
        )[::-1]
    )
    args = build_parser().parse_args([*entry[1:], "--model", "resnet18v1_sn_clothing"])
    assert (entry[0], args.host, args.port) == ("snzoo", "0.0.0.0", 8000)
    assert f"EXPOSE {args.port}" in DOCKERFILE
    code = check[-1].replace("http://127.0.0.1:8000", url)
    subprocess.run([sys.executable, *check[1:-1], code], check=True)
    with pytest.raises(subprocess.CalledProcessError):
        absent = code.replace("/healthz", "/absent")
        subprocess.run([sys.executable, "-c", absent], check=True, stderr=subprocess.DEVNULL)


def test_a_signal_ends_it_after_the_answers_to_what_it_accepted(process, contents):
    server, url = process
    before, _ = read_figures(url)
    with ThreadPoolExecutor(8) as pool:
        work = [pool.submit(post, url, contents["turned.jpg"], 30) for _ in range(8)]
        answered = queue = 0
        while answered * 30 + queue < 8 * 30:  # until all requests were accepted
            total, queue = read_figures(url)
            answered = total - before
        server.send_signal(signal.SIGTERM)
        done = [each.result() for each in work]
    assert queue > 0 and [response.status_code for response in done] == [200] * 8
    assert all(photo["predictions"] for response in done for photo in response.json()["photos"])
    assert server.wait(30) == 0 and server.stderr.read() == ""
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}/healthz", timeout=5)


def test_an_address_in_use_is_an_error_of_one_line(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1
    assert f"port {port}" in output.err and "in use" in output.err and "--port" in output.err


def test_an_address_of_another_machine_is_an_error_of_one_line(capsys):
    assert main(["serve", "--host", "192.0.2.1", "--port", "0"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "192.0.2.1" in error and "try another --host" in error


@pytest.mark.parametrize(
    ("content", "word"), [(None, "can't read"), (b"", "token"), (b"two words", "blanks")]
)
def test_a_token_that_cannot_be_used_is_an_error(tmp_path, capsys, content, word):
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    assert main(["serve", "--port", "0", "--token-file", str(file)]) == 1
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--port", "65536"],
        ["--port", "-1"],
        ["--timeout", "nan"],
        ["--timeout", "0"],
        ["--max-batch", "0"],
        ["--max-pixels", "0"],
        ["--max-pixels", "179"],
    ],
)
def test_wrong_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        build_parser().parse_args(["serve", *arguments])
    assert error.value.code == 2 and "must be" in capsys.readouterr().err


def test_the_largest_photo_that_the_option_takes_is_none_of_more_pixels_than_pillow_opens():
    args = build_parser().parse_args(["serve", "--max-pixels", "178"])
    assert args.max_pixels * 1e6 <= 2 * Image.MAX_IMAGE_PIXELS < 179e6


def test_an_address_for_everyone_without_a_token_is_warned_of(monkeypatch, capsys):
    monkeypatch.delenv("SNZOO_SERVE_TOKEN", raising=False)
    monkeypatch.setattr("snzoo.serve.local.create_local_app", lambda *_, **__: None)
    monkeypatch.setattr("snzoo.serve.run.run", lambda app, listener, on_start: on_start())
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False)):
        assert main(["serve", "--host", host, "--port", "0"]) == 0
        output = capsys.readouterr()
        assert f"http://{host}:" in output.out and ("--token-file" in output.err) == warned
