"""Which addresses we may connect to. Pure.

A domain owner chooses where our machine connects. Without these rules that is a way to reach metadata
services, local administration ports, or ourselves (reliability N5 to N8).

How far an address is trusted depends on who named it:

``public``   a recipient domain: neither local, private, link-local, multicast nor reserved addresses
``route``    a host *name* an operator wrote: private and loopback addresses are fine, the rest is not
``literal``  an *address* an operator wrote: anything goes
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Literal, TypeAlias

import msgspec

from policy.nets import CidrSet, parse_cidr_set

__all__ = ["DEFAULT_PROHIBITED", "NO_NETWORKS", "OwnHosts", "Trust", "forbidden", "is_default_prohibited"]

Trust = Literal["public", "route", "literal"]

DEFAULT_PROHIBITED = parse_cidr_set(["127.0.0.0/8", "0.0.0.0", "::1", "::"])
"""The default of the path option `prohibited_hosts`. It does not bind routes; any other list does."""
NO_NETWORKS = CidrSet()

_Address: TypeAlias = IPv4Address | IPv6Address
_Network: TypeAlias = IPv4Network | IPv6Network

# (network, what to call it, the most trusted class for which it is still forbidden)
_FORBIDDEN: tuple[tuple[_Network, str, Trust], ...] = (
    (IPv4Network("0.0.0.0/8"), "an unspecified address", "route"),
    (IPv4Network("127.0.0.0/8"), "a loopback address", "public"),
    (IPv4Network("169.254.0.0/16"), "a link-local address", "route"),
    (IPv4Network("224.0.0.0/3"), "a multicast or reserved address", "route"),
    (IPv4Network("10.0.0.0/8"), "a private address", "public"),
    (IPv4Network("172.16.0.0/12"), "a private address", "public"),
    (IPv4Network("192.168.0.0/16"), "a private address", "public"),
    (IPv4Network("100.64.0.0/10"), "a shared (carrier-grade NAT) address", "public"),
    (IPv6Network("::/128"), "an unspecified address", "route"),
    (IPv6Network("::1/128"), "a loopback address", "public"),
    (IPv6Network("fe80::/10"), "a link-local address", "route"),
    (IPv6Network("fec0::/10"), "a private (site-local) address", "public"),
    (IPv6Network("ff00::/8"), "a multicast address", "route"),
    (IPv6Network("fc00::/7"), "a private address", "public"),
)

# IPv6 forms that carry an IPv4 address, and how far right that address is shifted.
_EMBEDDED: tuple[tuple[IPv6Network, int], ...] = (
    (IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped, RFC 4291 section 2.5.5.2
    (IPv6Network("::/96"), 0),  # IPv4-compatible, RFC 4291 section 2.5.5.1
    (IPv6Network("2002::/16"), 80),  # 6to4, RFC 3056
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64, RFC 6052
)


def _forms(address: str) -> list[_Address]:
    """The address, and the IPv4 address inside it if it is of a form that carries one."""
    first = ip_address(address)
    forms: list[_Address] = [first]
    if isinstance(first, IPv6Address) and int(first) > 1:
        for network, shift in _EMBEDDED:
            if first in network:
                forms.append(IPv4Address((int(first) >> shift) & 0xFFFFFFFF))
    return forms


@lru_cache(maxsize=65536)
def forbidden(address: str, trust: Trust) -> str | None:
    """Why this address must not be connected to, or None when it may (reliability N5, N6)."""
    if trust == "literal":
        return None
    for form in _forms(address):
        for network, what, limit in _FORBIDDEN:
            if form.version != network.version or form not in network:
                continue
            if trust == "public" or limit == "route":
                return what
    return None


def is_default_prohibited(networks: CidrSet) -> bool:
    """Whether nobody chose this list."""
    return set(networks.networks) == set(DEFAULT_PROHIBITED.networks)


class OwnHosts(msgspec.Struct, frozen=True):
    """Names and listening addresses by which this engine would meet itself (RFC 5321 section 5.1).

    `listeners` are (address, port). A listener on ``0.0.0.0`` or ``::`` stands for every address of this
    machine; `is_local` then tells whether an address is one of them.
    """

    names: frozenset[str] = frozenset()
    listeners: frozenset[tuple[str, int]] = frozenset()
    is_local: Callable[[str], bool] | None = None

    def owns(self, address: str, port: int) -> bool:
        if not self.listeners:
            return False
        for form in _forms(address):
            text = str(form)
            if (text, port) in self.listeners:
                return True
            anyhow = ("0.0.0.0", port) if form.version == 4 else ("::", port)
            dual = ("::", port)
            if (anyhow in self.listeners or dual in self.listeners) and self.is_local and self.is_local(text):
                return True
        return False
