"""Scheduled queues: the sender's view (campaign, tenant, domain), and the one timer.

A queued message is one `Queued` record and never a task. It is always in exactly one place:

- *timed*: in the `Timer`'s heap, due later;
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

import msgspec

from engine.model import Message, QueueName

if TYPE_CHECKING:
    from policy.egress import QueueConfig
    from policy.shaping import Stop

__all__ = ["Queued", "ScheduledQueue", "Timer"]


class Queued(msgspec.Struct, gc=False):
    """One queued message. About half a kilobyte with its spool handle; a million must fit in 1 GiB.

    `gc=False`: there can be a million of these, and walking them in every full collection would
    stop the loop; they are freed by reference count when they leave their place.

    `created` is Unix time, `due` is on the monotonic clock (`trio.current_time`), so a step of the
    wall clock moves no retry. `done` has one bit per recipient that has a final result.
    `message` and `body` are present only while the message is worked on.
    """

    id: bytes
    handle: Any
    queue: ScheduledQueue
    created: float
    due: float
    size: int
    attempts: int = 0
    done: int = 0
    message: Message | None = None
    body: bytes | None = None


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
        "waiting",
    )

    def __init__(self, name: QueueName) -> None:
        self.name = name
        self.config: QueueConfig | None = None
        self.count = 0
        """Messages of this queue anywhere in the engine."""
        self.waiting: deque[Queued] = deque()
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
    """What is due when: one heap for all queues. Ties keep the order of insertion."""

    __slots__ = ("_heap", "_serial")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Queued]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, entry: Queued) -> bool:
        """Remember `entry` until its `due`. True when it is now the first one due."""
        self._serial += 1
        heapq.heappush(self._heap, (entry.due, self._serial, entry))
        return self._heap[0][2] is entry

    def next_due(self) -> float | None:
        """When the first one is due, None when nothing is timed."""
        return self._heap[0][0] if self._heap else None

    def take_out(self, queues: set[ScheduledQueue]) -> list[Queued]:
        """Remove and return the entries of some scheduled queues, in due order. Looks at every entry."""
        found = sorted(one for one in self._heap if one[2].queue in queues)
        if found:
            self._heap = [one for one in self._heap if one[2].queue not in queues]
            heapq.heapify(self._heap)
        return [entry for _, _, entry in found]

    def pop_due(self, now: float, limit: int) -> list[Queued]:
        """At most `limit` entries that are due, in due order."""
        found: list[Queued] = []
        heap = self._heap
        while heap and heap[0][0] <= now and len(found) < limit:
            found.append(heapq.heappop(heap)[2])
        return found
