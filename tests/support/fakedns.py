"""Static DNS zones for tests: as an object behind the `Dns` seam, and as a real server on loopback.

A zone table maps a name to its records, or to what shall go wrong::

    {
        "example.com": {"MX": ["10 mx1.example.com.", "20 mx2.example.com."]},
        "mx1.example.com": {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]},
        "nullmx.example": {"MX": ["0 ."]},
        "alias.example": {"CNAME": ["example.com."]},
        "broken.example": {"MX": SERVFAIL},          # also REFUSED, TIMEOUT
        "empty.example": {},                         # exists, has nothing
    }

Names that are not listed do not exist (NXDOMAIN). The TTL is 300 s unless a zone gives ``"ttl"``.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import trio

from engine.egress.dns import Answer, Kind
from engine.errors import ResolveError

__all__ = ["REFUSED", "SERVFAIL", "TIMEOUT", "StaticDns", "Zones", "serve_dns"]

SERVFAIL = "SERVFAIL"
REFUSED = "REFUSED"
TIMEOUT = "TIMEOUT"

Zones = Mapping[str, Mapping[str, Any]]


def _lookup(zones: Zones, name: str, kind: str) -> tuple[str, list[tuple[str, str, Sequence[str]]], int]:
    """(status, [(owner, type, record texts)], ttl): aliases first, then the records."""
    chain: list[tuple[str, str, Sequence[str]]] = []
    while True:
        zone = zones.get(name)
        if zone is None:
            return "NXDOMAIN", chain, 300
        ttl = zone.get("ttl", 300)
        records = zone.get(kind, ())
        if records in (SERVFAIL, REFUSED, TIMEOUT):
            return records, chain, ttl
        if records:
            return "NOERROR", [*chain, (name, kind, records)], ttl
        if "CNAME" not in zone or len(chain) > 20:
            return "NOERROR", chain, ttl
        chain.append((name, "CNAME", zone["CNAME"]))
        name = zone["CNAME"][0].lower().removesuffix(".")


class StaticDns:
    """`Dns` from a zone table. Counts what was asked; `seconds` is how long each answer takes."""

    def __init__(self, zones: Zones, *, seconds: float = 0.0) -> None:
        self.zones = zones
        self.seconds = seconds
        self.asked: Counter[tuple[str, str]] = Counter()
        self.at_once = 0
        self.most_at_once = 0

    async def query(self, name: str, kind: Kind) -> Answer:
        self.asked[name, kind] += 1
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        try:
            await trio.sleep(self.seconds)
            status, found, ttl = _lookup(self.zones, name, kind)
            if status == TIMEOUT:
                await trio.sleep_forever()
        finally:
            self.at_once -= 1
        if status in (SERVFAIL, REFUSED):
            raise ResolveError(f"DNS lookup of {name} {kind} failed: {status}", stage="resolve")
        if status == "NXDOMAIN":
            return Answer("nxdomain", ttl=ttl)
        if not found or found[-1][1] != kind:
            return Answer("empty", ttl=ttl)
        records = found[-1][2]
        if kind != "MX":
            return Answer("found", tuple((0, text) for text in records), ttl)
        pairs = (text.split() for text in records)
        return Answer("found", tuple((int(pref), host.removesuffix(".")) for pref, host in pairs), ttl)


@asynccontextmanager
async def serve_dns(zones: Zones, *, port: int = 0) -> AsyncIterator[str]:
    """A DNS server on 127.0.0.1 by UDP and TCP; gives its ``address:port``. Long answers come by TCP only."""
    udp, listeners = await _bind_both(port)
    port = udp.getsockname()[1]

    async def datagrams() -> None:
        while True:
            wire, peer = await udp.recvfrom(4096)
            answer = _respond(zones, wire, 512)
            if answer is not None:
                await udp.sendto(answer, peer)

    async def connection(stream: trio.SocketStream) -> None:
        with stream.socket:
            head = b""
            while len(head) < 2 or len(head) < 2 + struct.unpack("!H", head[:2])[0]:
                more = await stream.receive_some()
                if not more:
                    return
                head += more
            answer = _respond(zones, head[2:], 65535)
            if answer is not None:
                await stream.send_all(struct.pack("!H", len(answer)) + answer)

    with udp:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(datagrams)
            nursery.start_soon(trio.serve_listeners, connection, listeners)
            try:
                yield f"127.0.0.1:{port}"
            finally:
                nursery.cancel_scope.cancel()


async def _bind_both(port: int) -> tuple[trio.socket.SocketType, list[trio.SocketListener]]:
    """The same port for UDP and TCP; with port 0 another one is tried when TCP's is taken."""
    for left in range(19, -1, -1):
        udp = trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM)
        try:
            await udp.bind(("127.0.0.1", port))
            return udp, await trio.open_tcp_listeners(udp.getsockname()[1], host="127.0.0.1")
        except OSError:
            udp.close()
            if port or not left:
                raise
    raise AssertionError("unreachable")


def _respond(zones: Zones, wire: bytes, limit: int) -> bytes | None:
    """The answer on the wire; None for a forced time-out. `limit` octets, else truncated."""
    query = dns.message.from_wire(wire)
    question = query.question[0]
    name = question.name.to_text(omit_final_dot=True).lower()
    kind = dns.rdatatype.to_text(question.rdtype)
    status, found, ttl = _lookup(zones, name, kind)
    if status == TIMEOUT:
        return None
    response = dns.message.make_response(query)
    response.flags |= dns.flags.RA
    response.set_rcode(dns.rcode.from_text(status))
    for owner, rdtype, texts in found:
        response.answer.append(dns.rrset.from_text(dns.name.from_text(owner), ttl, "IN", rdtype, *texts))
    if not found or found[-1][1] != kind:
        soa = f"ns.{name}. root.{name}. 1 3600 600 86400 {ttl}"
        response.authority.append(dns.rrset.from_text(dns.name.from_text(name), ttl, "IN", "SOA", soa))
    try:
        return response.to_wire(max_size=max(limit, query.payload if limit == 512 else limit))
    except dns.exception.TooBig:
        truncated = dns.message.make_response(query)
        truncated.flags |= dns.flags.RA | dns.flags.TC
        return truncated.to_wire()
