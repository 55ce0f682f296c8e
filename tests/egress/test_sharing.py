"""Queues that are counted together take turns: two identities at one host share `connection_limit`.

A path with another login is another ready queue, and its connections count with all others from the
same source to the same site. Whoever has them must let go of one when another has none (rule 5, O3).
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

import policy
from tests.support.bench import AUTH, HookSet, login, to
from tests.support.peer import FakePeer, Wire, open_peer

LOGINS = ("PIPELINING", "AUTH PLAIN")


def own_login(peer: FakePeer, **path: Any) -> HookSet:
    """Hooks that route everything to this peer, each domain with a login of its own."""
    return {
        **to(peer),
        "get_egress_path_config": lambda domain, egress_source, site_name: policy.make_egress_path(
            **{"enable_tls": "Disabled", **AUTH, **path, "smtp_auth_plain_username": domain}
        ),
    }


async def slow(wire: Wire) -> None:
    """A correct peer that needs a fifth of a second for a message."""
    await wire.greet(*LOGINS)
    while True:
        word = await wire.word()
        if word == "AUTH":
            await wire.say("235 ok")
        elif word == "DATA":
            await wire.say("354 go")
            await wire.data()
            await trio.sleep(0.2)
            await wire.say("250 ok")
        else:
            await wire.say("250 ok")
            if word == "QUIT":
                return


@pytest.mark.parametrize("limit", [1, 3])
async def test_the_limit_counts_across_logins(limit: int, bench: Any, clock: MockClock) -> None:
    async with open_peer(slow) as peer:
        async with bench(own_login(peer, connection_limit=limit, idle_timeout=5)) as b:
            for i in range(30):
                await b.submit(f"u@d{i % 5}.example")
            await b.records("Delivery", 30, seconds=300)
            assert peer.most_open <= limit + 1  # the peer sees our end a moment after we made it
            assert len({login(line)[0] for line in peer.commands if line.startswith("AUTH")}) == 5


async def test_an_idle_connection_makes_room(bench: Any, clock: MockClock) -> None:
    """It would be kept for ten minutes, and new mail keeps it busy now and then."""
    async with open_peer(capabilities=LOGINS) as peer:
        async with bench(own_login(peer, connection_limit=1, idle_timeout=600)) as b:
            await b.submit("u@a.example")
            await b.records("Delivery")
            begun = clock.current_time()
            await b.submit("u@b.example")
            await b.records("Delivery", 2)
            assert clock.current_time() - begun < 1


async def test_a_busy_queue_does_not_take_the_connection_again_and_again(
    bench: Any, clock: MockClock
) -> None:
    async with open_peer(slow) as peer:
        async with bench(own_login(peer, connection_limit=3, max_deliveries_per_connection=10)) as b:
            for _ in range(150):
                await b.submit("u@a.example")
            await trio.sleep(1)
            begun = clock.current_time()
            await b.submit("u@b.example")
            await b.until(lambda: any(r.recipient == "u@b.example" for r in b.recorded("Delivery")), 60)
            assert clock.current_time() - begun < 3
            assert len(b.recorded("Delivery")) < 100
            await b.records("Delivery", 151, seconds=600)


@pytest.mark.parametrize("limit", [1, 2])
async def test_several_busy_queues_all_get_on(limit: int, bench: Any, clock: MockClock) -> None:
    """Two of them must not hand the connection to and fro while the others look on."""
    async with open_peer(slow) as peer:
        async with bench(own_login(peer, connection_limit=limit, idle_timeout=5)) as b:
            for _ in range(60):
                for name in "abcd":
                    await b.submit(f"u@{name}.example")
            await trio.sleep(10)
            delivered = [str(record.recipient) for record in b.recorded("Delivery")]
            shares = {name: delivered.count(f"u@{name}.example") for name in "abcd"}
            assert min(shares.values()) * 3 >= max(shares.values()), shares


async def test_a_queue_alone_keeps_its_connection(bench: Any, clock: MockClock) -> None:
    async with open_peer(capabilities=LOGINS) as peer:
        async with bench(own_login(peer, connection_limit=1, idle_timeout=60)) as b:
            for number in range(1, 10):
                await b.submit("u@a.example")
                await b.records("Delivery", number)
                await trio.sleep(5)
            assert peer.connections == 1


async def test_a_line_of_one_tenant_starves_no_other(bench: Any, clock: MockClock) -> None:
    """Behind a full ready queue every scheduled queue has a line of its own, and they move in by turns."""
    async with open_peer(slow) as peer:
        async with bench(to(peer, connection_limit=1, max_ready=4)) as b:
            most = 0
            for i in range(90):
                await b.submit(f"u{i}@example.com", tenant="busy")
                most = max(most, b.router.statistics().ready)
            await b.submit("small@example.com", tenant="small")
            await b.until(lambda: "small" in b.outcomes(), 60)
            assert most == 4
            assert len(b.recorded("Delivery")) < 60
            await b.records("Delivery", 91, seconds=60)


async def test_the_weights_of_a_pool_hold_across_domains(bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer:
        hooks = to(peer, queue={"egress_pool": "p"})
        entries = [{"name": "a", "weight": 3}, {"name": "b", "weight": 1}, {"name": "never", "weight": 0}]
        hooks["get_egress_pool"] = lambda name: policy.make_egress_pool(name=name, entries=entries)
        hooks["get_egress_source"] = lambda name: policy.make_egress_source(name=name)
        async with bench(hooks) as b:
            for i in range(80):
                await b.submit(f"u@d{i % 8}.example")
            sources = [record.egress_source for record in await b.records("Delivery", 80)]
            assert {name: sources.count(name) for name in set(sources)} == {"a": 60, "b": 20}
