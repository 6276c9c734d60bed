"""URLs → a complete, checked file: resume, time-outs, bounded retries, ordered mirrors."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from tqdm import tqdm

from snzoo.errors import CheckpointError, ChecksumError, DownloadError, SnzooError
from snzoo.http import TIMEOUT, explain
from snzoo.weights.checkpoint import looks_like_html

ATTEMPTS = 4  # a mirror
BACKOFF = 1.0  # seconds before the second attempt; doubles from there
LARGEST = 4 << 30  # bytes; for files whose size was never published
CHUNK = 1 << 18  # bytes; what a dropped connection loses, at most
TRANSIENT = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
WRONG_FILE = (ChecksumError, CheckpointError)


class _Retry(Exception):
    """The same URL may do better in a moment."""


@dataclass(frozen=True)
class Request:
    """What is wanted: ``size`` in bytes where it is known, a title for the progress bar.

    ``accept`` takes the complete part, or raises ChecksumError or CheckpointError on a
    wrong file. ``resume_blind`` allows a resume without a validator (ETag,
    Last-Modified), because ``accept`` would notice a mixture of two versions.
    """

    part: Path
    title: str
    size: int | None
    accept: Callable[[Path], Path]
    resume_blind: bool


def download(urls: Sequence[str], request: Request) -> Path:
    """Return what ``request.accept`` made of the file of the first URL that gives a right one.

    A connection that drops leaves the part, for the next call to go on from; a wrong
    file leaves nothing.

    Raises:
        DownloadError, ChecksumError, CheckpointError: no URL gave the file; the type is
            that of the last one's failure, the message has each one's reason.
        OSError: the part can't be written.
    """
    failures: list[str] = []
    error: SnzooError = DownloadError("no URL is known")
    for url in urls:
        try:
            return _download_one(url, request)
        except (DownloadError, *WRONG_FILE) as failure:
            error = failure
            failures.append(f"{urlsplit(url).hostname}: {failure}")
    # Two mirrors on one host may fail alike: say it once.
    raise type(error)("; ".join(dict.fromkeys(failures)) or str(error))


def _download_one(url: str, request: Request) -> Path:
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            pause = BACKOFF * 2 ** (attempt - 1)
            if sys.stderr.isatty():  # so that nobody waits before a mute terminal
                print(f"{request.title}: {reason}; again in {pause:.0f} s", file=sys.stderr)
            time.sleep(pause)
        try:
            resumed = _transfer(url, request)
        except (requests.exceptions.SSLError, requests.exceptions.ProxyError) as failure:
            raise DownloadError(explain(failure)) from None
        except (_Retry, *TRANSIENT) as failure:
            reason = explain(failure)
            continue
        except (requests.RequestException, ValueError) as failure:  # ValueError: no proper URL
            raise DownloadError(explain(failure)) from None
        try:
            accepted = request.accept(request.part)
        except WRONG_FILE as failure:
            discard(request.part)
            if not resumed:
                raise
            reason = explain(failure)  # perhaps two versions were mixed: from the start
        else:
            discard(request.part)
            return accepted
    raise DownloadError(f"{reason} (gave up after {ATTEMPTS} attempts)")


def _transfer(url: str, request: Request) -> bool:
    """One GET into the part; true if it went on from an earlier one."""
    offset, headers = _resume_from(url, request)
    headers["Accept-Encoding"] = "identity"  # lengths and offsets are those of the file
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if offset and response.headers.get("Content-Range") == f"bytes */{offset}":
            return True  # the part is the whole file, which there was no room to unpack
        _check_response(response, url, request)
        resumed = response.status_code == 206
        if resumed and not _is_rest(response, offset):
            discard(request.part)
            raise _Retry("the server sent another range than the one asked for")
        offset = offset if resumed else 0
        length = _announced_length(response)
        total = None if length is None else offset + length
        _check_size(total, request, whole=True)
        if not resumed:
            discard(request.part)  # or it would pass for the start of what is remembered now
            _remember(url, response, request)
        _write(response, request, offset, total)
    _check_size(request.part.stat().st_size, request, whole=False)
    return resumed


def _resume_from(url: str, request: Request) -> tuple[int, dict[str, str]]:
    """Offset and headers that go on with an earlier part of the same URL, if that is safe."""
    try:
        origin = json.loads(_origin(request.part).read_text(encoding="utf-8"))
        same, validator = origin["url"] == url, origin["validator"]
        offset = request.part.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return 0, {}
    if not same or not offset or not (validator or request.resume_blind):
        return 0, {}
    headers = {"Range": f"bytes={offset}-"}
    return offset, headers | ({"If-Range": validator} if validator else {})


def _check_response(response: requests.Response, url: str, request: Request) -> None:
    status = response.status_code
    if status == 416:  # the part is longer than the file
        discard(request.part)
        raise _Retry("the server refused to resume")
    if status in (408, 429) or status >= 500:
        raise _Retry(f"HTTP {status} {response.reason}")
    if status not in (200, 206):
        raise DownloadError(f"HTTP {status} {response.reason}")
    hops = {urlsplit(hop.url).scheme for hop in (*response.history, response)}
    if urlsplit(url).scheme == "https" and hops != {"https"}:
        raise DownloadError("redirected from https to http; refused")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise DownloadError(WEB_PAGE)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError("the server compressed the file though it was asked not to")


WEB_PAGE = (
    "a web page instead of the file (Google Drive answers so over quota, or without the file)"
)


def _check_size(size: int | None, request: Request, *, whole: bool) -> None:
    """A size that can't be right ends this mirror: with another length, it is another file."""
    if size is None:
        return
    if request.size is not None and size != request.size:
        if not whole and size < request.size:
            raise _Retry(f"the connection closed after {size:,} of {request.size:,} bytes")
        discard(request.part)
        raise ChecksumError(f"{size:,} bytes instead of {request.size:,}")
    if size > LARGEST:
        discard(request.part)
        raise DownloadError(f"{size:,} bytes are too many for a weights file")


