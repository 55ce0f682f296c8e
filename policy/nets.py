"""Sets of networks, socket addresses and the entries of an `mx_list`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import msgspec

from .errors import Wrong, a_type

__all__ = [
    "CidrSet",
    "MxEntry",
    "SocketAddress",
    "parse_cidr_set",
    "parse_host",
    "parse_ip",
    "parse_listen",
    "parse_mx",
]

_Ip = IPv4Address | IPv6Address
_NAT64 = IPv6Network("64:ff9b::/96")
_COMPATIBLE = IPv6Network("::/96")
_LABEL = re.compile(r"(?!-)[^\x00-\x2c\x2e\x2f\x3a-\x40\x5b-\x5e\x60\x7b-\x9f\s]{1,63}(?<!-)")
"""One label of a host name: letters, digits, hyphen inside, underscore; and U-labels."""


def parse_ip(value: Any) -> str:
    """The canonical text of an IP address without brackets or zone. Raises: ValueError."""
    if isinstance(value, (IPv4Address, IPv6Address)):
        value = str(value)
    try:
        if isinstance(value, str) and "%" not in value:
            return str(ip_address(value))
    except ValueError:
        pass
    raise Wrong("is no IP address")


def parse_host(value: Any) -> str:
    """A host name in lower case without its final dot. Raises: ValueError, also for an IP address."""
    if isinstance(value, str):
        name = value.removesuffix(".").lower()
        labels = name.split(".")
        # An all-digit last label is a mistyped IP address, never a top-level domain.
        if len(name) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit():
            return name
    raise Wrong("is no host name")


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536:
        return int(text)
    raise Wrong(f'"{text}" is no port (1 to 65535)')


class CidrSet(msgspec.Struct, frozen=True):
    """Networks. ``address in networks`` asks for an IP address as text or object."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def __contains__(self, address: str | _Ip) -> bool:
        """Whether a network holds the address. An IPv4-mapped IPv6 address counts as its IPv4 address,
        because that is the same host seen through a dual-stack socket."""
        ip = ip_address(address)
        mapped = ip.ipv4_mapped if isinstance(ip, IPv6Address) else None
        return self._holds(ip) or (mapped is not None and self._holds(mapped))

    def catches(self, address: str | _Ip) -> bool:
        """As ``in``, but also for every IPv6 form that leads to an IPv4 address: compatible, 6to4, NAT64.

        For lists of forbidden addresses only. In a list that grants rights these forms would let a
        stranger choose whom he is taken for.
        """
        ip = ip_address(address)
        if ip in self:
            return True
        if isinstance(ip, IPv4Address):
            return False
        if ip in _NAT64 or ip in _COMPATIBLE:
            return self._holds(IPv4Address(int(ip) & 0xFFFFFFFF))
        return ip.sixtofour is not None and self._holds(ip.sixtofour)

    def _holds(self, ip: _Ip) -> bool:
        return any(ip in network for network in self.networks if network.version == ip.version)

    def __bool__(self) -> bool:
        return bool(self.networks)

    def __str__(self) -> str:
        return ", ".join(str(net).removesuffix(f"/{net.max_prefixlen}") for net in self.networks)


def parse_cidr_set(value: Any) -> CidrSet:
    """Networks from a list such as ``["127.0.0.1", "10.0.0.0/8", "::1"]``; host bits must be zero.

    Raises: ValueError.
    """
    if isinstance(value, CidrSet):
        return value
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise Wrong("is no list of networks")
    networks = []
    for item in value:
        try:
            networks.append(item if isinstance(item, (IPv4Network, IPv6Network)) else ip_network(_text(item)))
        except ValueError:
            try:
                hint = f'; did you mean "{ip_network(_text(item), strict=False)}"?'
            except ValueError:
                hint = ""
            raise Wrong(f"{item!r} is no IP address or network{hint}") from None
    return CidrSet(tuple(networks))


def _text(item: Any) -> str:
    """ip_network() would read an integer as an address."""
    return str(item) if isinstance(item, (str, IPv4Address, IPv6Address)) else ""


class SocketAddress(msgspec.Struct, frozen=True):
    """An IP address and a port; ``str`` gives ``127.0.0.1:25`` or ``[::1]:25``."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_listen(value: Any) -> SocketAddress:
    """Where to listen: ``"ip:port"`` or ``"[ipv6]:port"``; port 0 lets the kernel choose.

    Raises: ValueError.
    """
    if isinstance(value, SocketAddress):
        return value
    if not isinstance(value, str):
        raise Wrong(f"is no address but {a_type(value)}")
    host, colon, port = value.rpartition(":")
    if not colon:
        raise Wrong("has no port")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise Wrong("an IPv6 address with a port is written in brackets")
    number = 0 if port == "0" else _port(port)
    try:
        return SocketAddress(parse_ip(host), number)
    except Wrong:
        raise Wrong(f'"{host}" is no IP address') from None


class MxEntry(msgspec.Struct, frozen=True):
    """One smart host. `name`: what its certificate must name. `address`: its IP address, or None when
    the name has to be looked up. `port`: None when the path's `smtp_port` counts. `label`: as written,
    for site names and records."""

    name: str
    address: str | None = None
    port: int | None = None
    label: str = ""


def parse_mx(value: Any) -> MxEntry:
    """One `mx_list` entry.

    ``"host"``, ``"host:port"``, ``"10.0.0.1"``, ``"10.0.0.1:2525"``, ``"[10.0.0.1]:2525"``,
    ``"[IPv6:::1]"``, ``"[::1]:25"``, ``"::1"``, or ``{"name": "mx.example", "addr": "10.0.0.1:2025"}``.
    Raises: ValueError.
    """
    if isinstance(value, MxEntry):
        return value
    if isinstance(value, dict):
        if value.keys() != {"name", "addr"}:
            raise Wrong('an entry that is a mapping has the keys "name" and "addr" and no other')
        entry = parse_mx(value["addr"])
        if entry.address is None:
            raise Wrong(f"addr={value['addr']!r} is no IP address, with or without a port")
        try:
            name = parse_host(value["name"])
        except Wrong:
            raise Wrong(f"name={value['name']!r} is no host name") from None
        return MxEntry(name, entry.address, entry.port, entry.label)
    if not isinstance(value, str):
        raise Wrong(f"{value!r} is no smart host")
    if value.startswith(("/", "unix:")):
        raise Wrong(f'"{value}": delivery to a Unix socket is not supported yet')
    host, port = _split_port(value)
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
        if host[:5].lower() == "ipv6:":
            host = host[5:]
    try:
        address = parse_ip(host)
        return MxEntry(address, address, port, value)
    except Wrong:
        if bracketed:
            raise Wrong(f'"{value}": what stands in brackets is no IP address') from None
    try:
        return MxEntry(parse_host(host), None, port, value)
    except Wrong:
        raise Wrong(f'"{value}" is no host name or IP address') from None


def _split_port(text: str) -> tuple[str, int | None]:
    """The host and the port behind the last colon, if there is one."""
    if text.startswith("["):
        host, closing, rest = text.partition("]")
        if closing and rest.startswith(":"):
            return host + closing, _port(rest[1:])
        return text, None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return host, _port(port)
    return text, None
