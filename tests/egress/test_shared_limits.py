"""Limits and rates that several paths share by name, against peers that see what arrives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import trio
import trio.lowlevel

import policy
from tests.support.peer import FakePeer, open_peer

Hooks = dict[str, Callable[..., Any]]


def by_domain(peers: dict[str, FakePeer], sources: dict[str, int] | None = None, **path: Any) -> Hooks:
    """Hooks that send each domain to a peer of its own. `path` may hold options per source."""
    special = path.pop("per_source", {})
    options = {"enable_tls": "Disabled", "idle_timeout": 5, **path}

    def config(domain: str, tenant: str, campaign: str, routing_domain: str) -> policy.QueueConfig:
        return policy.make_queue_config(
            protocol={"smtp": {"mx_list": [f"127.0.0.1:{peers[domain].port}"]}},
            egress_pool="pool" if sources else "unspecified",
        )

    return {
        "get_queue_config": config,
        "get_egress_path_config": lambda domain, egress_source, site_name: policy.make_egress_path(
            {**options, **special.get(egress_source, {})}
        ),
        "get_egress_pool": lambda name: policy.make_egress_pool(
            name=name,
            entries=[{"name": source, "weight": weight} for source, weight in (sources or {}).items()],
        ),
        "get_egress_source": lambda name: policy.make_egress_source(name=name),
    }


async def test_two_sites_share_a_limit_and_each_gets_its_turn(bench: Any) -> None:
    async with AsyncExitStack() as stack:
        peers = {f"d{n}.example": await stack.enter_async_context(open_peer()) for n in range(4)}
        hooks = by_domain(peers, additional_connection_limits={"all": 1}, connection_limit=5)
        b = await stack.enter_async_context(bench(hooks))
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, b.router.statistics().sessions)
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            for _ in range(5):
                for domain in peers:
                    await b.submit(f"bob@{domain}")
            # Idle sessions would wait 5 s: whoever has none is let in before that.
            await b.records("Delivery", 20, seconds=4)
            nursery.cancel_scope.cancel()
        assert most == 1
        assert [len(peer.arrived) for peer in peers.values()] == [5, 5, 5, 5]


async def test_paths_that_name_different_limits_do_not_count_together(bench: Any) -> None:
    async with open_peer() as one, open_peer() as two:
        hooks = by_domain({"a.example": one, "b.example": two}, connection_limit=1)
        hooks["get_egress_path_config"] = lambda domain, source, site: policy.make_egress_path(
            enable_tls="Disabled", idle_timeout=5, additional_connection_limits={domain: 1}
        )
        async with bench(hooks) as b:
            await b.submit("bob@a.example")
            await b.submit("bob@b.example")
            await b.records("Delivery", 2, seconds=2)
            assert b.router.statistics().sessions == 2


async def test_two_sites_share_a_rate(bench: Any) -> None:
    async with open_peer() as one, open_peer() as two:
        hooks = by_domain(
            {"a.example": one, "b.example": two},
            additional_message_rate_throttles={"both": "20/s,max_burst=1"},
        )
        async with bench(hooks) as b:
            begun = trio.current_time()
            for _ in range(3):
                await b.submit("bob@a.example")
                await b.submit("bob@b.example")
            await b.records("Delivery", 6)
            assert trio.current_time() - begun >= 0.24


async def test_a_source_that_may_not_be_chosen_leaves_its_share_to_the_other(bench: Any) -> None:
    async with open_peer() as peer:
        hooks = by_domain(
            {"a.example": peer},
            {"slow": 1, "free": 1},
            per_source={"slow": {"source_selection_rate": "2/h"}},
        )
        async with bench(hooks) as b:
            for _ in range(10):
                await b.submit("bob@a.example")
            records = await b.records("Delivery", 10)
            sources = [record.egress_source for record in records]
            assert sources.count("slow") == 2 and sources.count("free") == 8


async def test_when_no_source_may_be_chosen_the_message_waits_and_no_attempt_counts(bench: Any) -> None:
    async with open_peer() as peer:
        hooks = by_domain(
            {"a.example": peer},
            {"one": 1, "two": 1},
            additional_source_selection_rates={"both": "10/s,max_burst=1"},
        )
        async with bench(hooks) as b:
            begun = trio.current_time()
            for _ in range(4):
                await b.submit("bob@a.example")
            records = await b.records("Delivery", 4)
            assert trio.current_time() - begun >= 0.29
            assert {record.num_attempts for record in records} == {0}
            assert "TransientFailure" not in b.log.kinds()


async def test_a_message_whose_connection_may_not_be_made_is_not_counted(bench: Any) -> None:
    """The rate of messages admits two; the one that waits for a connection must not use the second up."""
    async with open_peer() as peer:
        hooks = by_domain(
            {"a.example": peer},
            max_message_rate="2/h",
            max_connection_rate="10/s,max_burst=1",
            max_deliveries_per_connection=1,
        )
        async with bench(hooks) as b:
            await b.submit("bob@a.example")
            await b.submit("bob@a.example")
            await b.records("Delivery", 2, seconds=30)
