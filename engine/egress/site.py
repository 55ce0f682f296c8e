"""Sites: which hosts stand behind a destination, and what that set is called. Pure.

A *site* is the exact, ordered list of (preference, host, port) a destination resolves to. Two domains
with the same list are one site and share limits. `Site.name` is the factored text for people and hooks;
it loses information (``{mx1.foo.com, mx2.bar.com}`` and ``{mx1.foo.com, mx2.bar.com, mx1.bar.com}`` give
the same text), so queues are keyed by `Site.key`, a hash of the exact list.

Three kinds of site:

``mx``       hosts found by DNS; equal preferences are shuffled on each attempt
``literal``  one address, ``[192.0.2.1]``; no DNS
``mx_list``  hosts a policy wrote down; their order is kept as written, A and AAAA only, never MX
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Literal

import idna
import msgspec

from engine.errors import ConfigError
from policy.nets import MxEntry
from policy.shaping import Asked, Host

__all__ = [
    "BadName",
    "Endpoint",
    "MxHost",
    "NoRoute",
    "Site",
    "Sts",
    "address_site",
    "asked_for",
    "host_name",
    "is_localhost",
    "make_site",
    "mx_list_site",
    "parse_endpoint",
    "site_name",
    "with_sts",
]

_HOST_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")


class BadName(ValueError):
    """Not a usable host name or address. The text says why and is safe to show."""


class Endpoint(msgspec.Struct, frozen=True):
    """A host with an optional port, as somebody wrote it. `literal`: `host` is an address."""

    host: str
    port: int | None = None
    literal: bool = False


class MxHost(msgspec.Struct, frozen=True, array_like=True):
    """One host of a site.

    `host` is a lower-case A-label name, or the canonical text of an address when `literal`.
    `port` None: the path decides. `name` is the TLS reference name ("" = `host`).
    """

    preference: int
    host: str
    port: int | None = None
    literal: bool = False
    name: str = ""

    @property
    def reference_name(self) -> str:
        """What the peer's certificate must name: a DNS name, or an address for literals."""
        return self.name or self.host


class Sts(msgspec.Struct, frozen=True):
    """What a domain's MTA-STS policy comes to for a site (RFC 8461; see `mta_sts`). `unnamed`: hosts that it
    does not name; under ``enforce`` they are gone or, where the path has DANE, need a TLSA record that
    matches. `domain`: whose policy leaves no host at all."""

    mode: Literal["enforce", "testing"]
    unnamed: tuple[str, ...] = ()
    domain: str = ""


class Site(msgspec.Struct, frozen=True):
    """Where a destination's mail goes. `route`: an operator named it, so private addresses are allowed.
    `hosts` is empty only where `sts` leaves none.

    `secure`: that these are its hosts was validated by DNSSEC, or an operator takes it for so. It is no part
    of the key, as it changes nothing for paths without DANE.
    """

    name: str
    hosts: tuple[MxHost, ...]
    key: str
    kind: Literal["mx", "literal", "mx_list"] = "mx"
    route: bool = False
    secure: bool = False
    sts: Sts | None = None


class NoRoute(msgspec.Struct, frozen=True):
    """Why there is nowhere to connect to: a reply of our own making, as a value.

    `permanent` False means the mail waits and the question is asked again.
    """

    code: int
    enhanced: str
    text: str
    permanent: bool


def host_name(text: str) -> str:
    """The lower-case A-label form of a DNS name, without the final dot (IDNA 2008 with UTS 46 mapping).

    Underscores are accepted since they exist in practice. A last label of digits only is not: ``127.0.0.1``
    and ``127.1`` are addresses that hide as names.

    Raises: BadName.
    """
    name = text.removesuffix(".")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")
        except (idna.IDNAError, UnicodeError) as error:
            raise BadName("not a valid internationalized name") from error
    name = name.lower()
    if not name or len(name) > 253:
        raise BadName("empty name" if not name else "name longer than 253 octets")
    labels = name.split(".")
    for label in labels:
        if not label or len(label) > 63:
            raise BadName("empty label" if not label else "label longer than 63 octets")
        if not _HOST_CHARACTERS.issuperset(label):
            raise BadName("characters that no host name has")
    if labels[-1].isdigit():
        raise BadName("an address, not a name")
    return name


def is_localhost(name: str) -> bool:
    """``localhost`` and everything below it (RFC 6761 section 6.3); never asked of the DNS."""
    return name == "localhost" or name.endswith(".localhost")


def parse_endpoint(text: str) -> Endpoint:
    """Read ``host``, ``10.0.0.1``, ``[10.0.0.1]:25``, ``[10.0.0.1:25]``, ``[IPv6:::1]`` or ``::1``.

    Raises: BadName, also for a port both inside and outside the brackets.
    """
    if text.startswith("["):
        inside, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise BadName("missing ']'")
        port = _port(rest[1:]) if rest.startswith(":") else None
        if rest and port is None:
            raise BadName("something other than a port after ']'")
        address = _address(inside)
        if address is None and inside.count(":") == 1:
            inner, _, digits = inside.partition(":")
            address = _address(inner)
            if address is not None and port is not None:
                raise BadName("a port both inside and outside the brackets")
            port = _port(digits)
        if address is None:
            raise BadName("not an IPv4 or IPv6 address in brackets")
        return Endpoint(str(address), port, True)
    address = _address(text)
    if address is not None:
        return Endpoint(str(address), None, True)
    name, colon, digits = text.rpartition(":")
    if not colon:
        return Endpoint(host_name(text))
    port = _port(digits)
    address = _address(name)
    if isinstance(address, IPv4Address):
        return Endpoint(str(address), port, True)
    return Endpoint(host_name(name), port)