def _write(response: requests.Response, request: Request, offset: int, total: int | None) -> None:
    limit = request.size or LARGEST
    with (
        open(request.part, "ab" if offset else "wb") as file,
        tqdm(
            desc=request.title,
            initial=offset,
            total=total,
            unit="B",
            unit_scale=True,
            disable=None,
            leave=False,
        ) as bar,
    ):
        for chunk in response.iter_content(CHUNK):
            if not file.tell() and looks_like_html(chunk):
                file.close()
                discard(request.part)
                raise DownloadError(WEB_PAGE)
            file.write(chunk)
            bar.update(len(chunk))
            if file.tell() > limit:
                file.close()
                discard(request.part)
                raise ChecksumError(f"more than {limit:,} bytes")
        if total is not None and file.tell() < total:
            raise _Retry(f"the connection closed after {file.tell():,} of {total:,} bytes")


def _announced_length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _is_rest(response: requests.Response, offset: int) -> bool:
    """Whether a 206 brings everything from ``offset`` on: a server may send less than asked."""
    header = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", header)
    if found is None or int(found[1]) != offset:
        return False
    return found[3] in ("*", str(int(found[2]) + 1))


def _remember(url: str, response: requests.Response, request: Request) -> None:
    etag = response.headers.get("ETag", "")
    validator = "" if etag.startswith("W/") else etag
    validator = validator or response.headers.get("Last-Modified", "")
    text = json.dumps({"url": url, "validator": validator})
    _origin(request.part).write_text(text, encoding="utf-8")


def discard(part: Path) -> None:
    """Remove a part and the note on where it came from."""
    part.unlink(missing_ok=True)
    _origin(part).unlink(missing_ok=True)


def _origin(part: Path) -> Path:
    return part.with_name(part.name + ".json")
