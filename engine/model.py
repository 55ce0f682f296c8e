"""What a message is, in memory and on disk.

`Message` is the persisted record: one per scheduled-queue entry. Several messages of one SMTP
transaction share one stored body; each has its own short `prefix` (its Received field and
headers a policy prepended), so a body is written once however many recipients it has.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any, NewType

import msgspec

__all__ = ["Message", "MessageId", "QueueName", "bits_of", "bits_up_to", "new_message_id"]

MessageId = NewType("MessageId", bytes)
"""16 bytes; `.hex()` is the text form in records and replies."""


def new_message_id() -> MessageId:
    """A fresh id: 48 bits of wall-clock milliseconds, then 80 random bits.

    The time part only makes ids sortable; uniqueness rests on the random part, so cloned hosts
    and backward clock steps do not repeat one (reliability D16). Random octets are asked for each
    time: a stock of them would be cloned with a running machine.
    """
    return MessageId(int(time.time() * 1000).to_bytes(6, "big") + os.urandom(10))


def bits_up_to(count: int) -> int:
    """A bit for each of so many recipients, all set.

    Recipients are counted by bits, and there may be any number of them. A module that is compiled must not
    shift by itself: there ``1 << count`` may be a shift of C, which ends at 32 bits without a word.
    """
    return (1 << count) - 1


def bits_of(indices: Iterable[int]) -> int:
    """The bits of these recipients. See `bits_up_to`."""
    found = 0
    for index in indices:
        found |= 1 << index
    return found


class QueueName(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The four parts of a scheduled queue's name. The text form is for people only."""

    domain: str
    tenant: str | None = None
    campaign: str | None = None
    routing_domain: str | None = None

    @property
    def route(self) -> str:
        """The domain that routing looks at: `routing_domain` if set, else `domain`."""
        return self.routing_domain or self.domain

    def __str__(self) -> str:
        text = self.domain
        if self.campaign is not None:
            text = f"{self.campaign}:{self.tenant or ''}@{text}"
        elif self.tenant is not None:
            text = f"{self.tenant}@{text}"
        return f"{text}!{self.routing_domain}" if self.routing_domain is not None else text


class Message(msgspec.Struct, array_like=True, kw_only=True, gc=False):
    """One queued message as it is written to the spool (new fields: at the end, with defaults).

    `sender` is the reverse-path, ``""`` when null. Addresses are exactly what the peer gave
    between the angle brackets (source route dropped). `created` is Unix time in seconds.
    `size` counts prefix and body in octets as they will be sent, before dot-stuffing.
    """

    id: bytes
    sender: str
    recipients: list[str]
    queue: QueueName
    created: float
    prefix: bytes = b""
    body_index: int = 0
    size: int = 0
    eight_bit: bool = False
    smtputf8: bool = False
    reception_protocol: str = "ESMTP"
    meta: dict[str, Any] = {}
    first_attempt: float = 0.0
    """Unix time before which no attempt is made; 0 = at once."""
    expires: float = 0.0
    """Unix time that replaces `max_age`; 0 = none."""
