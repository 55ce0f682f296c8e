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
        "signed.example": {"A": ["192.0.2.2"], "secure": True},
        "_25._tcp.signed.example": {"TLSA": ["3 1 1 0123..."], "secure": True},
    }

With ``"secure": True`` a name and all below it are signed, unless one of them says otherwise; an answer is
secure if every name on the way to it is. Names that are not listed do not exist (NXDOMAIN). The TTL is 300 s
unless a zone gives ``"ttl"``. The table may be changed at any time; answers that were given live for their
TTL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import trio

from engine.egress.dns import Answer, Kind
from engine.errors import ResolveError

__all__ = ["REFUSED", "SERVFAIL", "TIMEOUT", "StaticDns", "Zones", "is_secure", "lookup"]

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


def is_secure(zones: Zones, name: str, kind: str) -> bool:
    """Whether the answer to this question would be validated."""
    seen = 0
    while True:
        above = name
        while "secure" not in zones.get(above, ()) and above:
            above = above.partition(".")[2]
        if not zones.get(above, {}).get("secure", False):
            return False
        zone = zones.get(name, {})
        if kind in zone or "CNAME" not in zone or seen > 20:
            return True
        seen += 1
        name = zone["CNAME"][0].lower().removesuffix(".")


class StaticDns:
    """`Dns` from a zone table. Counts what was asked; `seconds` is how long each answer takes. `doubt`: why
    nothing of it is to be believed secure."""

    def __init__(self, zones: Zones, *, seconds: float = 0.0, doubt: str = "") -> None:
        self.zones = zones
        self.doubt = doubt
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
        secure = not self.doubt and is_secure(self.zones, name, kind)
        if status == "NXDOMAIN":
            return Answer("nxdomain", ttl=ttl, secure=secure)
        aliases = [texts[0].lower().removesuffix(".") for _, what, texts in found if what == "CNAME" != kind]
        alias = aliases[-1] if aliases else ""
        if not found or found[-1][1] != kind:
            return Answer("empty", ttl=ttl, secure=secure, alias=alias)
        texts = found[-1][2]
        if kind == "MX":
            pairs = (text.split() for text in texts)
            records = tuple((int(preference), host.removesuffix(".")) for preference, host in pairs)
        elif kind == "TXT":
            records = tuple((0, text.replace('"', "")) for text in texts)
        else:
            records = tuple((0, text.removesuffix(".")) for text in texts)
        return Answer("found", records, ttl, secure, alias)

    async def distrust(self) -> str:
        """See `Dns`."""
        return self.doubt
