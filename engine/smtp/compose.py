"""The client's command lines for one transaction (RFC 5321 4.1.1, RFC 1870, 6152, 6531)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import LocalProtocolError

from .reply import Reply

if TYPE_CHECKING:
    from .capabilities import Capabilities
    from .events import Transaction

__all__ = ["argument", "commands", "mail_line", "obstacle", "rcpt_line"]

_NOT_MIME = Reply(554, "5.6.3", "The message is 8-bit and the next hop does not take 8BITMIME")
_NOT_SENT = Reply(553, "5.1.3", "An address holds control characters")
_NOT_UTF8 = Reply(554, "5.6.7", "An address is not ASCII and the next hop does not take SMTPUTF8")


def argument(text: str) -> bytes:
    """A command argument; control characters never reach the wire (reliability C32)."""
    if _controls(text):
        raise LocalProtocolError("a command argument holds control characters")
    return text.encode()


def _controls(text: str) -> bool:
    return not text.isprintable() and any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)


def commands(tx: Transaction, offered: Capabilities) -> bytes:
    """[RSET] MAIL RCPT... DATA, as one group."""
    lines = [b"RSET\r\n"] if tx.rset else []
    lines.append(mail_line(tx, offered))
    lines.extend(map(rcpt_line, tx.recipients))
    lines.append(b"DATA\r\n")
    return b"".join(lines)


def mail_line(tx: Transaction, offered: Capabilities) -> bytes:
    """MAIL FROM with the parameters that the message needs and the peer takes."""
    line = b"MAIL FROM:<" + argument(tx.sender) + b">"
    if offered.size is not None and tx.size:
        line += b" SIZE=%d" % tx.size
    if tx.body_8bit and offered.eight_bit_mime:
        line += b" BODY=8BITMIME"
    if offered.smtputf8 and _needs_utf8(tx):
        line += b" SMTPUTF8"
    return line + b"\r\n"


def rcpt_line(recipient: str) -> bytes:
    """RCPT TO."""
    return b"RCPT TO:<" + argument(recipient) + b">\r\n"


def obstacle(tx: Transaction, offered: Capabilities, *, check_8bit: bool = True) -> Reply | None:
    """Why a peer that offers this cannot take this message at all, or None."""
    if offered.size and tx.size > offered.size:
        text = f"The message has {tx.size} octets, the next hop takes {offered.size}"
        return Reply(552, "5.3.4", text)
    if _controls(tx.sender) or any(map(_controls, tx.recipients)):
        return _NOT_SENT
    if check_8bit:
        if tx.body_8bit and not offered.eight_bit_mime:
            return _NOT_MIME
        if not offered.smtputf8 and _needs_utf8(tx):
            return _NOT_UTF8
    return None


def _needs_utf8(tx: Transaction) -> bool:
    if not tx.sender.isascii() or not all(map(str.isascii, tx.recipients)):
        return True
    return tx.smtputf8 and tx.body_8bit
