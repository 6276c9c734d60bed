"""Fetch photos from URLs that clients name, from public addresses only."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from snzoo.data.remote import fetch_image
from snzoo.errors import DownloadError
from snzoo.http import Session
from snzoo.serve.limits import Limits

THREADS = 16  # a slow host occupies one of them
REDIRECTS = 5
NAT64 = IPv6Network("64:ff9b::/96")
UNICAST = IPv6Network("2000::/3")  # the part of IPv6 that is assigned to the public Internet


class Fetcher:
    """Threads that fetch photos."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(THREADS, "fetch")

    async def fetch(self, url: str) -> bytes:
        """Return the content at a URL, see :func:`fetch_public`."""
        loop = asyncio.get_running_loop()
        limits = self._limits
        return await loop.run_in_executor(
            self._threads, lambda: fetch_public(url, limit=limits.body, timeout=limits.timeout)
        )


def fetch_public(url: str, *, limit: int, timeout: float) -> bytes:
    """Return the content at an http(s) URL of a host with a public address.

    Proxies and passwords of the environment are not used.

    Args:
        url: the URL. At most ``REDIRECTS`` redirects are followed, to public addresses.
        limit: the largest content in bytes.
        timeout: the most seconds.

    Raises:
        DownloadError: the content cannot be fetched, or an address is not public.
    """
    fetching = _Fetching(timeout)
    timer = threading.Timer(timeout, fetching.abort)
    timer.daemon = True
    _current.fetching = fetching
    timer.start()
    try:
        with Session() as session:
            session.trust_env = False
            session.max_redirects = REDIRECTS
            for scheme in ("http://", "https://"):
                session.mount(scheme, _PublicAdapter())
            return fetch_image(url, limit=limit, session=session)
    finally:
        timer.cancel()
        fetching.close()
        fetching.check_time(url)  # else a connection that was shut would be a whole answer


def check_public(address: str) -> None:
    """Raise DownloadError if an IP address is not one of the public Internet."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address):
        parsed = _find_ipv4(parsed) or parsed
    is_assigned = isinstance(parsed, IPv4Address) or parsed in UNICAST
    if not (is_assigned and parsed.is_global) or parsed.is_multicast:
        raise DownloadError("its address is not public")


def _find_ipv4(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that an IPv6 address stands for, or None."""
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


class _Fetching:
    """The connections of a fetch, and when it must end."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.end = time.monotonic() + timeout
        self.sockets: list[socket.socket] = []  # duplicates, which TLS and requests do not close

    def check_time(self, url: str) -> None:
        if time.monotonic() > self.end:
            raise DownloadError(f"can't fetch {url}: no answer within {self.timeout:g} s")

    def abort(self) -> None:
        """Shut the connections, so that the thread that waits for them goes on."""
        for each in self.sockets:
            with suppress(OSError):  # it may be closed already
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for each in self.sockets:
            each.close()


_current = threading.local()  # the fetch of each thread


class _Public:
    """A connection that is closed before anything is sent, unless its address is public."""

    def _new_conn(self: Any) -> socket.socket:
        fetching: _Fetching = _current.fetching
        # Connecting to a private address would tell clients whether it answers.
        for *_, found in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            check_public(str(found[0]))
        connected: socket.socket = super()._new_conn()  # type: ignore[misc]
        try:  # the name may have another address by now
            check_public(connected.getpeername()[0])
            fetching.sockets.append(connected.dup())
            if time.monotonic() > fetching.end:  # abort() did not see this connection
                raise DownloadError("time is up")
        except Exception:
            connected.close()
            raise
        return connected


class _PublicHTTP(_Public, HTTPConnection):
    pass


class _PublicHTTPS(_Public, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls: Any = _PublicHTTP


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls: Any = _PublicHTTPS


class _PublicAdapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
