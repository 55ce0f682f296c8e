"""The memory that messages may take (reliability O1, S37).

What is received of messages whose final dot has not come yet is counted over all sessions of all listeners.
Past the limit nobody's socket is read inside DATA, so that clients slow down; a new MAIL is refused; and when
that does not help for some seconds, the message of which most is there is given up: what holds the memory,
and perhaps only pretends to send, must go before those that wait. Its client gets its reply at the end.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import trio

__all__ = ["Holder", "Memory", "available_memory"]

_PATIENCE = (5.0, 10.0)
"""Seconds between two messages that are given up, at least and at most: by chance, so that not all who wait
give up one in the same moment."""


class Holder(Protocol):
    """A session that is receiving a message."""

    def give_up(self) -> bool:
        """Let go of what was received of it, if it is not complete. Returns: whether that was so."""


class Memory:
    """See the module. `limit`: octets. `used`: octets now. `full`: the process takes too much altogether, so
    there is no room whatever is counted here; see `refuse`."""

    __slots__ = ("_holders", "_lot", "full", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self.full = False
        self._holders: dict[Holder, int] = {}
        self._lot = trio.lowlevel.ParkingLot()

    def take(self, holder: Holder, octets: int) -> bool:
        """So many octets more have come. False when that is too much: wait for `room` before reading on."""
        self.used = used = self.used + octets
        holders = self._holders
        holders[holder] = holders.get(holder, 0) + octets
        return used <= self.limit and not self.full

    def refuse(self, full: bool) -> None:
        """From now on there is no room at all, or as much as there is."""
        self.full = full
        self._let_go_on()

    def give_back(self, holder: Holder) -> None:
        """It holds nothing any more. Harmless when it held nothing."""
        self.used -= self._holders.pop(holder, 0)
        self._let_go_on()

    def _let_go_on(self) -> None:
        if self._lot and self.used <= self.limit and not self.full:
            self._lot.unpark_all()

    def has_room(self, octets: int) -> bool:
        """Whether a message of this size may be begun."""
        return self.used + octets <= self.limit and not self.full

    async def room(self) -> None:
        """Wait until there is room; see the module."""
        while self.used > self.limit or self.full:
            with trio.move_on_after(random.uniform(*_PATIENCE)) as patience:
                await self._lot.park()
            if patience.cancelled_caught and (self.used > self.limit or self.full):
                greatest = sorted(self._holders, key=self._holders.__getitem__, reverse=True)
                any(holder.give_up() for holder in greatest)


def available_memory(root: Path = Path("/")) -> int:
    """Octets that this process may use: what its control groups (version 2 or 1) allow, at most what the
    machine has."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    groups = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                found += _limits(groups, path, "memory.max")
            elif "memory" in controllers.split(","):
                found += _limits(groups / "memory", path, "memory.limit_in_bytes")
    return min(found)


def _limits(base: Path, path: str, name: str) -> Iterator[int]:
    """Those of a group and of the groups around it. In a container the path may be one of the host's."""
    group = base / path.lstrip("/")
    for one in (group, *group.parents):
        if one.is_relative_to(base):
            with contextlib.suppress(OSError, ValueError):  # "max": no limit
                yield int((one / name).read_text())
