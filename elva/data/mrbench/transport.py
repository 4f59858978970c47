"""One HTTP exchange with a judge's server, within limits: no redirect, so many bytes, so much time in all."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader

LONGEST_BODY = 1 << 20
"""Bytes of an answer; a thousand tokens are a few thousand."""
_current = threading.local()


class TransportError(Exception):
    """No whole answer came back; ``connected`` says whether anybody was there at all."""

    def __init__(self, reason: str, connected: bool = True) -> None:
        super().__init__(reason)
        self.connected = connected


class TooLongError(Exception):
    """The answer has more than ``LONGEST_BODY`` bytes."""


@dataclass(frozen=True)
class Reply:
    """``retry_after``: seconds that the server asks to wait; ``location``: where a redirect would lead."""

    status: int
    reason: str
    body: bytes
    retry_after: float | None
    location: str


class Transport:
    """Sends to one origin. ``timeout``: seconds for a whole exchange, however slowly its bytes come."""

    def __init__(self, url: str, timeout: float) -> None:
        self._timeout = timeout
        # a proxy of the environment, as urllib would take it
        parsed = urllib3.util.parse_url(url)
        proxy = urllib.request.getproxies().get(parsed.scheme or "")
        if proxy and parsed.host and not urllib.request.proxy_bypass(parsed.host):
            self._manager: urllib3.PoolManager = urllib3.ProxyManager(proxy)
        else:
            self._manager = urllib3.PoolManager()
        self._manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def send(self, url: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        """Raises TransportError and TooLongError."""
        _current.socket = None
        overdue = threading.Event()
        timer = threading.Timer(self._timeout, _cut, (_current.__dict__, overdue))
        timer.daemon = True
        timer.start()
        start = time.monotonic()
        try:
            response = self._manager.request(
                "GET" if body is None else "POST",
                url,
                body=body,
                # a connection of its own for each exchange, which can be cut
                headers={**headers, "Connection": "close"},
                timeout=urllib3.Timeout(total=self._timeout),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                content = response.read(LONGEST_BODY + 1, decode_content=False)
            finally:
                response.close()
        except (HTTPError, OSError, ValueError, AttributeError) as error:
            if overdue.is_set() or time.monotonic() - start >= self._timeout:
                raise TransportError(f"no whole answer within {self._timeout:g} s") from error
            if _current.socket is None:
                raise TransportError(_words(error), connected=False) from error
            raise TransportError(f"the connection broke: {_words(error)}") from error
        finally:
            timer.cancel()
        if overdue.is_set():
            raise TransportError(f"no whole answer within {self._timeout:g} s")
        if len(content) > LONGEST_BODY:
            raise TooLongError(f"the server's answer has more than {LONGEST_BODY} bytes")
        found = response.headers
        return Reply(
            response.status,
            printable(response.reason or ""),
            content,
            _seconds(found.get("Retry-After")),
            printable(found.get("Location") or ""),
        )


def printable(text: str, most: int = 200) -> str:
    """What a server says, fit for a terminal and a file: no control characters, no lone surrogates, not long."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text[:most]
    )


class _Response(http.client.HTTPResponse):
    def _read_next_chunk_size(self) -> int:
        # read(-1) would take whatever comes, beyond all limits
        size: int = super()._read_next_chunk_size()  # type: ignore[misc]
        if size < 0:
            raise ValueError(f"a chunk of {size} bytes")
        return size


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _Response

    def connect(self) -> None:
        super().connect()
        _current.socket = self.sock


class _SecureConnection(urllib3.connection.HTTPSConnection):
    response_class = _Response

    def connect(self) -> None:
        super().connect()
        _current.socket = self.sock


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def _cut(current: dict[str, Any], overdue: threading.Event) -> None:
    """End an exchange that trickles: a socket's own time-out begins anew with every byte."""
    overdue.set()
    connected: socket.socket | None = current.get("socket")
    if connected is not None:
        with contextlib.suppress(OSError):  # it may have ended by itself
            connected.shutdown(socket.SHUT_RDWR)


def _words(error: BaseException) -> str:
    """urllib3's messages name objects and their addresses; what the system said stands behind them."""
    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    said = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return printable(said or type(cause).__name__)


def _seconds(header: str | None) -> float | None:
    if header is None:
        return None
    try:
        return urllib3.Retry().parse_retry_after(header)
    except (InvalidHeader, ValueError, OverflowError):
        return None
