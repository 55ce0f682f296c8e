"""Fetching a shaping file by HTTP.

The content decides where mail and passwords go, so it is taken from nobody but the host that was named:
certificates are verified, redirects are not followed, proxies of the environment are not used.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import httpx2
import trio

__all__ = ["Client", "FetchFailed", "Fetches", "open_client"]

TIMEOUT = 5.0
"""Seconds one fetch may take as a whole."""
LARGEST = 16 << 20
"""Octets of content."""


class FetchFailed(Exception):
    """The content could not be had. The text says why and is safe to show."""


class Fetches(Protocol):
    """What fetches URLs: `Client`."""

    async def fetch(self, url: str) -> bytes | None:
        """See `Client.fetch`."""
        ...

    def forget(self, url: str) -> None:
        """See `Client.forget`."""
        ...


class Client:
    """Remembers what it saw of each URL, so that unchanged content is not sent again."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self._tags: dict[str, str] = {}

    async def fetch(self, url: str) -> bytes | None:
        """The content; None when it is what was fetched last. Raises: FetchFailed."""
        content: bytes | None = None
        tag: str | None = None
        with trio.move_on_after(TIMEOUT) as scope:
            try:
                content, tag = await self._fetch(url)
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
                raise FetchFailed(_why(error)) from None
        if scope.cancelled_caught:
            raise FetchFailed(f"no answer in {TIMEOUT:g} s")
        # Not before: content that is lost on the way to the caller must be sent again.
        if tag:
            self._tags[url] = tag
        elif content is not None:
            self._tags.pop(url, None)
        return content

    def forget(self, url: str) -> None:
        """The content was of no use: have it sent again next time."""
        self._tags.pop(url, None)

    async def _fetch(self, url: str) -> tuple[bytes | None, str | None]:
        headers = {"If-None-Match": self._tags[url]} if url in self._tags else {}
        async with self._client.stream("GET", url, headers=headers) as response:
            if response.status_code == 304 and headers:
                return None, None
            if response.is_redirect:
                raise FetchFailed(f"{response.status_code}, it has moved; right would be its new address")
            if response.status_code != 200:
                raise FetchFailed(f"the answer is {response.status_code}")
            content = bytearray()
            with trio.CancelScope() as enough:
                async for piece in response.aiter_bytes():
                    content += piece
                    if len(content) > LARGEST:
                        enough.cancel()  # raised where the next piece is read, so that nothing is left open
            if len(content) > LARGEST:
                raise FetchFailed(f"it has more than {LARGEST} octets")
            return bytes(content), response.headers.get("ETag")


def _why(error: BaseException) -> str:
    """The first text of an error and of what it came from: those of the library are often empty."""
    name = type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if str(cause):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return name


@asynccontextmanager
async def open_client() -> AsyncIterator[Client]:
    """A client; leaving the block closes its connections."""
    async with httpx2.AsyncClient(
        verify=ssl.create_default_context(), trust_env=False, follow_redirects=False, timeout=TIMEOUT
    ) as client:
        yield Client(client)
