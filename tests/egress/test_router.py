"""engine/egress/router.py and routes.py: which ready queue, when, how many sessions, and what changes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import policy
from engine.spool import MemorySpool, MemoryStore
from tests.support.bench import AUTH, HookSet, to
from tests.support.peer import HANG, FakePeer, Wire, open_peer, slowly

Bench = Callable[..., Any]


class Changing:
    """A policy that can be changed while it runs."""

    def __init__(self, *peers: FakePeer, **path: Any) -> None:
        self.hosts = [f"127.0.0.1:{peer.port}" for peer in peers]
        self.path: dict[str, Any] = {"enable_tls": "Disabled", "idle_timeout": "5m", **path}
        self.queue: dict[str, Any] = {"retry_interval": "10m"}
        self.entries: list[dict[str, Any]] = []
        self.sources: dict[str, dict[str, Any]] = {}
        self.by_source: dict[str, dict[str, Any]] = {}
        self.asked: Counter[str] = Counter()
        self.broken = False

    def hooks(self) -> HookSet:
        def queue_config(domain: str, tenant: str, campaign: str, routing_domain: str) -> Any:
            self.asked["queue"] += 1
            if self.broken:
                raise RuntimeError("a defect of the policy")
            pool = {"egress_pool": "pool"} if self.entries else {}
            protocol = {"smtp": {"mx_list": self.hosts}}
            return policy.make_queue_config(protocol=protocol, **pool, **self.queue)

        def egress_path(domain: str, egress_source: str, site_name: str) -> Any:
            self.asked["path"] += 1
            return policy.make_egress_path(**{**self.path, **self.by_source.get(egress_source, {})})

        def egress_pool(name: str) -> Any:
            self.asked["pool"] += 1
            return policy.make_egress_pool(name=name, entries=self.entries)

        def egress_source(name: str) -> Any:
            self.asked[name] += 1
            return policy.make_egress_source(name=name, **self.sources.get(name, {}))

        return {
            "get_queue_config": queue_config,
            "get_egress_path_config": egress_path,
            "get_egress_pool": egress_pool,
            "get_egress_source": egress_source,
        }


# -- pools and sources -----------------------------------------------------------------------------


async def test_weights_hold_across_many_small_queues(bench: Bench) -> None:
    async with open_peer() as peer:
        changing = Changing(peer)
        changing.entries = [{"name": "a", "weight": 3}, {"name": "b"}, {"name": "never", "weight": 0}]
        async with bench(changing.hooks()) as b:
            for number in range(40):
                await b.submit(tenant=f"tenant-{number % 20}")
            records = await b.records("Delivery", 40)
            assert Counter(r.egress_source for r in records) == {"a": 30, "b": 10}
            assert {r.egress_pool for r in records} == {"pool"}
            assert changing.asked["never"] == 0


async def test_weights_hold_from_one_message_to_the_next(bench: Bench) -> None:
    async with open_peer() as peer:
        changing = Changing(peer)
        changing.entries = [{"name": "a", "weight": 2}, {"name": "b"}]
        async with bench(changing.hooks()) as b:
            order = []
            for number in range(6):
                await b.submit()
                order.append((await b.records("Delivery", number + 1))[-1].egress_source)
            assert order == ["a", "b", "a"] * 2


async def test_what_does_not_fit_one_source_takes_another(bench: Bench) -> None:
    async with open_peer(replies={"connect": HANG}) as stuck, open_peer() as peer:
        changing = Changing(peer)
        changing.entries = [{"name": "a", "weight": 100}, {"name": "b"}]
        changing.sources = {"a": {"remote_port": stuck.port}}
        changing.by_source = {"a": {"max_ready": 2, "connection_limit": 1}}
        async with bench(changing.hooks()) as b:
            for _ in range(10):
                await b.submit()
            records = await b.records("Delivery", 7)
            assert {r.egress_source for r in records} == {"b"}
            await trio.testing.wait_all_tasks_blocked()
            # One in the hands of the stuck session, two in its queue.
            assert len(await b.records("Delivery", 7)) == 7 and b.router.statistics().ready == 2


async def test_a_source_says_from_where_to_which_port_and_under_which_name(bench: Bench) -> None:
    clients: list[str] = []

    async def script(wire: Wire) -> None:
        clients.append(wire.socket.socket.getpeername()[0])
        await wire.peer.converse(wire)

    async with open_peer(script) as peer:
        changing = Changing(peer)
        changing.hosts = ["127.0.0.1:9"]
        changing.entries = [{"name": "a"}]
        changing.sources = {
            "a": {
                "source_address": "127.0.0.7",
                "remote_port": peer.port,
                "ehlo_domain": "source.example",
            }
        }
        async with bench(changing.hooks()) as b:
            await b.submit()
            (record,) = await b.records("Delivery")
            assert (clients, peer.commands[0]) == (["127.0.0.7"], "EHLO source.example")
            assert (record.egress_source, record.source_address) == ("a", "127.0.0.7")


async def test_a_pool_without_sources_holds_and_is_asked_again(bench: Bench, clock: MockClock) -> None:
    async with open_peer() as peer:
        changing = Changing(peer)
        changing.entries = [{"name": "a", "weight": 0}]
        async with bench(changing.hooks()) as b:
            await b.submit()
            (record,) = await b.records("TransientFailure")
            assert "no sources" in record.content and "'pool'" in record.content and record.num_attempts == 0
            changing.entries = [{"name": "a"}]
            (delivery,) = await b.records("Delivery", seconds=200)
            assert delivery.num_attempts == 0


async def test_a_pool_that_nobody_defines_holds_with_a_word_on_the_hook(bench: Bench) -> None:
    async with open_peer() as peer:
        hooks = to(peer, queue={"egress_pool": "forgotten"})
        async with bench(hooks) as b:
            await b.submit()
            (record,) = await b.records("TransientFailure")
            assert "'forgotten'" in record.content and "get_egress_pool" in record.content
            assert record.num_attempts == 0 and peer.connections == 0


async def test_a_wait_for_a_new_connection_does_not_keep_an_open_one_idle(
    bench: Bench, clock: MockClock
) -> None:
    path = {"max_connection_rate": "1/min,max_burst=1", "idle_timeout": "10m"}
    async with open_peer(slowly(taken=5)) as peer, bench(to(peer, **path)) as b:
        await b.submit()
        await b.records("Delivery", seconds=10)
        await b.submit()  # goes over the connection that is open
        await trio.sleep(1)
        await b.submit()  # deserves a second one, which has to wait for a minute
        await b.records("Delivery", 3, seconds=20)
        assert peer.connections == 1
        begun = trio.current_time()
        await b.submit()
        await b.records("Delivery", 4, seconds=100)
        assert trio.current_time() - begun < 10


# -- routes that change ----------------------------------------------------------------------------


async def test_an_unchanged_answer_keeps_sessions_open(bench: Bench, clock: MockClock) -> None:
    async with open_peer() as peer:
        changing = Changing(peer, refresh_interval="1m", connection_limit=1)
        async with bench(changing.hooks()) as b:
            for number in range(1, 5):
                await b.submit()
                await b.records("Delivery", number)
                await trio.sleep(70)
            assert peer.connections == 1 and changing.asked["path"] >= 3


async def test_what_served_goes_on_serving_while_a_hook_fails(
    bench: Bench, clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says each time what is wrong with it."""
    async with open_peer() as peer:
        changing = Changing(peer, refresh_interval="1m")
        async with bench(changing.hooks()) as b:
            await b.submit()
            await b.records("Delivery")
            changing.broken = True
            await trio.sleep(61)
            for number in range(2, 4):
                await b.submit()
                await b.records("Delivery", number)
            assert b.log.kinds() == ["Delivery"] * 3
            asked = changing.asked["queue"]
            await trio.sleep(11)
            await b.submit()
            await b.records("Delivery", 4)
            await trio.testing.wait_all_tasks_blocked()
            assert changing.asked["queue"] == asked + 1
            said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
            assert len(said) == 2
            assert all("routes for example.com: " in text and "RuntimeError" in text for text in said)
            assert all("test_router.py:" in text and "queue_config()" in text for text in said)


