"""Ready queues: the receiver's view. What may be sent now over one kind of connection.

Who may share a connection is decided by the key: source, exact set of hosts, and the whole egress
path (TLS requirement and trust, AUTH identity and key source, port, limits). Two domains behind
one MX with different credentials have two ready queues and never share a session. What the
receiver sees is counted across keys: connections and rates are per (source, site).

A ready queue's state is one of three names, and whatever it is, a rule on replies may keep it *suspended*
(`suspended_until`):

- *open*: sessions may be started;
- *held*: something an operator must know of stands in the way (no trusted TLS, AUTH not offered,
  credentials refused, secret not available). Nothing is tried before `retry_at`; then one session
  probes. Waiting here is no attempt of any message;
- *backed off*: sessions came to nothing (no host reached, 421 or closed before anything was done);
  one session at a time until a transaction comes to its end.

A queue without sessions is *cold*: a single session if it has to log in, else a few, go first,
whatever the backlog; all the others follow when one transaction has come to its end. A peer that
takes no mail, or takes our password no longer, is met by one or a few sessions, not by thirty.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .limits import Limits
from .queued import Queued
from .scheduled import ScheduledQueue

if TYPE_CHECKING:
    from policy.egress import EgressPath, EgressSource
    from policy.units import Throttle

__all__ = ["SUSPENDED_LOOK", "ReadyQueue", "wanted_sessions"]

_PATIENCE = 0.01
"""Seconds of backlog a working session may have before another one is woken: enough for a run of
messages at loopback speed, nothing next to the delay of a real network. A guess that was tried:
2 ms cost a tenth more CPU per message."""

_COLD = 4
"""Sessions that a cold queue may start at once."""

SUSPENDED_LOOK = 60.0
"""Seconds between two looks at mail that stands still, whether it got too old."""

_BACK_OFF_FIRST = 1.0
_BACK_OFF_LAST = 300.0
"""Seconds between sessions to a site where they come to nothing (reliability C17)."""


_MOST = 1 << 62
"""No limit counts further: these numbers are C's, and a policy's may be of any length."""


def wanted_sessions(queued: int, limit: int) -> int:
    """How many sessions `queued` messages deserve, at most `limit`.

    A curve that opens one session for one message and approaches the limit as the queue grows
    (egress specification 7.6): 1, 2, 3, 5 -> 4, 10 -> 7, 32 -> 17, 128 -> 31 of 32.
    """
    if queued <= 0:
        return 0
    return min(queued, math.ceil(limit * (1.0 - math.exp(-0.023 * queued))))


def _slowest_first(
    key: str, own: Throttle | None, kind: str, shared: Mapping[str, Throttle]
) -> tuple[tuple[str, Throttle], ...]:
    """A rate of this queue alone and rates that are shared by name, each with its key."""
    rates = [(f"{kind}:{name}", rate) for name, rate in shared.items()]
    if own is not None:
        rates.append((key, own))
    return tuple(sorted(rates, key=lambda one: -one[1].interval))


class ReadyQueue:
    """One ready queue. Made and owned by the router; sessions take from it."""

    __slots__ = (
        "_connection_limit",
        "_max_ready",
        "_wakers",
        "back_off",
        "entries",
        "failures",
        "give_way",
        "hold_cause",
        "hold_text",
        "hungry",
        "lease",
        "leases",
        "message_rates",
        "met",
        "name",
        "noted_for",
        "pace",
        "path",
        "proceed",
        "providers",
        "refill",
        "retired",
        "retry_at",
        "selection_rates",
        "sessions",
        "site",
        "source",
        "starting",
        "suspended_text",
        "suspended_until",
        "touched",
        "warm",
    )

    def __init__(self, source: EgressSource, site: Any, path: EgressPath, limits: Limits) -> None:
        self.source = source
        self.site = site
        self.path = path
        self._connection_limit = min(path.connection_limit, _MOST)
        self._max_ready = min(path.max_ready, _MOST)
        self.name = f"{source.name}->{site.name}@smtp_client"
        where = f"{source.name}->{site.name}"
        self.lease = lease = limits.lease(f"connections:{where}")
        """Counts the connections of this source and site, whatever their paths."""
        shared = [
            (limit, limits.lease(f"limit:{name}"))
            for name, limit in path.additional_connection_limits.items()
        ]
        self.leases = tuple(sorted([(path.connection_limit, lease), *shared], key=lambda one: one[0]))
        """What one session takes one of each: limit and counter, the smallest limit first."""
        self.message_rates = _slowest_first(
            f"max_message_rate:{self.name}",
            path.max_message_rate,
            "throttle",
            path.additional_message_rate_throttles,
        )
        """What one message is counted in, by key."""
        self.selection_rates = _slowest_first(
            f"source_selection_rate:{where}",
            path.source_selection_rate,
            "selection",
            path.additional_source_selection_rates,
        )
        """What choosing this source for one message is counted in."""
        self.entries: deque[Queued] = deque()
        self.sessions = 0
        self.starting = 0
        """Of these, so many were started or woken and have not looked for a message yet: it still lies in
        `entries`."""
        self._wakers: dict[Callable[[], None], None] = {}
        self.hungry: dict[ScheduledQueue, None] = {}
        """Scheduled queues with messages waiting for room here, in the order they are served."""
        self.pace = 1.0
        """Seconds a session needs for one message, measured."""
        self.refill: Callable[[ReadyQueue], None] | None = None
        """The router's: called by `take` when there is room again and messages wait for it."""
        self.proceed: Callable[[ReadyQueue], None] | None = None
        """The router's: called when a session became ready, so that others may follow."""
        self.met = path.login is None
        """Whether a session got ready for mail, so that the credentials are known to be good."""
        self.warm = False
        """Whether a transaction came to its end; see the module."""
        self.failures = 0
        self.back_off = 0.0
        self.retry_at = float("-inf")
        self.hold_cause = ""
        self.hold_text = ""
        self.suspended_until = float("-inf")
        """A rule on replies said so: until then no session is started and none goes on."""
        self.suspended_text = ""
        self.providers: frozenset[str] = frozenset()
        """Of shaping files, those that the destination belongs to."""
        self.give_way = 0
        """So many sessions are asked to end: another queue that counts with this one has none."""
        self.retired = False
        self.touched = 0.0
        self.noted_for = float("-inf")
        """The router's: when it will look at this queue again."""

    def suspended(self, now: float) -> bool:
        """Whether a rule on replies keeps this queue standing still now."""
        return now < self.suspended_until

    @property
    def closed_until(self) -> float:
        """Before this moment no session may be started."""
        return max(self.retry_at, self.suspended_until)

    def next_look(self, now: float) -> float:
        """When a queue that stands still is looked at again: for a start, or for mail that got too old."""
        return max(self.retry_at, min(self.suspended_until, now + SUSPENDED_LOOK))

    def room(self) -> int:
        """How many more messages fit (`max_ready`)."""
        return self._max_ready - len(self.entries)

    def put(self, entry: Queued) -> bool:
        """Add at the end; False when full. Waking a session is the router's next step."""
        if len(self.entries) >= self._max_ready:
            return False
        self.entries.append(entry)
        return True

    def put_back(self, entry: Queued) -> None:
        """Return an entry to the front: its session ended before trying it. Never refused."""
        self.entries.appendleft(entry)

    def take(self) -> Queued | None:
        """The next entry, or None. Calls waiting messages in once half of the room is free."""
        entries = self.entries
        if not entries:
            return None
        entry = entries.popleft()
        if self.hungry:
            self.call_back()
        return entry

    def call_back(self) -> None:
        """Call waiting messages in if half of the room is free. `take` does; so must whoever removes
        entries otherwise."""
        if self.hungry and self.refill is not None and len(self.entries) * 2 <= self._max_ready:
            self.refill(self)

    def take_out(self, queue: ScheduledQueue) -> list[Queued]:
        """Remove and return the entries of one scheduled queue."""
        found = [entry for entry in self.entries if entry.queue is queue]
        if found:
            self.entries = deque(entry for entry in self.entries if entry.queue is not queue)
        return found

    def take_all(self) -> deque[Queued]:
        """Remove and return everything."""
        entries, self.entries = self.entries, deque()
        return entries

    def add_waker(self, wake: Callable[[], None]) -> None:
        """An idle session waits: `wake` is called once when there is something to do. Last in,
        first out, so that surplus sessions fall idle long enough to close."""
        self._wakers[wake] = None

    def drop_waker(self, wake: Callable[[], None]) -> None:
        """The idle session waits no more: it was woken, and looks for a message now, or gave up. Each calls
        this once."""
        if wake in self._wakers:
            del self._wakers[wake]
        else:
            self.starting -= 1

    def wake_one(self) -> bool:
        """Wake the session that fell idle last. False when none is idle."""
        if not self._wakers:
            return False
        wake, _ = self._wakers.popitem()
        self.starting += 1
        wake()
        return True

    def wake_all(self) -> None:
        """Wake every idle session: drain, retirement, a changed credential."""
        while self.wake_one():
            pass

    def idle_sessions(self) -> int:
        """Sessions that wait for something to do."""
        return len(self._wakers)

    def busy_enough(self) -> bool:
        """Whether the sessions at work will get through the backlog soon without help.

        Handing a run of messages to one session is far cheaper than waking one session for each
        (they travel pipelined), so nobody else is woken while the backlog is worth less than
        `_PATIENCE` seconds of the working sessions' measured pace. A slow peer has a slow pace,
        so there every message gets a session of its own.
        """
        working = self.sessions - len(self._wakers)
        return working > 0 and len(self.entries) * self.pace < _PATIENCE * working

    def finished_one(self, seconds: float) -> None:
        """A session needed so long for a message; the pace follows quickly up, slowly down."""
        pace = self.pace
        self.pace = seconds if seconds > pace else pace + (seconds - pace) * 0.1

    def wants_session(self, now: float) -> bool:
        """Whether one more session should be started now. The lease is the caller's business."""
        if len(self.entries) <= self.starting or self._wakers:
            return False
        if now < self.closed_until:
            return False
        if self.hold_cause or self.back_off:
            return self.sessions == 0
        if not self.warm:
            some = _COLD if self.met else 1
            return self.sessions < min(some, self._connection_limit)
        queued = len(self.entries) + self.sessions - self.starting
        return self.sessions < wanted_sessions(queued, self._connection_limit)

    def hold(self, cause: str, text: str, until: float) -> None:
        """Try nothing before `until`, then let one session probe."""
        self._cool_down()
        self.hold_cause = cause
        self.hold_text = text
        self.retry_at = until

    def connection_failed(self, now: float) -> None:
        """No host could be reached."""
        self.failures += 1
        self.setback(now)

    def setback(self, now: float) -> None:
        """A session came to nothing: the next one waits 1 s, 2 s, 4 s ... 5 min (reliability C17)."""
        self._cool_down()
        if now < self.retry_at:
            return  # one of several that met the same trouble at once
        self.back_off = min(max(_BACK_OFF_FIRST, self.back_off * 2), _BACK_OFF_LAST)
        self.retry_at = now + self.back_off

    def connected(self) -> None:
        """A session is ready for mail. Whether the peer takes any shows in `progressed`."""
        self.failures = 0
        self.hold_cause = ""
        self.hold_text = ""
        if not self.back_off:
            self.retry_at = float("-inf")
            if not self.met:
                self.met = True
                self._proceed()

    def progressed(self) -> None:
        """A transaction came to its end, whatever that was: whatever stood in the way is gone. But a
        session that logged in earlier says nothing about a hold: there, the next to connect does."""
        self.back_off = 0.0
        if self.hold_cause:
            return
        self.retry_at = float("-inf")
        self.met = self.warm = True
        self._proceed()

    def _proceed(self) -> None:
        if self.proceed is not None:
            self.proceed(self)

    def session_over(self) -> None:
        """One session less."""
        self.sessions -= 1
        if not self.sessions:
            self._cool_down()

    def _cool_down(self) -> None:
        self.warm = False
        self.met = self.path.login is None
