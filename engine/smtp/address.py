"""Envelope addresses: paths of MAIL and RCPT (RFC 5321 4.1.2, RFC 6531).

The address given to policy, stored, logged and sent onwards is the *same* text. It is taken apart
once, here, by a grammar, never by searching for an ``@`` or a ``>`` (reliability S41). A source
route is accepted and dropped; percent and bang forms mean nothing special (S42).

RFC 6531 lets every octet above 127 into an address. We do not: a C1 control, U+2028 or an invisible
mark would be a line end, a terminal's command or a false name somewhere behind us (S43, S44).
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address

import idna
import msgspec

from engine import _fast

from .reply import Reply

__all__ = ["NULL", "Address", "AddressError", "parse_path_full", "route_domain"]

_ATEXT = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"
_DOT_STRING = re.compile(rf"[{_ATEXT}\u0080-\U0010ffff]+(?:\.[{_ATEXT}\u0080-\U0010ffff]+)*")
_QUOTED = re.compile(r'"(?:[ !#-\[\]-~\u0080-\U0010ffff]|\\[ -~])*"')
_LABEL = r"[A-Za-z0-9_\u0080-\U0010ffff](?:[A-Za-z0-9_\-\u0080-\U0010ffff]*[A-Za-z0-9_\u0080-\U0010ffff])?"
_DOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LITERAL = re.compile(r"\[([!-Z^-~]*)\]")
_ROUTE = re.compile(rf"@(?:{_DOMAIN.pattern})(?:,@(?:{_DOMAIN.pattern}))*:")
_JOINERS = dict.fromkeys((0x200C, 0x200D))
"""Zero width, but part of some scripts' words: in a domain IDNA decides where they may stand."""

LOCAL_LIMIT, DOMAIN_LIMIT, PATH_LIMIT = 64, 255, 256
"""Octets (RFC 5321 4.5.3.1.1 to 3). The longest path includes its angle brackets."""


class AddressError(Exception):
    """The path is not acceptable; `reply` says why."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.line)
        self.reply = reply


class Address(msgspec.Struct, frozen=True, gc=False):
    """One address. `text` is what stood between the angle brackets, without a source route;
    ``""`` is the null reverse-path."""

    text: str

    @property
    def local_part(self) -> str:
        """The local part with its quoting removed."""
        local, _ = _split(self.text)
        if local.startswith('"'):
            return re.sub(r"\\(.)", r"\1", local[1:-1])
        return local

    @property
    def domain(self) -> str:
        """The domain as it was written; ``""`` for null and for a bare Postmaster."""
        return _split(self.text)[1]

    @property
    def route_domain(self) -> str:
        """The domain in the form that queues and rules compare: lower case, A-labels."""
        domain = _split(self.text)[1]
        return route_domain(domain) if domain else ""


NULL = Address("")


def _split(text: str) -> tuple[str, str]:
    """Local part (still quoted) and domain. The domain holds no ``@``, so the last one divides."""
    local, at, domain = text.rpartition("@")
    return (local, domain) if at else (text, "")


@lru_cache(maxsize=16384)
def route_domain(domain: str) -> str:
    """The comparable form of a domain or address literal that passed the grammar."""
    if domain.isascii():
        return domain.lower().removesuffix(".")
    return idna.encode(domain, uts46=True).decode("ascii").lower()


def parse_path_full(
    arg: bytes, *, allow_null: bool, smtputf8: bool = False, allow_postmaster: bool = False
) -> tuple[Address, bytes]:
    """Read ``<path> [parameters]``; returns the address and what follows the path.

    Raises: AddressError with the reply to send.
    """
    status = "5.1.7" if allow_null else "5.1.3"

    def wrong(why: str, code: int = 501, enhanced: str = status) -> AddressError:
        return AddressError(Reply(code, enhanced, why))

    quick = _fast.parse_path(arg)
    if quick is not None:
        text, rest = quick
        if not text and not allow_null:
            raise wrong("the null path is only for MAIL")
        return Address(text), rest
    try:
        path = arg.decode()
    except UnicodeDecodeError:
        raise wrong("the address is not valid UTF-8") from None
    if not path.startswith("<"):
        raise wrong("an address stands in angle brackets: <local-part@domain>")
    position = 1
    route = _ROUTE.match(path, position)
    if route is not None:
        position = route.end()
    begin = position
    local = _QUOTED.match(path, position) or _DOT_STRING.match(path, position)
    if local is None:
        raise wrong("syntax error in the local part")
    position = local.end()
    if path[position : position + 1] == ">" and allow_postmaster and local[0].lower() == "postmaster":
        return Address(local[0]), _rest(path, position + 1)
    if path[position : position + 1] != "@":
        raise wrong("syntax error: local-part@domain expected")
    position += 1
    literal = _LITERAL.match(path, position)
    domain = literal or _DOMAIN.match(path, position)
    if domain is None:
        raise wrong("syntax error in the domain")
    position = domain.end()
    if path[position : position + 1] != ">":
        raise wrong("syntax error in the address")
    text = path[begin:position]
    if not text.isascii() and not smtputf8:
        raise wrong("a non-ASCII address needs the SMTPUTF8 parameter", 553, "5.6.7")
    if not (local[0].isprintable() and domain[0].translate(_JOINERS).isprintable()):
        raise wrong("the address holds a character that cannot be seen", 553)
    if len(local[0].encode()) > LOCAL_LIMIT:
        raise wrong(f"the local part is longer than {LOCAL_LIMIT} octets")
    if len(domain[0].encode()) > DOMAIN_LIMIT or len(text.encode()) + 2 > PATH_LIMIT:
        raise wrong(f"the address is longer than {PATH_LIMIT} octets")
    if literal is not None:
        if not _is_literal(literal[1]):
            raise wrong("the address literal holds no IPv4 or IPv6 address")
    else:
        try:
            route_domain(domain[0])
        except (idna.IDNAError, UnicodeError):
            raise wrong("the domain is not a valid internationalized name") from None
    return Address(text), _rest(path, position + 1)


def _rest(path: str, position: int) -> bytes:
    rest = path[position:]
    if rest and not rest.startswith(" "):
        raise AddressError(Reply(501, "5.5.4", "a space must follow the address"))
    return rest.strip(" ").encode()


def _is_literal(text: str) -> bool:
    if "%" in text:
        return False  # Python reads a zone id there, which may hold anything; RFC 5321 has none
    try:
        if text[:5].lower() == "ipv6:":
            IPv6Address(text[5:])
        else:
            IPv4Address(text)
    except ValueError:
        return False
    return True
