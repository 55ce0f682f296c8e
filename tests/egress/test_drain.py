"""The end: what is being sent is finished, nothing else is waited for; and no session is without an end."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.egress import session
from tests.support.bench import AUTH, to
from tests.support.peer import HANG, Wire, open_peer, slowly


async def drained(b: Any) -> None:
    """Within a few seconds, or never."""
    with trio.fail_after(5):
        await b.router.drain()


@pytest.mark.parametrize(
    ("replies", "heard"), [({"connect": HANG}, ""), ({"EHLO": HANG}, "EHLO"), ({"AUTH": HANG}, "AUTH")]
)
async def test_a_connection_that_carries_nothing_is_not_waited_for(
    replies: dict[str, Any], heard: str, bench: Any, clock: MockClock
) -> None:
    async with open_peer(capabilities=["AUTH PLAIN"], replies=replies) as peer:
        async with bench(to(peer, system_shutdown_timeout=30, **AUTH)) as b:
            await b.submit()
            await b.until(lambda: peer.connections and (not heard or heard in peer.words()))
            begun = clock.current_time()
            await drained(b)
            assert clock.current_time() - begun < 1 and not b.router._crew.sessions
            assert not b.log.records and b.spool.statistics().messages == b.router.statistics().queued == 1


async def test_nor_one_that_waits_for_work(bench: Any, clock: MockClock) -> None:
    """It says goodbye."""
    async with open_peer() as peer, bench(to(peer, idle_timeout=600)) as b:
        await b.submit()
        await b.records("Delivery")
        await trio.sleep(5)
        begun = clock.current_time()
        await drained(b)
        assert clock.current_time() - begun < 1 and peer.open == 0
        assert b.router.longest_drain() == 0.0


async def test_nor_one_that_waits_for_a_rate(bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer:
        async with bench(to(peer, idle_timeout=600, connection_limit=1, max_message_rate="1/100s")) as b:
            await b.submit_many(2)
            await b.records("Delivery")
            await trio.sleep(5)
            assert peer.open == 1 and b.router.statistics().ready == 0
            begun = clock.current_time()
            await drained(b)
            assert clock.current_time() - begun < 1.5 and b.log.kinds() == ["Delivery"]
            assert b.router.statistics().ready == b.spool.statistics().messages == 1


async def test_what_is_being_sent_is_finished(bench: Any, clock: MockClock) -> None:
    """And only that: not the message behind it, though its commands went out with the same segment."""
    async with open_peer(slowly(taken=1)) as peer:
        async with bench(to(peer, connection_limit=1, system_shutdown_timeout=30)) as b:
            await b.submit_many(4)
            await b.until(lambda: "DATA" in peer.words())
            await trio.sleep(0.5)
            begun = clock.current_time()
            assert b.router.longest_drain() == 30
            await drained(b)
            assert 0.4 <= clock.current_time() - begun <= 3
            assert set(b.log.kinds()) == {"Delivery"}
            assert len(b.log.records) == len(peer.arrived) <= 2
            assert b.spool.statistics().messages == b.router.statistics().queued == 4 - len(peer.arrived)


async def test_a_message_that_arrives_meanwhile_stays_for_the_next_start(
    bench: Any, clock: MockClock
) -> None:
    async with open_peer(slowly(taken=1)) as peer, bench(to(peer, connection_limit=1)) as b:
        await b.submit("one@example.com")
        await b.until(lambda: "DATA" in peer.words())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(drained, b)
            await trio.sleep(0.2)
            await b.submit("two@example.com")
            await b.submit("three@elsewhere.example")
        assert b.outcomes() == {"one": ["Delivery"]} and peer.connections == 1
        assert b.spool.statistics().messages == b.router.statistics().queued == 2


# A session without an end


async def test_no_peer_keeps_a_session_with_a_body_that_drags_on(
    bench: Any, clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C18: it reads each slice of a large body just within the time for it."""
    monkeypatch.setattr(session, "_SESSION_LIMIT", 600.0)

    async def script(wire: Wire) -> None:
        await wire.up_to_data()
        while True:
            await trio.sleep(50)
            octets = 0
            while octets < 1024 * 1024:
                await wire.more()
                octets += len(wire.buffer)
                wire.buffer.clear()

    body = b"Subject: x\r\n\r\n" + (b"x" * 998 + b"\r\n") * 24_000
    async with open_peer(script, window=64 * 1024) as peer, bench(to(peer, data_timeout=400)) as b:
        await b.submit(body=body)
        record = await b.first(seconds=2000)
        assert record.type == "TransientFailure" and 580 <= clock.current_time() <= 650
        await b.until(lambda: not b.router._crew.sessions)
