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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
from serving import PHOTOS, started

import snzoo
from snzoo.errors import SnzooError

MODEL = "resnet18v1_sn_clothing"
SHARES = {"good": 80, "broken": 8, "slow": 4, "cut": 4, "gone": 4}  # of 100 requests


@dataclass
class Soak:
    """Where the requests go, the right answers, and what came of the requests.

    Attributes:
        port: the port of the server.
        expected: the class of each photo.
        outcomes: the number of requests of each kind that ended as they should.
        wrong: a line for each request that did not.
    """

    port: int
    expected: dict[Path, str]
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def send(self, kind: str, photo: Path) -> None:
        """Send one request of a kind, and record what came of it."""
        try:
            async with asyncio.timeout(120):
                status, document = await self._exchange(kind, photo)
        except (OSError, TimeoutError, ValueError, IndexError) as error:
            self.wrong.append(f"{kind}: {type(error).__name__} {error}")
            return
        found: tuple[int, object] = (0, None)
        right: tuple[int, object] = (0, None)
        if kind == "broken":
            found, right = (status, bool(document["photos"][0]["error"])), (422, True)
        elif kind in ("good", "slow"):
            best = document["photos"][0]["predictions"][0]["classes"][0]["name"]
            found, right = (status, best), (200, self.expected[photo])
        if found == right:
            self.outcomes[kind] += 1
        else:
            self.wrong.append(f"{kind}: {found} instead of {right}")

    async def _exchange(self, kind: str, photo: Path) -> tuple[int, Any]:
        body = photo.read_bytes()
        if kind == "broken":
            body = body[: len(body) // 2] if len(self.wrong) % 2 else b"no photo " * 100
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            head = "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
            head += f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write(head.encode())
            if kind == "cut":
                writer.write(body[: len(body) // 3])
                await writer.drain()
                return 0, {}
            if kind == "slow":
                for start in range(0, len(body), len(body) // 4 + 1):
                    writer.write(body[start : start + len(body) // 4 + 1])
                    await writer.drain()
                    await asyncio.sleep(0.25)
            else:
                writer.write(body)
                await writer.drain()
            if kind == "gone":
                return 0, {}
            answer = await reader.read()
        finally:
            writer.transport.abort() if kind in ("cut", "gone") else writer.close()
        status, _, rest = answer.partition(b"\r\n")
        return int(status.split()[1]), json.loads(rest.partition(b"\r\n\r\n")[2])


async def soak(
    state: Soak, requests: int, *, clients: int, watch: Callable[[int], None], seed: int = 0
) -> None:
    """Send requests of all kinds, with some clients at once; ``watch`` gets the number so far."""
    rng = random.Random(seed)
    kinds = rng.choices(list(SHARES), list(SHARES.values()), k=requests)
    work = iter([(kind, rng.choice(PHOTOS)) for kind in kinds])
    done = 0

    async def run_client() -> None:
        nonlocal done
        for kind, photo in work:
            await state.send(kind, photo)
            done += 1
            watch(done)

    await asyncio.gather(*(run_client() for _ in range(clients)))


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024, 1)


def run(requests: int, *, clients: int = 16) -> tuple[Soak, dict[int, float]]:
    """Start a server, send the requests, and return what came of them, and the memory in MiB.

    The memory is that after a tenth, a half and all of the requests.

    Raises:
        SnzooError: the server does not start.
    """
    predictions = snzoo.predict(MODEL, PHOTOS, topk=1)
    expected = {photo: p.names[0] for photo, p in zip(PHOTOS, predictions, strict=True)}
    memory: dict[int, float] = {}
    with started(["-m", "snzoo", "serve", "--model", MODEL]) as (process, url):
        state = Soak(int(url.split(":")[2].split("/")[0]), expected)

        def watch(done: int) -> None:
            if done in (requests // 10, requests // 2, requests):
                memory[done] = resident_mib(process.pid)

        asyncio.run(soak(state, requests, clients=clients, watch=watch))
    return state, memory


def main() -> int | str:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=harness.positive, default=10_000, metavar="N")
    args = parser.parse_args()
    try:
        state, memory = run(args.requests)
    except SnzooError as error:
        return f"soak.py: {error}"
    for done, size in memory.items():
        print(f"after {done:,} requests: {size:,.1f} MiB")
    print(", ".join(f"{count:,} {kind}" for kind, count in sorted(state.outcomes.items())))
    for line in state.wrong[:20]:
        print(line, file=sys.stderr)
    return 1 if state.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