# -- a queue that is held --------------------------------------------------------------------------


async def test_held_mail_goes_out_untouched_when_the_cause_is_gone(bench: Bench, clock: MockClock) -> None:
    async with open_peer(capabilities=[]) as peer:
        async with bench(to(peer, hold_interval="1m", **AUTH)) as b:
            begun = trio.current_time()
            for _ in range(5):
                await b.submit()
            await b.records("Delayed", 4)
            assert peer.connections == 1  # one probe for all of them
            ((name, text),) = b.router.statistics().held
            assert "mx_list" in name and "AUTH" in text
            await b.submit()  # joins the others, and is told why it waits
            (*_, late) = await b.records("Delayed", 5)
            assert late.cause == "auth-not-offered" and late.next_due == pytest.approx(
                time.time() + 60, abs=5
            )
            peer.capabilities = ["AUTH PLAIN"]
            records = await b.records("Delivery", 6, seconds=100)
            assert trio.current_time() - begun == pytest.approx(60, abs=0.5)
            assert all(r.num_attempts == 0 for r in records) and not b.router.statistics().held


# -- when ------------------------------------------------------------------------------------------


async def test_a_message_for_later_waits_for_its_time(bench: Bench, clock: MockClock) -> None:
    async with open_peer() as peer, bench(to(peer)) as b:
        begun = trio.current_time()
        await b.submit(first_attempt=time.time() + 90)
        assert b.router.statistics().timed == 1
        await b.submit()
        await b.records("Delivery", 1)
        assert trio.current_time() - begun < 1
        await b.records("Delivery", 2, seconds=200)
        assert trio.current_time() - begun == pytest.approx(90, abs=1)


