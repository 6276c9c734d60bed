"""Send `snzoo serve` good photos, broken ones, slow bodies, and clients that vanish.

python benchmarks/soak.py --requests 10000

Every client compares its answer with that of snzoo.predict. The command prints the memory of the
server on the way, and fails if an answer is wrong or missing.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import struct
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import harness
from processes import session_mib
from serving import CLIENTS, PHOTOS, started

import snzoo
from snzoo.errors import SnzooError

MODEL = "resnet18v1_sn_clothing"
SHARES = {"good": 80, "broken": 8, "slow": 4, "cut": 4, "gone": 4}  # of 100 requests
HEAD = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
HEAD += "Connection: close\r\nContent-Length: {}\r\n\r\n"
RESET = struct.pack("ii", 1, 0)  # closing resets the connection
BROKEN = (422, "an error")


def run(requests: int) -> tuple[dict[str, int], list[str], dict[int, float]]:
    """Start a server and send requests of all kinds.

    Returns:
        The number of requests of each kind that ended as they should, a line for each other
        request, and the memory in MiB after a tenth, a half and all of the requests.
    """
    predictions = snzoo.predict(MODEL, PHOTOS, topk=1)
    expected = {photo: (200, p.names[0]) for photo, p in zip(PHOTOS, predictions, strict=True)}
    rng = random.Random(0)
    kinds = rng.choices(list(SHARES), list(SHARES.values()), k=requests)
    photos = [rng.choice(PHOTOS) for _ in kinds]
    outcomes, wrong, memory = dict.fromkeys(SHARES, 0), [], {}
    with (
        started(["-m", "snzoo", "serve", "--model", MODEL]) as (process, url),
        ThreadPoolExecutor(CLIENTS) as clients,
    ):
        port = int(url.split(":")[2].split("/")[0])
        answers = clients.map(send, [port] * requests, kinds, photos)
        for number, (kind, photo, found) in enumerate(zip(kinds, photos, answers, strict=True), 1):
            right = {"broken": BROKEN, "cut": None, "gone": None}.get(kind, expected[photo])
            if found == right:
                outcomes[kind] += 1
            else:
                wrong.append(f"{kind}: {found} instead of {right}")
            if number in (requests // 10, requests // 2, requests):
                memory[number] = round(session_mib(process.pid, "VmRSS"), 1)
    return outcomes, wrong, memory


def send(port: int, kind: str, photo: Path) -> tuple[int, str] | str | None:
    """Return the status of the answer and what it says of the photo, or what went wrong.

    A client that leaves before the answer returns None.
    """
    try:
        answer = exchange(port, kind, photo)
        if answer is None:
            return None
        status, _, rest = answer.partition(b"\r\n")
        (found,) = json.loads(rest.partition(b"\r\n\r\n")[2])["photos"]
        says = "an error" if found["error"] else found["predictions"][0]["classes"][0]["name"]
        return int(status.split()[1]), says
    except (OSError, ValueError, LookupError) as error:
        return f"{type(error).__name__} {error}"


def exchange(port: int, kind: str, photo: Path) -> bytes | None:
    body = photo.read_bytes()
    if kind == "broken":
        body = body[: len(body) // 2] if photo.stat().st_size % 2 else b"no photo " * 100
    length = len(body)
    if kind == "cut":
        body = body[: length // 3]
    size = length // 4 + 1 if kind == "slow" else length
    with socket.create_connection(("127.0.0.1", port), timeout=120) as connection:
        connection.sendall(HEAD.format(length).encode())
        for start in range(0, len(body), size):
            connection.sendall(body[start : start + size])
            time.sleep(0.25 if kind == "slow" else 0)
        if kind in ("cut", "gone"):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return None
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def main() -> int | str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=harness.positive, default=10_000, metavar="N")
    args = parser.parse_args()
    try:
        outcomes, wrong, memory = run(args.requests)
    except SnzooError as error:
        return f"soak.py: {error}"
    for done, size in memory.items():
        print(f"after {done:,} requests: {size:,.1f} MiB")
    print(", ".join(f"{count:,} {kind}" for kind, count in sorted(outcomes.items())))
    for line in wrong[:20]:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
