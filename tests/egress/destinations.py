"""Mail to all sorts of destinations, in the network namespace that test_destinations.py makes (N1-N10).

With public addresses, port 25 and a real name server, none of which anybody else can see.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import policy
from engine.egress.dns import StubResolver, is_local_address
from engine.egress.resolve import Resolver
from engine.egress.targets import OwnHosts
from tests.support.bench import Bench, HookSet, open_bench, to
from tests.support.fakedns import REFUSED, SERVFAIL, TIMEOUT, Zones, serve_dns
from tests.support.peer import FakePeer, Wire, hello, open_peer

PUBLIC, SECOND, OURS = "198.51.100.1", "198.51.100.2", "198.51.100.3"
PRIVATE = "10.9.9.9"

ALIASES = {f"c{i}.long.example": {"CNAME": [f"c{i + 1}.long.example."]} for i in range(12)}
ALIASES["c12.long.example"] = {"A": [PUBLIC]}

ZONES: Zones = {
    "good.example": {"MX": ["10 mx.good.example."]},
    "mx.good.example": {"A": [PUBLIC]},
    "implicit.example": {"A": [PUBLIC]},
    "empty.example": {},
    "servfail.example": {"MX": SERVFAIL, "A": [PUBLIC]},
    "refused.example": {"MX": REFUSED, "A": [PUBLIC]},
    "silent.example": {"MX": TIMEOUT, "A": [PUBLIC]},
    "implicitfail.example": {"A": SERVFAIL, "AAAA": SERVFAIL},
    "null.example": {"MX": ["0 ."]},
    "null10.example": {"MX": ["10 ."]},
    "nulltwice.example": {"MX": ["0 .", "5 ."]},
    "nullmix.example": {"MX": ["0 .", "10 mx.good.example."]},
    "alias.example": {"CNAME": ["good.example."]},
    "aliasnull.example": {"CNAME": ["null.example."]},
    "aliasgone.example": {"CNAME": ["gone.example."]},
    "loop1.example": {"CNAME": ["loop2.example."]},
    "loop2.example": {"CNAME": ["loop1.example."]},
    "mxalias.example": {"MX": ["10 a.mxalias.example."]},
    "a.mxalias.example": {"CNAME": ["mx.good.example."]},
    "mxalias8.example": {"MX": ["10 c4.long.example."]},
    "mxloop.example": {"MX": ["10 loop1.example."]},
    "mxip.example": {"MX": [f"10 {PUBLIC}."]},
    "mxipmix.example": {"MX": [f"10 {PUBLIC}.", "20 mx.good.example."]},
    "mxgone.example": {"MX": ["10 gone.example."]},
    "mxempty.example": {"MX": ["10 empty.example."]},
    "mxhalf.example": {"MX": ["10 bad.mxhalf.example.", "20 mx.good.example."]},
    "bad.mxhalf.example": {"A": SERVFAIL, "AAAA": SERVFAIL},
    "mxfail.example": {"MX": ["10 bad.mxhalf.example."]},
    "mxloopback.example": {"MX": ["10 loopback.example."]},
    "loopback.example": {"A": ["127.0.0.1"]},
    "mxprivate.example": {"MX": ["10 private.example."]},
    "private.example": {"A": [PRIVATE]},
    "mxlink.example": {"MX": ["10 link.example."]},
    "link.example": {"A": ["169.254.169.254"]},
    "mxany.example": {"MX": ["10 any.example."]},
    "any.example": {"A": ["0.0.0.0"]},
    "mxsix.example": {"MX": ["10 six.example."]},
    "six.example": {
        "AAAA": [
            *("::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "::127.0.0.1"),
            *("fe80::1", "fd00::1", "ff02::1"),
        ]
    },
    "mixed.example": {"MX": ["10 m.mixed.example."]},
    "m.mixed.example": {"A": ["127.0.0.1", PRIVATE, PUBLIC]},
    "mxlocalhost.example": {"MX": ["10 localhost."]},
    "many.example": {"MX": [f"{i % 7 + 10} m{i}.many.example." for i in range(1000)]},
    **{f"m{i}.many.example": {"A": [PUBLIC]} for i in range(1000)},
    "ttl0.example": {"MX": ["10 mx.good.example."], "ttl": 0},
    "ttlmax.example": {"MX": ["10 mx.good.example."], "ttl": 2**31 - 1},
    "self.example": {"MX": ["10 relay.example.", "20 mx.good.example."]},
    "relay.example": {"A": [PUBLIC]},
    "selfbackup.example": {"MX": ["10 mx.good.example.", "20 RELAY.example.", "30 other.example."]},
    "other.example": {"A": [SECOND]},
    "selfaddress.example": {"MX": ["10 me.example."]},
    "me.example": {"A": [OURS]},
    "selfimplicit.example": {"A": [OURS]},
    **ALIASES,
}

DELIVERED = ("Delivery", 250, "2.0.0")
LATER = ("TransientFailure", 451, "4.4.3")
NO_SUCH_DOMAIN = ("Bounce", 550, "5.1.2")
NO_USABLE_HOST = ("Bounce", 550, "5.4.4")
NO_MAIL = ("Bounce", 556, "5.1.10")
LOOP = ("Bounce", 550, "5.4.6")

EXPECTED: dict[str, tuple[str, int, str]] = {
    # What the domain has (N1, N2)
    "gone.example": NO_SUCH_DOMAIN,
    "empty.example": NO_SUCH_DOMAIN,
    "good.example": DELIVERED,
    "GOOD.example.": DELIVERED,
    "implicit.example": DELIVERED,
    "servfail.example": LATER,
    "refused.example": LATER,
    "silent.example": LATER,
    "implicitfail.example": LATER,
    "null.example": NO_MAIL,
    "null10.example": NO_MAIL,
    "nulltwice.example": NO_MAIL,
    "nullmix.example": DELIVERED,
    "alias.example": DELIVERED,
    "aliasnull.example": NO_MAIL,
    "aliasgone.example": NO_SUCH_DOMAIN,
    "loop1.example": LATER,
    # What its hosts are (N3)
    "mxalias.example": DELIVERED,
    "mxalias8.example": DELIVERED,
    "mxloop.example": LATER,
    "mxip.example": NO_USABLE_HOST,
    "mxipmix.example": DELIVERED,
    "mxgone.example": NO_USABLE_HOST,
    "mxempty.example": NO_USABLE_HOST,
    "mxhalf.example": DELIVERED,
    "mxfail.example": LATER,
    "many.example": DELIVERED,
    "ttl0.example": DELIVERED,
    "ttlmax.example": DELIVERED,
    # Where a stranger must not send us (N5)
    "mxloopback.example": NO_USABLE_HOST,
    "mxprivate.example": NO_USABLE_HOST,
    "mxlink.example": NO_USABLE_HOST,
    "mxany.example": NO_USABLE_HOST,
    "mxsix.example": NO_USABLE_HOST,
    "mxlocalhost.example": NO_USABLE_HOST,
    "mixed.example": DELIVERED,
    "loopback.example": NO_USABLE_HOST,
    "[127.0.0.1]": NO_USABLE_HOST,
    f"[{PRIVATE}]": NO_USABLE_HOST,
    "[0.0.0.0]": NO_USABLE_HOST,
    "[169.254.169.254]": NO_USABLE_HOST,
    "[IPv6:::1]": NO_USABLE_HOST,
    "[IPv6:::ffff:127.0.0.1]": NO_USABLE_HOST,
    f"[{PUBLIC}]": DELIVERED,
    "localhost": NO_SUCH_DOMAIN,
    "foo.localhost": NO_SUCH_DOMAIN,
    "127.0.0.1": NO_SUCH_DOMAIN,
    "127.1": NO_SUCH_DOMAIN,
    "2130706433": NO_SUCH_DOMAIN,
    "0x7f.1": NO_SUCH_DOMAIN,
    "good.example:25": NO_SUCH_DOMAIN,
    f"[{PUBLIC}]:25": NO_SUCH_DOMAIN,
    # Ourselves (N7, N8)
    "self.example": LOOP,
    "selfbackup.example": DELIVERED,
    "selfaddress.example": LOOP,
    "selfimplicit.example": LOOP,
    f"[{OURS}]": LOOP,
}


class NoHosts:
    """A hosts file without a line (reading a real one takes a thread, and time jumps meanwhile)."""

    async def addresses(self, name: str) -> tuple[str, ...]:
        return ()


@asynccontextmanager
async def resolving(
    zones: Zones = ZONES, hooks: HookSet | None = None, servers: list[str] | None = None
) -> AsyncIterator[Bench]:
    """A bench that looks destinations up."""
    async with serve_dns(zones) as server:
        no_hosts: Any = NoHosts()
        resolver = Resolver(StubResolver(servers or [server]), hosts=no_hosts)
        resolver.own = OwnHosts(frozenset({"relay.example"}), frozenset({(OURS, 25)}), is_local_address)
        async with open_bench(hooks or {}, resolver=resolver) as b:
            yield b


@asynccontextmanager
async def listening(*addresses: str, **options: Any) -> AsyncIterator[list[FakePeer]]:
    """Peers at port 25 of these addresses."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(open_peer(host=address, port=25, **options))
            for address in addresses
        ]


