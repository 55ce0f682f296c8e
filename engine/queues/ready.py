"""Ready queues: the receiver's view. What may be sent now over one kind of connection.

Who may share a connection is decided by the key: source, exact set of hosts, and the whole egress
path (TLS requirement and trust, AUTH identity and key source, port, limits). Two domains behind
one MX with different credentials have two ready queues and never share a session. What the
receiver sees is counted across keys: connections and rates are per (source, site).

A ready queue's state is one of three names:

- *open*: sessions may be started;
- *held*: something an operator must know of stands in the way (no trusted TLS, AUTH not offered,
  credentials refused, secret not available). Nothing is tried before `retry_at`; then one session
  probes. Waiting here is no attempt of any message;
- *backed off*: hosts could not be reached; one session at a time until one succeeds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .limits import Lease
from .scheduled import Queued, ScheduledQueue

if TYPE_CHECKING:
    from policy.egress import EgressPath, EgressSource

__all__ = ["ReadyQueue", "wanted_sessions"]

_PATIENCE = 0.01
"""Seconds of backlog a working session may have before another one is woken: enough for a run of
messages at loopback speed, nothing next to the delay of a real network. A guess that was tried:
2 ms cost a tenth more CPU per message."""

_BACK_OFF_FIRST = 1.0
_BACK_OFF_LAST = 300.0
"""Seconds between sessions to a site that fails before any message is tried (reliability C17)."""


def wanted_sessions(queued: int, limit: int) -> int:
    """How many sessions `queued` messages deserve, at most `limit`.

    A curve that opens one session for one message and approaches the limit as the queue grows
    (egress specification 7.6): 1, 2, 3, 5 -> 4, 10 -> 7, 32 -> 17, 128 -> 31 of 32.
    """
    if queued <= 0:
        return 0
    return min(queued, math.ceil(limit * (1.0 - math.exp(-0.023 * queued))))


class ReadyQueue:
    """One ready queue. Made and owned by the router; sessions take from it."""

    __slots__ = (
        "_wakers",
        "back_off",
        "entries",
        "failures",
        "hold_cause",
        "hold_text",
        "hungry",
        "lease",
        "name",
        "noted_for",
        "pace",
        "path",
        "proceed",
        "proven",
        "refill",
        "retired",
        "retry_at",
        "sessions",
        "site",
        "source",
        "touched",
    )

    def __init__(self, source: EgressSource, site: Any, path: EgressPath, lease: Lease) -> None:
        self.source = source
        self.site = site
        self.path = path
        self.lease = lease
        self.name = f"{source.name}->{site.name}@smtp_client"
        self.entries: deque[Queued] = deque()
        self.sessions = 0
        self._wakers: dict[Callable[[], None], None] = {}
        self.hungry: dict[ScheduledQueue, None] = {}
        """Scheduled queues with messages waiting for room here, in the order they are served."""
        self.pace = 1.0
        """Seconds a session needs for one message, measured."""
        self.refill: Callable[[ReadyQueue], None] | None = None
        """The router's: called by `take` when there is room again and messages wait for it."""
        self.proceed: Callable[[ReadyQueue], None] | None = None
        """The router's: called when a session became ready, so that others may follow."""
        self.proven = path.smtp_auth_plain_username is None
        """Whether the credentials were accepted; until then one session tries them, alone. Thirty
        sessions with one wrong password at once would lock an account (reliability C42)."""
        self.failures = 0
        self.back_off = 0.0
        self.retry_at = float("-inf")
        self.hold_cause = ""
        self.hold_text = ""
        self.retired = False
        self.touched = 0.0
        self.noted_for = float("-inf")
        """The router's: when it will look at this queue again."""

    def room(self) -> int:
        """How many more messages fit (`max_ready`)."""
        return self.path.max_ready - len(self.entries)

    def put(self, entry: Queued) -> bool:
        """Add at the end; False when full. Waking a session is the router's next step."""
        if len(self.entries) >= self.path.max_ready:
            return False
        self.entries.append(entry)
        return True

    def put_back(self, entry: Queued) -> None:
        """Return an entry to the front: its session ended before trying it. Never refused."""
        self.entries.appendleft(entry)

    def take(self) -> Queued | None:
        """The next entry, or None. Calls waiting messages back once half of the room is free."""
        entries = self.entries
        if not entries:
            return None
        entry = entries.popleft()
        if self.hungry and self.refill is not None and len(entries) * 2 <= self.path.max_ready:
            self.refill(self)
        return entry

    def add_waker(self, wake: Callable[[], None]) -> None:
        """An idle session waits: `wake` is called once when there is something to do. Last in,
        first out, so that surplus sessions fall idle long enough to close."""
        self._wakers[wake] = None

    def drop_waker(self, wake: Callable[[], None]) -> None:
        """The idle session gave up waiting. Harmless when it was called already."""
        self._wakers.pop(wake, None)

    def wake_one(self) -> bool:
        """Wake the session that fell idle last. False when none is idle."""
        if not self._wakers:
            return False
        self._wakers.popitem()[0]()
        return True

    def wake_all(self) -> None:
        """Wake every idle session: drain, retirement, a changed credential."""
        while self.wake_one():
            pass

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
        if not self.entries or self._wakers:
            return False
        if now < self.retry_at:
            return False
        if self.hold_cause or self.back_off or not self.proven:
            return self.sessions == 0
        return self.sessions < wanted_sessions(len(self.entries) + self.sessions, self.path.connection_limit)

    def hold(self, cause: str, text: str, until: float) -> None:
        """Try nothing before `until`, then let one session probe."""
        self.proven = False
        self.hold_cause = cause
        self.hold_text = text
        self.retry_at = until

    def connection_failed(self, now: float) -> None:
        """No host could be reached: the next session waits 1 s, 2 s, 4 s ... 5 min."""
        self.failures += 1
        self.back_off = min(max(_BACK_OFF_FIRST, self.back_off * 2), _BACK_OFF_LAST)
        self.retry_at = now + self.back_off

    def connected(self) -> None:
        """A session is ready for mail: whatever stood in the way is gone."""
        self.failures = 0
        self.back_off = 0.0
        self.hold_cause = ""
        self.hold_text = ""
        self.retry_at = float("-inf")
        alone = not self.proven
        self.proven = True
        if alone and self.proceed is not None:
            self.proceed(self)
