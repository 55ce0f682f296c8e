"""Which TLSA records count for a host: the way through DNSSEC that RFC 7672 section 2 lays down.

Each step must have been validated: which hosts a domain has, where the host is, and the records at
``_PORT._tcp.HOST`` for the port that is connected to. Where one of them is not signed there is no DANE for
that host, and that is no failure. Where one cannot be had now (SERVFAIL, which is also what is said of a
forged answer, or a time-out) the host is not talked to at all, or whoever can stop an answer could switch
DANE off (2.1.2).

| the way to the host | TLSA records                       | `Dane.result`                         |
|---------------------|------------------------------------|---------------------------------------|
| not validated       | not asked for                      | ``insecure_chain``: as the path says  |
| validated           | none, or not validated             | ``not_applicable``: as the path says  |
| validated           | there, none usable                 | ``unusable``: TLS or nothing          |
| validated           | there                              | ``ok``: the peer must match one       |
| validated           | no answer                          | ResolveError                          |
"""

from __future__ import annotations

from typing import Literal

import msgspec

from engine.errors import DaneImpossible, ResolveError

from .dane import DANE_TA, DaneCheck, usable
from .dns import Answer
from .resolve import Candidate, LookupStrategy, Resolver, families
from .site import Site, is_localhost, parse_endpoint
from .tlsneed import TlsNeed

__all__ = ["Dane", "dane_for"]

_LONGEST = 253
"""Characters of a name; with backslashes in it, it is shorter on the wire."""


class Dane(msgspec.Struct, frozen=True):
    """What DANE says of one host and port. `why`: in words. `base`: the TLSA base domain, where there are
    records. `only_for`: a session under this may carry mail of that domain only, as its certificate may
    be that domain's and not the host's; "": any that leads to this site."""

    result: Literal["ok", "unusable", "not_applicable", "insecure_chain"]
    why: str
    check: DaneCheck | None = None
    base: str = ""
    only_for: str = ""

    def tightened(self, need: TlsNeed) -> TlsNeed:
        """`need`, and what the domain's owner demands."""
        if self.check is not None:
            return need.tightened(f"DANE for {self.base}", check=self.check, sni=self.base)
        if self.result == "unusable":
            return need.tightened(f"DANE for {self.base}", required=True)
        return need


async def dane_for(
    resolver: Resolver,
    site: Site,
    candidate: Candidate,
    domain: str,
    *,
    strategy: LookupStrategy = "Ipv4AndIpv6",
    own_name: bool = False,
) -> Dane:
    """What DANE says of this candidate of this site, for mail whose next-hop domain is `domain`. `own_name`:
    an issuer's certificate has to have the name at which the records stand, as it must where the host is told
    a password: the domain's proves nothing about that.

    Raises: ResolveError when it cannot be known now; DaneImpossible when the name server is none whose word
    on DNSSEC counts.
    """
    host = candidate.host
    if host == candidate.address:
        return Dane("insecure_chain", f"{host} is an address and no name")
    if is_localhost(host):
        return Dane("insecure_chain", f"{host} is this machine")
    if site.kind == "mx_list" and not site.secure:
        return Dane("insecure_chain", "treat_mx_list_as_secure is not set for this mx_list")
    if doubt := await resolver.distrust():
        raise DaneImpossible(f"enable_dane needs a validating name server on loopback, and {doubt}")
    try:
        if not site.secure:
            if site.kind == "mx" and (await resolver.lookup(parse_endpoint(domain).host, "MX")).secure:
                # Since the route was worked out: it is worked out again before long.
                raise DaneImpossible(f"the MX records of {domain} can be validated only since a moment ago")
            return Dane("insecure_chain", "which hosts take this domain's mail is not signed")
        return await _of_host(resolver, site, candidate, "" if own_name else domain, strategy)
    except ResolveError as error:
        raise ResolveError(f"DANE: {error}", stage="resolve") from None


async def _of_host(
    resolver: Resolver, site: Site, candidate: Candidate, domain: str, strategy: LookupStrategy
) -> Dane:
    host = candidate.host
    bases = await _base_domains(resolver, site, host, strategy)
    if not bases:
        return Dane("insecure_chain", f"the addresses of {host} are not signed")
    why = ""
    for base in bases:
        owner = f"_{candidate.port}._tcp.{base}"
        if len(owner) > _LONGEST and "\\" not in owner:
            why = why or f"{base} is too long to have records"
            continue
        answer = await resolver.lookup(owner, "TLSA")
        if not answer.secure:
            why = why or f"there is no signed answer about {owner} TLSA"
            continue
        if answer.status != "found":
            why = why or f"there is no {owner} TLSA"
            continue
        records = usable(text for _, text in answer.records)
        if not records:
            return Dane("unusable", f"no record of {owner} TLSA is usable", base=base)
        names: tuple[str, ...] = (
            base,
        )  # no name is looked at, and equal checks resume each other's sessions
        only_for = ""
        if any(record.usage == DANE_TA for record in records):
            next_hops = await _next_hops(resolver, site, domain)
            # Not the host's, where that is an alias: it says nothing of who speaks at `base`, and credentials
            # may be bound to that.
            names = tuple(dict.fromkeys((base, *next_hops)))
            only_for = domain if set(next_hops) - {base} else ""
        count = f"{len(records)} usable record{'s' if len(records) > 1 else ''}"
        return Dane("ok", f"{count} of {owner} TLSA", DaneCheck(records, names), base, only_for)
    return Dane("not_applicable", why)


async def _next_hops(resolver: Resolver, site: Site, domain: str) -> tuple[str, ...]:
    """The names that a host of this site may have besides its own: the domain's, and what that is an alias
    of (RFC 7672 3.2.2); none for hosts that an operator listed."""
    if site.kind != "mx" or not domain:
        return ()
    name = parse_endpoint(domain).host
    alias = (await resolver.lookup(name, "MX")).alias
    return (name, alias) if alias else (name,)


async def _base_domains(
    resolver: Resolver, site: Site, host: str, strategy: LookupStrategy
) -> tuple[str, ...]:
    """Where TLSA records of a host may stand, in the order to look (RFC 7672 2.2.2); () if nowhere."""
    if await resolver.listed(host, site.route):
        return ()  # what the hosts file says has no signature
    failure: ResolveError | None = None
    for kinds in families(strategy):
        found: list[Answer] = []
        for kind in kinds:
            try:
                answer = await resolver.lookup(host, kind)
            except ResolveError as error:
                failure = failure or error
                continue
            if answer.status == "found":
                found.append(answer)
        for answer in found:
            if answer.secure:
                return (answer.alias, host) if answer.alias else (host,)
        if failure is not None:
            raise failure  # the family without an answer may be the signed one
        if any(answer.alias for answer in found):
            # The alias leads out of what is signed, and may be signed itself.
            alias = await resolver.lookup(host, "CNAME")
            return (host,) if alias.secure and alias.status == "found" else ()
        if found:
            return ()
    raise ResolveError(f"{host} has no address now", stage="resolve")
