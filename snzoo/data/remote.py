"""An image behind a URL."""

from __future__ import annotations

import requests

from snzoo.environment import is_set
from snzoo.errors import DownloadError, OfflineError

TIMEOUT = (10, 30)  # seconds to connect, and between two packets
LARGEST = 64 << 20  # bytes


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def fetch_image(url: str) -> bytes:
    """The content behind an http(s) URL.

    Raises:
        DownloadError: there is none, or more than ``LARGEST`` bytes.
        OfflineError: ``SNZOO_OFFLINE=1``.
    """
    if is_set("SNZOO_OFFLINE"):
        raise OfflineError(f"can't fetch {url}: SNZOO_OFFLINE=1")
    try:
        with requests.get(url, stream=True, timeout=TIMEOUT) as response:
            response.raise_for_status()
            content = bytearray()
            for chunk in response.iter_content(1 << 16):
                content += chunk
                if len(content) > LARGEST:
                    raise DownloadError(f"{url} is larger than {LARGEST >> 20} MiB")
            return bytes(content)
    except requests.RequestException as error:
        status = f"HTTP {error.response.status_code}" if error.response is not None else "no answer"
        raise DownloadError(f"can't fetch {url}: {status}") from None
