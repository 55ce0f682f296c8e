"""Throttles (GCRA) and leases, counted in this process. Pure: the time is an argument.

The Generic Cell Rate Algorithm keeps one number per throttle, the "theoretical arrival time" at
which the bucket would be empty again. An event conforms when that time is at most
``(burst - 1) * interval`` ahead of now; so exactly `burst` events may pass back to back, then one
each `interval`. Waits are exact, not rounded up to seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol
from weakref import WeakValueDictionary

__all__ = ["Lease", "Limits", "LocalLimits", "Rate", "acquire_all", "take_all"]

_LINE = 1.0
"""Seconds over which those who are refused are spread."""
_FEW = 8
"""Of these, so many come for one event."""

_SWEEP_ABOVE = 10_000
"""Idle throttles are swept once the table holds this many."""


class Rate:
    """One throttle: at most `burst` events at once and one each `interval` seconds after that."""

    __slots__ = ("_arrival", "_interval", "_promised", "_slack", "_told", "_told_at")

    def __init__(self, interval: float, burst: int) -> None:
        self._interval = interval
        self._slack = (burst - 1) * interval
        self._arrival = float("-inf")
        self._promised = float("-inf")
        self._told = 0
        self._told_at = float("-inf")

    def wait(self, now: float) -> float:
        """Seconds until one event would conform; 0 when it would now. Takes nothing."""
        return max(0.0, self._arrival - self._slack - now)

    def take(self, now: float) -> float:
        """Count one event. Returns 0 when it conforms; else the seconds to wait, nothing counted.

        Not more than `_FEW` are told the moment of the next event; who comes after them is told a turn
        behind, or a thousand queues that share a rate would wake for every single event and all but one in
        vain. So one who does not come costs nothing, and nobody waits `_LINE` longer than need be.

        Time going backwards is harmless: it can only lengthen a wait that was promised before.
        """
        arrival = self._arrival
        wait = arrival - self._slack - now
        if wait > 1e-9:
            if arrival != self._told_at:
                self._told_at, self._told = arrival, 0
            self._told += 1
            if self._told <= _FEW:
                return wait
            turn = self._promised - now + self._interval / _FEW
            if not wait <= turn <= wait + _LINE:
                turn = wait
            self._promised = now + turn
            return turn
        self._arrival = (arrival if arrival > now else now) + self._interval
        return 0.0

    def give_back(self) -> None:
        """Undo one `take` whose event did not happen (another limit refused it)."""
        self._arrival -= self._interval

    def idle(self, now: float) -> bool:
        """Whether the bucket is full again, so that forgetting it changes nothing."""
        return self._arrival <= now


class Lease:
    """A counted limit: how many of something are in use under one name."""

    __slots__ = ("__weakref__", "name", "used")

    def __init__(self, name: str) -> None:
        self.name = name
        self.used = 0

    def acquire(self, limit: int) -> bool:
        """Take one if fewer than `limit` are in use."""
        if self.used >= limit:
            return False
        self.used += 1
        return True

    def release(self) -> None:
        """Give one back."""
        self.used -= 1


def acquire_all(leases: Sequence[tuple[int, Lease]]) -> Lease | None:
    """Take one of each, in the order given: the smallest limit first. Returns the lease that refuses, with
    nothing taken; None when all were taken."""
    for position, (limit, lease) in enumerate(leases):
        if not lease.acquire(limit):
            for _, taken in leases[:position]:
                taken.release()
            return lease
    return None


def take_all(rates: Iterable[Rate], now: float) -> float:
    """Count one event in each, in the order given: the slowest first. Returns 0, or the seconds to wait
    for the one that refuses, with nothing counted anywhere."""
    taken: list[Rate] = []
    for rate in rates:
        wait = rate.take(now)
        if wait > 0.0:
            for other in taken:
                other.give_back()
            return wait
        taken.append(rate)
    return 0.0


class Limits(Protocol):
    """The seam for what is counted together: in this process, later on a node or in a cluster."""

    def rate(self, key: str, interval: float, burst: int, now: float) -> Rate:
        """The throttle of that name and those numbers; changed numbers start a fresh bucket.

        Look it up for every use: an idle throttle may be forgotten.
        """
        ...

    def lease(self, key: str) -> Lease:
        """The counter of that name. Stays valid as long as somebody holds it."""
        ...


class LocalLimits:
    """`Limits` of one process."""

    def __init__(self) -> None:
        self._rates: dict[tuple[str, float, int], Rate] = {}
        self._leases: WeakValueDictionary[str, Lease] = WeakValueDictionary()

    def rate(self, key: str, interval: float, burst: int, now: float) -> Rate:
        """See `Limits.rate`."""
        name = (key, interval, burst)
        found = self._rates.get(name)
        if found is None:
            if len(self._rates) >= _SWEEP_ABOVE:
                self._rates = {k: rate for k, rate in self._rates.items() if not rate.idle(now)}
            found = self._rates[name] = Rate(interval, burst)
        return found

    def lease(self, key: str) -> Lease:
        """See `Limits.lease`."""
        found = self._leases.get(key)
        if found is None:
            found = self._leases[key] = Lease(key)
        return found
