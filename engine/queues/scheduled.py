"""Scheduled queues: the sender's view (campaign, tenant, domain), and the one timer.

A queued message is one `Queued` record and never a task. It is always in exactly one place:

- *timed*: in the heap of its scheduled queue that the `Timer` keeps, due later;
- *waiting*: in its scheduled queue's `waiting` line, due, but its ready queue is full or its
  route is being worked out. It costs the record and nothing else; the body is read from the spool
  when its turn comes. This line takes the place of a blind random delay: when the ready queue has
  room again the router calls messages back, one queue after the other, so a long line of one
  tenant does not starve another's;
- *ready*: in a ready queue;
- *in hand*: held by one session;
- gone.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Any

from .queued import Queued

if TYPE_CHECKING:
    from engine.model import QueueName
    from policy.egress import QueueConfig
    from policy.shaping import Stop

__all__ = ["ScheduledQueue", "Timer"]


class ScheduledQueue:
    """One scheduled queue: its name, its configuration, its waiting line and its routes.

    `routes` is the router's: what it worked out for this queue, None until then.
    """

    __slots__ = (
        "config",
        "count",
        "idle_since",
        "name",
        "noted_for",
        "refresh_at",
        "resolving",
        "routes",
        "stop",
        "stop_until",
        "timed",
        "waiting",
    )

    def __init__(self, name: QueueName) -> None:
        self.name = name
        self.config: QueueConfig | None = None
        self.count = 0
        """Messages of this queue anywhere in the engine."""
        self.waiting: deque[Queued] = deque()
        self.timed: list[tuple[float, int, Queued]] = []
        """The timer's: a heap of what is due later."""
        self.routes: Any = None
        self.resolving = False
        self.refresh_at = float("-inf")
        self.idle_since = float("inf")
        self.noted_for = float("-inf")
        """The router's: when it will look at the line again."""
        self.stop: Stop | None = None
        """A rule on replies keeps this queue standing still, or bounces its mail, until `stop_until`."""
        self.stop_until = float("-inf")


class Timer:
    """What is due when. Ties keep the order of insertion.

    Each scheduled queue has a heap of its own, and one more holds the first of each: what is timed of one
    queue is found without a look at any other, be there a million. An entry of the short heap may be out
    of date, because a queue's first was taken out or another one came before it. When its time comes, what
    is the queue's first by then takes its place; so whatever is due is found in time.
    """

    __slots__ = ("_count", "_firsts", "_serial")

    def __init__(self) -> None:
        self._firsts: list[tuple[float, int, Queued]] = []
        self._serial = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, entry: Queued) -> bool:
        """Remember `entry` until its `due`. True when it is now the first one due."""
        self._serial += 1
        self._count += 1
        one = (entry.due, self._serial, entry)
        timed = entry.queue.timed
        heapq.heappush(timed, one)
        if timed[0] is not one:
            return False
        entry.noted = one[1]
        heapq.heappush(self._firsts, one)
        return self._firsts[0] is one

    def next_due(self) -> float | None:
        """When there is something to look for: when the first one is due, or sooner. None when nothing is
        timed."""
        return self._firsts[0][0] if self._count else None

    def take(self, queue: ScheduledQueue) -> Queued | None:
        """Take out the first one of a queue, due or not; None when nothing of it is timed."""
        if not queue.timed:
            return None
        self._count -= 1
        return heapq.heappop(queue.timed)[2]

    def pop_due(self, now: float, limit: int) -> list[Queued]:
        """At most `limit` entries that are due, in due order; perhaps fewer than are."""
        found: list[Queued] = []
        firsts = self._firsts
        for _ in range(limit):
            if not firsts or firsts[0][0] > now:
                break
            one = firsts[0]
            entry = one[2]
            timed = entry.queue.timed
            if entry.noted == one[1]:
                entry.noted = 0
            if timed and timed[0] is one:
                heapq.heappop(timed)
                found.append(entry)
            # What comes first now may be noted already, from before another one came ahead of it.
            if timed and timed[0][2].noted != timed[0][1]:
                timed[0][2].noted = timed[0][1]
                heapq.heapreplace(firsts, timed[0])
            else:
                heapq.heappop(firsts)
        self._count -= len(found)
        return found
