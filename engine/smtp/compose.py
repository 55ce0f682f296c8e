"""The client's command lines for one transaction (RFC 5321 4.1.1, RFC 1870, 6152, 6531)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import LocalProtocolError

from .reply import Reply

if TYPE_CHECKING:
    from .capabilities import Capabilities
    from .transaction import Transaction

__all__ = ["argument", "commands", "mail_line", "obstacle", "rcpt_line"]

_NOT_MIME = Reply(554, "5.6.3", "The message is 8-bit and the next hop does not take 8BITMIME")
_NOT_SENT = Reply(553, "5.1.3", "An address holds control characters")
_NOT_UTF8 = Reply(554, "5.6.7", "An address is not ASCII and the next hop does not take SMTPUTF8")


def argument(text: str) -> bytes:
    """A command argument; control characters never reach the wire (reliability C32)."""
    _check(text)
    return text.encode()


def _check(text: str) -> None:
    if _controls(text):
        raise LocalProtocolError("a command argument holds control characters")


def _controls(text: str) -> bool:
    for character in text:  # noqa: SIM110  (a generator for each address costs more than looking at it)
        if character < " " or "\x7f" <= character < "\xa0":
            return True
    return False


def commands(tx: Transaction, offered: Capabilities, dot: bool = False) -> bytes:
    """[RSET] MAIL RCPT... DATA, as one group; `dot`: behind the final dot of the message before."""
    start = ".\r\n" if dot else ""
    if tx.rset:
        start += "RSET\r\n"
    for recipient in tx.recipients:
        _check(recipient)
    recipients = ">\r\nRCPT TO:<".join(tx.recipients)
    return f"{start}{_mail(tx, offered)}RCPT TO:<{recipients}>\r\nDATA\r\n".encode()


def mail_line(tx: Transaction, offered: Capabilities) -> bytes:
    """MAIL FROM with the parameters that the message needs and the peer takes."""
    return _mail(tx, offered).encode()


def rcpt_line(recipient: str) -> bytes:
    """RCPT TO."""
    _check(recipient)
    return f"RCPT TO:<{recipient}>\r\n".encode()


def _mail(tx: Transaction, offered: Capabilities) -> str:
    sender = tx.sender
    _check(sender)
    size = f" SIZE={tx.size}" if tx.size and offered.size is not None else ""
    body = " BODY=8BITMIME" if tx.body_8bit and offered.eight_bit_mime else ""
    utf8 = " SMTPUTF8" if offered.smtputf8 and _needs_utf8(tx) else ""
    return f"MAIL FROM:<{sender}>{size}{body}{utf8}\r\n"


def obstacle(tx: Transaction, offered: Capabilities, check_8bit: bool = True) -> Reply | None:
    """Why a peer that offers this cannot take this message at all, or None."""
    if offered.size and tx.size > offered.size:
        text = f"The message has {tx.size} octets, the next hop takes {offered.size}"
        return Reply(552, "5.3.4", text)
    if _controls(tx.sender):
        return _NOT_SENT
    for recipient in tx.recipients:
        if _controls(recipient):
            return _NOT_SENT
    if check_8bit:
        if tx.body_8bit and not offered.eight_bit_mime:
            return _NOT_MIME
        if not offered.smtputf8 and _needs_utf8(tx):
            return _NOT_UTF8
    return None


def _needs_utf8(tx: Transaction) -> bool:
    if not tx.sender.isascii():
        return True
    for recipient in tx.recipients:
        if not recipient.isascii():
            return True
    return tx.smtputf8 and tx.body_8bit
