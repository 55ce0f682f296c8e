"""HTTP answers in bounded time and size, for a server that may be slow, broken or hostile.

The time-outs of requests, urllib3 and http.client count from one receive to the next: a server that sends an
octet now and then keeps its thread for ever, in the status line, a header, a chunk size or the body alike.
All of these are read from one file object. Here that object has a deadline, and counts octets.

urllib3 also logs header lines that it cannot parse, as they came. Such an answer is refused before it gets
there, because a line of it may be what we sent, the token included.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from functools import partial
from typing import Any

import requests.adapters
import urllib3

__all__ = ["BoundedAdapter", "Bounds"]


class Bounds:
    """What the answers of one read may cost. `deadline`: on `time.monotonic`. `octets`: for each answer.

    `overdue` and `too_large` say afterwards which bound was met; the exception on the way has many names.
    """

    def __init__(self, deadline: float, octets: int) -> None:
        self.deadline = deadline
        self.overdue = False
        self.too_large = False
        self._octets = octets
        self._left = octets

    def left(self) -> float:
        """Seconds. Raises: TimeoutError when there are none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            self.overdue = True
            raise TimeoutError
        return left

    def begin(self) -> None:
        """A new answer."""
        self._left = self._octets

    def take(self, octets: int) -> None:
        """Raises: OSError when an answer is larger than it may be."""
        self._left -= octets
        if self._left < 0:
            self.too_large = True
            raise OSError


class BoundedAdapter(requests.adapters.HTTPAdapter):
    """For `requests.Session.mount`: what comes back through it keeps the bounds."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        pools: Any = {
            "http": partial(_pool, self._bounds, urllib3.HTTPConnectionPool),
            "https": partial(_pool, self._bounds, urllib3.HTTPSConnectionPool),
        }
        self.poolmanager.pool_classes_by_scheme = pools


def _pool(bounds: Bounds, kind: Any, *args: Any, **options: Any) -> Any:
    pool = kind(*args, **options)
    pool.ConnectionCls = partial(_connection, bounds, kind.ConnectionCls)
    return pool


def _connection(bounds: Bounds, kind: Any, *args: Any, **options: Any) -> Any:
    connection = kind(*args, **options)
    connection.response_class = partial(_Response, bounds)
    return connection


class _Response(http.client.HTTPResponse):
    def __init__(self, bounds: Bounds, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        bounds.begin()
        self.fp = io.BufferedReader(_Reader(bounds, sock, self.fp.detach()))

    def begin(self) -> None:
        super().begin()
        if self.msg.defects or self.msg.get_payload():
            raise http.client.HTTPException("a line that is no header")


class _Reader(io.RawIOBase):
    def __init__(self, bounds: Bounds, sock: socket.socket, raw: io.RawIOBase) -> None:
        self._bounds = bounds
        self._sock = sock
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._bounds.left())
        try:
            number: int | None = self._raw.readinto(buffer)
        except TimeoutError:
            self._bounds.overdue = True
            raise
        self._bounds.take(number or 0)
        return number

    def close(self) -> None:
        self._raw.close()
        super().close()
