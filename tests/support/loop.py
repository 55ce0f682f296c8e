"""How long the event loop is held, whatever else the machine does."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

__all__ = ["WatchedLoop", "watched_loop"]

_EVERY = 0.005


class WatchedLoop:
    """`longest`: seconds of processor time that this process used between two turns of the loop, at most.

    Not seconds of a clock: those tell how busy the machine is. Counted are all threads, so that one that
    keeps the interpreter's lock is seen too; one that lets go of it leaves the loop its turns.
    """

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        while True:
            begun = time.process_time()
            await trio.sleep(_EVERY)
            self.longest = max(self.longest, time.process_time() - begun)


@asynccontextmanager
async def watched_loop() -> AsyncIterator[WatchedLoop]:
    """Watch it while the block runs. Only with the real clock."""
    loop = WatchedLoop()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop.watch)
        yield loop
        nursery.cancel_scope.cancel()
