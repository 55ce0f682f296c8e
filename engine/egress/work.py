"""What a session works with: the engine's services, and one transaction under way."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import trio

from engine import _fast
from engine.queues.limits import Rate, take_all
from engine.queues.queued import Queued
from engine.smtp import Transaction

from .alarms import Alarms

if TYPE_CHECKING:
    from engine.keys import KeyRing
    from engine.model import Message
    from engine.queues.limits import Limits
    from engine.queues.ready import ReadyQueue
    from engine.spool import Spool
    from policy.egress import EgressPath
    from policy.units import Throttle

    from .connection import Connection
    from .dial import Dialer
    from .resolve import Candidate, Plan
    from .settle import Settler
    from .tlsa import Dane

__all__ = [
    "Services",
    "Stumblers",
    "Work",
    "connection_rate",
    "give_back_rates",
    "make_work",
    "message_not_sent",
    "message_rate",
    "octets",
    "patience",
    "selection_rate",
]

logger = logging.getLogger("posthorn.egress")

_STUMBLE_MEMORY = 24 * 3600.0
_STUMBLERS = 10_000
_SUSPICION = 3600.0
"""Seconds between two losses of a connection that together are called stumbling. A guess."""

_DIRTY = _fast.BARE_CR | _fast.BARE_LF | _fast.NUL


class Stumblers:
    """Hosts that did not cope with commands sent behind a final dot; spoken to plainly for a day."""

    __slots__ = ("_suspected", "_until")

    def __init__(self) -> None:
        self._until: OrderedDict[str, float] = OrderedDict()
        self._suspected: dict[str, float] = {}

    def has(self, address: str) -> bool:
        """Whether this host stumbled lately."""
        until = self._until.get(address)
        return until is not None and trio.current_time() < until

    def suspect(self, address: str) -> bool:
        """It may just have done so: a connection was lost, or a command refused. Twice within the hour
        is once too often. Returns: whether it counts as a stumbler now."""
        now = trio.current_time()
        before = self._suspected.get(address, float("-inf"))
        if now - before < _SUSPICION:
            self.add(address)
            return True
        if len(self._suspected) > _STUMBLERS:
            self._suspected.clear()
        self._suspected[address] = now
        return False

    def warn(self, connection: Connection, what: str) -> None:
        """Say to people that it counts as a stumbler now, and why."""
        logger.warning(
            "%s[%s] stumbles over pipelining across messages (%s); it is spoken to plainly for a day",
            connection.mx_name,
            connection.address,
            what,
        )

    def add(self, address: str) -> None:
        """It just did."""
        self._suspected.pop(address, None)
        self._until[address] = trio.current_time() + _STUMBLE_MEMORY
        self._until.move_to_end(address)
        if len(self._until) > _STUMBLERS:
            self._until.popitem(last=False)


class Services:
    """What every session needs; one object for the engine."""

    __slots__ = (
        "alarms",
        "dane",
        "dialer",
        "draining",
        "hostname",
        "keys",
        "limits",
        "plan",
        "settler",
        "spool",
        "stumblers",
    )

    def __init__(
        self,
        *,
        dialer: Dialer,
        keys: KeyRing,
        limits: Limits,
        settler: Settler,
        spool: Spool,
        plan: Callable[[ReadyQueue], Awaitable[Plan]],
        dane: Callable[[ReadyQueue, Candidate, str], Awaitable[Dane]],
        hostname: str,
    ) -> None:
        self.dialer = dialer
        self.keys = keys
        self.limits = limits
        self.settler = settler
        self.spool = spool
        self.plan = plan
        self.dane = dane
        """What DANE says of a candidate, for mail whose next-hop domain is that."""
        self.hostname = hostname
        self.draining = False
        self.alarms = Alarms()
        self.stumblers = Stumblers()


class Work:
    """One transaction under way: a message, some of its recipients, and the bytes to send.

    `more`: recipients of the same message that follow in another transaction; `again`: this is such
    another one; `counted`: an earlier one has counted the attempt.
    `ahead`: its commands were sent together with the previous message's body.
    `dot_sent`: the final dot was handed to the kernel, or is about to be.
    """

    __slots__ = (
        "again",
        "ahead",
        "begun",
        "counted",
        "dot_sent",
        "entry",
        "indices",
        "more",
        "parts",
        "tx",
    )

    def __init__(
        self,
        entry: Queued,
        indices: list[int],
        parts: list[bytes],
        tx: Transaction,
        begun: float,
        more: list[int],
    ) -> None:
        self.entry = entry
        self.indices = indices
        self.parts = parts
        self.tx = tx
        self.begun = begun
        self.more = more
        self.again = False
        self.counted = False
        self.ahead = False
        self.dot_sent = False


def make_work(
    entry: Queued,
    message: Message,
    body: bytes,
    indices: list[int],
    more: list[int],
    rset: bool,
    now: float,
) -> Work:
    """The transaction that sends `message` to the recipients `indices`, ready to go out, begun `now`.

    Whatever came in, what leaves has only CR LF line ends, no NUL, and its dots stuffed
    (reliability C31). The body is copied only where something has to be changed.
    """
    prefix = _fast.stuff(message.prefix) if message.prefix else b""
    flags = _fast.scan(body)[0]
    if flags & _DIRTY:
        body = _fast.clean_lines(body)
        flags = _fast.scan(body)[0]
    if flags & _fast.NEEDS_STUFFING:
        body = _fast.stuff(body)
    parts = [prefix, body] if prefix else [body]
    if body and not flags & _fast.ENDS_WITH_CRLF:
        parts.append(b"\r\n")
    recipients = message.recipients
    tx = Transaction(
        message.sender,
        [recipients[i] for i in indices] if len(indices) != len(recipients) else recipients,
        bool(flags & _fast.EIGHT_BIT) or message.eight_bit or not prefix.isascii(),
        message.smtputf8,
        message.size,
        rset,
    )
    return Work(entry, indices, parts, tx, now, more)


def octets(parts: list[bytes]) -> int:
    """How many there are in all parts."""
    total = 0
    for part in parts:
        total += len(part)
    return total


def patience(path: EgressPath, stage: str) -> float:
    """Seconds to wait for the reply that is due next (RFC 5321 4.5.3.2; options of the path)."""
    if stage == "MAIL FROM":
        return path.mail_from_timeout
    if stage == "RCPT TO":
        return path.rcpt_to_timeout
    if stage == "DATA":
        return path.data_timeout
    if stage == "RSET":
        return path.rset_timeout
    return path.data_dot_timeout


def message_rate(limits: Limits, ready: ReadyQueue, now: float) -> float:
    """Count one message in the path's `max_message_rate` and `additional_message_rate_throttles`: 0 when
    it may go, else the seconds to wait, and then it is counted in none of them."""
    return take_all(_rates(limits, ready.message_rates, now), now) if ready.message_rates else 0.0


def message_not_sent(limits: Limits, ready: ReadyQueue, now: float) -> None:
    """Undo one `message_rate` that returned 0."""
    for rate in _rates(limits, ready.message_rates, now):
        rate.give_back()


def selection_rate(limits: Limits, ready: ReadyQueue, now: float) -> float:
    """Count one choice of this source in `source_selection_rate` and `additional_source_selection_rates`,
    likewise."""
    return take_all(_rates(limits, ready.selection_rates, now), now) if ready.selection_rates else 0.0


def _rates(limits: Limits, rates: Sequence[tuple[str, Throttle]], now: float) -> list[Rate]:
    return [limits.rate(key, rate.interval, rate.burst, now) for key, rate in rates]


def give_back_rates(limits: Limits, ready: ReadyQueue, now: float) -> None:
    """Undo `message_rate` and `connection_rate` for a session that found nothing to do."""
    message_not_sent(limits, ready, now)
    if (rate := ready.path.max_connection_rate) is not None:
        limits.rate(f"connection_rate:{ready.lease.name}", rate.interval, rate.burst, now).give_back()


def connection_rate(limits: Limits, ready: ReadyQueue, now: float) -> float:
    """Count one connection in the path's `max_connection_rate`, likewise."""
    rate = ready.path.max_connection_rate
    if rate is None:
        return 0.0
    key = f"connection_rate:{ready.lease.name}"
    return limits.rate(key, rate.interval, rate.burst, now).take(now)
