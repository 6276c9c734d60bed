"""Measure `snzoo serve` and other servers of the same network under the same load.

python benchmarks/serving.py --output benchmarks/results/NAME.json

wrk sends the bundled photos from a process of its own. README.md has the method.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import harness
import requests
import torch
from harness import Document, Row

import snzoo
from snzoo.errors import SnzooError

FOLDER = Path(__file__).parent / "servers"
PHOTOS = sorted((Path(snzoo.__file__).parent / "demo" / "photos").glob("*/*.jpg"))
CHECKED = 4  # photos whose answers are compared with those of snzoo.predict
STARTING = 120  # seconds in which a server must answer


class Server(NamedTuple):
    """A contender, and the arguments of Python that start it."""

    name: str
    arguments: tuple[str, ...]


class Turn(NamedTuple):
    """A server under the load of some clients."""

    server: Server
    model: str
    clients: int


def main(arguments: Sequence[str] | None = None) -> int | str:
    parser = harness.make_parser(__doc__, rounds=3)
    add = parser.add_argument
    models = ["resnet18v1_sn_clothing", "resnet50v1_sn"]
    add("--model", nargs="+", default=models, metavar="NAME", help="snzoo's models")
    add("--clients", type=harness.positive, nargs="+", default=[16], metavar="N", help="at once")
    add("--seconds", type=harness.positive, default=8, metavar="S", help="of a measurement")
    args = parser.parse_args(arguments)
    return harness.run_benchmark(
        lambda: run(args.model, args.clients, args.seconds, args.rounds), markdown, args.output
    )


def run(models: Sequence[str], clients: Sequence[int], seconds: int, rounds: int) -> Document:
    """Check the answers, measure, and return the document.

    Raises:
        SnzooError: wrk is not installed, or a server gives other answers or errors.
    """
    if not shutil.which("wrk"):
        raise SnzooError("no wrk, which sends the requests: apt-get install wrk")
    turns = [
        Turn(server, model, count) for model in models for count in clients for server in servers()
    ]
    with tempfile.TemporaryDirectory() as folder:
        weights = {model: _save_weights(model, Path(folder)) for model in models}
        rows = harness.measure_in_turns(
            turns, rounds, lambda turn: measure(turn, weights[turn.model], seconds), _describe
        )
    return {
        "title": "Servers",
        "photos": f"{len(PHOTOS)} bundled photos",
        "seconds": seconds,
        "rounds": rounds,
        "comparison": compare(rows),
        "measurements": rows,
    }


def servers() -> list[Server]:
    """Return the contenders: snzoo first, and each peer with two settings of its threads."""
    found = [Server("snzoo serve", ("-m", "snzoo", "serve"))]
    peers = {"plain FastAPI": "plain.py"} | (
        {"LitServe": "lit.py"} if find_spec("litserve") else {}
    )
    for name, script in peers.items():
        path = str(FOLDER / script)
        found.append(Server(name, (path,)))
        found.append(Server(f"{name}, 1 thread", (path, "--threads", "1")))
    return found


def measure(turn: Turn, weights: Path | None, seconds: int) -> Row:
    """Start the server, check its answers, load it, and return what wrk measured.

    Raises:
        SnzooError: the server does not start, or gives other answers or errors.
    """
    model = ["--model", turn.model, *(["--weights", str(weights)] if weights else [])]
    with started([*turn.server.arguments, *model]) as (process, url):
        check_answers(url, turn.model, weights)
        command = ["wrk", "-t1", f"-c{turn.clients}", f"-d{seconds}s", "--timeout", "60s"]
        command += ["-s", str(FOLDER / "post.lua"), url, "--", *map(str, PHOTOS)]
        done = subprocess.run(command, capture_output=True, text=True)
        peak = sum(_peak_memory(pid) for pid in _family(process.pid))
    if done.returncode:
        raise SnzooError(f"wrk: {(done.stderr or done.stdout).strip()}")
    found: Row = json.loads(done.stdout.splitlines()[-1])
    if found["errors"]:
        raise SnzooError(f"{turn.server.name} gave {found['errors']} errors")
    rate = round(found["requests"] / found["seconds"], 3)
    about = {"contender": turn.server.name, "model": turn.model, "clients": turn.clients}
    return about | found | {"requests_per_s": rate, "peak_mib": round(peak / 1024, 1)}


@contextmanager
def started(arguments: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Yield the process of a server, and its URL, once it answers; stop it at the end.

    Raises:
        SnzooError: it does not answer.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, *arguments, "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path[1:2], str(FOLDER)])}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            wait_for(port, process)
            yield process, f"http://127.0.0.1:{port}/v1/predict"
        except SnzooError as error:
            log.seek(0)
            printed = log.read().decode(errors="replace").split("\n")
            last = next((line for line in reversed(printed) if line), "it printed nothing")
            raise SnzooError(f"{error}; {last}") from None
        finally:
            with suppress(ProcessLookupError):  # it ended before it answered
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server accepts connections and has answered a request.

    Raises:
        SnzooError: the server ended, or does not answer in time.
    """
    end = time.monotonic() + STARTING
    while time.monotonic() < end and process.poll() is None:
        try:
            files = {"request": ("photo.jpg", PHOTOS[0].read_bytes())}
            url = f"http://127.0.0.1:{port}/v1/predict"
            if requests.post(url, files=files, timeout=60).ok:
                return
        except requests.ConnectionError:
            pass
        time.sleep(0.2)
    raise SnzooError("the server does not answer")