async def test_what_an_earlier_process_left_goes_on_where_it_was(bench: Bench, clock: MockClock) -> None:
    store, later = MemoryStore(), {"retry_interval": "10m"}
    people = ["one@example.com", "two@example.com", "three@example.com"]

    def answer(line: str) -> str:
        return "250 ok" if "one" in line else "450 4.2.1 busy"

    async with open_peer(replies={"RCPT": answer}) as peer:
        async with bench(to(peer, queue=later), spool=MemorySpool(store)) as b:
            await b.submit(people)
            await b.records("Delivery")
    async with open_peer() as peer, bench(to(peer, queue=later), spool=MemorySpool(store)) as b:
        begun = trio.current_time()
        assert b.router.statistics().timed == b.router.statistics().queued == 1
        (record,) = await b.records("Delivery", seconds=1000)
        assert trio.current_time() - begun == pytest.approx(600, rel=0.1)
        assert record.recipient == people[1:] and record.num_attempts == 1
        assert peer.arrived[0].recipients == people[1:]
        assert b.spool.statistics().messages == 0


async def test_idle_queues_are_forgotten(bench: Bench, clock: MockClock) -> None:
    queue = {"reap_interval": "2m"}
    async with open_peer() as peer, bench(to(peer, queue=queue, idle_timeout="10s")) as b:
        for number in range(5):
            await b.submit(tenant=f"t{number}")
        await b.records("Delivery", 5)
        assert b.router.statistics().scheduled_queues == 5
        await trio.sleep(200)
        assert b.router.statistics().scheduled_queues == 0
        assert b.router.statistics().ready_queues == 1
        await trio.sleep(600)
        assert b.router.statistics().ready_queues == 0
        await b.submit(tenant="t1")
        await b.records("Delivery", 6)


async def test_a_queue_with_mail_is_not_forgotten(bench: Bench, clock: MockClock) -> None:
    async with open_peer(replies={"MAIL": ["250 ok", "451 later", "250 ok"]}) as peer:
        async with bench(to(peer, queue={"reap_interval": "1m", "retry_interval": "4m"})) as b:
            await b.submit()
            await b.records("Delivery")
            await b.submit()
            await b.records("TransientFailure")
            await trio.sleep(200)
            assert b.router.statistics().scheduled_queues == 1
            await b.records("Delivery", 2, seconds=600)


async def test_nothing_is_delivered_while_results_cannot_be_recorded(bench: Bench, clock: MockClock) -> None:
    async with open_peer() as peer, bench(to(peer)) as b:
        await b.submit()
        b.spool.broken = "a sync failed"
        await trio.sleep(5)
        assert peer.arrived == [] and b.log.kinds() == []
        b.spool.broken = None
        await b.records("Delivery", seconds=300)
