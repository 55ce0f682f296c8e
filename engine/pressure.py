"""How much memory the process takes, and what becomes scarce when that is too much (reliability O1).

What is counted (messages under way, messages that stay beside the spool) is bounded anyway, and is not all:
queued messages, sessions, caches, and what an allocator keeps for later. So the kernel is asked four times a
second how much of the process lies in memory, and two marks are kept:

- *soft* (80 % of the limit): bodies of queued messages leave memory; they are read again from the spool.
- *hard* (the limit): no new mail. Clients are greeted with 421, MAIL is answered 452, and nobody is read from
  inside DATA. Deliveries go on, for they are what makes it better.

Either is over when 5 % less than its mark is taken.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

import trio

from engine.errors import ConfigError

__all__ = ["Level", "Pressure", "resident"]

logger = logging.getLogger("posthorn.memory")

_LOOK = 0.25
"""Seconds between two looks."""
_SOFT = 0.8
_OVER = 0.95
_TRIM = 10.0
"""Seconds between two times that what was freed is given back, past the soft mark; at least."""
_SHARE = 200.0
"""Or so many times the CPU it took: all threads wait meanwhile, for half a percent of the time at most."""
_AGAIN = 60.0
"""Seconds after which it is said once more that mail is refused."""
_LEAST = 16 << 20
"""Octets that there must be for mail, above what the process takes at its start."""
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Level(IntEnum):
    """See the module."""

    CALM = 0
    SOFT = 1
    HARD = 2


def resident(statm: str = "/proc/self/statm") -> int:
    """Octets of this process that lie in memory."""
    with open(statm, "rb") as file:
        return int(file.read().split()[1]) * _PAGE


class Pressure:
    """See the module. `limit`: octets, the hard mark. `measure`: how many are taken.

    `level`, `taken`: at the last look; `most`: the greatest of all looks.
    """

    def __init__(self, limit: int, *, measure: Callable[[], int] = resident) -> None:
        self.limit = limit
        self.soft = int(limit * _SOFT)
        self.level = Level.CALM
        self.taken = self.most = 0
        self._tell: list[Callable[[Level], None]] = []
        self._measure = measure
        self._said = float("-inf")

    def check(self) -> None:
        """Whether there is room for mail at all. Raises: ConfigError."""
        taken = self._measure()
        if taken + _LEAST > self.limit:
            raise ConfigError(
                f"configure_memory: limit is {_mib(self.limit)}, and the process takes {_mib(taken)} before "
                f"the first message; right would be {_mib(2 * taken + _LEAST)} or more"
            )

    @contextmanager
    def telling(self, tell: Callable[[Level], None]) -> Iterator[None]:
        """While the block runs, `tell` is called with the level there is, and with each new one."""
        self._tell.append(tell)
        try:
            tell(self.level)
            yield
        finally:
            self._tell.remove(tell)

    def look(self) -> None:
        """Measure, and tell of a new level."""
        self.taken = taken = self._measure()
        self.most = max(self.most, taken)
        level = self._level()
        if level != self.level:
            self._say(level)
            self.level = level
            for tell in self._tell:
                tell(level)
        elif level == Level.HARD and trio.current_time() - self._said >= _AGAIN:
            self._say(level)

    def _level(self) -> Level:
        taken, level = self.taken, self.level
        if taken > self.limit or (level == Level.HARD and taken > self.limit * _OVER):
            return Level.HARD
        if taken > self.soft or (level != Level.CALM and taken > self.soft * _OVER):
            return Level.SOFT
        return Level.CALM

    def _say(self, level: Level) -> None:
        self._said = trio.current_time()
        if level == Level.HARD:
            logger.error(
                "%s are taken, and the limit is %s: no new mail until it is less; deliveries go on",
                _mib(self.taken),
                _mib(self.limit),
            )
        elif level > self.level:
            logger.warning(
                "%s are taken, more than 80 %% of the limit, %s: bodies of queued messages leave memory",
                _mib(self.taken),
                _mib(self.limit),
            )
        else:
            text = "new mail is taken again" if level == Level.SOFT else "enough is free again"
            logger.warning("%s are taken, and the limit is %s: %s", _mib(self.taken), _mib(self.limit), text)

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        next_trim = float("-inf")
        while True:
            try:
                self.look()
            except Exception:
                # A barrier: whoever is told, or a /proc that is gone, must not end the relay.
                logger.exception("looking at the memory taken")
            if self.level > Level.CALM and trio.current_time() >= next_trim:
                spent = await _give_back()
                next_trim = trio.current_time() + max(_TRIM, _SHARE * spent)
            await trio.sleep(_LOOK)


def _mib(octets: int) -> str:
    return f"{octets / (1 << 20):,.0f} MiB"


async def _give_back() -> float:
    """Free memory goes back to the kernel: else what was taken once would count for ever. The seconds of CPU
    that it took."""
    return await trio.to_thread.run_sync(_trim)


def _trim() -> float:
    begun = time.thread_time()
    # A whole collection empties the interpreter's lists of objects to be used again. A few thousand tuples in
    # them are enough to keep all the memory in which a million queued messages lay.
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of the GNU C library
    if trim is not None:
        trim(0)
    return time.thread_time() - begun