def _port(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 1 <= int(digits) <= 65535):
        raise BadName("a port is a number from 1 to 65535")
    return int(digits)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    if text[:5].lower() == "ipv6:":
        text = text[5:]
        if ":" not in text:
            return None
    if "%" in text:
        return None  # zone ids are local to a machine and never part of mail
    try:
        return ip_address(text)
    except ValueError:
        return None


def _with_port(host: str, port: int | None) -> str:
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def site_name(hosts: Iterable[str]) -> str:
    """The factored text of a host list; each host may carry ``:port``. Order is significant.

    ``["mta5.am0.yahoodns.net", "mta6.am0.yahoodns.net"]`` gives ``(mta5|mta6).am0.yahoodns.net``.
    """
    rows: list[list[str]] = []
    for text in hosts:
        host, colon, port = text.lower().partition(":")
        labels = host.removesuffix(".").split(".")
        if colon:
            labels[-1] += colon + port
        labels.reverse()
        rows.append(labels)
    depth = max((len(row) for row in rows), default=0)
    parts: list[str] = []
    for i in range(depth):
        seen = dict.fromkeys(row[i] for row in rows if i < len(row))
        text = next(iter(seen)) if len(seen) == 1 else f"({'|'.join(seen)})"
        if any(i >= len(row) for row in rows):
            text += "?"
        parts.append(text)
    parts.reverse()
    return ".".join(parts)


def _site_key(kind: str, route: bool, hosts: Sequence[MxHost]) -> str:
    # A route may use addresses that strangers may not, and an mx_list fixes order and TLS names:
    # they never share a queue with the same hosts found by public MX.
    digest = hashlib.blake2b(f"{kind}\n{int(route)}\n".encode(), digest_size=12)
    for host in hosts:
        digest.update(f"{host.preference} {host.host} {host.port or ''} {host.name}\n".encode())
    return digest.hexdigest()


def make_site(hosts: Iterable[MxHost], *, route: bool = False, secure: bool = False) -> Site:
    """The site of an MX set, in canonical order: preference ascending, then name."""
    ordered = tuple(sorted(hosts, key=lambda host: (host.preference, host.host, host.port or 0)))
    name = site_name(_with_port(host.host, host.port) for host in ordered)
    return Site(name, ordered, _site_key("mx", route, ordered), "mx", route, secure)


def with_sts(site: Site, sts: Sts, *, hosts: tuple[MxHost, ...] | None = None) -> Site:
    """The site under a policy. It is another site: who has no such policy shares nothing with it."""
    digest = hashlib.blake2b(f"{site.key} {sts.mode} {sts.domain} {sts.unnamed}".encode(), digest_size=12)
    hosts = site.hosts if hosts is None else hosts
    return msgspec.structs.replace(site, hosts=hosts, key=digest.hexdigest(), sts=sts)


def address_site(endpoint: Endpoint, *, route: bool = False) -> Site:
    """The site of an address literal: one host, named by the canonical text of its address."""
    hosts = (MxHost(0, endpoint.host, endpoint.port, True),)
    name = _with_port(endpoint.host, endpoint.port)
    return Site(name, hosts, _site_key("literal", route, hosts), "literal", route)


def mx_list_site(entries: Sequence[MxEntry], *, secure: bool = False) -> Site:
    """The site of a smart-host list (`mx_list` of a queue's protocol), named ``mx_list:LABEL1,LABEL2``.
    `secure`: its `treat_mx_list_as_secure`.

    Raises: ConfigError naming the entry.
    """
    hosts: list[MxHost] = []
    for position, entry in enumerate(entries):
        try:
            if entry.address is None:
                hosts.append(MxHost(position, host_name(entry.name), entry.port))
            else:
                name = "" if entry.name == entry.address else host_name(entry.name)
                hosts.append(MxHost(position, entry.address, entry.port, True, name))
        except BadName as error:
            raise ConfigError(f"mx_list entry {position + 1}, {entry.label!r}: {error}") from error
    if not hosts:
        raise ConfigError("mx_list is empty")
    name = "mx_list:" + ",".join(entry.label for entry in entries)
    return Site(name, tuple(hosts), _site_key("mx_list", True, hosts), "mx_list", True, secure)


def asked_for(site: Site) -> Asked:
    """The site as shaping files are asked for it."""
    hosts = tuple(
        Host((host.host, host.name) if host.name else (host.host,), host.port) for host in site.hosts
    )
    return Asked(site.name, hosts, site.kind == "mx_list", site.key)
