"""Next hops of `engine.testing` on loopback ports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from engine.testing.hop import (
    DROP,
    HANG,
    PLAIN,
    Arrived,
    Hangup,
    NextHop,
    Wire,
    command_word,
    hello,
    slowly,
)

__all__ = [
    "DROP",
    "HANG",
    "PLAIN",
    "Arrived",
    "FakePeer",
    "Hangup",
    "Wire",
    "command_word",
    "hello",
    "listening",
    "open_peer",
    "slowly",
]

FakePeer = NextHop
P = TypeVar("P", bound=NextHop)


@asynccontextmanager
async def open_peer(
    script: Callable[[Wire], Awaitable[object]] | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    window: int | None = None,
    **options: object,
) -> AsyncIterator[FakePeer]:
    """A `FakePeer` listening on a loopback port of its own. `window`: octets the kernel may take for it
    before it reads."""
    made = FakePeer(script=script, **options)  # type: ignore[arg-type]
    async with listening(made, host=host, port=port, window=window) as peer:
        yield peer


@asynccontextmanager
async def listening(
    peer: P, *, host: str = "127.0.0.1", port: int = 0, window: int | None = None
) -> AsyncIterator[P]:
    """`peer`, listening; see `open_peer`."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host=host)
        if window is not None:
            listeners[0].socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, window)
        peer.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, peer.serve, listeners)
        yield peer
        nursery.cancel_scope.cancel()
