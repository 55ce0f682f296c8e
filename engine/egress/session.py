"""One outgoing session: takes messages from its ready queue and carries them over one connection.

The steady state is one write and one read per message: the body of a message, its final dot and
the next message's MAIL, RCPT and DATA leave together (RFC 2920 3.1), where the peer offers
PIPELINING and the path allows it. A host that stumbles over that is remembered and spoken to
plainly from then on, and the message that was sent ahead goes back untried.

Every way a session can end gives back what it holds: a message is settled (delivered, to be
retried, given up), or put back untried. Which of them, for which fact, `outcome` decides.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import trio

from engine.errors import (
    ConnectionLost,
    HeldError,
    MessageUnreadable,
    NetworkError,
    PeerTimeout,
    RemoteProtocolError,
    ResolveError,
    SpoolError,
)
from engine.queues.ready import ReadyQueue
from engine.queues.scheduled import Queued
from engine.smtp import Finished, GoAhead, QuitDone, Unsolicited

from . import outcome
from .dial import Connection, NoHostReached
from .work import Services, Work, make_work, patience, send

__all__ = ["Session"]

logger = logging.getLogger("posthorn.egress")

_QUIT_PATIENCE = 5.0
"""Seconds to wait for the reply to QUIT; nothing depends on it (C15)."""

_SESSION_LIMIT = 3600.0
"""Seconds a session may live; a long one ends between two messages (reliability C18)."""

_STUMBLED = frozenset((421, 500, 501, 502, 503, 554))
"""Replies to a MAIL that was sent ahead which may speak about the pipelining, not the mail."""


class Session:
    """See the module. `run` is the task; the router owns it."""

    __slots__ = (
        "_across",
        "_connection",
        "_delivered",
        "_ended",
        "_following",
        "_hand",
        "_ready",
        "_release",
        "_scope",
        "_services",
        "_work",
        "id",
    )

    def __init__(
        self, services: Services, ready: ReadyQueue, session_id: str, release: Callable[[], None]
    ) -> None:
        self._services = services
        self._ready = ready
        self.id = session_id
        self._release = release
        self._connection: Connection | None = None
        self._work: Work | None = None
        self._following: Work | None = None
        self._hand: Queued | None = None
        self._delivered = 0
        self._across = False
        self._ended = False
        self._scope: trio.CancelScope | None = None

    def abort(self) -> None:
        """End now, for the end of the drain; what is under way is settled as broken off."""
        self._ended = True
        if self._scope is not None:
            self._scope.cancel()

    # -- connecting ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Deliver until the ready queue is empty for `idle_timeout`, or a limit is reached."""
        ready = self._ready
        entry = ready.take()
        if entry is None:
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
        self._across = self._may_pipeline_across(connection)
        ready.connected()
        try:
            await self._deliver(entry)
        finally:
            connection.stream.close()

    async def _connect(self, entry: Queued) -> Connection | None:
        """A connection, or None after settling `entry` (and perhaps its whole ready queue)."""
        ready, services = self._ready, self._services
        settler = services.settler
        try:
            plan = await services.plan(ready)
            if plan.refused is not None:
                refused = plan.refused
                reply = outcome.internal(refused.code, refused.enhanced, refused.text)
                verdict: outcome.Verdict = "permanent" if refused.permanent else "transient"
                await self._fail(entry, outcome.Outcome(verdict, reply), everything=True)
                return None
            ehlo = ready.path.ehlo_domain or ready.source.ehlo_domain or services.hostname
            return await services.dialer.open(
                plan.candidates, ready.path, ready.source.source_address, ehlo, route=ready.site.route
            )
        except HeldError as error:
            self._hand = None
            await settler.hold(ready, entry, error)
        except (NoHostReached, ResolveError) as error:
            ready.connection_failed(trio.current_time())
            text = str(error)
            if isinstance(error, NoHostReached):
                text = f"failed to connect to any candidate hosts: {text}"
            result = outcome.Outcome("transient", outcome.internal(451, "4.4.1", text))
            limit = ready.path.consecutive_connection_failures_before_delay
            await self._fail(entry, result, everything=ready.failures >= limit)
        return None

    async def _fail(self, entry: Queued, result: outcome.Outcome, *, everything: bool) -> None:
        settler = self._services.settler
        await settler.all_recipients(entry, result, self._ready)
        self._hand = None
        if everything:
            await settler.whole_queue(self._ready, result)

    def _may_pipeline_across(self, connection: Connection) -> bool:
        path = self._ready.path
        if not (
            path.enable_pipelining
            and path.enable_pipelining_across_messages
            and connection.client.capabilities.pipelining
        ):
            return False
        return not self._services.stumblers.has(connection.address)

    def _stumbled(self, what: str) -> None:
        """This host does not cope with commands sent behind a final dot: speak plainly to it."""
        assert self._connection is not None
        self._services.stumblers.add(self._connection.address)
        self._across = False
        logger.warning(
            "%s[%s] stumbles over pipelining across messages (%s); it is spoken to plainly from now on",
            self._connection.mx_name,
            self._connection.address,
            what,
        )

    # -- delivering ------------------------------------------------------------------------------

    async def _deliver(self, first: Queued) -> None:
        error: Exception | None = None
        begun = trio.current_time()
        scope = trio.CancelScope()
        self._scope = scope
        self._hand = first
        try:
            with scope:
                if self._ended:
                    scope.cancel()
                try:
                    entry: Queued | None = first
                    while entry is not None:
                        await self._run_of_messages(entry, scope)
                        if self._must_end() or trio.current_time() - begun > _SESSION_LIMIT:
                            break
                        entry = await self._idle(scope)
                    scope.deadline = float("inf")
                    await self._quit()
                except (NetworkError, RemoteProtocolError) as caught:
                    error = caught
            if scope.cancelled_caught and error is None and not self._ended:
                error = PeerTimeout("no answer in time", stage=self._stage())
        except Exception:
            await self._fault()
            raise
        finally:
            # Whichever way it ended: settle what was under way, give back what was not tried.
            if self._work is not None or self._following is not None:
                self._broken(error or ConnectionLost("the session was ended", stage=self._stage()))
            if self._hand is not None:
                self._ready.put_back(self._hand)
                self._hand = None

    async def _fault(self) -> None:
        """A defect of ours met this message: it is retried by the schedule, and counted, so that
        one message that always meets it cannot spin (reliability O6)."""
        result = outcome.Outcome(
            "transient", outcome.internal(451, "4.3.0", "internal error, see the diagnostics")
        )
        entry, self._hand = self._hand, None
        if entry is None and self._work is not None:
            entry, self._work = self._work.entry, None
        if entry is not None:
            await self._services.settler.all_recipients(entry, result, self._ready)

    def _must_end(self) -> bool:
        assert self._connection is not None
        ready = self._ready
        return (
            self._ended
            or self._services.draining
            or ready.retired
            or self._connection.client.closing
            or self._delivered >= ready.path.max_deliveries_per_connection
            or not self._credential_current()
        )

    def _credential_current(self) -> bool:
        """A rotated or withdrawn secret ends the sessions that were opened with the old one (C45)."""
        assert self._connection is not None
        mine = self._connection.credential
        reference = self._ready.path.smtp_auth_plain_password
        if mine is None or reference is None:
            return True
        newest = self._services.keys.cached(reference)
        return newest is None or newest.version == mine.version

    async def _run_of_messages(self, entry: Queued | None, scope: trio.CancelScope) -> None:
        """Transactions back to back, until the ready queue is empty or the session must end."""
        connection = self._connection
        assert connection is not None
        client, stream = connection.client, connection.stream
        work: Work | None = None
        while True:
            if work is None:
                if entry is None:
                    return
                work = await self._prepare(entry, None)
                if work is None:
                    entry = None if self._must_end() else self._ready.take()
                    continue
                entry = None
                client.mail(work.tx)
                self._work = work
            event = client.next_event()
            if event is None:
                parts = client.data_to_send()
                if parts:
                    scope.deadline = trio.current_time() + patience(self._ready.path, self._stage())
                    await send(connection, parts, scope, self._ready.path.data_timeout)
                data = stream.receive_nowait(8192)
                if data is None:
                    scope.deadline = trio.current_time() + patience(self._ready.path, self._stage())
                    data = await stream.receive_some(8192)
                if not data:
                    raise ConnectionLost("the peer closed the connection", stage=self._stage())
                client.receive_data(data)
            elif type(event) is GoAhead:
                following = await self._look_ahead(work)
                self._following = following
                client.body(work.tx, work.parts, following.tx if following is not None else None)
                work.dot_sent = True
            elif type(event) is Finished:
                self._finish(work)
                if work.more and not client.closing:
                    work = await self._prepare(work.entry, work.more)
                    if work is not None:
                        self._work = work
                        client.mail(work.tx)
                        continue
                self._work = work = self._following
                self._following = None
                if work is None and not self._must_end():
                    entry = self._ready.take()
            elif type(event) is Unsolicited:
                raise RemoteProtocolError(f"a reply nobody asked for: {event.reply.line}")

    async def _prepare(self, entry: Queued, indices: list[int] | None) -> Work | None:
        """The next transaction for `entry`; None when there is nothing to send for it (settled)."""
        settler = self._services.settler
        self._hand = entry
        wait = self._throttle()
        if wait > 0.0 and not await self._wait_for_rate(entry, wait):
            return None
        message, body = entry.message, entry.body
        if message is None or body is None:
            try:
                message, body = await self._services.spool.read(entry.handle)
            except MessageUnreadable as error:
                self._hand = None
                settler.unreadable(entry, error)
                return None
            except SpoolError as error:
                self._hand = None
                settler.unreachable(entry, error)
                return None
            settler.keep(entry, message, body)
        connection = self._connection
        assert connection is not None
        if indices is None:
            done = entry.done
            indices = [i for i in range(len(message.recipients)) if not done >> i & 1]
        limit = self._ready.path.max_recipients_per_batch
        more: list[int] = []
        if len(indices) > limit:
            indices, more = indices[:limit], indices[limit:]
        rset = self._ready.path.enable_rset and self._delivered > 0
        work = make_work(entry, message, body, indices, more, rset=rset)
        check_8bit = not self._ready.path.ignore_8bit_checks
        obstacle = connection.client.obstacle(work.tx, check_8bit=check_8bit)
        if obstacle is not None:
            result = outcome.Outcome("permanent", obstacle)
            self._hand = None
            everyone = indices + more
            settler.settle(entry, everyone, [result] * len(everyone), self._ready, self)
            return None
        self._delivered += 1
        self._hand = None
        return work

    async def _look_ahead(self, work: Work) -> Work | None:
        """The message whose commands may travel with this one's body."""
        if not self._across or work.more or self._must_end():
            return None
        path = self._ready.path
        if path.max_message_rate is not None:
            return None
        entry = self._ready.take()
        if entry is None:
            return None
        following = await self._prepare(entry, None)
        if following is not None:
            following.ahead = True
        return following

    def _throttle(self) -> float:
        rate = self._ready.path.max_message_rate
        if rate is None:
            return 0.0
        now = trio.current_time()
        key = f"max_message_rate:{self._ready.name}"
        return self._services.limits.rate(key, rate.interval, rate.burst, now).take(now)

    async def _wait_for_rate(self, entry: Queued, wait: float) -> bool:
        """Wait in place for a short time; give the message back and end for a long one."""
        ready = self._ready
        while wait > 0.0:
            if wait >= ready.path.idle_timeout or self._services.draining:
                self._hand = None
                ready.put_back(entry)
                ready.retry_at = trio.current_time() + wait
                self._ended = True
                return False
            if self._scope is not None:
                self._scope.deadline = float("inf")
            await trio.sleep(wait)
            wait = self._throttle()
        return True

    def _stage(self) -> str:
        return self._connection.client.stage if self._connection is not None else "connect"

    # -- ending ----------------------------------------------------------------------------------

    def _finish(self, work: Work) -> None:
        """All replies of a transaction are in: settle it."""
        tx = work.tx
        ready = self._ready
        mail = tx.mail_reply
        if work.ahead and (mail is None or mail.code in _STUMBLED):
            # Sent behind the previous message's dot, and not understood: not this message's fault.
            if mail is not None and mail.code != 421:
                self._stumbled(mail.line)
            ready.put_back(work.entry)
            return
        lost = outcome.internal(421, "4.4.2", "the peer ended the session")
        results = outcome.finished(tx, lost, dot_sent=work.dot_sent)
        indices = work.indices
        if tx.surplus:
            # "Too many recipients": those go in another transaction at once, uncounted (C12).
            surplus = set(tx.surplus)
            work.more = [indices[i] for i in sorted(surplus)] + work.more
            results = [result for i, result in enumerate(results) if i not in surplus]
            indices = [index for i, index in enumerate(indices) if i not in surplus]
        assert self._connection is not None
        last = not work.more or self._connection.client.closing
        self._services.settler.settle(work.entry, indices, results, ready, self, begun=work.begun, last=last)
        ready.finished_one(trio.current_time() - work.begun)

    def _broken(self, error: Exception) -> None:
        """The conversation broke off: settle what was under way, put back what was not tried."""
        work, following = self._work, self._following
        self._work = self._following = None
        ready = self._ready
        if following is not None:
            ready.put_back(following.entry)
        if work is None:
            return
        tx = work.tx
        if not self._ended and (following is not None or (work.ahead and tx.mail_reply is None)):
            self._stumbled(str(error))
        dot_unanswered = work.dot_sent and tx.dot_reply is None
        if tx.mail_reply is None and (self._delivered > 1 or self._ended):
            # A reused session that dies before MAIL is answered is no attempt of the message (C16).
            ready.put_back(work.entry)
            return
        stage = getattr(error, "stage", "") or self._stage()
        timeout = isinstance(error, PeerTimeout)
        lost = outcome.broken(stage, str(error), timeout=timeout, dot_sent=dot_unanswered)
        results = outcome.finished(tx, lost, dot_sent=work.dot_sent)
        self._services.settler.settle(work.entry, work.indices, results, ready, self, begun=work.begun)

    async def _idle(self, scope: trio.CancelScope) -> Queued | None:
        """Wait for the next message, at most `idle_timeout`; None when the session should end."""
        ready = self._ready
        entry = ready.take()
        if entry is not None:
            return entry
        connection = self._connection
        assert connection is not None
        scope.deadline = float("inf")
        until = trio.current_time() + ready.path.idle_timeout
        while True:
            peer_spoke = False
            with trio.CancelScope(deadline=until) as waiting:
                wake = waiting.cancel
                ready.add_waker(wake)
                try:
                    await connection.stream.wait_readable()
                    peer_spoke = True
                finally:
                    ready.drop_waker(wake)
            if peer_spoke:
                # The peer closed, or said something nobody asked for (often 421): either way the
                # session is over, and no message had anything to do with it.
                self._ended = True
                return None
            if self._must_end():
                return None
            entry = ready.take()
            if entry is not None:
                return entry
            if trio.current_time() >= until:
                return None

    async def _quit(self) -> None:
        """Say goodbye. The lease goes back first; whatever happens here changes nothing (C15)."""
        self._release()
        connection = self._connection
        assert connection is not None
        if self._ended or connection.client.closing:
            return
        connection.client.quit()
        try:
            event: Any = await connection.event("QUIT", min(_QUIT_PATIENCE, self._ready.path.idle_timeout))
        except (NetworkError, RemoteProtocolError) as error:
            logger.debug("QUIT to %s: %s", connection.address, error)
            return
        if not isinstance(event, QuitDone):
            logger.debug("QUIT to %s answered by %s", connection.address, type(event).__name__)

    # -- facts for records -----------------------------------------------------------------------

    @property
    def shutdown_timeout(self) -> float:
        """Seconds this session may go on after a drain began (the path's `system_shutdown_timeout`)."""
        return self._ready.path.system_shutdown_timeout

    @property
    def connection(self) -> Connection | None:
        """The connection, for records; None before there is one."""
        return self._connection
