"""Names of blocks, hosts and providers, in one spelling each, so that they can be compared."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Literal

import msgspec

from ..errors import Wrong
from ..nets import MxEntry, parse_ip, parse_mx

__all__ = ["Host", "Match", "host_of", "is_address", "name_key", "name_keys"]

MatchKind = Literal["MXSuffix", "HostName", "DomainSuffix"]


class Host(msgspec.Struct, frozen=True):
    """One host that mail may be handed to. `names`: everything it is called, addresses included."""

    names: tuple[str, ...]
    port: int | None = None

    @property
    def key(self) -> str:
        """The most specific of `block_names`."""
        return self.block_names()[-1]

    def block_names(self) -> list[str]:
        """The names of blocks that mean this host, the more specific ones (with the port) last."""
        plain = [plain_name(name) for name in self.names]
        return plain if self.port is None else [*plain, *(_with_port(name, self.port) for name in plain)]


@lru_cache(8192)
def plain_name(text: str) -> str:
    """A host name or address: lower case, A-labels, no final dot; an address in its canonical text, and an
    IPv4 address inside an IPv6 one (``::ffff:192.0.2.1``), which leads to the same host, as itself."""
    try:
        address = ip_address(parse_ip(text))
    except Wrong:
        pass
    else:
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return str(mapped or address)
    name = text.removesuffix(".").lower()
    if not name.isascii():
        try:
            name = name.encode("idna").decode("ascii")
        except UnicodeError:
            return name
    return name


def is_address(key: str) -> bool:
    """Whether a key is an IP address, with or without a port."""
    host = key[1:].partition("]")[0] if key.startswith("[") else key
    if host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        parse_ip(host)
    except Wrong:
        return False
    return True


def _with_port(name: str, port: int) -> str:
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def host_of(entry: MxEntry) -> Host:
    """The host of an `mx_list` entry."""
    names = (entry.name,) if entry.address in (None, entry.name) else (entry.address or "", entry.name)
    return Host(names, entry.port)


_SPELT = re.compile(r"(?:[a-z0-9_-]+\.)*[a-z][a-z0-9_-]*")
"""A name that is no address and has no other spelling."""


def name_key(text: str) -> str:
    """The one spelling of a block's name: ``[192.0.2.1]``, ``[IPv6:::1]`` and ``Example.COM.`` become
    ``192.0.2.1``, ``::1`` and ``example.com``; a port stays."""
    return text if _SPELT.fullmatch(text) else _spelt(text)


@lru_cache(8192)
def _spelt(text: str) -> str:
    try:
        entry = parse_mx(text)
    except Wrong:
        return text.lower()
    return host_of(entry).key


def name_keys(text: str) -> list[str]:
    """The names of blocks that mean the destination `text`: without its port, if it has one, and with it."""
    try:
        entry = parse_mx(text)
    except Wrong:
        return [text.lower()]
    return host_of(entry).block_names()


class Match(msgspec.Struct, frozen=True):
    """One condition of a provider. Suffixes end at a dot between labels: ``outlook.com`` means that name and
    those below it, ``.outlook.com`` only those below it."""

    kind: MatchKind
    text: str

    def fits(self, name: str) -> bool:
        """Whether a name, as `plain_name` gives it, meets the condition."""
        if self.kind == "HostName":
            return name == plain_name(self.text)
        suffix = plain_name(self.text.removeprefix("."))
        if name == suffix:
            return not self.text.startswith(".")
        return name.endswith("." + suffix)