async def test_the_table(clock: MockClock) -> None:
    async with listening(PUBLIC, "127.0.0.1", PRIVATE, SECOND, OURS) as (public, *others):
        async with resolving() as b:
            for domain in EXPECTED:
                await b.submit(f"u@{domain}")
            await b.until(lambda: len(b.log.records) >= len(EXPECTED), 60)
            found = {
                str(record.recipient).rsplit("@", 1)[1]: (record.type, record.code, record.enhanced_code)
                for record in reversed(b.log.records)
            }
            wrong = {
                domain: (found.get(domain), wanted)
                for domain, wanted in EXPECTED.items()
                if found.get(domain) != wanted
            }
            assert wrong == {}
            assert public.connections and not any(peer.connections for peer in others)


async def greets_as_we_do(wire: Wire) -> None:
    await wire.say("220 Relay.Example ESMTP")
    await wire.peer.obey(wire)


async def answers_ehlo_as_we_do(wire: Wire) -> None:
    await wire.say("220 balancer.example")
    await wire.line()
    await wire.say(hello(["PIPELINING"]).replace("peer.example", "relay.example"))
    await wire.peer.obey(wire)


@pytest.mark.parametrize("script", [greets_as_we_do, answers_ehlo_as_we_do])
async def test_a_host_that_calls_itself_by_our_name(script: Any, clock: MockClock) -> None:
    async with listening(PUBLIC, script=script) as (peer,), resolving() as b:
        await b.submit("u@good.example")
        record = await b.first()
        assert (record.type, record.enhanced_code) == ("Bounce", "5.4.6")
        assert "MAIL" not in peer.words()


