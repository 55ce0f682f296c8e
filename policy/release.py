"""Where a credential may go: `release_to` of `smtp_auth`.

What is listed is demanded of the live session that wants the credential, each list by itself: one of its
`names` is the name that the peer's certificate was verified for, one of `addresses` holds the address it is
connected to, and so on. What is not listed is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from .errors import Wrong, a_type
from .nets import CidrSet, parse_cidr_set, parse_host, parse_ip
from .options import Kind, Table
from .tlskinds import read_pin

__all__ = ["Release", "ReleaseTo", "name_fits", "read_release"]

_VERSIONS = {"1.2": "TLSv1.2", "tlsv1.2": "TLSv1.2", "1.3": "TLSv1.3", "tlsv1.3": "TLSv1.3"}


class Release(msgspec.Struct, frozen=True, kw_only=True):
    """Who may be told a credential; an empty field demands nothing.

    `names`: lower-case host names and addresses, ``*.x.example`` for one label more. `ports`: of the
    peer. `pins`: ``sha256//`` and base64 of the key in the peer's own certificate (SubjectPublicKeyInfo).
    `tls_minimum_version`: ``TLSv1.2`` or ``TLSv1.3``, "" for no demand.
    """

    names: tuple[str, ...] = ()
    addresses: CidrSet = CidrSet()
    ports: tuple[int, ...] = ()
    pins: tuple[str, ...] = ()
    tls_minimum_version: str = ""

    @property
    def needs_tls(self) -> bool:
        """Whether nobody without TLS can be meant."""
        return bool(self.names or self.pins or self.tls_minimum_version)


def name_fits(pattern: str, name: str) -> bool:
    """Whether a verified name is one of those that an entry of `names` stands for."""
    if not pattern.startswith("*."):
        return name == pattern
    label, dot, rest = name.partition(".")
    return bool(label and dot) and rest == pattern[2:]


def _items(value: Any) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, list | tuple | set | frozenset):
        raise Wrong(f"is no list but {a_type(value)}")
    if not value:
        raise Wrong("is empty, and would let the credential go nowhere")
    return list(value)


def _name(value: Any) -> str:
    if not isinstance(value, str):
        raise Wrong(f"holds {a_type(value)}")
    if not value.isascii():
        raise Wrong(f'holds "{value}", which is not ASCII; write the A-label form (xn--...)')
    try:
        return parse_ip(value)
    except Wrong:
        pass
    try:
        if value.startswith("*."):
            rest = parse_host(value[2:])
            if "." not in rest:
                raise Wrong(f'holds "{value}", a whole top-level domain', complete=True)
            return f"*.{rest}"
        return parse_host(value)
    except Wrong as wrong:
        if wrong.complete:
            raise
        raise Wrong(f'holds "{value}", which is no host name') from None


def _port(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 65536:
        raise Wrong(f"holds {value!r}, which is no port")
    return value


def _pin(value: Any) -> str:
    try:
        return read_pin(value)
    except Wrong as wrong:
        raise Wrong(f"holds {value!r}, which {wrong}") from None


def _networks(value: Any) -> CidrSet:
    if isinstance(value, CidrSet):
        return value
    return parse_cidr_set(_items(value))


def _version(value: Any) -> str:
    found = _VERSIONS.get(value.lower()) if isinstance(value, str) else None
    if found is None:
        raise Wrong("is none of them" if isinstance(value, str) else f"is no text but {a_type(value)}")
    return found


def _sorted(read: Any) -> Any:
    return lambda value: tuple(sorted({read(item) for item in _items(value)}))


_TABLE = Table(
    {
        "names": Kind('a list of host names such as ["smtp.relay.example", "*.mx.example"]', _sorted(_name)),
        "addresses": Kind(
            'a list of IP addresses and networks such as ["192.0.2.0/24", "2001:db8::1"]', _networks
        ),
        "ports": Kind("a list of ports from 1 to 65535, such as [465, 587]", _sorted(_port)),
        "pins": Kind(
            'a list of SHA-256 hashes of public keys (SubjectPublicKeyInfo), such as ["sha256//BASE64"]',
            _sorted(_pin),
        ),
        "tls_minimum_version": Kind('"TLSv1.2" or "TLSv1.3"', _version),
    },
    nullable=frozenset({"names", "addresses", "ports", "pins", "tls_minimum_version"}),
    noun="key",
)


def read_release(value: Any) -> Release:
    """What `release_to` says. Raises: Wrong."""
    if isinstance(value, Release):
        return value
    if not isinstance(value, Mapping):
        raise Wrong(f"is no mapping but {a_type(value)}")
    given = _TABLE.read(value)
    if not given:
        raise Wrong("demands nothing")
    return Release(**given)


ReleaseTo = Annotated[
    Release,
    Kind(
        'a mapping of what the peer must be, such as {"names": ["smtp.relay.example"], "ports": [587]}',
        read_release,
        secret=True,  # a password that was put in the wrong place is not shown
    ),
]
