"""Which ready queues hold the connections that are counted, and which wait for one.

A session takes one of each counter of its ready queue: that of its source and site, and those that its
path shares by name with other paths. When a counter is full, the queue waits for it in line; a session that
ends lets the next one in, and one that has none at all may ask another queue to give a session up.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine.queues.limits import Lease, acquire_all
from engine.queues.ready import ReadyQueue

__all__ = ["Connections"]


class Connections:
    """See the module. One for the engine."""

    __slots__ = ("_holders", "_refused", "_waiting")

    def __init__(self) -> None:
        self._holders: dict[Lease, dict[ReadyQueue, int]] = {}
        self._waiting: dict[Lease, dict[ReadyQueue, None]] = {}
        self._refused: tuple[ReadyQueue, Lease] | None = None
        """Who was refused last."""

    def acquire(self, ready: ReadyQueue) -> bool:
        """Take what one session needs. False when a counter is full: the queue stands in its line then, and
        if it has no session at all, another queue was asked to end one."""
        refused = acquire_all(ready.leases)
        if refused is not None:
            self._waiting.setdefault(refused, {})[ready] = None
            self._refused = (ready, refused)
            if not ready.sessions:
                self._ask_to_give_way(ready, refused)
            return False
        for _, lease in ready.leases:
            holders = self._holders.setdefault(lease, {})
            holders[ready] = holders.get(ready, 0) + 1
        return True

    def release(self, ready: ReadyQueue) -> None:
        """Give back what one session had."""
        for _, lease in ready.leases:
            lease.release()
            holders = self._holders[lease]
            holders[ready] -= 1
            if not holders[ready]:
                del holders[ready]
                if not holders:
                    del self._holders[lease]

    def next_in_line(self, ready: ReadyQueue) -> Iterator[ReadyQueue]:
        """The queues that wait for what a session of `ready` gave back: those that have no session at all, in
        the order they came, then the others. Start sessions for each before asking for the next; it ends at
        the first that has none and is refused again, which keeps its place. Looks at no more queues than
        there are connections, however many wait."""
        for _, lease in ready.leases:
            waiting = self._waiting.get(lease)
            if not waiting:
                continue
            for _ in range(len(waiting)):
                other = next((one for one in waiting if not one.sessions), None) or next(iter(waiting), None)
                if other is None:
                    break
                self._refused = None
                if not other.retired and other.entries:
                    yield other
                refused = self._refused == (other, lease)
                if refused and not other.sessions:
                    break  # somebody was asked to give way to it
                del waiting[other]
                if refused:
                    waiting[other] = None  # it has some, and wants more: after all the others
            if not waiting:
                del self._waiting[lease]

    def _ask_to_give_way(self, ready: ReadyQueue, full: Lease) -> None:
        """Others have all the connections, and this one has none: one of theirs ends soon, an idle one at
        once."""
        others = [other for other in self._holders.get(full, ()) if other is not ready]
        if others and not any(other.give_way for other in others):
            most = max(others, key=lambda other: (other.idle_sessions(), other.sessions))
            most.give_way = 1
            most.wake_one()
