"""The one way a message becomes ours.

In this order: loop check, a look at the spool's room, `smtp_server_data` hook, split by recipient
or domain, Received field, `smtp_server_message_received` hook per message, a look whether the
client is still there, commit of all messages of the transaction to the spool, and only then log
record, queue and 250. A 250 is a promise that survives a power cut (reliability D1); until the
commit has returned nothing can be delivered and nothing is promised, and all recipients share one
fate (D5).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import trio

from engine import _fast
from engine.errors import SpoolError, SpoolFull
from engine.mail.received import too_many_received
from engine.model import Message, QueueName, new_message_id
from engine.smtp import Address, Reply

from .connection import Connection
from .message import ReceivedMessage, guarded, queue_for

if TYPE_CHECKING:
    from engine.hooks import Hooks
    from engine.log import Log
    from engine.spool import Handle, Spool

__all__ = ["Acceptor", "Enqueue"]

Enqueue = Callable[[Message, bytes, "Handle"], None]
"""Takes over a committed message: (message, its body, its place in the spool)."""

_IDS_PER_LINE = 12  # of the reply: lines stay below 512 octets (RFC 5321 section 4.5.3.1.5)
_NAMES_KEPT = 4096
_FAIR = 64
"""Messages of one transaction made in a row before other tasks get a turn (reliability Y2)."""

LOOP = Reply(554, "5.4.6", "Too many Received fields: this message goes round in circles")
TOO_SLOW = Reply(451, "4.4.5", "The policy took too long over this message; try again later")
GONE = Reply(451, "4.4.2", "Connection closed before the message was stored")
FULL = Reply(452, "4.3.1", "Insufficient system storage; try again later")
NOT_STORED = Reply(451, "4.3.0", "The message could not be stored; try again later")


class Acceptor:
    """Takes the messages of one listener.

    `limit`: seconds from the final dot to the reply, for hooks and commit together. `hostname`
    takes the place of the missing domain of a bare ``<Postmaster>``.
    """

    def __init__(
        self,
        *,
        spool: Spool,
        enqueue: Enqueue,
        log: Log,
        hooks: Hooks,
        hostname: str,
        batch_handling: Literal["BifurcateAlways", "BatchByDomain"] = "BifurcateAlways",
        received_header: bool = True,
        limit: float = 60.0,
    ) -> None:
        self._spool = spool
        self._enqueue = enqueue
        self._log = log
        self._capture = log.capture
        self._hooks = hooks
        self._hostname = hostname
        self._by_domain = batch_handling == "BatchByDomain"
        self._received_header = received_header
        self._limit = limit
        self._names: dict[tuple[str, str | None, str | None, str | None], QueueName] = {}
        self._data_hook = hooks.fast("smtp_server_data")
        self._message_hook = hooks.fast("smtp_server_message_received")
        self._data_waits = self._data_hook is None and hooks.has("smtp_server_data")
        self._message_waits = self._message_hook is None and hooks.has("smtp_server_message_received")
        self.hooks_wait = self._data_waits or self._message_waits
        """Whether a hook may wait, so that `accept` may take longer than the commit."""

    async def accept(
        self,
        connection: Connection,
        sender: Address,
        recipients: list[Address],
        content: bytes,
        header_end: int,
        eight_bit: bool,
        smtputf8: bool,
        still_there: Callable[[], bool],
    ) -> Reply:
        """Take the message for all recipients, or for none.

        `content` ends with CR LF or is empty; `header_end` as `_fast.header_end` tells it.
        `still_there` is asked once, directly before the commit (reliability D7).

        Returns: the reply to the final dot: 250 with the ids, or why not.
        Raises:  policy.Reject and HookError as the hooks raise them; nothing was kept then.
        """
        if too_many_received(content, len(content) if header_end < 0 else header_end):
            return LOOP
        if not self._spool.room_for(len(content)):  # there was at MAIL, which may be long ago (D18)
            return FULL if self._spool.halted is None else NOT_STORED
        deadline = trio.current_time() + self._limit
        end: int | None = header_end
        safe = guarded(content)
        if safe is not content:
            content, end = safe, None
        meta = connection.meta.snapshot()
        prefix = b""
        needs_utf8 = smtputf8 and (eight_bit or not _all_ascii(sender, recipients))

        if self._data_hook is not None or self._data_waits:
            whole = ReceivedMessage(
                new_message_id(), sender, recipients, meta, b"", content, end,
                smtputf8=needs_utf8, default_domain=self._hostname,
            )  # fmt: skip
            if self._data_hook is not None:
                self._data_hook(whole, connection.meta)
            else:
                with trio.move_on_at(deadline) as scope:
                    await self._hooks.call("smtp_server_data", whole, connection.meta)
                if scope.cancelled_caught:
                    return TOO_SLOW
            if whole.content is not content:
                content, end = whole.content, None
                eight_bit = bool(_fast.scan(content)[0] & _fast.EIGHT_BIT)
            sender, recipients, meta, prefix = whole.reverse_path, whole.recipients, whole.meta, whole.prefix
            needs_utf8 = whole.smtputf8

        now = time.time()
        stamp = connection.stamp(smtputf8)
        bodies = [content]
        messages: list[Message] = []
        parts = self._split(recipients)
        for part in parts:
            message_id = new_message_id()
            field = b""
            if self._received_header:
                only = part[0].text if len(part) == 1 else ""
                field = stamp.field(message_id.hex(), only, now)
            messages.append(
                Message(
                    id=message_id,
                    sender=sender.text,
                    recipients=[address.text for address in part],
                    queue=self._queue(part[0].route_domain or self._hostname, meta),
                    created=now,
                    prefix=field + prefix if prefix else field,
                    size=len(field) + len(prefix) + len(content),
                    eight_bit=eight_bit or not prefix.isascii(),
                    smtputf8=needs_utf8,
                    meta=meta,
                )
            )
            if not len(messages) % _FAIR:
                await trio.lowlevel.cancel_shielded_checkpoint()

        if self._message_hook is not None or self._message_waits:
            hooks = self._hooks
            if self._message_hook is not None:
                # A plain hook cannot wait, so it needs no scope: this is the per-message path.
                for message, part in zip(messages, parts, strict=True):
                    view = self._view(message, part, sender, bodies, end)
                    self._message_hook(view, connection.meta)
                    self._take_over(view, message, part, bodies)
                    if hooks.others_wait:
                        await hooks.let_others_run()
                        if trio.current_time() >= deadline:
                            return TOO_SLOW
            else:
                with trio.move_on_at(deadline) as scope:
                    for message, part in zip(messages, parts, strict=True):
                        view = self._view(message, part, sender, bodies, end)
                        await hooks.call("smtp_server_message_received", view, connection.meta)
                        self._take_over(view, message, part, bodies)
                        if hooks.others_wait:
                            await hooks.let_others_run()
                            await trio.lowlevel.checkpoint_if_cancelled()
                if scope.cancelled_caught:
                    return TOO_SLOW
            if len(bodies) > 1 and all(message.body_index for message in messages):
                del bodies[0]  # nobody has the content as it came
                for message in messages:
                    message.body_index -= 1

        if not still_there():
            return GONE
        try:
            # A commit once begun runs to its end (reliability Y2), at most to the limit.
            handles = await self._spool.commit(bodies, messages, deadline)
        except SpoolFull:
            return FULL
        except SpoolError:
            return NOT_STORED
        # No checkpoint from here on: what is committed is recorded and queued.
        self._log_receptions(connection, messages, bodies)
        enqueue = self._enqueue
        for message, handle in zip(messages, handles, strict=True):
            enqueue(message, bodies[message.body_index], handle)
        return _thanks(messages)

    def _split(self, recipients: list[Address]) -> list[list[Address]]:
        if not self._by_domain:
            return [[address] for address in recipients]
        groups: dict[str, list[Address]] = {}
        for address in recipients:
            groups.setdefault(address.route_domain, []).append(address)
        return list(groups.values())

    def _queue(self, domain: str, meta: dict[str, object]) -> QueueName:
        """The queue's name; equal names are one object, as a million messages may hold it."""
        name = queue_for(domain, meta)
        key = (name.domain, name.tenant, name.campaign, name.routing_domain)
        known = self._names.get(key)
        if known is None:
            if len(self._names) >= _NAMES_KEPT:
                self._names.clear()
            self._names[key] = known = name
        return known

    def _view(
        self,
        message: Message,
        part: list[Address],
        sender: Address,
        bodies: list[bytes],
        end: int | None,
    ) -> ReceivedMessage:
        """One message as the policy sees it."""
        return ReceivedMessage(
            message.id, sender, part, message.meta, message.prefix, bodies[0], end,
            smtputf8=message.smtputf8, default_domain=self._hostname,
        )  # fmt: skip

    def _take_over(
        self, view: ReceivedMessage, message: Message, part: list[Address], bodies: list[bytes]
    ) -> None:
        """What the policy changed becomes the message."""
        content = bodies[0]
        message.sender = view.reverse_path.text
        if view.recipients is not part:
            message.recipients = [address.text for address in view.recipients]
        message.meta = view.meta
        message.queue = self._queue(view.recipients[0].route_domain or self._hostname, view.meta)
        message.prefix = view.prefix
        message.smtputf8 = view.smtputf8
        eight_bit = message.eight_bit
        changed = view.content
        if changed is not content:
            eight_bit = bool(_fast.scan(changed)[0] & _fast.EIGHT_BIT)
            message.body_index = len(bodies)
            bodies.append(changed)
        message.eight_bit = eight_bit or not message.prefix.isascii()
        message.size = len(message.prefix) + len(changed)

    def _log_receptions(self, connection: Connection, messages: list[Message], bodies: list[bytes]) -> None:
        capture = self._capture
        for message in messages:
            recipients = message.recipients
            record = connection.record("Reception", message.created)
            record.id = message.id.hex()
            record.sender = message.sender
            record.recipient = recipients[0] if len(recipients) == 1 else recipients
            record.queue = str(message.queue)
            record.size = message.size
            record.code = 250
            record.created = message.created
            if capture.wanted:
                capture.fill(record, message.meta, message.prefix, bodies[message.body_index])
            self._log.write(record)


def _all_ascii(sender: Address, recipients: list[Address]) -> bool:
    return sender.text.isascii() and all(address.text.isascii() for address in recipients)


def _thanks(messages: list[Message]) -> Reply:
    if len(messages) == 1:
        return Reply(250, "2.0.0", "OK ids=" + messages[0].id.hex())
    ids = [message.id.hex() for message in messages]
    lines = [" ".join(ids[at : at + _IDS_PER_LINE]) for at in range(0, len(ids), _IDS_PER_LINE)]
    return Reply(250, "2.0.0", "OK ids=" + "\n".join(lines))
