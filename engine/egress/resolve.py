"""From a destination to the addresses a session may try.

Two questions, asked at different times:

`Resolver.site_for`   which hosts stand behind this domain? Its answer names queues, so it is cached by TTL
                      and available without waiting (`cached_site`) to the code that runs per message.
`Resolver.plan`       which addresses does one connection attempt try, in which order? Asked per session.

What DNS says about a destination (reliability N1; RFC 5321 section 5.1, RFC 7505):

| answer                                  | result                                                  |
|-----------------------------------------|---------------------------------------------------------|
| no such name; neither MX, A nor AAAA    | 550 5.1.2, permanent                                    |
| null MX alone                           | 556 5.1.10, permanent (a null among others is ignored)  |
| MX answered empty, A or AAAA exists     | the domain itself is the host                           |
| MX targets all unusable or forbidden    | 550 5.4.4, permanent                                    |
| our own name or listener among the hosts| that preference and all worse are dropped; none left: 550 5.4.6 |
| SERVFAIL, REFUSED, time-out             | ResolveError: ask again later                           |

For a *route* (an `mx_list`, or a `routing_domain` set by policy) a permanent refusal becomes a 451: mail is
not lost over a typing error of its operator. Only the null MX, a statement and not an absence, stays final.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

import msgspec
import trio

from engine.egress import targets
from engine.egress.dns import Answer, Dns, HostsFile, Kind, Memo
from engine.egress.site import (
    BadName,
    MxHost,
    NoRoute,
    Site,
    address_site,
    host_name,
    is_localhost,
    make_site,
    parse_endpoint,
)
from engine.egress.targets import OwnHosts, Trust
from engine.errors import ResolveError
from policy.nets import CidrSet

__all__ = ["Candidate", "LookupStrategy", "Plan", "Resolver", "families"]

LookupStrategy = Literal["Ipv4Only", "Ipv6Only", "Ipv4AndIpv6", "Ipv6ThenIpv4", "Ipv4ThenIpv6"]

MX_LIMIT = 100
"""MX records considered."""
ADDRESS_LIMIT = 10
"""Addresses tried by one connection attempt."""
QUERY_LIMIT = 20
"""Queries sent for one plan."""
PLAN_SECONDS = 30.0
LOOKUP_SECONDS = 5.0
LOOKUPS_AT_ONCE = 1024
CACHE_ENTRIES = 65536
"""Answers that are remembered, and sites; one that is longer than a KiB counts as many."""

_FAMILIES: dict[LookupStrategy, tuple[tuple[Kind, ...], ...]] = {
    # Groups are asked one after the other, the kinds of a group together.
    "Ipv4Only": (("A",),),
    "Ipv6Only": (("AAAA",),),
    "Ipv4AndIpv6": (("A", "AAAA"),),
    "Ipv6ThenIpv4": (("AAAA",), ("A",)),
    "Ipv4ThenIpv6": (("A",), ("AAAA",)),
}


def families(strategy: LookupStrategy) -> tuple[tuple[Kind, ...], ...]:
    """Kinds of address records in groups: the groups are asked one after the other until one has any."""
    return _FAMILIES[strategy]


class Candidate(msgspec.Struct, frozen=True):
    """One address to try. `host` as the site has it.

    `name` is the TLS reference name; for a literal it is the address, which must not be sent as SNI.
    """

    host: str
    address: str
    port: int
    name: str


class Plan(msgspec.Struct):
    """What one connection attempt tries, in order. `refused` is set exactly when `candidates` is empty.

    `notes` say which hosts and addresses were left out and why, for diagnostics.
    """

    candidates: list[Candidate]
    refused: NoRoute | None = None
    notes: list[str] = []


class Resolver:
    """DNS for egress: sites and plans, with one cache. Safe to use from any number of tasks.

    `hosts` is asked for names in routes only. `own` may be replaced when the listeners are known.
    """

    def __init__(
        self,
        dns: Dns,
        *,
        hosts: HostsFile | None = None,
        own: OwnHosts | None = None,
        rng: random.Random | None = None,
        lookup_seconds: float = LOOKUP_SECONDS,
        lookups_at_once: int = LOOKUPS_AT_ONCE,
        cache_entries: int = CACHE_ENTRIES,
    ) -> None:
        self.own = own if own is not None else OwnHosts()
        self._dns = dns
        self._hosts = hosts
        self._rng = rng if rng is not None else random.Random()
        self._lookup_seconds = lookup_seconds
        self._slots = trio.CapacityLimiter(lookups_at_once)
        self._sites: Memo[tuple[str, bool], Site | NoRoute] = Memo(cache_entries, _site_weight)
        self._doubted = False
        self._answers: Memo[tuple[str, Kind], Answer] = Memo(cache_entries, _answer_weight)

    # Sites

    def cached_site(self, domain: str, *, route: bool = False) -> Site | None:
        """The site if it is known and live. Never waits; for the code that runs per message."""
        found = self._sites.get((domain, route))
        return found if isinstance(found, Site) else None

    async def site_for(self, domain: str, *, route: bool = False) -> Site | NoRoute:
        """The site of a destination. `route`: policy set the name (`routing_domain`), not a recipient.

        Literals, bare addresses and ``name:port`` are accepted for routes; of a recipient only the literal of
        a public address is (reliability N7).

        Raises: ResolveError when DNS cannot answer now. Checkpoint: always.
        """
        await trio.lowlevel.checkpoint()
        return await self._sites.fetch((domain, route), lambda: self._find_site(domain, route))

    async def _find_site(self, text: str, route: bool) -> tuple[Site | NoRoute, float]:
        day = 86400.0
        try:
            endpoint = parse_endpoint(text)
        except BadName as error:
            return _no_route(550, "5.1.2", f"{_shown(text)} is not a domain: {error}", route), day
        if not route and (endpoint.port is not None or (endpoint.literal and not text.startswith("["))):
            return _no_route(550, "5.1.2", f"{_shown(text)} is not a domain", route), day
        if endpoint.literal:
            why = targets.forbidden(endpoint.host, "literal" if route else "public")
            if why is not None:
                return _no_route(550, "5.4.4", f"{endpoint.host} is {why}", route), day
            return address_site(endpoint, route=route), day
        name, port = endpoint.host, endpoint.port
        if is_localhost(name):
            if not route:
                return _no_route(550, "5.1.2", f"{name} is this machine", route), day
            return make_site([MxHost(1, name, port)], route=True), day
        answer = await self.lookup(name, "MX")
        if answer.status == "found":
            return self._mx_site(name, port, answer, route), answer.ttl
        if answer.status == "nxdomain" and not await self.listed(name, route):
            return _no_route(550, "5.1.2", f"domain {name} does not exist", route), answer.ttl
        # Implicit MX, and only because MX was answered empty (reliability N2).
        if not await self.addresses_for(name, "Ipv4ThenIpv6", route=route):
            return _no_route(550, "5.1.2", f"domain {name} has no MX, A or AAAA record", route), answer.ttl
        if name in self.own.names:
            return _no_route(550, "5.4.6", f"mail for {name} loops back to this host", route), answer.ttl
        return make_site([MxHost(1, name, port)], route=route, secure=answer.secure), answer.ttl

    def _mx_site(self, domain: str, port: int | None, answer: Answer, route: bool) -> Site | NoRoute:
        records = [record for record in answer.records if record[1] not in ("", ".")]
        if not records:
            return NoRoute(556, "5.1.10", f"domain {domain} accepts no mail (null MX)", True)
        # Excess goes by name, not by chance: the list that is left identifies the site.
        records.sort()
        hosts: list[MxHost] = []
        own: int | None = None
        for preference, target in records[:MX_LIMIT]:
            try:
                name = host_name(target)
            except BadName:
                continue
            if name in self.own.names:
                own = preference if own is None else min(own, preference)
            hosts.append(MxHost(preference, name, port))
        if not hosts:
            return _no_route(550, "5.4.4", f"no MX record of {domain} names a usable host", route)
        if own is not None:
            hosts = [host for host in hosts if host.preference < own]
            if not hosts:
                return _no_route(550, "5.4.6", f"mail for {domain} loops back to this host", route)
        return make_site(hosts, route=route, secure=answer.secure)

    async def texts(self, name: str) -> Answer:
        """The TXT records of a name, as the DNS says them now. Raises: ResolveError."""
        return await self._ask(name, "TXT")

    # Addresses

    async def addresses_for(
        self, host: str, strategy: LookupStrategy = "Ipv4AndIpv6", *, route: bool = False
    ) -> list[str]:
        """The addresses of a host name, unfiltered; empty when it has none.

        Raises: ResolveError when nothing was found and at least one question had no answer.
        """
        listed = await self.listed(host, route)
        failure: ResolveError | None = None
        for kinds in _FAMILIES[strategy]:
            found: list[str] = []
            if listed:
                found = [address for address in listed if ("AAAA" if ":" in address else "A") in kinds]
            else:
                lists, failed = await self._families(host, kinds)
                found = [address for addresses in lists for address in addresses]
                failure = failed or failure
            if found:
                return found
        if failure is not None:
            raise failure
        return []

    async def listed(self, host: str, route: bool) -> tuple[str, ...]:
        """Addresses known without DNS: from the hosts file, for routes only, and those of ``localhost``."""
        listed = await self._hosts.addresses(host) if route and self._hosts is not None else ()
        return listed or (("127.0.0.1", "::1") if is_localhost(host) else ())

    async def _families(
        self, host: str, kinds: tuple[Kind, ...]
    ) -> tuple[list[tuple[str, ...]], ResolveError | None]:
        lists: list[tuple[str, ...]] = [()] * len(kinds)
        failures: list[ResolveError] = []

        async def one(position: int, kind: Kind) -> None:
            try:
                answer = await self.lookup(host, kind)
                lists[position] = tuple(address for _, address in answer.records)
            except ResolveError as error:
                failures.append(error)

        if sum(not self._answers.known((host, kind)) for kind in kinds) > 1:
            async with trio.open_nursery() as nursery:
                for i, kind in enumerate(kinds):
                    nursery.start_soon(one, i, kind)
        else:
            for i, kind in enumerate(kinds):
                await one(i, kind)
        return lists, failures[0] if failures else None

    async def lookup(self, name: str, kind: Kind) -> Answer:
        """One answer, remembered. Raises: ResolveError. Checkpoint: only when it has to wait."""

        async def ask() -> tuple[Answer, float]:
            answer = await self._ask(name, kind)
            return answer, answer.ttl

        return await self._answers.fetch((name, kind), ask)

    async def distrust(self) -> str:
        """Why nothing that DNS says can be secure; "" when nothing speaks against it."""
        doubt = await self._dns.distrust()
        if self._doubted and not doubt:
            self._sites.clear()  # what was learned before says "not secure" of everything
            self._answers.clear()
        self._doubted = bool(doubt)
        return doubt

    async def _ask(self, name: str, kind: Kind) -> Answer:
        # Waiting for a slot is outside the time-out: our own crowd must not look like a dead name server.
        async with self._slots:
            with trio.move_on_after(self._lookup_seconds):
                return await self._dns.query(name, kind)
        raise ResolveError(
            f"DNS lookup of {name} {kind} failed: no answer in {self._lookup_seconds:g} s", stage="resolve"
        )

    # Plans

    async def plan(
        self,
        site: Site,
        *,
        strategy: LookupStrategy = "Ipv4AndIpv6",
        prohibited_hosts: CidrSet = targets.DEFAULT_PROHIBITED,
        skip_hosts: CidrSet = targets.NO_NETWORKS,
        smtp_port: int = 25,
        remote_port: int | None = None,
    ) -> Plan:
        """The addresses one connection attempt tries.

        `prohibited_hosts` does not bind routes while it is the default list. `remote_port` (of the egress
        source) beats a host's own port, which beats `smtp_port`.

        Raises: ResolveError when nothing is left and at least one lookup had no answer.
        Checkpoint: always.
        """
        await trio.lowlevel.checkpoint()
        if not site.hosts and site.sts is not None:
            hosts = ", ".join(site.sts.unnamed)
            text = f"the MTA-STS policy of {site.sts.domain} names none of its hosts: {hosts}"
            return Plan([], NoRoute(451, "4.4.4", text, False))
        order = list(site.hosts)
        if site.kind == "mx":
            self._rng.shuffle(order)
            order.sort(key=lambda host: host.preference)  # stable: equals stay shuffled
        filters = _Filters(site, prohibited_hosts, skip_hosts)
        found = await self._find_addresses(order, site.route, strategy)
        may_loop = site.kind == "mx" or not site.route
        for group in _by_preference(order):
            looped = False
            usable: list[Candidate] = []
            for host in group:
                outcome = found.get(host)
                if outcome is None or isinstance(outcome, str):
                    filters.failed(host, outcome or "not asked, too many hosts")
                    continue
                if not outcome:
                    filters.note(host, "has no address")
                port = remote_port or host.port or smtp_port
                for address in outcome:
                    if may_loop and self.own.owns(address, port):
                        filters.note(host, f"{address} is this host")
                        looped = True
                    elif filters.admits(host, address):
                        usable.append(Candidate(host.host, address, port, host.reference_name))
            if looped:
                filters.looped = True
                break
            if site.kind == "mx":
                self._rng.shuffle(usable)
            filters.keep(usable)
            if len(filters.candidates) >= ADDRESS_LIMIT:
                break
        return filters.finish()

    async def _find_addresses(
        self, order: Sequence[MxHost], route: bool, strategy: LookupStrategy
    ) -> dict[MxHost, list[str] | str]:
        """Addresses by host, or the text of the failure. Hosts beyond the query limit are missing."""
        found: dict[MxHost, list[str] | str] = {}
        wanted: list[MxHost] = []
        ready: list[MxHost] = []
        budget = QUERY_LIMIT
        kinds = [kind for group in _FAMILIES[strategy] for kind in group]
        for host in order:
            if host.literal:
                found[host] = [host.host]
                continue
            price = sum(not self._answers.known((host.host, kind)) for kind in kinds)
            if not price:
                ready.append(host)
            elif price <= budget:
                budget -= price
                wanted.append(host)

        async def look(host: MxHost) -> None:
            try:
                found[host] = await self.addresses_for(host.host, strategy, route=route)
            except ResolveError as error:
                found[host] = str(error)

        with trio.move_on_after(PLAN_SECONDS):
            for host in ready:
                await look(host)
            if wanted:
                async with trio.open_nursery() as nursery:
                    for host in wanted:
                        nursery.start_soon(look, host)
        for host in (*ready, *wanted):
            found.setdefault(host, f"DNS lookup of {host.host} took longer than {PLAN_SECONDS:g} s")
        return found


class _Filters:
    """Collects what a plan may use and remembers why the rest was left out."""

    def __init__(self, site: Site, prohibited: CidrSet, skipped: CidrSet) -> None:
        self.site = site
        self.candidates: list[Candidate] = []
        self.notes: list[str] = []
        self.looped = False
        self._seen: set[tuple[str, int]] = set()
        exempt = site.route and targets.is_default_prohibited(prohibited)
        self._prohibited = targets.NO_NETWORKS if exempt else prohibited
        self._skipped = skipped
        self._was_skipped = False
        self._failure = ""

    def note(self, host: MxHost, why: str) -> None:
        self.notes.append(f"{host.host}: {why}")

    def failed(self, host: MxHost, why: str) -> None:
        self.note(host, why)
        self._failure = self._failure or why

    def admits(self, host: MxHost, address: str) -> bool:
        trust: Trust = "public" if not self.site.route else "literal" if host.literal else "route"
        why = targets.forbidden(address, trust)
        if why is not None:
            self.note(host, f"{address} is {why}")
        elif self._prohibited.catches(address):
            self.note(host, f"{address} is in prohibited_hosts")
        elif self._skipped.catches(address):
            self.note(host, f"{address} is in skip_hosts")
            self._was_skipped = True
        else:
            return True
        return False

    def keep(self, usable: Sequence[Candidate]) -> None:
        for candidate in usable:
            where = (candidate.address, candidate.port)
            if where not in self._seen and len(self.candidates) < ADDRESS_LIMIT:
                self._seen.add(where)
                self.candidates.append(candidate)

    def finish(self) -> Plan:
        if self.candidates:
            return Plan(self.candidates, None, self.notes)
        if self._failure:
            raise ResolveError(self._failure, stage="resolve")
        site, why = self.site, "; ".join(self.notes[:5])
        if self.looped:
            text = f"mail for {site.name} loops back to this host ({why})"
            refused = _no_route(550, "5.4.6", text, site.route)
        elif self._was_skipped:
            refused = _no_route(451, "4.4.4", f"no address of {site.name} may be used now ({why})", True)
        else:
            refused = _no_route(550, "5.4.4", f"no usable address for {site.name} ({why})", site.route)
        return Plan([], refused, self.notes)


def _by_preference(order: Sequence[MxHost]) -> list[list[MxHost]]:
    groups: list[list[MxHost]] = []
    for host in order:
        if groups and groups[-1][0].preference == host.preference:
            groups[-1].append(host)
        else:
            groups.append([host])
    return groups


def _answer_weight(answer: Answer) -> int:
    """KiB, about: whoever has a domain chooses how long its answers are, up to 64 KiB on the wire."""
    return 1 + sum(len(text) + 150 for _, text in answer.records) // 1024


def _site_weight(site: Site | NoRoute) -> int:
    hosts = site.hosts if isinstance(site, Site) else ()
    return 1 + sum(2 * len(host.host) + 200 for host in hosts) // 1024


def _no_route(code: int, enhanced: str, text: str, route: bool) -> NoRoute:
    """A refusal; for a route it is only for now."""
    if route:
        return NoRoute(451, "4.4.6" if enhanced == "5.4.6" else "4.4.4", text, False)
    return NoRoute(code, enhanced, text, True)


def _shown(text: str) -> str:
    return ascii(text[:80])
