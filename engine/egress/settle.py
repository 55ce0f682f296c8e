"""Settling: from outcomes to the spool, the record, and the next due time.

The order is fixed (reliability D32): the spool hears of a final result first (handed to the kernel
before this returns), then the record is written, then the message goes back to the timer or is
gone. Nothing here waits on the hot path, so nothing can be cancelled in the middle.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec
import trio

from engine.errors import HeldError, MessageUnreadable, SpoolError
from engine.log import Log, Record
from engine.model import bits_of, bits_up_to
from engine.queues.queued import Queued
from engine.queues.ready import ReadyQueue
from engine.queues.retry import next_attempt
from policy.egress import QueueConfig

from . import outcome
from .mta_sts import judged
from .outcome import Outcome

if TYPE_CHECKING:
    from engine.model import Message, QueueName
    from engine.smtp import Reply
    from engine.spool import Spool

    from .connection import Connection

__all__ = ["Counters", "Settler"]

logger = logging.getLogger("posthorn.egress")

_DEFAULTS = QueueConfig()
"""Retry and age rules for messages whose queue has no configuration (its hook fails)."""

_SPOOL_PATIENCE = 60.0
"""Seconds before a message is looked at again whose bytes could not be read."""

_ENVELOPE = 1024
"""Octets of memory that a message in memory costs besides its body and prefix: the record, its
strings, its meta. Counted, or a million small messages would pass for a quarter of what they take."""

_KIND = {
    "delivered": "Delivery",
    "permanent": "Bounce",
    "transient": "TransientFailure",
    "uncertain": "TransientFailure",
    "held": "TransientFailure",
}


class Carrier(Protocol):
    """Whoever tried the message, as far as records speak of it: a session."""

    id: str

    @property
    def connection(self) -> Connection | None:
        """The connection; None before there is one."""


class Counters(msgspec.Struct):
    """Totals since the start, per recipient."""

    delivered: int = 0
    bounced: int = 0
    expired: int = 0
    transient: int = 0
    held: int = 0
    uncertain: int = 0
    unreadable: int = 0


class Settler:
    """Settles recipients. `later(entry)` and `forget(entry)` are the router's."""

    def __init__(
        self,
        spool: Spool,
        log: Log,
        *,
        later: Callable[[Queued], None],
        forget: Callable[[Queued], None],
        dice: random.Random | None = None,
    ) -> None:
        self._spool = spool
        self._log = log
        self._later = later
        self._forget = forget
        self._dice = dice or random.Random()
        self._capture = log.capture
        self.counters = Counters()
        self.failed: Callable[[Queued, QueueName, Outcome, ReadyQueue], None] | None = None
        """The router's: told of each reply that is no success, once however many recipients it is for."""
        self._told: Outcome | None = None
        self.resident = 0
        """Octets of memory held by the envelopes and bodies of queued messages, about."""

    def keep(self, entry: Queued, message: Message, body: bytes) -> None:
        """Hold envelope and body in memory while the message is worked on."""
        if entry.body is None:
            self.resident += entry.size + _ENVELOPE
        entry.message = message
        entry.body = body

    def drop(self, entry: Queued) -> None:
        """Let go of envelope and body; they are in the spool."""
        if entry.body is not None:
            self.resident -= entry.size + _ENVELOPE
        entry.message = None
        entry.body = None

    # -- the hot path ----------------------------------------------------------------------------

    def settle(
        self,
        entry: Queued,
        indices: Sequence[int],
        results: Sequence[Outcome],
        ready: ReadyQueue | None,
        session: Carrier | None,
        took: float = -1.0,
        last: bool = True,
        counted: bool = False,
    ) -> bool:
        """Settle some recipients of a loaded message. `took`: seconds of the attempt, negative if not known.

        `last`: no other transaction of the same message follows at once, so recipients without a
        final result go back to the timer (or expire) now. `counted`: an earlier transaction of
        this visit has counted the attempt. Returns: whether it is counted now.
        """
        message = entry.message
        assert message is not None
        mask = 0
        before = counted
        groups = outcome.grouped(indices, results)
        for result, members in groups:
            verdict = result.verdict
            if verdict == "delivered" or verdict == "permanent":
                mask |= bits_of(members)
            elif verdict == "transient" or verdict == "uncertain":
                counted = True
        if counted and not before:
            entry.attempts += 1
        if mask:
            entry.done |= mask
            self._finish(entry, mask)
        everyone = bits_up_to(len(message.recipients))
        due: float | None = 0.0
        pending = everyone & ~entry.done
        if pending and last:
            due = self._next_due(entry, counted, ready)
        attempts = entry.attempts
        for result, members in groups:
            self._count(result, len(members))
            self._record(
                _KIND.get(result.verdict, "TransientFailure"),
                entry,
                message,
                members,
                result.reply,
                result.command,
                ready,
                session,
                took,
                due if last else 0.0,
                attempts,
            )
        if not pending:
            self._gone(entry)
        elif last:
            if due is None:
                self._expire(entry, message, pending, ready)
            else:
                self._postpone(entry, due)
        if self.failed is not None and ready is not None:
            # Last: whatever becomes of it, the message is settled.
            for result, _ in groups:
                if result.verdict != "delivered":
                    self._tell(entry, result, ready)
        return counted

    def _tell(self, entry: Queued, result: Outcome, ready: ReadyQueue) -> None:
        """A reply that is no success, to whoever judges it. One that a whole queue shares is told once."""
        if self.failed is not None and result is not self._told and not result.by_rule:
            self._told = result
            self.failed(entry, entry.queue.name, result, ready)

    def put_off(self, entry: Queued, ready: ReadyQueue) -> None:
        """A message of which some recipients were tried and must be tried again, and others were not
        reached: the attempt is counted already, so the schedule says when all of them are due."""
        message = entry.message
        assert message is not None
        due = self._next_due(entry, True, ready)
        if due is None:
            self._expire(entry, message, bits_up_to(len(message.recipients)) & ~entry.done, ready)
        else:
            self._postpone(entry, due)

    def _count(self, result: Outcome, number: int) -> None:
        counters, verdict = self.counters, result.verdict
        if verdict == "delivered":
            counters.delivered += number
        elif verdict == "permanent":
            counters.bounced += number
        elif verdict == "held":
            counters.held += number
        else:
            counters.transient += number
            if verdict == "uncertain":
                counters.uncertain += number

    def _finish(self, entry: Queued, mask: int) -> None:
        try:
            self._spool.finish(entry.handle, mask)
        except SpoolError as error:
            # The result could not be noted: after a restart the message may be sent again. Say so;
            # in this process it is settled.
            logger.error("message %s: its result could not be written: %s", entry.id.hex(), error)

    def _next_due(self, entry: Queued, counted: bool, ready: ReadyQueue | None) -> float | None:
        """When to try again (monotonic), None when this was the last attempt. `counted`: the attempt
        is in `entry.attempts` already."""
        now = trio.current_time()
        config = entry.queue.config or _DEFAULTS
        last_moment = now + self._left(entry, config)
        if not counted:
            interval = ready.path.hold_interval if ready is not None else min(10.0, config.retry_interval)
            if now >= last_moment:
                return None
            return min(now + interval, last_moment)
        return next_attempt(
            now,
            last_moment,
            entry.attempts - 1,
            config.retry_interval,
            config.max_retry_interval,
            self._dice.random(),
        )

    def _left(self, entry: Queued, config: QueueConfig) -> float:
        """Seconds until the message's last moment; negative when it is past."""
        wall = time.time()
        if entry.message is not None and entry.message.expires:
            return entry.message.expires - wall
        # A wall clock set back makes the age zero, never negative.
        return config.max_age - max(0.0, wall - entry.created)

    def _postpone(self, entry: Queued, due: float) -> None:
        entry.due = due
        self.drop(entry)
        try:
            self._spool.postpone(entry.handle, entry.attempts, time.time() + due - trio.current_time())
        except SpoolError as error:
            logger.error("message %s: its next attempt could not be written: %s", entry.id.hex(), error)
        self._later(entry)

    def _gone(self, entry: Queued) -> None:
        self.drop(entry)
        self._forget(entry)

    def _expire(self, entry: Queued, message: Message, pending: int, ready: ReadyQueue | None) -> None:
        members = [i for i in range(len(message.recipients)) if pending >> i & 1]
        entry.done |= pending
        self._finish(entry, pending)
        self.counters.expired += len(members)
        age = max(0.0, time.time() - entry.created)
        reply = outcome.expired(f"given up after {age:.0f} s and {entry.attempts} attempts")
        self._record("Expiration", entry, message, members, reply, "", ready, None, -1.0, 0.0, entry.attempts)
        self._gone(entry)

    def _record(
        self,
        kind: str,
        entry: Queued,
        message: Message,
        members: list[int],
        reply: Reply,
        command: str,
        ready: ReadyQueue | None,
        session: Carrier | None,
        took: float,
        due: float | None,
        attempts: int,
    ) -> None:
        recipients = message.recipients
        config = entry.queue.config or _DEFAULTS
        now = time.time()
        record = Record(
            type=kind,
            id=entry.id.hex(),
            sender=message.sender,
            recipient=recipients[members[0]] if len(members) == 1 else [recipients[i] for i in members],
            queue=str(entry.queue.name),
            size=entry.size,
            code=reply.code,
            enhanced_code=reply.enhanced,
            content=reply.text,
            command=command,
            timestamp=now,
            created=entry.created,
            num_attempts=attempts,
            reception_protocol=message.reception_protocol,
            egress_pool=config.egress_pool,
        )
        if ready is not None:
            record.site = ready.name
            record.egress_source = ready.source.name
            record.provider_name = ready.path.provider_name
            if ready.hold_cause and kind != "Delivery":
                record.cause = ready.hold_cause
        if session is not None:
            connection = session.connection
            record.session_id = session.id
            if connection is not None:
                record.delivery_protocol = "ESMTP"
                record.peer_name = connection.mx_name
                record.peer_addr = connection.address
                record.source_address = connection.source_address
                tls = connection.stream.tls
                record.tls_why = connection.tls_why
                if ready is not None and (sts := ready.site.sts) is not None:
                    record.tls_sts = judged(
                        sts,
                        connection.mx_name,
                        dane=connection.dane is not None and connection.dane.check is not None,
                        tls=tls is not None,
                        verified=tls is not None and tls.verified,
                        why=connection.tls_why,
                    )
                if connection.dane is not None:
                    record.dane_result = connection.dane.result
                if tls is not None:
                    record.tls_cipher = tls.cipher
                    record.tls_protocol_version = tls.version
                    record.tls_verified = tls.verified
                    record.tls_peer_name = tls.peer_name
                    record.tls_peer_subject_name = tls.subject or None
                    record.tls_resumed = tls.resumed or None
                    record.tls_pin = tls.pin
                    if tls.asked and connection.certificate is not None:
                        record.tls_client_certificate = connection.certificate.subject
                if connection.auth_mechanism:
                    record.smtp_auth_user = connection.auth_user or None
                    record.smtp_auth_mechanism = connection.auth_mechanism
                    if connection.identity is not None:
                        record.smtp_auth_version = connection.identity.version
        if took >= 0.0:
            record.attempt_ms = int(took * 1e6 + 0.5) / 1000.0
        if due:
            record.next_due = now + due - trio.current_time()
        if self._capture.wanted:
            self._capture.fill(record, message.meta, message.prefix, entry.body)
        self._log.write(record)

    # -- off the hot path ------------------------------------------------------------------------

    async def loaded(self, entry: Queued) -> bool:
        """Bring the envelope (and body) into memory; False when the message cannot be read."""
        if entry.message is not None:
            return True
        try:
            message, body = await self._spool.read(entry.handle)
        except MessageUnreadable as error:
            self.unreadable(entry, error)
            return False
        self.keep(entry, message, body)
        return True

    async def _message_of(self, entry: Queued) -> Message | None:
        """A message to be settled; None when it cannot be had, which is settled then."""
        try:
            return entry.message if await self.loaded(entry) else None
        except SpoolError as error:
            self.unreachable(entry, error)
            return None

    async def all_recipients(self, entry: Queued, result: Outcome, ready: ReadyQueue | None) -> None:
        """One outcome for every recipient that has none yet."""
        message = await self._message_of(entry)
        if message is None:
            return
        indices = [i for i in range(len(message.recipients)) if not entry.done >> i & 1]
        self.settle(entry, indices, [result] * len(indices), ready, None)

    async def whole_queue(self, ready: ReadyQueue, result: Outcome) -> None:
        """One outcome for everything in the ready queue (egress 6.5, 7.5)."""
        for _ in range(len(ready.entries)):
            entry = ready.take()
            if entry is None:
                return
            try:
                await self.loaded(entry)
            except SpoolError:
                pass  # all_recipients meets it again and reports it
            except BaseException:
                ready.put_back(entry)
                raise
            try:
                await self.all_recipients(entry, result, ready)
            except Exception as error:
                logger.exception("message %s cannot be settled", entry.id.hex())
                self.unreachable(entry, error)

    async def hold(self, ready: ReadyQueue, entry: Queued, error: HeldError) -> None:
        """Something stands in the way of the whole ready queue: try nothing before the interval is
        over, count no attempt, say why in a record of each message. `entry` goes back first."""
        ready.put_back(entry)
        first = not ready.hold_cause
        level = logging.DEBUG if error.reason == ready.hold_text else logging.WARNING  # each reason once
        ready.hold(error.cause, error.reason, trio.current_time() + ready.path.hold_interval)
        logger.log(
            level,
            "%s is held (%s): %s; next try in %.0f s",
            ready.name,
            error.cause,
            error,
            ready.path.hold_interval,
        )
        reply = outcome.internal(451, "4.7.0", f"held: {error}")
        self.counters.held += 1
        self._tell(entry, Outcome("held", reply), ready)

        def note(waiting: Queued) -> None:
            kind = "TransientFailure" if waiting is entry else "Delayed"
            self.note_held(ready, waiting, kind, reply)

        await self._look_through(ready, note, lambda waiting: first or waiting is entry)

    async def expire_waiting(self, ready: ReadyQueue) -> None:
        """Give up what got too old while nothing could be sent to this site."""
        await self._look_through(ready, None, lambda waiting: False)

    async def _look_through(
        self,
        ready: ReadyQueue,
        note: Callable[[Queued], None] | None,
        wanted: Callable[[Queued], bool],
    ) -> None:
        """Everything in a ready queue that stands still: too old is expired, the others get a `note`
        if `wanted`. What had to be read for that does not stay in memory.

        Meanwhile the entries are out of the queue, so that no session takes one that is looked at.
        """
        todo, kept = ready.take_all(), []
        try:
            while todo:
                waiting = todo[0]
                config = waiting.queue.config or _DEFAULTS
                old = self._left(waiting, config) <= 0.0
                if old or (note is not None and wanted(waiting)):
                    resident = waiting.message is not None
                    try:
                        if not await self.loaded(waiting):
                            todo.popleft()
                            continue
                    except SpoolError:
                        kept.append(todo.popleft())  # looked at again when the spool is well
                        continue
                    message = waiting.message
                    assert message is not None
                    if old:
                        todo.popleft()
                        pending = bits_up_to(len(message.recipients)) & ~waiting.done
                        self._expire(waiting, message, pending, ready)
                        continue
                    if note is not None:
                        note(waiting)
                    if not resident:
                        self.drop(waiting)
                kept.append(todo.popleft())
        finally:
            for waiting in reversed([*kept, *todo]):
                ready.put_back(waiting)
        ready.call_back()

    def too_old(self, entry: Queued) -> bool:
        """Whether a message's last moment is past, as far as that is known without reading it."""
        return self._left(entry, entry.queue.config or _DEFAULTS) <= 0.0

    async def expire(self, entry: Queued) -> None:
        """Give up a message that got too old where no session saw it."""
        message = await self._message_of(entry)
        if message is not None:
            self._expire(entry, message, bits_up_to(len(message.recipients)) & ~entry.done, None)

    async def suspend(self, ready: ReadyQueue) -> None:
        """A rule keeps a ready queue standing still: a record of each message says so."""

        def note(waiting: Queued) -> None:
            self.note_stop(waiting, ready.suspended_text, ready.suspended_until, ready)

        await self._look_through(ready, note, lambda waiting: True)

    def note_stop(self, entry: Queued, text: str, until: float, ready: ReadyQueue | None) -> None:
        """A record saying that a message waits because of a rule on replies. No attempt is counted."""
        self._note(entry, "Delayed", outcome.internal(451, "4.7.0", text), ready, until)

    def note_held(self, ready: ReadyQueue, entry: Queued, kind: str, reply: Reply) -> None:
        """A record saying that and why a message waits."""
        self._note(entry, kind, reply, ready, ready.retry_at)

    def _note(self, entry: Queued, kind: str, reply: Reply, ready: ReadyQueue | None, due: float) -> None:
        message = entry.message
        assert message is not None
        members = [i for i in range(len(message.recipients)) if not entry.done >> i & 1]
        self._record(kind, entry, message, members, reply, "", ready, None, -1.0, due, entry.attempts)

    def unreadable(self, entry: Queued, error: MessageUnreadable) -> None:
        """A damaged message was moved to quarantine by the spool; nothing else is touched by it."""
        logger.error("message %s is quarantined: %s", entry.id.hex(), error)
        self.counters.unreadable += 1
        self._gone(entry)

    def unreachable(self, entry: Queued, error: Exception) -> None:
        """The spool cannot be read now: not the message's fault, no attempt; again in a minute."""
        logger.error("message %s cannot be read now: %s", entry.id.hex(), error)
        entry.due = trio.current_time() + _SPOOL_PATIENCE
        self._later(entry)
