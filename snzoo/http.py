"""Send GET requests with time-outs and limits, for downloads of weights and images."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urljoin, urlsplit

import requests

from snzoo.errors import DownloadError, first_line

TIMEOUT = (10, 30)  # the most seconds to connect, and between two packets


class Session(requests.Session):
    """A session that follows redirects, but never from https to http."""

    def get_redirect_target(self, resp: requests.Response) -> str | None:
        """Return the target of a redirect. Raise an error for a redirect from https to http."""
        target: str | None = super().get_redirect_target(resp)
        schemes = [urlsplit(url).scheme for url in (resp.url, urljoin(resp.url, target or ""))]
        if schemes[0] == "https" and schemes[1] != "https":
            raise requests.RequestException("redirected from https to http; refused")
        return target


@contextmanager
def open_url(
    url: str, headers: Mapping[str, str] | None = None, *, session: Session | None = None
) -> Iterator[requests.Response]:
    """Send a GET request and yield the response before its body is read.

    Args:
        url: the URL.
        headers: more headers (default: none).
        session: the session, which is closed afterwards (default: a new one).

    Raises:
        requests.RequestException, ValueError: the request failed; see :func:`explain`.
    """
    with (
        session or Session() as opened,
        opened.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response,
    ):
        yield response


def iter_body(response: requests.Response, chunk: int, *, limit: int) -> Iterator[bytes]:
    """Yield the body of a response in chunks.

    Args:
        response: the response that :func:`open_url` yields.
        chunk: the size of a chunk in bytes.
        limit: the largest size of the body in bytes.

    Raises:
        DownloadError: the body is larger than ``limit``.
    """
    size = 0
    for content in response.iter_content(chunk):
        size += len(content)
        if size > limit:
            raise DownloadError(f"more than {limit:,} bytes")
        yield content


def explain(error: Exception) -> str:
    """Return the cause of a failed request as one short clause, without nested exceptions."""
    if isinstance(error, requests.Timeout):
        connecting = isinstance(error, requests.ConnectTimeout)
        return f"no answer within {TIMEOUT[0] if connecting else TIMEOUT[1]} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate can't be verified"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy refused the connection"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection closed before the end of the file"
    if isinstance(error, requests.TooManyRedirects):
        return "too many redirects"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectionError):
        found = re.search(
            r"\[Errno [^]]*\] ([\w ]+)|(Name or service[\w ]*|Read timed out)", str(error)
        )
        return "the connection failed" + (f" ({found[1] or found[2]})" if found else "")
    return first_line(error)
