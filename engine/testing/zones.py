"""DNS as a table: behind the engine's `Dns` seam, without a server.

A zone table maps a name to its records, or to what shall go wrong::

    {
        "example.com": {"MX": ["10 mx1.example.com.", "20 mx2.example.com."]},
        "mx1.example.com": {"A": ["192.0.2.1"], "AAAA": ["2001:db8::1"]},
        "nullmx.example": {"MX": ["0 ."]},
        "alias.example": {"CNAME": ["example.com."]},
        "_mta-sts.example.com": {"TXT": ['"v=STSv1; id=1;"']},
        "broken.example": {"MX": SERVFAIL},          # also REFUSED, TIMEOUT
        "empty.example": {},                         # exists, has nothing
    }

Names that are not listed do not exist (NXDOMAIN). The TTL is 300 s unless a zone gives ``"ttl"``. The table
may be changed at any time; answers that were given live for their TTL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import trio

from engine.egress.dns import Answer, Kind
from engine.errors import ResolveError

__all__ = ["REFUSED", "SERVFAIL", "TIMEOUT", "StaticDns", "Zones", "lookup"]

SERVFAIL = "SERVFAIL"
REFUSED = "REFUSED"
TIMEOUT = "TIMEOUT"

Zones: TypeAlias = Mapping[str, Mapping[str, Any]]


def lookup(zones: Zones, name: str, kind: str) -> tuple[str, list[tuple[str, str, Sequence[str]]], int]:
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
            status, found, ttl = lookup(self.zones, name, kind)
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
        if kind == "TXT":
            return Answer("found", tuple((0, text.replace('"', "")) for text in records), ttl)
        if kind != "MX":
            return Answer("found", tuple((0, text) for text in records), ttl)
        pairs = (text.split() for text in records)
        return Answer("found", tuple((int(pref), host.removesuffix(".")) for pref, host in pairs), ttl)
