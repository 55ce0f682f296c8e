"""One outgoing session: from a message that wants a connection to QUIT.

It connects for the first message of its ready queue, lets `Transactions` carry messages as long as
there are any and the session may go on, waits idle for more, and says goodbye. What it holds when
it ends, in whichever way, is settled or given back.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from engine.errors import (
    ConnectionLost,
    HeldError,
    MailLoop,
    NetworkError,
    PeerTimeout,
    RemoteProtocolError,
    ResolveError,
    TurnLost,
)
from engine.queues.queued import Queued
from engine.queues.ready import ReadyQueue
from engine.smtp import QuitDone

from . import outcome
from .alarms import Alarm
from .connection import Connection
from .dial import NoHostReached
from .transactions import Transactions
from .work import Services, connection_rate, give_back_rates

if TYPE_CHECKING:
    from .resolve import Candidate
    from .tlsa import Dane

__all__ = ["Session"]

logger = logging.getLogger("posthorn.egress")

_QUIT_PATIENCE = 5.0
"""Seconds to wait for the reply to QUIT; nothing depends on it (C15)."""

_SESSION_LIMIT = 3600.0
"""Seconds a session may live (reliability C18). In its last tenth nothing new is begun; then it is
broken off, unless the answer to a final dot is awaited."""


_FAREWELL = 1024
"""Octets that are taken of what a peer says to an idle session; they are not looked at."""

_QUIET = 0.3
"""Seconds a session waits for its next message before it also listens to what its peer says: under load the
message comes first, and to wait for either costs several times what it costs to wait for the one."""

_TURN = 32
"""Messages, and ..."""
_TURN_SECONDS = 1.0
"""... seconds a session goes on while another queue waits for its connection. Guesses."""


class Session:
    """See the module. `run` is the task; the router owns it."""

    __slots__ = (
        "_alarm",
        "_connection",
        "_ended",
        "_giving_way",
        "_hand",
        "_parked",
        "_prepaid",
        "_ready",
        "_scope",
        "_services",
        "_stale",
        "_transactions",
        "_turn_ends",
        "_woken",
        "id",
    )

    def __init__(
        self, services: Services, ready: ReadyQueue, session_id: str, *, prepaid: bool = False
    ) -> None:
        self._services = services
        self._ready = ready
        self.id = session_id
        self._prepaid = prepaid
        """Whether the first message is counted in `max_message_rate` already."""
        self._hand: Queued | None = None
        """A message taken for a connection that is not there yet."""
        self._connection: Connection | None = None
        self._transactions: Transactions | None = None
        self._ended = False
        self._giving_way = False
        self._turn_ends = float("inf")
        self._stale = float("inf")
        self._scope: trio.CancelScope | None = None
        self._alarm = Alarm(services.alarms, self._overdue)
        """When the peer's time is over, or the quiet time of a session that waits for a message."""
        self._parked: trio.lowlevel.Task | None = None
        """The session's task while it waits for a message and for nothing else."""
        self._woken = False

    def abort(self) -> None:
        """End now, for the end of the drain; what is under way is settled as broken off."""
        self._ended = True
        if self._scope is not None:
            self._scope.cancel()

    def _overdue(self) -> None:
        if self._parked is not None:
            self._unpark()
        elif self._scope is not None:
            self._scope.cancel()

    @property
    def shutdown_timeout(self) -> float:
        """Seconds this session may go on after a drain began (the path's `system_shutdown_timeout`)."""
        return self._ready.path.system_shutdown_timeout

    @property
    def carrying(self) -> bool:
        """Whether a transaction is under way."""
        return self._transactions is not None and self._transactions.busy

    @property
    def connection(self) -> Connection | None:
        """The connection, for records; None before there is one."""
        return self._connection

    # -- connecting ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver until the ready queue is empty for `idle_timeout`, or a limit is reached."""
        ready = self._ready
        entry = ready.take()
        if entry is None:
            if self._prepaid:
                give_back_rates(self._services.limits, ready, trio.current_time())
            return
        self._hand = entry
        connection = None
        try:
            with trio.CancelScope() as scope:
                self._scope = scope
                connection = await self._connect(entry)
        finally:
            if connection is None and self._hand is not None:
                ready.put_back(self._hand)
                self._hand = None
        if connection is None:
            return
        self._connection = connection
        try:
            ready.connected()
            await self._deliver(entry, connection)
        finally:
            connection.stream.close()
            if connection.identity is not None:
                connection.identity.left()

    async def _connect(self, entry: Queued) -> Connection | None:
        """A connection, or None after settling `entry` (and perhaps its whole ready queue)."""
        ready, services = self._ready, self._services
        settler = services.settler
        try:
            plan = await services.plan(ready)
            if plan.refused is None:
                ehlo = ready.path.ehlo_domain or ready.source.ehlo_domain or services.hostname
                return await services.dialer.open(
                    plan.candidates,
                    ready.path,
                    ready.source.source_address,
                    ehlo,
                    route=ready.site.route,
                    beside=[host.reference_name for host in ready.site.hosts],
                    sts=ready.site.sts,
                    pace=self._connection_rate,
                    dane=partial(self._dane, entry.queue.name.route) if ready.path.enable_dane else None,
                )
        except HeldError as error:
            self._hand = None
            await settler.hold(ready, entry, error)
        except TurnLost as error:
            # It waited for others to log in, and the peer did not wait as long: no attempt of anything.
            logger.debug("%s: %s", ready.name, error)
        except MailLoop as error:
            result = outcome.Outcome("permanent", outcome.internal(550, "5.4.6", str(error)))
            await self._fail(entry, result, everything=True)
        except (NoHostReached, ResolveError) as error:
            ready.connection_failed(trio.current_time())
            if isinstance(error, NoHostReached):
                reply = outcome.internal(451, "4.4.1", f"failed to connect to any candidate hosts: {error}")
            else:
                reply = outcome.internal(451, "4.4.3", f"the hosts cannot be resolved now: {error}")
            result = outcome.Outcome("transient", reply)
            limit = ready.path.consecutive_connection_failures_before_delay
            everything = ready.failures >= limit
            await self._fail(entry, result, everything=everything)
            if not everything:
                await settler.expire_waiting(ready)
        except Exception:
            # What a stranger said may have met a defect of ours. An attempt, or it would be met for ever.
            logger.exception("%s: connecting", ready.name)
            ready.connection_failed(trio.current_time())
            reply = outcome.internal(451, "4.3.0", "internal error, see the diagnostics")
            await self._fail(entry, outcome.Outcome("transient", reply), everything=False)
            await settler.expire_waiting(ready)
        else:
            refused = plan.refused
            reply = outcome.internal(refused.code, refused.enhanced, refused.text)
            verdict: outcome.Verdict = "permanent" if refused.permanent else "transient"
            await self._fail(entry, outcome.Outcome(verdict, reply), everything=True)
        return None

    async def _dane(self, domain: str, candidate: Candidate) -> Dane:
        return await self._services.dane(self._ready, candidate, domain)

    def _connection_rate(self) -> float:
        return connection_rate(self._services.limits, self._ready, trio.current_time())

    async def _fail(self, entry: Queued, result: outcome.Outcome, *, everything: bool) -> None:
        settler = self._services.settler
        await settler.all_recipients(entry, result, self._ready)
        self._hand = None
        if everything:
            await settler.whole_queue(self._ready, result)

    # -- delivering ------------------------------------------------------------------------------

    async def _deliver(self, first: Queued, connection: Connection) -> None:
        ready = self._ready
        error: Exception | None = None
        scope = trio.CancelScope()
        self._scope = scope
        begun = trio.current_time()
        self._stale = begun + _SESSION_LIMIT * 0.9
        self._turn_ends = begun + _TURN_SECONDS
        self._transactions = transactions = Transactions(
            self._services,
            ready,
            connection,
            self,
            self._alarm,
            must_end=self._must_end,
            until=begun + _SESSION_LIMIT,
            prepaid=self._prepaid,
        )
        transactions.hand, self._hand = first, None
        self._alarm.open()
        try:
            with scope:
                if self._ended:
                    scope.cancel()
                try:
                    entry: Queued | None = first
                    while entry is not None:
                        await transactions.run(entry)
                        if self._must_end(trio.current_time()) or connection.client.unasked:
                            break
                        entry = await self._idle(connection)
                    self._alarm.off()
                    await self._quit(connection)
                except (NetworkError, RemoteProtocolError) as caught:
                    error = caught
            if scope.cancelled_caught and error is None and not self._ended:
                error = PeerTimeout("no answer in time", stage=connection.client.stage)
        except Exception:
            await transactions.fault()
            raise
        finally:
            self._alarm.close()
            # Whichever way it ended: settle what was under way, give back what was not tried.
            stage = connection.client.stage
            lost = error or ConnectionLost("the session was ended", stage=stage)
            # Without an error it was us: whoever owns this task ends it, perhaps without a drain.
            transactions.broken(lost, ended=self._ended or error is None)
            ended_by_peer = error is not None or connection.client.closing or connection.client.unasked
            if ended_by_peer and not transactions.useful:
                ready.setback(trio.current_time())

    def _must_end(self, now: float) -> bool:
        connection, transactions = self._connection, self._transactions
        assert connection is not None and transactions is not None
        ready, services = self._ready, self._services
        return (
            self._ended
            or services.draining
            or ready.retired
            or transactions.stopped
            or connection.client.closing
            or transactions.delivered >= ready.path.max_deliveries_per_connection
            or now >= self._stale
            or now < ready.suspended_until
            or services.spool.halted is not None
            or self._gives_way(now)
            or not self._credential_current(connection)
            or self._next_is_foreign(connection, transactions)
        )

    def _next_is_foreign(self, connection: Connection, transactions: Transactions) -> bool:
        """Whether the peer may have shown what it is for another domain than the next message's."""
        only_for = connection.dane.only_for if connection.dane is not None else ""
        if not only_for:
            return False
        following = transactions.hand or next(iter(self._ready.entries), None)
        return following is not None and following.queue.name.route != only_for

    def _gives_way(self, now: float) -> bool:
        # Not before a message was sent, or two queues would hand the connection to and fro for ever;
        # and while there is more to send not before a run of them, or all would be spent on connecting.
        ready, transactions = self._ready, self._transactions
        assert transactions is not None
        enough = transactions.delivered >= (_TURN if ready.entries else 1)
        if (
            ready.give_way
            and not self._giving_way
            and (enough or (transactions.delivered and now >= self._turn_ends))
        ):
            self._ready.give_way -= 1
            self._giving_way = True
        return self._giving_way

    def _credential_current(self, connection: Connection) -> bool:
        """A rotated or withdrawn secret or client certificate ends the sessions that were opened with the old
        one (C45)."""
        if not self._services.dialer.certificates.current(self._ready.path, connection.certificate):
            return False
        identity = connection.identity
        if identity is None or identity.reference is None:
            return True
        return identity.current(self._services.keys.cached(identity.reference))

    # -- between messages, and the end -----------------------------------------------------------

    async def _idle(self, connection: Connection) -> Queued | None:
        """Wait for the next message, at most `idle_timeout`; None when the session should end."""
        ready = self._ready
        entry = ready.take()
        if entry is not None:
            return entry
        self._alarm.off()
        now = trio.current_time()
        until = now + ready.path.idle_timeout
        quiet = now + _QUIET
        while True:
            if quiet >= until or not await self._park(quiet):
                quiet = until
                await self._watch(connection, until)
            if self._peer_spoke(connection):
                # The peer closed, or said something nobody asked for (often 421): either way the
                # session is over, and no message had anything to do with it.
                self._ended = True
                return None
            now = trio.current_time()
            if self._must_end(now):
                return None
            entry = ready.take()
            if entry is not None:
                return entry
            if now >= until:
                return None

    async def _park(self, until: float) -> bool:
        """Wait to be woken, and for nothing else: False when that did not happen until then."""
        ready, wake = self._ready, self._wake
        self._woken = False
        ready.add_waker(wake)
        self._alarm.move(until)
        self._parked = trio.lowlevel.current_task()
        try:
            await trio.lowlevel.wait_task_rescheduled(self._stop_parking)
        finally:
            self._alarm.off()
            ready.drop_waker(wake)
        return self._woken

    def _wake(self) -> None:
        self._woken = True
        self._alarm.off()  # not when the task runs: until then it would pass for the peer's time
        if self._parked is not None:  # else the quiet time was over just now, and it is about to run
            self._unpark()

    def _unpark(self) -> None:
        task, self._parked = self._parked, None
        assert task is not None
        trio.lowlevel.reschedule(task)

    def _stop_parking(self, raise_cancel: object) -> trio.lowlevel.Abort:
        """Trio's: the task is cancelled while it is parked."""
        self._parked = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _watch(self, connection: Connection, until: float) -> None:
        """Wait to be woken, until the peer speaks, or until then."""
        ready = self._ready
        with trio.CancelScope(deadline=until) as waiting:
            wake = waiting.cancel
            ready.add_waker(wake)
            try:
                await connection.stream.wait_readable()
            finally:
                ready.drop_waker(wake)

    def _peer_spoke(self, connection: Connection) -> bool:
        """Whether the peer closed or said something since its last reply; records of TLS are no words."""
        try:
            return connection.stream.receive_nowait(_FAREWELL) is not None
        except ConnectionLost:
            return True

    async def _quit(self, connection: Connection) -> None:
        """Say goodbye. Whatever happens here changes nothing (C15). The connection counts until it is
        closed: a peer that is slow to say goodbye must not see more than the limit."""
        if self._ended or connection.client.closing or connection.client.unasked:
            return
        connection.client.quit()
        try:
            event: Any = await connection.event("QUIT", min(_QUIT_PATIENCE, self._ready.path.idle_timeout))
        except (NetworkError, RemoteProtocolError) as error:
            logger.debug("QUIT to %s: %s", connection.address, error)
            return
        if not isinstance(event, QuitDone):
            logger.debug("QUIT to %s answered by %s", connection.address, type(event).__name__)
        connection.stream.end_tls()  # not before the reply: a peer of TLS 1.2 would not send it any more
