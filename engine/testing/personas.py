"""Next hops with a character: what real peers do to mail, as bytes, and countable.

Each is a `NextHop` and can be given everything that one can. What is observable of a persona, and nothing
else, is said in its docstring. They offer STARTTLS with a certificate that a relay of `open_relay` trusts;
with
``tls=None`` they do not.
"""

from __future__ import annotations

import ssl
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta

import trio

from engine.ca import ThrowAwayCa
from policy.units import parse_duration

from .hop import NextHop, Wire

__all__ = [
    "CountsFailedLogins",
    "ExpiredCertificate",
    "LiesAboutSize",
    "LimitsConnections",
    "RestartsBackEnd",
    "Storm",
    "StripsStartTls",
    "TarPit",
]


@dataclass
class CountsFailedLogins(NextHop):
    """Locks accounts. A wrong password is answered ``535 5.7.8``; with the `limit`-th in a row of a user
    the account is locked for `lock` and even the right password is answered ``535 5.7.8 ... locked``. A
    right one before that sets the user's count back.

    `failed`: wrong passwords by user, in all; `locked`: users that were ever locked, in order.
    """

    tls: ssl.SSLContext | bool | None = True
    users: dict[str, str] | None = field(default_factory=lambda: {"scott": "tiger"}, repr=False)
    limit: int = 3
    lock: float | str = "1 hour"
    failed: Counter[str] = field(default_factory=Counter)
    locked: list[str] = field(default_factory=list)
    _row: Counter[str] = field(default_factory=Counter)
    _until: dict[str, float] = field(default_factory=dict)

    def judge(self, user: str, right: bool) -> str:
        """See the class."""
        now = trio.current_time()
        if now < self._until.get(user, now):
            return "535 5.7.8 account is locked"
        if right:
            self._row[user] = 0
            return super().judge(user, right)
        self.failed[user] += 1
        self._row[user] += 1
        if self._row[user] >= self.limit:
            self._row[user] = 0
            self._until[user] = now + parse_duration(self.lock)
            self.locked.append(user)
        return super().judge(user, right)


@dataclass
class LimitsConnections(NextHop):
    """Has room for `most` connections at one time. One more is greeted ``421 4.7.0`` and closed, and is
    counted in `turned_away`."""

    tls: ssl.SSLContext | bool | None = True
    most: int = 3
    turned_away: int = 0

    async def converse(self, wire: Wire) -> None:
        """See the class."""
        if self.open > self.most:
            self.turned_away += 1
            await wire.say("421 4.7.0 too many connections from your address")
            return
        await super().converse(wire)


@dataclass
class RestartsBackEnd(NextHop):
    """Its user data base restarts. From `restart` on, for as long as it is told, every login, right or wrong,
    is answered ``535 5.7.8 authentication failed``, as if the password were wrong; before and after that the
    password counts. Sessions that are logged in go on.

    `refused`: right passwords that were refused so.
    """

    tls: ssl.SSLContext | bool | None = True
    users: dict[str, str] | None = field(default_factory=lambda: {"scott": "tiger"}, repr=False)
    refused: int = 0
    _until: float = float("-inf")

    def restart(self, duration: float | str) -> None:
        """The back end is away from now on for so long: seconds, or text like ``"5 minutes"``."""
        self._until = trio.current_time() + parse_duration(duration)

    def judge(self, user: str, right: bool) -> str:
        """See the class."""
        if trio.current_time() < self._until:
            self.refused += right
            right = False
        return super().judge(user, right)


@dataclass
class StripsStartTls(NextHop):
    """Somebody on the way takes STARTTLS out. The reply to EHLO has ``XXXXXXXA`` in its place, the command is
    answered ``502 5.5.1``, and all else works in clear text, AUTH included if it has `users`.

    `exposed`: AUTH commands that went over the wire so, where whoever did this could read them.
    """

    @property
    def exposed(self) -> int:
        """See the class."""
        return self.words().count("AUTH")

    def offers(self, wire: Wire) -> list[str]:
        """See the class."""
        return [*super().offers(wire), "XXXXXXXA"]

    def respond(self, wire: Wire, word: str, reply: str, data: bytes = b"") -> str:
        """See the class."""
        return "502 5.5.1 not understood" if word == "STARTTLS" else super().respond(wire, word, reply, data)


