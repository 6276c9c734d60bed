"""Download a file from one URL, with resumption, time-outs, a limit on the size, and retries."""

from __future__ import annotations

import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import requests
from tqdm import tqdm

from snzoo.errors import ChecksumError, DownloadError, printable
from snzoo.http import explain, iter_body, open_url
from snzoo.weights.cache import discard, origin_of
from snzoo.weights.checkpoint import looks_like_html

ATTEMPTS = 4  # per URL
BACKOFF = 1.0  # seconds before the second attempt; the pause doubles with each attempt
LARGEST = 4 << 30  # bytes; the limit for files without a published size
CHUNK = 1 << 18  # bytes; a dropped connection loses at most one chunk
TRANSIENT = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
WEB_PAGE = (
    "a web page instead of the file (Google Drive answers so over quota, or without the file)"
)


class _Retry(Exception):
    """A temporary failure: another attempt with the same URL may succeed."""


@dataclass(frozen=True)
class Request:
    """A file to download.

    Attributes:
        url: the URL of the file.
        part: the path to write to. An unfinished download stays there for the next call.
        title: the text that the progress bar shows.
        size: the published size in bytes, or None.
        resume_blind: resume also if the server sends no validator (ETag, Last-Modified). This is
            safe if a published checksum reveals a mixture of two versions.
    """

    url: str
    part: Path
    title: str
    size: int | None
    resume_blind: bool


def download(request: Request) -> bool:
    """Download a complete file into ``request.part``. The caller must verify the file.

    Returns:
        Whether an earlier download was resumed. The file may then be a mixture of two versions.

    Raises:
        DownloadError, ChecksumError: the URL did not return a file of the right size.
        OSError: ``request.part`` can't be written.
    """
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            pause = BACKOFF * 2 ** (attempt - 1)
            if sys.stderr.isatty():  # tell the user the reason for the pause
                print(
                    printable(f"{request.title}: {reason}; again in {pause:.0f} s"), file=sys.stderr
                )
            time.sleep(pause)
        try:
            return _transfer(request)
        except (requests.exceptions.SSLError, requests.exceptions.ProxyError) as failure:
            raise DownloadError(explain(failure)) from None
        except (_Retry, *TRANSIENT) as failure:
            reason = explain(failure)
        except (requests.RequestException, ValueError) as failure:  # ValueError: not a valid URL
            raise DownloadError(explain(failure)) from None
    raise DownloadError(f"{reason} (gave up after {ATTEMPTS} attempts)")


def _transfer(request: Request) -> bool:
    """Send one request and write the response to the part. Return whether the part was resumed."""
    offset, headers = _resume_from(request)
    headers["Accept-Encoding"] = "identity"  # lengths and offsets are those of the file
    with open_url(request.url, headers) as response:
        if offset and response.headers.get("Content-Range") == f"bytes */{offset}":
            return True  # the part was complete, but could not be installed
        _check_response(response, request)
        resumed = response.status_code == 206
        if resumed and not _is_rest(response, offset):
            discard(request.part)
            raise _Retry("the server sent another range than the one asked for")
        offset = offset if resumed else 0
        length = _announced_length(response)
        total = None if length is None else offset + length
        if total is not None:
            _check_size(total, request)
        if not resumed:
            discard(request.part)  # otherwise it would be taken for the start of the new file
            _write_origin(response, request)
        _write(response, request, offset, total)
    return resumed


def _resume_from(request: Request) -> tuple[int, dict[str, str]]:
    """Return the offset and headers that resume an earlier part, or ``(0, {})`` if it is unsafe."""
    try:
        origin = json.loads(origin_of(request.part).read_text(encoding="utf-8"))
        same, validator = origin["url"] == request.url, origin["validator"]
        offset = request.part.stat().st_size
    except (OSError, ValueError, KeyError, TypeError):
        return 0, {}
    if not same or not offset or not (validator or request.resume_blind):
        return 0, {}
    headers = {"Range": f"bytes={offset}-"}
    return offset, headers | ({"If-Range": validator} if validator else {})


def _check_response(response: requests.Response, request: Request) -> None:
    status = response.status_code
    if status == 416:  # the part is longer than the file
        discard(request.part)
        raise _Retry("the server refused to resume")
    if status in (408, 429) or status >= 500:
        raise _Retry(f"HTTP {status} {response.reason}")
    if status not in (200, 206):
        raise DownloadError(f"HTTP {status} {response.reason}")
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise DownloadError(WEB_PAGE)
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise DownloadError("the server compressed the file though it was asked not to")


def _check_size(size: int, request: Request) -> None:
    """Raise an error if the announced size of the file is wrong or too large."""
    if request.size is not None and size != request.size:
        discard(request.part)
        raise ChecksumError(f"{size:,} bytes instead of {request.size:,}")
    if size > LARGEST:
        discard(request.part)
        raise DownloadError(f"{size:,} bytes are too many for a weights file")


def _write(response: requests.Response, request: Request, offset: int, total: int | None) -> None:
    expected = request.size or total
    bar = tqdm(
        desc=request.title,
        initial=offset,
        total=expected,
        unit="B",
        unit_scale=True,
        disable=None,
        leave=False,
    )
    with open(request.part, "ab" if offset else "wb") as file, bar:
        try:
            for chunk in iter_body(response, CHUNK, limit=(request.size or LARGEST) - offset):
                if not file.tell() and looks_like_html(chunk):
                    raise DownloadError(WEB_PAGE)
                file.write(chunk)
                bar.update(len(chunk))
        except DownloadError:
            discard(request.part)
            raise
        size = file.tell()
    if expected is not None and size < expected:
        raise _Retry(f"the connection closed after {size:,} of {expected:,} bytes")


def _announced_length(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _is_rest(response: requests.Response, offset: int) -> bool:
    """Return whether a response of status 206 has the whole rest of the file from ``offset`` on."""
    header = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", header)
    if found is None or int(found[1]) != offset:
        return False
    return found[3] in ("*", str(int(found[2]) + 1))


def _write_origin(response: requests.Response, request: Request) -> None:
    """Write the URL and the version of the part to the file that :func:`origin_of` returns."""
    etag = response.headers.get("ETag", "")
    validator = "" if etag.startswith("W/") else etag
    validator = validator or response.headers.get("Last-Modified", "")
    text = json.dumps({"url": request.url, "validator": validator})
    origin_of(request.part).write_text(text, encoding="utf-8")
