"""The Received field we put on top of every message (RFC 5321 sections 4.4 and 7.6).

Everything in it that a peer chose (EHLO name, recipient) is put through a table that lets only
plain characters pass: no parenthesis, quote, angle bracket, white space or control, so that a
peer can neither end a comment, the field, nor write another hop's words (reliability S45). The
name a client authenticated with is not shown.

The part that stays the same for a session is built once (`ReceivedStamp`); per message only the
id, the recipient and the date are put in, and the date text is kept for the current second.
"""

from __future__ import annotations

from datetime import UTC, datetime

__all__ = ["ReceivedStamp", "date_text", "protocol_name", "too_many_received"]

_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _only(plain: bytes) -> bytes:
    """A translation table: `plain` stays, everything else becomes a question mark."""
    return bytes(code if code in plain else 0x3F for code in range(256))


_ALNUM = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_DOMAIN = _only(_ALNUM + b"-._:[]")
_MAILBOX = _only(_ALNUM + b"!#$%&'*+-/=?^_`{|}~.@:[]")  # atext, dots, and what a domain may hold
_WORD = _only(_ALNUM + b"-._/")

_second = -1
_second_text = b""


def date_text(now: float) -> bytes:
    """The RFC 5322 date of `now` (Unix seconds), in UTC: ``Tue, 24 Nov 2026 04:15:09 +0000``."""
    global _second, _second_text
    second = int(now)
    if second != _second:
        when = datetime.fromtimestamp(second, UTC)
        # strftime's %a and %b follow the locale; a header must not.
        text = (
            f"{_DAYS[when.weekday()]}, {when.day:02} {_MONTHS[when.month - 1]} {when.year:04} "
            f"{when.hour:02}:{when.minute:02}:{when.second:02} +0000"
        )
        _second, _second_text = second, text.encode("ascii")
    return _second_text


def protocol_name(*, esmtp: bool, tls: bool, authenticated: bool, smtputf8: bool) -> str:
    """The "with" word of the IANA registry (RFC 3848, RFC 6531 section 4.3)."""
    if not esmtp:
        return "SMTP"
    return ("UTF8SMTP" if smtputf8 else "ESMTP") + ("S" if tls else "") + ("A" if authenticated else "")


class ReceivedStamp:
    """Makes the Received fields of one session in its present state (EHLO, TLS, AUTH).

    `peer`: the client's IP address. `tls_version` and `tls_cipher` are shown when `tls_version`
    is not empty.
    """

    __slots__ = ("_head",)

    def __init__(
        self,
        *,
        hostname: str,
        ehlo_domain: str,
        peer: str,
        protocol: str,
        tls_version: str = "",
        tls_cipher: str = "",
    ) -> None:
        literal = f"IPv6:{peer}" if ":" in peer else peer
        tls = b""
        if tls_version:
            tls = b" (" + _plain(tls_version, _WORD) + b" " + _plain(tls_cipher or "unknown", _WORD) + b")"
        self._head = (
            b"Received: from " + _plain(ehlo_domain or "unspecified", _DOMAIN)
            + b" ([" + _plain(literal, _DOMAIN) + b"])\r\n"
            b"\tby " + _plain(hostname, _DOMAIN) + b" (Posthorn) with " + _plain(protocol, _WORD) + tls
            + b"\r\n\tid "
        )  # fmt: skip

    def field(self, message_id: str, recipient: str, now: float) -> bytes:
        """The whole field with its CRLF. `recipient` ``""``: no "for" clause (several recipients,
        whose names are not each other's business: RFC 5321 section 7.2)."""
        if recipient:
            try:
                path = recipient.encode("ascii").translate(_MAILBOX)
            except UnicodeEncodeError:
                path = _plain(recipient, _MAILBOX)
            return b"%b%b\r\n\tfor <%b>;\r\n\t%b\r\n" % (
                self._head,
                message_id.encode("ascii"),
                path,
                date_text(now),
            )
        return b"%b%b;\r\n\t%b\r\n" % (self._head, message_id.encode("ascii"), date_text(now))


def too_many_received(content: bytes, header_end: int, limit: int = 50) -> bool:
    """Whether the header section `content[:header_end]` holds more than `limit` Received fields.

    A mail loop (RFC 5321 section 6.3). Costs nothing for a section too short to hold so many.
    """
    if header_end <= limit * _SHORTEST:
        return False
    block = content[:header_end].lower()
    return block.count(b"\nreceived:") + block.startswith(b"received:") > limit


_SHORTEST = len(b"Received:\r\n")


def _plain(text: str, table: bytes) -> bytes:
    # One question mark per character, not per octet of its UTF-8 form.
    return text.encode("ascii", "replace").translate(table)
