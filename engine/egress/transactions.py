"""Messages over one connection: transactions back to back, each settled when its replies are in.

The steady state is one write and one read per message: the body of a message, its final dot and
the next message's MAIL, RCPT and DATA leave together (RFC 2920 3.1), where the peer offers
PIPELINING and the path allows it. A host that stumbles over that is remembered and spoken to
plainly from then on, and the message that was sent ahead goes back untried.

A message is in exactly one of four places here, and `broken` gives back what is in any of them:
in hand (taken, not begun), under way, following (its commands travel with the body of the one under
way), or resting (some recipients are settled, the others belong in another transaction).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from engine.errors import (
    ConnectionLost,
    MessageUnreadable,
    PeerTimeout,
    RemoteProtocolError,
    SpoolError,
)
from engine.smtp import Finished, GoAhead, Unsolicited

from . import outcome
from .work import Services, Work, make_work, message_rate, octets, patience

if TYPE_CHECKING:
    from engine.queues.queued import Queued
    from engine.queues.ready import ReadyQueue
    from engine.smtp import Reply

    from .alarms import Alarm
    from .connection import Connection
    from .settle import Carrier

__all__ = ["Transactions"]

logger = logging.getLogger("posthorn.egress")

_READ = 8192

_SLICE = 256 * 1024
"""Octets of a large body written between two looks at what the peer says (reliability C13)."""

_ENDED = outcome.internal(421, "4.4.2", "the peer ended the session")

_STUMBLED = frozenset((421, 500, 501, 502, 503, 554))
"""Replies to a MAIL that was sent ahead which may speak about the pipelining, not the mail."""


class Transactions:
    """See the module. `alarm`: breaks the conversation off. `must_end`: whether nothing new may be begun on
    this connection. `until`: when (monotonic) a conversation is broken off, except while the answer to a
    final dot is awaited."""

    __slots__ = (
        "_across",
        "_alarm",
        "_connection",
        "_following",
        "_hand_counted",
        "_must_end",
        "_now",
        "_open",
        "_prepaid",
        "_ready",
        "_resting",
        "_services",
        "_session",
        "_suspect",
        "_until",
        "_work",
        "delivered",
        "hand",
        "stopped",
        "useful",
    )

    def __init__(
        self,
        services: Services,
        ready: ReadyQueue,
        connection: Connection,
        session: Carrier,
        alarm: Alarm,
        *,
        must_end: Callable[[float], bool],
        until: float,
        prepaid: bool,
    ) -> None:
        self._services = services
        self._ready = ready
        self._connection = connection
        self._session = session
        self._alarm = alarm
        self._must_end = must_end
        self._until = until
        self._prepaid = prepaid
        self._now = trio.current_time()
        """When the latest wait was over (monotonic): for all that is done in one turn of this task."""
        self._work: Work | None = None
        self._following: Work | None = None
        self._resting: deque[Work] = deque()
        self.hand: Queued | None = None
        self._hand_counted = False
        self._suspect: Queued | None = None
        """A message whose MAIL was refused when it was sent ahead; sent plainly, it shows the reason."""
        self._open = False
        """Whether the peer may think that a transaction is still open."""
        self.delivered = 0
        """Transactions begun."""
        self.useful = False
        """Whether one came to its end and the peer went on talking."""
        self.stopped = False
        """Nothing more may be sent now, because of a rate."""
        path = ready.path
        self._across = (
            path.enable_pipelining
            and path.enable_pipelining_across_messages
            and connection.client.capabilities.pipelining
            and not services.stumblers.has(connection.address)
        )

    @property
    def busy(self) -> bool:
        """Whether a transaction is under way."""
        return self._work is not None

    # -- the run ---------------------------------------------------------------------------------

    async def run(self, entry: Queued) -> None:
        """Send `entry` and what the ready queue has, until it is empty or the session must end.

        Raises: NetworkError, RemoteProtocolError; call `broken` then.
        """
        client, stream = self._connection.client, self._connection.stream
        heard = -1
        self.hand = entry
        self._now = trio.current_time()
        work: Work | None = None
        while True:
            if work is None:
                if not await self._begin():
                    return
                work = self._work
                assert work is not None
            event = client.next_event()
            if event is None:
                parts = client.data_to_send()
                if parts:
                    self._arm()
                    heard = client.answered
                    await stream.send_parts(parts)
                # One deadline for one reply, in however many pieces it drips in (C3).
                if client.answered != heard:
                    heard = client.answered
                    self._arm()
                # Not before waiting: a peer that has just been told something has not answered yet.
                await stream.wait_readable()
                data = stream.receive_nowait(_READ)
                if data is None:
                    data = await stream.receive_some(_READ)
                self._now = trio.current_time()
                if not data:
                    raise ConnectionLost("the peer closed the connection", stage=client.stage)
                client.receive_data(data)
            elif type(event) is GoAhead:
                behind = self._look_ahead(work)
                if behind is not None:
                    self._following = await self._prepare(behind, ahead=True)
                following = self._following
                client.body(work.tx, work.parts, following.tx if following is not None else None)
                await self._send_body(work)
                self._now = trio.current_time()
                heard = -1
            elif type(event) is Finished:
                self._finish(work)
                # Only now: had settling failed, `fault` would have had to find it.
                self._work = work = self._following
                self._following = None
            elif type(event) is Unsolicited:
                raise RemoteProtocolError(f"a reply nobody asked for: {event.reply.line}")

    def _arm(self) -> None:
        """The peer has its time for the next reply."""
        stage = self._connection.client.stage
        deadline = self._now + patience(self._ready.path, stage)
        if stage != "final dot" and deadline > self._until:
            deadline = self._until
        self._alarm.move(deadline)

    async def _begin(self) -> bool:
        """Begin the next transaction, its commands ready to go: what rests first, then what is in hand, then
        the queue's next. False: there is nothing, or nothing may be begun."""
        client, ready = self._connection.client, self._ready
        while True:
            if client.unasked and not self.delivered and self.hand is not None:
                # The peer is out of step before we said a word about mail. An attempt, or a host that
                # always does so would be tried for ever.
                text = "the peer said something nobody asked for before MAIL"
                result = outcome.Outcome("transient", outcome.internal(451, "4.5.0", text))
                tried, self.hand = self.hand, None
                await self._services.settler.all_recipients(tried, result, ready)
            if client.unasked or self._must_end(self._now):
                self._give_back()
                return False
            if self._resting:
                rest = self._resting.popleft()
                work = await self._prepare(rest.entry, rest)
            else:
                entry = self.hand or ready.take()
                if entry is None:
                    return False
                work = await self._prepare(entry)
            if work is not None:
                self._work = work
                client.mail(work.tx)
                return True

    def _look_ahead(self, work: Work) -> Queued | None:
        """The message whose commands may travel with this one's body."""
        if not self._across or work.more or self._resting or self._must_end(self._now):
            return None
        if self._ready.message_rates:
            return None
        return self._ready.take()

    async def _prepare(
        self, entry: Queued, before: Work | None = None, *, ahead: bool = False
    ) -> Work | None:
        """The next transaction for `entry`; None when there is nothing to send for it (settled, or
        given back). `before`: the one that left recipients over. `ahead`: its commands stand behind a
        final dot, which closes the transaction before it."""
        self.hand = entry
        self._hand_counted = before is not None and before.counted
        wait = self._throttle()
        if wait > 0.0 and not await self._wait_for_rate(wait):
            self._give_back()
            return None
        if (entry.message is None or entry.body is None) and not await self._load(entry):
            return None
        return self._make(entry, before, ahead)

    async def _load(self, entry: Queued) -> bool:
        """Bring it into memory; False when that cannot be done, which is settled then."""
        settler = self._services.settler
        try:
            message, body = await self._services.spool.read(entry.handle)
        except MessageUnreadable as error:
            self.hand = None
            settler.unreadable(entry, error)
            return False
        except SpoolError as error:
            self.hand = None
            settler.unreachable(entry, error)
            return False
        self._now = trio.current_time()
        settler.keep(entry, message, body)
        return True

    def _make(self, entry: Queued, before: Work | None, ahead: bool) -> Work | None:
        """See `_prepare`; the message is in memory and may go."""
        message, body, ready = entry.message, entry.body, self._ready
        assert message is not None and body is not None
        if before is not None:
            indices = before.more
        else:
            done = entry.done
            indices = [i for i in range(len(message.recipients)) if not done >> i & 1]
        limit = ready.path.max_recipients_per_batch
        more: list[int] = []
        if len(indices) > limit:
            indices, more = indices[:limit], indices[limit:]
        rset = self.delivered > 0 and (ready.path.enable_rset or (self._open and not ahead))
        work = make_work(entry, message, body, indices, more, rset, self._now)
        work.ahead = ahead
        if before is not None:
            work.again, work.counted = True, before.counted
        obstacle = self._connection.client.obstacle(work.tx, check_8bit=not ready.path.ignore_8bit_checks)
        self.hand = None
        if obstacle is not None:
            result = outcome.Outcome("permanent", obstacle)
            everyone = indices + more
            results = [result] * len(everyone)
            settler = self._services.settler
            settler.settle(entry, everyone, results, ready, self._session, -1.0, True, work.counted)
            return None
        self.delivered += 1
        self._open = True
        return work

    def _throttle(self) -> float:
        if self._prepaid:
            self._prepaid = False
            return 0.0
        return message_rate(self._services.limits, self._ready, self._now)

    async def _wait_for_rate(self, wait: float) -> bool:
        """Wait in place for a short time; False for a long one, when the session should end."""
        ready = self._ready
        while wait > 0.0:
            if wait >= ready.path.idle_timeout or self._services.draining:
                ready.retry_at = self._now + wait
                self.stopped = True
                return False
            self._alarm.off()
            await trio.sleep(wait)
            self._now = trio.current_time()
            wait = self._throttle()
        return True

    # -- the body --------------------------------------------------------------------------------

    async def _send_body(self, work: Work) -> None:
        """Send what `client.body` made of it. The last part holds the final dot.

        Whatever the peer says before that part goes out cannot be the answer to the dot (C6): a
        refusal ends the transaction (C13), anything else the session.
        """
        connection, alarm = self._connection, self._alarm
        stream = connection.stream
        limit = self._ready.path.data_timeout
        parts = connection.client.data_to_send()
        if octets(parts) > _SLICE:
            for part in parts[:-1]:
                view = memoryview(part)
                for start in range(0, len(view), _SLICE):
                    alarm.move(min(self._now + limit, self._until))
                    if self._refused_early(stream.receive_nowait(_READ)):
                        return
                    rest = view[start : start + _SLICE]
                    if self._refused_early(await stream.send_unless_heard(rest, _READ)):
                        return
                    self._now = trio.current_time()
            # Where the dot cannot go out the peer may refuse what it has, too.
            if self._refused_early(await stream.room_or_heard(_READ)):
                return
            self._now = trio.current_time()
            parts = parts[-1:]
        alarm.move(self._now + limit)
        if self._refused_early(stream.receive_nowait(_READ)):
            return
        work.dot_sent = True
        await stream.send_parts(parts)

    def _refused_early(self, early: bytes | None) -> bool:
        """Whether the peer said something (None: it did not); then the transaction is over."""
        if early is None:
            return False
        client = self._connection.client
        if not early:
            raise ConnectionLost("the peer closed the connection", stage=client.stage)
        client.hear_early(early)
        return True

    # -- the end of a transaction ----------------------------------------------------------------

    def _finish(self, work: Work) -> None:
        """All replies of a transaction are in: settle it."""
        tx, ready, client = work.tx, self._ready, self._connection.client
        if self._stumbled_over(work):
            if tx.mail_reply is not None and tx.mail_reply.code != 421:
                self._across = False
                self._suspect = work.entry
            ready.put_back(work.entry)
            return
        if work.entry is self._suspect:
            self._judge(tx.mail_reply)
        results = outcome.finished(tx, _ENDED, work.dot_sent)
        indices = work.indices
        if tx.surplus:
            # "Too many recipients": those go in another transaction at once, uncounted (C12).
            surplus = set(tx.surplus)
            work.more = [indices[i] for i in sorted(surplus)] + work.more
            results = [result for i, result in enumerate(results) if i not in surplus]
            indices = [index for i, index in enumerate(indices) if i not in surplus]
        work.counted = self._services.settler.settle(
            work.entry,
            indices,
            results,
            ready,
            self._session,
            self._now - work.begun,
            not work.more,
            work.counted,
        )
        if work.more:
            self._resting.append(work)
        self._open = tx.dot_reply is None
        if not client.closing:
            self.useful = True
            if (identity := self._connection.identity) is not None and identity.trial:
                identity.worked()
            if not ready.warm:
                ready.progressed()
        ready.finished_one(self._now - work.begun)

    def _stumbled_over(self, work: Work) -> bool:
        """Whether its commands, sent behind the previous message's dot, were not understood: then the
        replies are not about this message."""
        mail = work.tx.mail_reply
        return work.ahead and (mail is None or mail.code in _STUMBLED)

    def _judge(self, mail: Reply | None) -> None:
        """The message whose MAIL was refused when it was sent ahead has now been sent plainly."""
        self._suspect = None
        address = self._connection.address
        if mail is not None and mail.code in _STUMBLED:
            self._across = True  # the sender it is, not the pipelining
        else:
            self._services.stumblers.add(address)
            what = "a MAIL that was refused behind a final dot is accepted alone"
            self._services.stumblers.warn(self._connection, what)

    def _stumbled(self, what: str) -> None:
        """The connection was lost with commands behind a final dot under way: perhaps because of them."""
        self._across = False
        if self._services.stumblers.suspect(self._connection.address):
            self._services.stumblers.warn(self._connection, what)

    def _give_back(self) -> None:
        """Return what was not begun: to the queue's front, or to its schedule where an attempt counts."""
        while self._resting:
            rest = self._resting.pop()
            if rest.counted:
                self._services.settler.put_off(rest.entry, self._ready)
            else:
                self._ready.put_back(rest.entry)
        entry, self.hand = self.hand, None
        if entry is not None:
            if self._hand_counted:
                self._services.settler.put_off(entry, self._ready)
            else:
                self._ready.put_back(entry)

    # -- the end of the conversation -------------------------------------------------------------

    def broken(self, error: Exception, *, ended: bool) -> None:
        """The conversation is over, for whatever reason: settle what was under way, give back what was
        not tried. Nothing to do after a proper end. `ended`: we broke it off."""
        work, following = self._work, self._following
        self._work = self._following = None
        ready = self._ready
        if following is not None:
            ready.put_back(following.entry)
        try:
            if work is not None:
                self._settle_broken(work, error, ended, following is not None)
        finally:
            self._give_back()

    def _settle_broken(self, work: Work, error: Exception, ended: bool, sent_ahead: bool) -> None:
        tx, ready = work.tx, self._ready
        stumbled = self._stumbled_over(work)
        if not ended and (stumbled or sent_ahead):
            self._stumbled(str(error))
        # A reused session that dies before MAIL is answered is no attempt of the message (C16).
        untried = tx.mail_reply is None and not work.again and (self.delivered > 1 or ended)
        if stumbled or untried:
            ready.put_back(work.entry)
            return
        timeout = isinstance(error, PeerTimeout)
        dot_unanswered = work.dot_sent and tx.dot_reply is None
        stage = getattr(error, "stage", "") or self._connection.client.stage
        lost = outcome.broken(stage, str(error), timeout=timeout, dot_sent=dot_unanswered)
        if timeout or isinstance(error, RemoteProtocolError):
            results = outcome.out_of_step(tx, lost, dot_sent=work.dot_sent)
        else:
            results = outcome.finished(tx, lost, work.dot_sent)
        took = trio.current_time() - work.begun
        self._services.settler.settle(
            work.entry, work.indices, results, ready, self._session, took, True, work.counted
        )

    async def fault(self) -> None:
        """A defect of ours met this message: it is retried by the schedule, and counted, so that
        one message that always meets it cannot spin (reliability O6)."""
        reply = outcome.internal(451, "4.3.0", "internal error, see the diagnostics")
        verdict: outcome.Verdict = "transient"
        entry, self.hand = self.hand, None
        if entry is None and self._work is not None:
            if self._work.dot_sent:
                verdict = "uncertain"
            entry, self._work = self._work.entry, None
        if entry is None:
            return
        settler = self._services.settler
        try:
            await settler.all_recipients(entry, outcome.Outcome(verdict, reply), self._ready)
        except Exception as error:
            # The defect meets us here, too, perhaps in reading the message: at least it is not lost.
            logger.exception("message %s cannot be settled", entry.id.hex())
            settler.unreachable(entry, error)
