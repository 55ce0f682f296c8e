"""Arguments of EHLO, MAIL and RCPT, with the ESMTP parameters of MAIL (RFC 1870, 6152, 6531, 4954).

RCPT has no parameters that we offer. Nothing here has a state: that a command may come now was
decided before.
"""

from __future__ import annotations

import re

import msgspec

from engine import _fast

from .address import NULL, Address, parse_path_full
from .auth import MECHANISMS
from .events import Hello, Mail, Rcpt
from .reply import Reply
from .state import VERBS

__all__ = [
    "MailParameters",
    "ParameterError",
    "parse_hello",
    "parse_mail",
    "parse_mail_parameters",
    "parse_rcpt",
    "shown",
]

EHLO_LIMIT = 255
"""Octets of the argument (reliability S27)."""

_SIZE_DIGITS = 20
_XTEXT = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*\Z")


class ParameterError(Exception):
    """An argument is not acceptable; `reply` says why."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.line)
        self.reply = reply


class MailParameters(msgspec.Struct, frozen=True, gc=False):
    """What a client declared about the message. `size` 0: not declared."""

    size: int = 0
    body_8bit: bool = False
    smtputf8: bool = False


NO_PARAMETERS = MailParameters()


def parse_mail_parameters(rest: bytes, *, auth_offered: bool) -> MailParameters:
    """Read what follows the reverse-path.

    Raises: ParameterError: 555 for an unknown one, 501 for a bad value or one given twice.
    """
    if not rest:
        return NO_PARAMETERS
    size, body_8bit, smtputf8 = 0, False, False
    seen: set[bytes] = set()
    for item in rest.split(b" "):
        if not item:
            continue
        name, equals, value = item.partition(b"=")
        key = name.upper()
        if key in seen:
            raise ParameterError(Reply(501, "5.5.4", f"{_name(key)} is given twice"))
        seen.add(key)
        if key == b"SIZE":
            if not (value.isdigit() and value.isascii() and len(value) <= _SIZE_DIGITS):
                raise ParameterError(Reply(501, "5.5.4", "SIZE takes a number of octets"))
            size = int(value)
        elif key == b"BODY":
            kind = value.upper()
            if kind not in (b"7BIT", b"8BITMIME"):
                raise ParameterError(Reply(501, "5.5.4", "BODY takes 7BIT or 8BITMIME"))
            body_8bit = kind == b"8BITMIME"
        elif key == b"SMTPUTF8" and not equals:
            smtputf8 = True
        elif key == b"AUTH" and auth_offered:
            # Checked strictly and then not believed: nobody here may vouch for a submitter
            # (RFC 4954 5 lets us take it as "<>").
            if not value or not _XTEXT.match(value):
                raise ParameterError(Reply(501, "5.5.4", "AUTH takes an address as xtext"))
        else:
            raise ParameterError(Reply(555, "5.5.4", f"parameter {_name(key)} not recognized"))
    return MailParameters(size, body_8bit, smtputf8)


def parse_hello(rest: bytes, *, esmtp: bool) -> Hello:
    """The argument of EHLO (`esmtp`) or HELO. Raises: ParameterError."""
    try:
        domain = rest.decode()
    except UnicodeDecodeError:
        domain = ""
    if not domain or len(rest) > EHLO_LIMIT or not domain.isprintable() or " " in domain:
        verb = "EHLO" if esmtp else "HELO"
        raise ParameterError(Reply(501, "5.5.4", f"Syntax: {verb} domain"))
    return Hello(domain, esmtp)


def parse_mail(rest: bytes, *, auth_offered: bool) -> Mail:
    """What follows ``MAIL``. Raises: ParameterError, AddressError."""
    if rest[:5].upper() != b"FROM:":
        raise ParameterError(Reply(501, "5.5.4", "Syntax: MAIL FROM:<address>"))
    path = rest[5:].lstrip(b" ")
    quick = _fast.parse_path(path)
    if quick is not None:
        text, parameters = quick
        address = Address(text) if text else NULL
    else:
        # The parameters decide whether UTF-8 is allowed, so they are looked at first.
        utf8 = b"SMTPUTF8" in path[path.rfind(b">") + 1 :].upper().split()
        address, parameters = parse_path_full(path, allow_null=True, smtputf8=utf8)
    if not parameters:
        return Mail(address, 0, False, False)
    given = parse_mail_parameters(parameters, auth_offered=auth_offered)
    return Mail(address, given.size, given.body_8bit, given.smtputf8)


def parse_rcpt(rest: bytes, *, smtputf8: bool) -> Rcpt:
    """What follows ``RCPT``. `smtputf8`: whether MAIL said so. Raises: ParameterError, AddressError."""
    if rest[:3].upper() != b"TO:":
        raise ParameterError(Reply(501, "5.5.4", "Syntax: RCPT TO:<address>"))
    path = rest[3:].lstrip(b" ")
    quick = _fast.parse_path(path)
    if quick is not None and quick[0] and not quick[1]:
        return Rcpt(Address(quick[0]))
    address, parameters = parse_path_full(path, allow_null=False, smtputf8=smtputf8, allow_postmaster=True)
    if parameters:
        name = _name(parameters.partition(b"=")[0])
        raise ParameterError(Reply(555, "5.5.4", f"parameter {name} not recognized"))
    return Rcpt(address)


def shown(line: bytes) -> str:
    """A command as records may show it (reliability K3): of AUTH no more than a known mechanism, and
    nothing at all of what is no command, for it may be a response that came out of step."""
    verb, rest = _fast.parse_command(line)
    if verb == b"AUTH":
        word = rest.split(b" ", 1)[0].decode("ascii", "replace").upper()
        if word in MECHANISMS:
            return f"AUTH {word}"
        return "AUTH" if not rest or rest.startswith(b"(") else f"AUTH ({len(rest)} octets)"
    if line and verb not in VERBS:
        return f"({len(line)} octets that are no command)"
    return line.decode("utf-8", "replace")


def _name(name: bytes) -> str:
    return name[:32].decode("ascii", "replace")
