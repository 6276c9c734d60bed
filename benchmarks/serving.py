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
from processes import last_line, session_mib

import snzoo
from snzoo.errors import SnzooError

FOLDER = Path(__file__).parent / "servers"
PHOTOS = sorted((Path(snzoo.__file__).parent / "demo" / "photos").glob("*/*.jpg"))
CLIENTS = 16  # at once
CHECKED = 4  # photos whose answers are compared with those of snzoo.predict
STARTING = 120  # seconds in which a server must answer


class Turn(NamedTuple):
    """A server of a network under load; ``arguments`` of Python start it."""

    server: str
    arguments: Sequence[str]
    model: str
    weights: Path | None


def main(arguments: Sequence[str] | None = None) -> int | str:
    parser = harness.make_parser(__doc__, rounds=3, seconds=(8, "of a measurement"))
    models = ["resnet18v1_sn_clothing", "resnet50v1_sn"]
    add = parser.add_argument
    add("--model", nargs="+", default=models, metavar="NAME", help="snzoo's models")
    args = parser.parse_args(arguments)
    return harness.run_benchmark(
        lambda: run(args.model, args.seconds, args.rounds), markdown, args.output
    )


def run(models: Sequence[str], seconds: int, rounds: int) -> Document:
    """Check the answers, measure, and return the document."""
    if not shutil.which("wrk"):
        raise SnzooError("no wrk, which sends the requests: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        weights = {model: _save_weights(model, Path(folder)) for model in models}
        turns = [
            Turn(server, arguments, model, weights[model])
            for model in models
            for server, arguments in servers().items()
        ]
        rows = harness.measure_in_turns(turns, rounds, lambda turn: measure(turn, seconds))
    return {
        "title": "Servers",
        "photos": f"{len(PHOTOS)} bundled photos",
        "seconds": seconds,
        "rounds": rounds,
        "comparison": compare(rows),
        "measurements": rows,
    }


def servers() -> dict[str, list[str]]:
    """Return the contenders: snzoo first, and each peer with two settings of its threads."""
    found = {"snzoo serve": ["-m", "snzoo", "serve"]}
    peers = {"plain FastAPI": "plain.py"}
    if find_spec("litserve"):
        peers["LitServe"] = "lit.py"
    for name, script in peers.items():
        found[name] = [str(FOLDER / script)]
        found[f"{name}, 1 thread"] = [*found[name], "--threads", "1"]
    return found


def measure(turn: Turn, seconds: int) -> Row:
    """Start the server, check its answers, load it, and return what wrk measured."""
    model = ["--model", turn.model, *(["--weights", str(turn.weights)] if turn.weights else [])]
    with started([*turn.arguments, *model]) as (process, url):
        check_answers(url, turn.model, turn.weights)
        command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{seconds}s", "--timeout", "60s"]
        command += ["-s", str(FOLDER / "post.lua"), url, "--", *map(str, PHOTOS)]
        done = subprocess.run(command, capture_output=True, text=True)
        peak = session_mib(process.pid, "VmHWM")
    if done.returncode:
        raise SnzooError(f"wrk: {(done.stderr or done.stdout).strip()}")
    found: Row = json.loads(done.stdout.splitlines()[-1])
    if found["errors"]:
        raise SnzooError(f"{turn.server} gave {found['errors']} errors")
    rate = round(found["requests"] / found["seconds"], 3)
    about = {"contender": turn.server, "model": turn.model, "clients": CLIENTS}
    return about | found | {"requests_per_s": rate, "peak_mib": round(peak, 1)}


@contextmanager
def started(arguments: Sequence[str]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Yield the process of a server, and its URL, once it answers; stop it at the end."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, *arguments, "--port", str(port)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path[1:2], str(FOLDER)])}
    url = f"http://127.0.0.1:{port}/v1/predict"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            if not wait_for(url, process):
                printed = last_line(log) or "it printed nothing"
                raise SnzooError(f"the server does not answer; {printed}")
            yield process, url
        finally:
            with suppress(ProcessLookupError):  # it ended before it answered
                os.killpg(process.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                # What the server started may go on computing beside the next one.
                os.killpg(process.pid, signal.SIGKILL)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> bool:
    """Wait until a server has answered a request; return whether it has."""
    end = time.monotonic() + STARTING
    while time.monotonic() < end and process.poll() is None:
        with suppress(requests.ConnectionError):
            if requests.post(url, files={"request": PHOTOS[0].read_bytes()}, timeout=60).ok:
                return True
        time.sleep(0.2)
    return False


def check_answers(url: str, model: str, weights: Path | None) -> None:
    """Check that some answers are those of :func:`snzoo.predict`."""
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


def compare(rows: Sequence[Row]) -> list[Row]:
    """Return each contender's figures, and its rate and latency relative to snzoo's per round."""
    found = []
    for (model, clients), same in harness.group(rows, _load).items():
        rates = harness.by_round(same, "requests_per_s")
        for name, rate in rates.items():
            values = {"requests_per_s": rate}
            for key in ("p50_ms", "p99_ms", "peak_mib"):
                values[key] = harness.by_round(same, key)[name]
            values["speed of snzoo"] = harness.divide(rates["snzoo serve"], rate)
            about = {"model": model, "clients": clients, "contender": name}
            found.append(about | harness.spreads(values))
    return found


def _load(row: Row) -> tuple[str, int]:
    return row["model"], row["clients"]


def markdown(document: Document) -> str:
    """Return the document as Markdown, without the single rounds."""
    blocks = []
    for (model, clients), rows in harness.group(document["comparison"], _load).items():
        heads = ["requests/s", "median, ms", "99 %, ms", "peak memory, MiB", "speed of snzoo"]
        table = [["", *heads]]
        for row in rows:
            keys = {"requests_per_s": 1, "p50_ms": 0, "p99_ms": 0}
            cells = [harness.show_spread(row[key], digits) for key, digits in keys.items()]
            cells += [f"{row['peak_mib']['median']:,.0f}"]
            cells += [harness.show_spread(row["speed of snzoo"])]
            table.append([row["contender"], *cells])
        blocks += [[f"`{model}`, {clients} clients:"], harness.table(*table)]
    about = (
        f"{document['photos']}; {document['seconds']} s for each measurement; rounds: "
        f"{document['rounds']}."
    )
    note = "Medians (least … most); each ratio is of one round."
    return harness.page(document, [about], *blocks, [note])


if __name__ == "__main__":
    sys.exit(main())
