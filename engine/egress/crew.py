"""Sessions: how many are at work for which ready queue, and what happens when one ends.

A session is started when a ready queue has more messages than its sessions get through soon, and when
every limit and rate allows it: the connections of source and site, those that paths share by name, the
rates of messages and connections, a spool that takes results. Each runs behind one barrier, so that a
defect met by one message ends one session (reliability O6, Y1).
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from .connections import Connections
from .session import Session
from .work import Services, connection_rate, message_not_sent, message_rate

if TYPE_CHECKING:
    from engine.queues.limits import Limits
    from engine.queues.ready import ReadyQueue

    from .routes import RouteFinder

__all__ = ["Crew"]

logger = logging.getLogger("posthorn.egress")

_LOOK_AGAIN = 0.005
"""Seconds after which a backlog that was left to the working sessions is looked at again."""

_SPOOL_LOOK = 1.0
"""Seconds between two looks at a spool that cannot take results."""


_GOODBYE = 1.0
"""Seconds that idle sessions have for their QUIT when a drain begins."""


class Crew:
    """See the module. `wake_at`: the router's, to be asked about a queue again at a moment. `over`: the
    router's, told of each session that ended."""

    def __init__(
        self,
        nursery: trio.Nursery,
        services: Services,
        limits: Limits,
        finder: RouteFinder,
        *,
        wake_at: Callable[[ReadyQueue, float], None],
        over: Callable[[ReadyQueue, float], None],
    ) -> None:
        self._nursery = nursery
        self._services = services
        self._limits = limits
        self._finder = finder
        self._wake_at = wake_at
        self._over = over
        self._connections = Connections()
        self.sessions: set[Session] = set()
        self._looked_at: set[ReadyQueue] = set()
        self._serial = itertools.count()
        self._session_prefix = os.urandom(6).hex()

    def set_to_work(self, ready: ReadyQueue, now: float) -> None:
        """Wake or start as many sessions as the backlog deserves."""
        if now < ready.suspended_until:
            self._wake_at(ready, ready.next_look(now))
            return
        if now < ready.retry_at:
            # A new connection must wait; one that is open need not, unless the site itself is in trouble.
            if ready.hold_cause or ready.back_off or not ready.wake_one():
                self._wake_at(ready, ready.retry_at)
            return
        if ready.busy_enough():
            if ready not in self._looked_at:
                self._looked_at.add(ready)
                self._wake_at(ready, now + _LOOK_AGAIN)
            return
        if ready.wake_one():
            return
        while ready.wants_session(now):
            if not self._start_session(ready, now):
                return

    def noticed(self, ready: ReadyQueue) -> bool:
        """The moment noted for this queue has come: whether its backlog had been left to those at work."""
        patient = ready in self._looked_at
        self._looked_at.discard(ready)
        return patient

    def help_out(self, ready: ReadyQueue, now: float) -> None:
        """The working sessions did not get through the backlog: one more, whatever their pace was."""
        if not ready.wake_one() and ready.wants_session(now):
            self._start_session(ready, now)

    def _start_session(self, ready: ReadyQueue, now: float) -> bool:
        if self._services.draining:
            return False
        if self._services.spool.halted is not None:
            # A result could not be recorded now, so nothing is begun (reliability D21).
            self._wake_at(ready, now + _SPOOL_LOOK)
            return False
        if not self._connections.acquire(ready):
            return False
        # A connection without a message that may go is of no use, so the message is counted first.
        wait = message_rate(self._limits, ready, now)
        if not wait:
            wait = connection_rate(self._limits, ready, now)
            if wait:
                message_not_sent(self._limits, ready, now)
        if wait:
            self._connections.release(ready)
            ready.retry_at = now + wait
            self._wake_at(ready, ready.retry_at)
            return False
        ready.sessions += 1
        ready.starting += 1
        name = f"{self._session_prefix}{next(self._serial):012x}"
        session = Session(self._services, ready, name, prepaid=True)
        self.sessions.add(session)  # now, not when the task runs: a drain must see it
        self._nursery.start_soon(self._session, session, ready)
        return True

    async def _session(self, session: Session, ready: ReadyQueue) -> None:
        """One outgoing session, behind its barrier."""
        ready.starting -= 1
        try:
            await session.run()
        except Exception:
            logger.exception("session %s of %s failed", session.id, ready.name)
            ready.connection_failed(trio.current_time())
        finally:
            self.sessions.discard(session)
            self._connections.release(ready)
            ready.session_over()
        now = trio.current_time()
        ready.touched = now
        ready.give_way = min(ready.give_way, ready.sessions)
        for other in self._connections.next_in_line(ready):
            self.set_to_work(other, now)
        self._over(ready, now)

    async def drain(self) -> None:
        """Let transactions under way finish and start nothing new.

        A session that is not done after its path's `system_shutdown_timeout` is broken off. What
        was not sent stays in the spool for the next start.
        """
        self._services.draining = True
        begun = trio.current_time()
        for ready in self._finder.ready_queues():
            ready.wake_all()
        while self.sessions:
            now = trio.current_time()
            for session in list(self.sessions):
                # Only what is being sent is waited for; who is connected may say goodbye.
                patience = session.shutdown_timeout if session.carrying else _GOODBYE
                if session.connection is None or now - begun >= patience:
                    session.abort()
            await trio.sleep(0.02)

    def longest_drain(self) -> float:
        """Seconds that `drain` may take now."""
        return max((session.shutdown_timeout for session in self.sessions), default=0.0)
