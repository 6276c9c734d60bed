"""Fetch images from URLs."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import requests

from snzoo.environment import is_set
from snzoo.errors import DownloadError, OfflineError
from snzoo.http import TIMEOUT, explain

LARGEST = 64 << 20  # bytes


def is_url(source: str) -> bool:
    return re.match(r"[a-z][a-z0-9+.-]+://", source, re.IGNORECASE) is not None


def fetch_image(url: str) -> bytes:
    """Return the content at an http(s) URL.

    Raises:
        DownloadError: there is none, or it is larger than ``LARGEST``.
        OfflineError: ``SNZOO_OFFLINE=1``.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise DownloadError(f"can't fetch {url}: only http and https URLs")
    if is_set("SNZOO_OFFLINE"):
        raise OfflineError(f"can't fetch {url}: SNZOO_OFFLINE=1; save the image and name the file")
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
            hops = {urlsplit(hop.url).scheme for hop in (*response.history, response)}
            if urlsplit(url).scheme == "https" and hops != {"https"}:
                raise DownloadError(f"can't fetch {url}: redirected from https to http; refused")
            content = bytearray()
            for chunk in response.iter_content(1 << 16):
                content += chunk
                if len(content) > LARGEST:
                    raise DownloadError(f"{url} is larger than {LARGEST >> 20} MiB")
            return bytes(content)
    except (requests.RequestException, ValueError) as error:  # ValueError: no proper URL
        raise DownloadError(f"can't fetch {url}: {explain(error)}") from None