def check_answers(url: str, model: str, weights: Path | None) -> None:
    """Compare some answers with those of :func:`snzoo.predict`.

    Raises:
        SnzooError: they differ.
    """
    network = snzoo.create_model(model, pretrained=weights is None, weights=weights)
    for photo in PHOTOS[:: len(PHOTOS) // CHECKED]:
        (expected,) = snzoo.predict(network, photo)
        answer = requests.post(url, files={"request": photo.read_bytes()}, timeout=60).json()
        if "photos" in answer:
            classes = answer["photos"][0]["predictions"][0]["classes"]
            answer = {
                "indices": [each["index"] for each in classes],
                "probabilities": [each["probability"] for each in classes],
            }
        pairs = zip(answer["probabilities"], expected.probabilities, strict=True)
        if answer["indices"][0] != expected.indices[0] or any(abs(a - b) > 1e-4 for a, b in pairs):
            raise SnzooError(f"the answer for {photo.name} is not that of snzoo.predict")


def _save_weights(model: str, folder: Path) -> Path | None:
    """Write random weights for an architecture; return None for a model that has weights."""
    if snzoo.get_info(model).file is not None:
        return None
    torch.manual_seed(0)
    path = folder / f"{model}.pth"
    network = snzoo.create_model(model)
    network(torch.randn(2, 3, 64, 64))  # running statistics that are not 0
    torch.save(network.state_dict(), path)
    return path


def _family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += _family(int(child))
    return found


def _peak_memory(pid: int) -> int:
    """Return the largest resident set of a process so far, in KiB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def compare(rows: Sequence[Row]) -> list[Row]:
    """Return each contender's figures, and its rate and latency relative to snzoo's per round."""
    found = []
    keys = list(dict.fromkeys((row["model"], row["clients"]) for row in rows))
    for model, clients in keys:
        same = [row for row in rows if (row["model"], row["clients"]) == (model, clients)]
        ours = {row["round"]: row for row in same if row["contender"] == "snzoo serve"}
        for name in dict.fromkeys(row["contender"] for row in same):
            mine = [row for row in same if row["contender"] == name]
            values = {key: [row[key] for row in mine] for key in ("requests_per_s", "p50_ms")}
            values["p99_ms"] = [row["p99_ms"] for row in mine]
            values["peak_mib"] = [row["peak_mib"] for row in mine]
            values["speed of snzoo"] = [
                ours[row["round"]]["requests_per_s"] / row["requests_per_s"] for row in mine
            ]
            spreads = {key: harness.spread(each) for key, each in values.items()}
            found.append({"model": model, "clients": clients, "contender": name} | spreads)
    return found


def _describe(row: Row) -> str:
    what = f"{row['model']}, {row['clients']} clients, {row['contender']}"
    return f"{what}: {row['requests_per_s']:.1f} requests/s, 99 % within {row['p99_ms']:.0f} ms"


def markdown(document: Document) -> str:
    """Return the document as Markdown, without the single rounds."""
    heads = ["requests/s", "median, ms", "99 %, ms", "peak memory, MiB", "speed of snzoo"]
    lines = [
        *harness.heading(document),
        f"{document['photos']}; {document['seconds']} s for each measurement; rounds: "
        f"{document['rounds']}.",
        *harness.describe_elsewhere(document),
    ]
    rows = document["comparison"]
    for model, clients in dict.fromkeys((row["model"], row["clients"]) for row in rows):
        table = [["", *heads]]
        for row in rows:
            if (row["model"], row["clients"]) == (model, clients):
                cells = [
                    harness.show_spread(row["requests_per_s"], 1),
                    harness.show_spread(row["p50_ms"], 0),
                    harness.show_spread(row["p99_ms"], 0),
                    f"{row['peak_mib']['median']:,.0f}",
                    harness.show_spread(row["speed of snzoo"]),
                ]
                table.append([row["contender"], *cells])
        lines += ["", f"`{model}`, {clients} clients:", "", *harness.table(*table)]
    lines += ["", "Medians (least … most); each ratio is of one round."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