@dataclass
class ExpiredCertificate(NextHop):
    """Offers STARTTLS with a certificate of a trusted CA and for the right name, that has been out of date
    for
    `expired`. `renew` gives it one that is valid, for new connections.
    """

    tls: ssl.SSLContext | bool | None = True
    expired: float | str = "1 day"
    _issued: tuple[ThrowAwayCa, tuple[str, ...]] | None = None

    def certify(self, ca: ThrowAwayCa, names: Iterable[str]) -> None:
        """See the class."""
        self._issued = (ca, tuple(names))
        expired = timedelta(seconds=parse_duration(self.expired))
        self._certified = ca.server_context(*self._issued[1], expired=expired)

    def renew(self) -> None:
        """A valid certificate from now on. Raises: ValueError outside of a relay of `open_relay`."""
        if self._issued is None:
            raise ValueError("renew: the hop is in no relay of open_relay, so no CA knows it")
        ca, names = self._issued
        super().certify(ca, names)


@dataclass
class TarPit(NextHop):
    """Every line it says, the greeting included, comes `pause` after it was due, and lines of a longer reply
    each. The words are a correct MTA's. With `drip` each octet of a line comes so late instead."""

    pause: float | str = "30 seconds"
    drip: bool = False

    async def converse(self, wire: Wire) -> None:
        """See the class."""
        pause = parse_duration(self.pause)

        async def slow(*lines: str) -> None:
            for line in "\r\n".join(lines).split("\r\n"):
                for piece in f"{line}\r\n" if self.drip else [f"{line}\r\n"]:
                    await trio.sleep(pause)
                    await wire.raw(piece)

        wire.say = slow  # type: ignore[method-assign]
        await super().converse(wire)


@dataclass
class LiesAboutSize(NextHop):
    """Offers ``SIZE`` of `offered` octets and takes MAIL with any ``SIZE=``, then reads the whole message
    and, if it has more than `takes` octets, answers the final dot ``552 5.3.4``.

    `read`: octets of all messages that it read only to refuse them.
    """

    tls: ssl.SSLContext | bool | None = True
    offered: int = 100_000_000
    takes: int = 10_000
    read: int = 0

    def offers(self, wire: Wire) -> list[str]:
        """See the class."""
        kept = [keyword for keyword in super().offers(wire) if keyword.split()[0] != "SIZE"]
        return [*kept, f"SIZE {self.offered}"]

    def respond(self, wire: Wire, word: str, reply: str, data: bytes = b"") -> str:
        """See the class."""
        if word == "." and len(data) > self.takes:
            self.read += len(data)
            return "552 5.3.4 message too big"
        return super().respond(wire, word, reply, data)


_STAGES = ("connect", "EHLO", "MAIL", "RCPT", "DATA", ".")


@dataclass
class Storm(NextHop):
    """Ends every session with ``421 4.3.2`` while the storm lasts, each connection at another moment: the
    first in place of the greeting, the next in reply to EHLO, then to MAIL, to RCPT, to DATA, to the final
    dot (the message is not taken), and again. Outside of a storm it is a correct MTA. It begins in one if
    `storming`;
    `begin` and `end` change that. Sessions that are open take part.

    `ended`: sessions it ended so, by the moment: ``connect``, ``EHLO``, ``MAIL``, ``RCPT``, ``DATA``, ``.``
    """

    tls: ssl.SSLContext | bool | None = True
    storming: bool = True
    ended: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        """The storm begins."""
        self.storming = True

    def end(self) -> None:
        """It is over."""
        self.storming = False

    def respond(self, wire: Wire, word: str, reply: str, data: bytes = b"") -> str:
        """See the class."""
        if self.storming and reply[:1] in "23" and word == _STAGES[(wire.number - 1) % len(_STAGES)]:
            self.ended[word] += 1
            return "421 4.3.2 service not available, closing transmission channel"
        return super().respond(wire, word, reply, data)
