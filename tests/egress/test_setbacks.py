"""A peer that takes nothing is met by few sessions at growing intervals, and mail flows when it is back.

Fewer than ten connects in the first minute, whatever the backlog and wherever the sessions end
(reliability C10, C17); one outage counts once, however many sessions met it.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

import policy
from tests.support.bench import AUTH, to
from tests.support.peer import DROP, HANG, Wire, open_peer

TAKES_NOTHING: dict[str, dict[str, Any]] = {
    "421 banner": {"connect": "421 4.3.2 busy"},
    "554 banner": {"connect": "554 5.3.2 no"},
    "closes at once": {"connect": DROP},
    "closes at EHLO": {"EHLO": DROP},
    "421 to EHLO": {"EHLO": "421 4.3.2 not now"},
    "closes at MAIL": {"MAIL": DROP},
    "421 to MAIL": {"MAIL": "421 4.3.2 not now"},
    "421 to RCPT": {"RCPT": "421 4.3.2 not now"},
    "421 to DATA": {"DATA": "421 4.3.2 not now"},
    "421 to the dot": {".": "421 4.3.2 not now"},
    "closes at the dot": {".": DROP},
    "nonsense at MAIL": {"MAIL": "what?"},
    "silent at MAIL": {"MAIL": HANG},
}
PATIENCE = {f"{stage}_timeout": 1 for stage in ("mail_from", "rcpt_to", "data", "data_dot", "banner")}


@pytest.mark.parametrize("where", TAKES_NOTHING)
async def test_fewer_than_ten_connects_in_the_first_minute(where: str, bench: Any, clock: MockClock) -> None:
    await few_connects(bench, clock, where)


@pytest.mark.parametrize("where", ["421 banner", "closes at MAIL", "421 to the dot"])
async def test_nor_with_one_session_at_a_time(where: str, bench: Any, clock: MockClock) -> None:
    await few_connects(bench, clock, where, connection_limit=1)


async def few_connects(bench: Any, clock: MockClock, where: str, **path: Any) -> None:
    async with open_peer(replies=dict(TAKES_NOTHING[where])) as peer:
        async with bench(to(peer, queue={"retry_interval": 10}, **PATIENCE, **path)) as b:
            await b.submit_many(40)
            await trio.sleep(60)
            assert 2 <= peer.connections < 10
            assert not {"Delivery", "Bounce"} & set(b.log.kinds())
            peer.replies.clear()
            await b.until(lambda: b.spool.statistics().messages == 0, 600)
            assert b.log.kinds().count("Delivery") == 40


@pytest.mark.parametrize("where", ["connect", "EHLO", "MAIL", "RCPT", "DATA", "."])
async def test_421_anywhere_is_one_attempt_and_ends_the_session(
    where: str, bench: Any, clock: MockClock
) -> None:
    async with open_peer(replies={where: "421 4.3.2 not now"}) as peer, bench(to(peer)) as b:
        await b.submit(["a@example.com", "b@example.com"])
        await trio.sleep(30)
        assert b.outcomes() == {"a": ["TransientFailure"], "b": ["TransientFailure"]}
        assert {record.num_attempts for record in b.log.records} == {1}
        assert peer.open == 0


async def test_a_backlog_that_comes_up_at_once_meets_a_cold_queue(bench: Any, clock: MockClock) -> None:
    """As after a restart or a slow hook: not one session for each, all with the same result."""
    async with open_peer(replies={"connect": "421 busy"}) as peer:
        hooks = to(peer)
        config = hooks["get_queue_config"]

        async def slow(domain: str, tenant: str, campaign: str, routing_domain: str) -> object:
            await trio.sleep(1)
            return config(domain, tenant, campaign, routing_domain)

        async with bench({**hooks, "get_queue_config": slow}) as b:
            await b.submit_many(200)
            await trio.sleep(3)
            assert peer.connections < 10
            (ready,) = b.ready()
            assert ready.back_off <= 2


async def test_an_outage_of_two_seconds_costs_seconds(bench: Any, clock: MockClock) -> None:
    """Many sessions meet it at once; the back-off must not grow with their number."""
    async with open_peer() as peer, bench(to(peer, queue={"retry_interval": 1})) as b:
        peer.replies["."] = HANG
        await b.submit_many(100)
        await b.until(lambda: peer.open > 1)
        peer.replies = {"connect": DROP}
        for session in list(b.router._crew.sessions):
            session.abort()
        await b.submit_many(100)
        await trio.sleep(2)
        (ready,) = b.ready()
        assert ready.back_off <= 4
        peer.replies = {}
        begun = clock.current_time()
        await b.records("Delivery", 100, seconds=60)
        assert clock.current_time() - begun < 10


async def test_all_sessions_come_back_with_the_first_transaction(bench: Any, clock: MockClock) -> None:
    """While backed off one session probes; when it has carried a message the others follow at once."""
    async with open_peer(replies={"connect": "421 busy"}) as peer:
        async with bench(to(peer, queue={"retry_interval": 1})) as b:
            await b.submit_many(100)
            await trio.sleep(5)

            async def slow(wire: Wire) -> None:
                await wire.greet()
                while True:
                    word = await wire.word()
                    if word == "DATA":
                        await wire.say("354 go")
                        await wire.data()
                        await trio.sleep(0.5)
                    await wire.say("250 ok")

            peer.script = slow
            tried = peer.connections
            await b.records("Delivery", 100, seconds=60)
            probe, *others = (when - peer.times[tried] for when in peer.times[tried:])
            assert probe == 0 and min(others) >= 0.5
            assert len([when for when in others if when < 0.6]) > 8


@pytest.mark.parametrize(("path", "first"), [({}, 4), (AUTH, 1)], ids=["no login", "login"])
async def test_few_sessions_go_first_into_a_cold_queue(
    path: dict[str, Any], first: int, bench: Any, clock: MockClock
) -> None:
    """And one alone where it has to log in. A queue without sessions is cold, whatever went well before."""
    async with open_peer(capabilities=["PIPELINING", "AUTH PLAIN"]) as peer:
        async with bench(to(peer, **path)) as b:
            await b.submit_many(40)
            await b.records("Delivery", 40)
            await b.until(lambda: peer.open == 0)
            before = peer.connections
            peer.replies = {"AUTH": HANG, "MAIL": HANG}
            await b.submit_many(100)
            await trio.sleep(5)
            assert peer.connections - before == first


async def test_a_hanging_peer_holds_up_no_other_site(bench: Any, clock: MockClock) -> None:
    """C18: a tar-pit has slots of its own site, nobody else's."""
    async with open_peer(replies={"MAIL": HANG}) as slow, open_peer() as good:
        one, two = to(slow), to(good)
        hooks = {
            "get_queue_config": lambda domain, tenant, campaign, routing_domain: (
                one if domain == "slow.example" else two
            )["get_queue_config"](domain, tenant, campaign, routing_domain),
            "get_egress_path_config": one["get_egress_path_config"],
        }
        async with bench(hooks) as b:
            for _ in range(200):
                await b.submit("u@slow.example")
            begun = clock.current_time()
            for _ in range(20):
                await b.submit("u@good.example")
            await b.records("Delivery", 20)
            assert clock.current_time() - begun < 1


async def test_a_source_that_cannot_connect_is_a_setback(bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer:
        hooks = to(peer, queue={"egress_pool": "p"})
        hooks["get_egress_pool"] = lambda name: policy.make_egress_pool(name=name, entries=[{"name": "s"}])
        hooks["get_egress_source"] = lambda name: policy.make_egress_source(
            name=name, source_address="192.0.2.77"
        )
        async with bench(hooks) as b:
            await b.submit()
            record = await b.first()
            assert record.type == "TransientFailure" and "192.0.2.77" in record.content
            assert peer.connections == 0
