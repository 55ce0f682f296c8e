"""ESMTP parameters of MAIL (RFC 1870, 6152, 6531, 4954). RCPT has none that we offer."""

from __future__ import annotations

import re

import msgspec

from .reply import Reply

__all__ = ["NO_PARAMETERS", "MailParameters", "ParameterError", "parse_mail_parameters"]

_SIZE_DIGITS = 20
_XTEXT = re.compile(rb"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*\Z")


class ParameterError(Exception):
    """A parameter is not acceptable; `reply` says why."""

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
            raise ParameterError(Reply(501, "5.5.4", f"{_shown(key)} is given twice"))
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
            raise ParameterError(Reply(555, "5.5.4", f"parameter {_shown(key)} not recognized"))
    return MailParameters(size, body_8bit, smtputf8)


def _shown(name: bytes) -> str:
    return name[:32].decode("ascii", "replace")
