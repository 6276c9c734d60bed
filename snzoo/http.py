"""What downloads of weights and of single images share: time-outs, and errors in plain words."""

from __future__ import annotations

import re

import requests

TIMEOUT = (10, 30)  # seconds to connect, and between two packets


def explain(error: Exception) -> str:
    """One short clause: requests' own messages nest the cause in brackets."""
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
        return "it redirects in a circle"
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.ConnectionError):
        found = re.search(
            r"\[Errno [^]]*\] ([\w ]+)|(Name or service[\w ]*|Read timed out)", str(error)
        )
        return "the connection failed" + (f" ({found[1] or found[2]})" if found else "")
    return (str(error).splitlines() or [type(error).__name__])[0]
