"""Download images from URLs."""

from __future__ import annotations

import re

import requests

from snzoo.environment import is_set
from snzoo.errors import DownloadError, OfflineError
from snzoo.http import Session, explain, iter_body, open_url

LARGEST = 64 << 20  # bytes


def is_url(source: str) -> bool:
    """Return whether a text begins with the scheme of a URL, e.g. ``https://``."""
    return re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE) is not None


def fetch_image(url: str, *, limit: int = LARGEST, session: Session | None = None) -> bytes:
    """Return the content at an http(s) URL.

    Args:
        url: the URL.
        limit: the largest content in bytes.
        session: see :func:`~snzoo.http.open_url`.

    Raises:
        DownloadError: the URL returns no content, or more than ``limit`` bytes.
        OfflineError: ``SNZOO_OFFLINE=1``.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise DownloadError(f"can't fetch {url}: only http and https URLs")
    if is_set("SNZOO_OFFLINE"):
        raise OfflineError(f"can't fetch {url}: SNZOO_OFFLINE=1; save the image and name the file")
    try:
        with open_url(url, session=session) as response:
            response.raise_for_status()
            return b"".join(iter_body(response, 1 << 16, limit=limit))
    except (requests.RequestException, ValueError) as error:  # ValueError: not a valid URL
        raise DownloadError(f"can't fetch {url}: {explain(error)}") from None
    except DownloadError as error:
        raise DownloadError(f"can't fetch {url}: {error}") from None
