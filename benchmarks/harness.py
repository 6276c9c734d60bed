"""Functions that all benchmarks share: options, turns, spreads, the document of a run, its files.

A measurement is a row: ``{"contender", …, "round", "cores_elsewhere"}``. Mistakes and wrong results
are a :class:`SnzooError` in all benchmarks, which :func:`run_benchmark` reports as one line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from snzoo.errors import FileError, SnzooError
from snzoo.files import check_writable

PACKAGES = (
    *("snzoo", "torch", "torchvision", "timm", "pillow", "simplejpeg", "llvmlite"),
    *("numpy", "safetensors"),
)
Row = dict[str, Any]
Document = dict[str, Any]
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def make_parser(
    description: str | None, rounds: int | None = 5, **numbers: tuple[int | list[int] | None, str]
) -> argparse.ArgumentParser:
    """Return a parser with ``--output``, ``--rounds`` and an option for each of ``numbers``.

    These are the default and the help of options for whole numbers above 0. An option whose default
    is a list takes several. Without a default for the rounds, there is no such option.
    """
    parser = argparse.ArgumentParser(
        description=(description or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, metavar="FILE", help="write FILE.json, and FILE.md beside it")
    if rounds:
        numbers = {"rounds": (rounds, "number of rounds"), **numbers}
    for name, (default, text) in numbers.items():
        many: Any = {"nargs": "+"} if isinstance(default, list) else {}
        option = f"--{name.replace('_', '-')}"
        add(option, type=positive, default=default, metavar="N", help=text, **many)
    return parser


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def run_benchmark(
    measure: Callable[[], Document], markdown: Callable[[Document], str], output: Path | None
) -> int | str:
    """Measure, print the Markdown and write both files; return the exit status or a message."""
    try:
        if output:
            if output.suffix != ".json":
                raise FileError(f"can't write {output}: name a .json file")
            check_writable(output)
        measured = measure()
        document = _circumstances() | measured  # the first imports torch
    except SnzooError as error:
        return f"{Path(sys.argv[0]).name}: {error}"
    text = markdown(document)
    print(text, end="")
    if output:
        output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        output.with_suffix(".md").write_text(text, encoding="utf-8")
    return 0


def measure_in_turns(turns: Sequence[T], rounds: int, measure: Callable[[T], Row]) -> list[Row]:
    """Measure each turn once per round; each round begins with another turn."""
    rows = []
    for number in range(rounds):
        for turn in rotate(turns, number):
            row, elsewhere = cores_elsewhere(partial(measure, turn))
            rows.append(row | {"round": number + 1, "cores_elsewhere": round(elsewhere, 3)})
            found = ", ".join(f"{name} {value}" for name, value in row.items() if value is not None)
            say(f"round {number + 1} of {rounds}: {found}")
    return rows


def rotate(turns: Sequence[T], number: int) -> list[T]:
    start = number % len(turns)
    return [*turns[start:], *turns[:start]]


def cores_elsewhere(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return the result of ``work``, and the number of cores that did other work meanwhile.

    Time that a hypervisor gives to other machines counts as other work.
    """
    start, busy, own = time.perf_counter(), _busy(), sum(os.times()[:4])
    result = work()
    other = (_busy() - busy) - (sum(os.times()[:4]) - own)
    return result, max(0.0, other / (time.perf_counter() - start))


def _busy() -> float:
    """Return the seconds that all cores together were not idle."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split(None, 9)[1:9]]
    user, nice, system, _, _, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def group(rows: Iterable[Row], key: Callable[[Row], K]) -> dict[K, list[Row]]:
    """Return the rows of each key, in their order."""
    groups: dict[K, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def by_round(rows: Iterable[Row], value: str) -> dict[str, list[float]]:
    """Return a value of each contender in the order of the rounds."""
    groups = group(sorted(rows, key=lambda row: int(row["round"])), lambda row: row["contender"])
    return {name: [row[value] for row in found] for name, found in groups.items()}


def divide(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return the ratio of ``ours`` to ``theirs`` in each round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def spread(values: Sequence[float], digits: int = 4) -> Row:
    found = {"median": median(values), "least": min(values), "most": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def spreads(values: Mapping[str, Sequence[float]], digits: int = 4) -> dict[str, Row]:
    return {name: spread(each, digits) for name, each in values.items()}


def compare_table(document: Document, head: str, digits: int = 2) -> list[str]:
    """Return a table of the document's comparison, which has a spread for each name."""
    rows = [[name, show_spread(row, digits)] for name, row in document["comparison"].items()]
    return table(["", head], *rows)


def show_spread(row: Row, digits: int = 2) -> str:
    median, least, most = (f"{row[key]:,.{digits}f}" for key in ("median", "least", "most"))
    return f"{median} ({least} … {most})"


def table(*rows: Sequence[str]) -> list[str]:
    """Return the lines of a Markdown table; its first column is aligned left."""
    head, *rest = (f"| {' | '.join(cells)} |" for cells in rows)
    return [head, "| --- |" + " ---: |" * (len(rows[0]) - 1), *rest]


def page(document: Document, about: Sequence[str], *blocks: Sequence[str]) -> str:
    """Return the Markdown of a document: its heading, lines about it, and blocks of lines."""
    lines = [*heading(document), *about, *_describe_elsewhere(document)]
    for block in blocks:
        lines += ["", *block]
    return "\n".join(lines) + "\n"


def heading(document: Document) -> list[str]:
    machine = document["machine"]
    versions = [f"{name} {v}" for name, v in document["versions"].items() if v]
    cpu = machine["cpu"]
    if "instructions" in machine:  # older documents lack it
        cpu += f" with {machine['instructions']}"
    return [
        f"# {document['title']}",
        "",
        f"{document['date'][:10]}, {cpu}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB; {', '.join(versions)}.",
    ]


def _describe_elsewhere(document: Document) -> list[str]:
    rows = document.get("measurements", [])
    cores = [row["cores_elsewhere"] for row in rows if "cores_elsewhere" in row]
    if not cores:
        return []
    return [
        f"Cores at other work during a measurement: {median(cores):.2f} in the median, "
        f"{max(cores):.2f} at most."
    ]


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _circumstances() -> Document:
    """Return date, machine and versions. The version of a package that is not installed is None."""
    import torch  # late, because a large parent would share memory with measured processes

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": cores(),
            "memory_gib": round(memory / 2**30, 1),
            "system": f"{platform.system()} {platform.release()}",
        },
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
