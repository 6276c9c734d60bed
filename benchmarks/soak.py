"""Send `snzoo serve` good photos, broken ones, slow bodies, and clients that vanish.

python benchmarks/soak.py --requests 10000

Every client compares its answer with that of snzoo.predict. The command prints the memory of the
server on the way, and fails if an answer is wrong or missing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import harness
from processes import session_mib
from serving import CLIENTS, PHOTOS, started

import snzoo
from snzoo.errors import SnzooError

MODEL = "resnet18v1_sn_clothing"
SHARES = {"good": 80, "broken": 8, "slow": 4, "cut": 4, "gone": 4}  # of 100 requests
HEAD = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
HEAD += "Connection: close\r\nContent-Length: {}\r\n\r\n"


class Soak:
    """Requests to a server.

    Attributes:
        port: the port of the server.
        expected: the class of each photo.
        outcomes: the number of requests of each kind that ended as they should.
        wrong: a line for each request that did not.
    """

    def __init__(self, port: int, expected: dict[Path, str]) -> None:
        self.port, self.expected = port, expected
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def send(self, kind: str, photo: Path) -> None:
        """Send one request of a kind, and record what came of it."""
        right = {"broken": (422, True), "cut": None, "gone": None}
        try:
            async with asyncio.timeout(120):
                found = self._understand(await self._exchange(kind, photo))
        except (OSError, TimeoutError, ValueError, LookupError) as error:
            self.wrong.append(f"{kind}: {type(error).__name__} {error}")
            return
        expected = right.get(kind, (200, self.expected[photo]))
        if found == expected:
            self.outcomes[kind] += 1
        else:
            self.wrong.append(f"{kind}: {found} instead of {expected}")

    def _understand(self, answer: bytes | None) -> tuple[int, Any] | None:
        """Return the status, and the class or whether there is an error for the photo."""
        if answer is None:
            return None
        status, _, rest = answer.partition(b"\r\n")
        (photo,) = json.loads(rest.partition(b"\r\n\r\n")[2])["photos"]
        best = photo["predictions"] and photo["predictions"][0]["classes"][0]["name"]
        return int(status.split()[1]), best or bool(photo["error"])

    async def _exchange(self, kind: str, photo: Path) -> bytes | None:
        """Send a request and return the answer, or None if the client leaves before it."""
        body = photo.read_bytes()
        if kind == "broken":
            body = random.choice([body[: len(body) // 2], b"no photo " * 100])
        length = len(body)
        if kind == "cut":
            body = body[: length // 3]
        size = length // 4 + 1 if kind == "slow" else length
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(HEAD.format(length).encode())
            for start in range(0, len(body), size):
                writer.write(body[start : start + size])
                await writer.drain()
                await asyncio.sleep(0.25 if kind == "slow" else 0)
            return None if kind in ("cut", "gone") else await reader.read()
        finally:
            writer.transport.abort() if kind in ("cut", "gone") else writer.close()


def run(requests: int) -> tuple[Soak, dict[int, float]]:
    """Start a server, send the requests, and return what came of them, and the memory in MiB.

    The memory is that after a tenth, a half and all of the requests.

    Raises:
        SnzooError: the server does not start.
    """
    predictions = snzoo.predict(MODEL, PHOTOS, topk=1)
    expected = {photo: p.names[0] for photo, p in zip(PHOTOS, predictions, strict=True)}
    memory: dict[int, float] = {}
    random.seed(0)
    kinds = random.choices(list(SHARES), list(SHARES.values()), k=requests)
    work = enumerate([(kind, random.choice(PHOTOS)) for kind in kinds])
    with started(["-m", "snzoo", "serve", "--model", MODEL]) as (process, url):
        soak = Soak(int(url.split(":")[2].split("/")[0]), expected)

        async def run_client() -> None:
            for number, (kind, photo) in work:
                await soak.send(kind, photo)
                if number + 1 in (requests // 10, requests // 2, requests):
                    memory[number + 1] = session_mib(process.pid, "VmRSS")

        async def run_clients() -> None:
            await asyncio.gather(*(run_client() for _ in range(CLIENTS)))

        asyncio.run(run_clients())
    return soak, memory


def main() -> int | str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=harness.positive, default=10_000, metavar="N")
    args = parser.parse_args()
    try:
        soak, memory = run(args.requests)
    except SnzooError as error:
        return f"soak.py: {error}"
    for done, size in memory.items():
        print(f"after {done:,} requests: {size:,.1f} MiB")
    print(", ".join(f"{count:,} {kind}" for kind, count in sorted(soak.outcomes.items())))
    for line in soak.wrong[:20]:
        print(line, file=sys.stderr)
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