async def test_a_dead_name_server_does_not_stop_a_fixed_route(clock: MockClock) -> None:
    async with open_peer() as peer:
        fixed = to(peer)
        plain = policy.make_queue_config()
        hooks = {
            **fixed,
            "get_queue_config": lambda domain, tenant, campaign, routing_domain: (
                fixed["get_queue_config"](domain, tenant, campaign, routing_domain)
                if domain == "fixed.example"
                else plain
            ),
        }
        async with resolving(hooks=hooks, servers=["127.0.0.9:53"]) as b:
            for i in range(300):
                await b.submit(f"u@d{i}.example")
            await b.submit("u@fixed.example")
            await b.records("Delivery", seconds=1)


async def test_domains_of_a_silent_name_server_do_not_stop_another(clock: MockClock) -> None:
    """They are more than may be looked up at once, and all before the good one."""
    zones = {**ZONES, **{f"s{i}.example": {"MX": TIMEOUT} for i in range(400)}}
    async with listening(PUBLIC), resolving(zones) as b:
        for i in range(400):
            await b.submit(f"u@s{i}.example")
        begun = clock.current_time()
        await b.submit("u@good.example")
        await b.records("Delivery", seconds=120)
        assert clock.current_time() - begun < 20


async def test_each_address_is_a_connection_of_its_own(clock: MockClock) -> None:
    zones: Zones = {"x.example": {"MX": ["10 a.x.example."]}, "a.x.example": {"A": [PUBLIC, SECOND]}}
    path = policy.make_egress_path(max_connection_rate="1/min")
    hooks: HookSet = {"get_egress_path_config": lambda domain, egress_source, site_name: path}
    async with listening(PUBLIC, SECOND, replies={"connect": "421 no"}) as peers:
        async with resolving(zones, hooks) as b:
            await b.submit("u@x.example")
            await trio.sleep(50)
            assert sum(peer.connections for peer in peers) == 1
