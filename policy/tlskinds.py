"""What the TLS options of an egress path take: pins, the least version, ciphers."""

from __future__ import annotations

import base64
import binascii
import re
import ssl
from typing import Annotated, Any, Literal, TypeAlias

from .errors import Wrong, a_type
from .options import Kind

__all__ = ["OBSOLETE", "CipherList", "LeastTls", "Pins", "TlsVersion", "pin_text", "read_pin"]

TlsVersion: TypeAlias = Literal["TLSv1.0", "TLSv1.1", "TLSv1.2", "TLSv1.3"]

_DIGEST, _BASE64 = 32, 44
"""Octets of a SHA-256 hash, and characters of it in base64."""
_PREFIX = re.compile(r"sha256[/:]", re.IGNORECASE)
_HEX = re.compile(r"[0-9a-fA-F]{64}|[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){31}")
_OTHER_HASH = re.compile(r"(?:pin-)?(sha1|sha-1|md5|sha384|sha512)\b", re.IGNORECASE)


def pin_text(digest: bytes) -> str:
    """How a pin is kept and shown: ``sha256//`` and base64, as curl writes it."""
    return "sha256//" + base64.b64encode(digest).decode("ascii")


def read_pin(value: Any) -> str:
    """A pin in any of its forms, as `pin_text` has it. Raises: Wrong."""
    if not isinstance(value, str):
        raise Wrong(f"is no text but {a_type(value)}")
    other = _OTHER_HASH.match(value)
    if other is not None:
        raise Wrong(f"is a {other.group(1).upper()} hash, and pins are SHA-256")
    prefix = _PREFIX.match(value)
    rest = value[prefix.end() :] if prefix else value
    if len(rest) != _BASE64 and rest.startswith("/"):  # base64 may begin with one itself
        rest = rest[1:]
    if _HEX.fullmatch(rest):
        return pin_text(bytes.fromhex(rest.replace(":", "")))
    try:
        digest = base64.b64decode(rest, validate=True)
    except (binascii.Error, ValueError):
        raise Wrong("is neither 64 hexadecimal digits nor base64") from None
    if len(digest) != _DIGEST:
        raise Wrong(f"holds {len(digest)} octets, and a SHA-256 hash has {_DIGEST}")
    return pin_text(digest)


def _pins(value: Any) -> tuple[str, ...]:
    if isinstance(value, str | bytes) or not isinstance(value, list | tuple | set | frozenset):
        raise Wrong(f"is no list but {a_type(value)}")
    found = []
    for item in value:
        try:
            found.append(read_pin(item))
        except Wrong as wrong:
            raise Wrong(f"{item!r} {wrong}") from None
    if not found:
        raise Wrong("is empty, and would refuse everybody")
    return tuple(sorted(set(found)))


Pins = Annotated[
    tuple[str, ...],
    Kind(
        'a list of SHA-256 hashes of public keys (SubjectPublicKeyInfo) such as "sha256//BASE64", or 64 '
        "hexadecimal digits",
        _pins,
    ),
]

_VERSIONS: dict[str, TlsVersion] = {
    "1": "TLSv1.0",
    "1.0": "TLSv1.0",
    "1.1": "TLSv1.1",
    "1.2": "TLSv1.2",
    "1.3": "TLSv1.3",
}
OBSOLETE = frozenset({"TLSv1.0", "TLSv1.1"})
"""Versions that RFC 8996 forbids: spoken only where a path names them."""


def _version(value: Any) -> TlsVersion:
    if not isinstance(value, str):
        raise Wrong(f"is no text but {a_type(value)}")
    number = re.sub(r"^tls ?_?v?", "", value.strip().lower()).replace("_", ".")
    if value.strip().lower().startswith("ssl"):
        raise Wrong("is a version that RFC 7568 forbids")
    if number not in _VERSIONS:
        raise Wrong("is no TLS version")
    return _VERSIONS[number]


LeastTls = Annotated[
    TlsVersion,
    Kind(
        '"TLSv1.2" or "TLSv1.3" ("1.2" and "1.3" will do); for a peer that knows no better "TLSv1.1" or '
        '"TLSv1.0"',
        _version,
    ),
]

_GONE = frozenset(
    (
        *(
            "3DES",
            "ADH",
            "AECDH",
            "DES",
            "DSS",
            "EXP",
            "EXPORT",
            "EXPORT40",
            "EXPORT56",
            "IDEA",
            "KRB5",
            "LOW",
        ),
        *("MD5", "NULL", "PSK", "RC2", "RC4", "SEED", "SRP", "SSLV2", "SSLV3"),
    )
)
"""What lists exclude by habit, and an OpenSSL of today may not have any more."""

_SPLIT = re.compile(r"[:, ]+")


def _ciphers(value: Any) -> str:
    if not isinstance(value, str):
        raise Wrong(f"is no text but {a_type(value)}")
    if not value.isascii() or not value.isprintable():
        raise Wrong("holds a character that stands in no cipher's name")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if "@seclevel" in value.lower():
        raise Wrong("sets a security level; Posthorn's is 2, and keys and signatures below it are refused")
    # OpenSSL passes over names that it does not know, as long as it knows one.
    for item in filter(None, _SPLIT.split(value)):
        if item.upper() == "@STRENGTH" or (item[0] in "!-" and item[1:].upper() in _GONE):
            continue
        try:
            context.set_ciphers(item.lstrip("!-+"))
        except ssl.SSLError as error:
            if item.upper().startswith("TLS_"):
                raise Wrong(f'holds "{item}", a TLS 1.3 cipher suite; those cannot be chosen') from None
            raise Wrong(f'holds "{item}", of which the ssl module says: {_said(error)}') from None
    try:
        context.set_ciphers(value)
        context.set_ciphers(value + ":!aNULL:!eNULL:!EXPORT:@SECLEVEL=2")
    except ssl.SSLError as error:
        raise Wrong(
            f"leaves no cipher that authenticates and encrypts; the ssl module says: {_said(error)}"
        ) from None
    return value


def _said(error: ssl.SSLError) -> str:
    # One that the module raises by itself has its words only.
    return (getattr(error, "reason", None) or str(error.args[0])).replace("_", " ").lower().rstrip(".")


CipherList = Annotated[
    str, Kind('OpenSSL\'s names of TLS 1.2 ciphers with ":" between, such as "ECDHE+AESGCM:!RSA"', _ciphers)
]
