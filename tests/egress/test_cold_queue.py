"""A queue without sessions starts as many as it has messages, and tokens are spent on what happens only."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.bench import to
from tests.support.peer import open_peer


def count_starts(b: Any) -> list[bool]:
    """Whether each session that was thought of was started, from now on."""
    starts: list[bool] = []
    start = b.router._crew._start_session

    def counted(*arguments: Any) -> bool:
        starts.append(start(*arguments))
        return starts[-1]

    b.router._crew._start_session = counted
    return starts


@pytest.mark.parametrize("messages", [1, 3, 20])
async def test_no_more_sessions_than_messages(messages: int, bench: Any, clock: MockClock) -> None:
    """Counted before the first of them has had its turn to take one."""
    async with open_peer() as peer, bench(to(peer)) as b:
        starts = count_starts(b)
        await b.submit()
        await b.records("Delivery")
        assert starts == [True]
        await b.until(lambda: not b.router._crew.sessions)
        starts.clear()
        enqueue, committed = b.router.enqueue, []
        b.router.enqueue = lambda *arguments: committed.append(arguments)
        await b.submit_many(messages)
        for arguments in committed:
            enqueue(*arguments)
        assert starts.count(True) == min(messages, 4), "a few go first"
        await b.records("Delivery", messages + 1)


@pytest.mark.parametrize("rate", ["max_message_rate", "max_connection_rate"])
async def test_a_message_costs_one_token(rate: str, bench: Any, clock: MockClock) -> None:
    """Each meets a cold queue with one message."""
    async with open_peer() as peer, bench(to(peer, idle_timeout=0, **{rate: "4/h"})) as b:
        for n in range(1, 5):
            await b.submit()
            await b.records("Delivery", n)
            await b.until(lambda: peer.open == 0)
        assert clock.current_time() < 5
        await b.submit()
        await trio.sleep(800)
        assert len(peer.arrived) == 4
        await b.records("Delivery", 5, seconds=200)


@pytest.mark.parametrize("rate", ["max_message_rate", "max_connection_rate"])
async def test_a_session_that_finds_nothing_gives_its_tokens_back(
    rate: str, bench: Any, clock: MockClock
) -> None:
    """Somebody else took the message before its first step."""
    async with open_peer() as peer, bench(to(peer, idle_timeout=0, **{rate: "4/h"})) as b:
        starts = count_starts(b)
        await b.submit()
        await b.records("Delivery")
        for _ in range(10):
            await b.until(lambda: not b.router._crew.sessions)
            starts.clear()
            await b.submit()
            assert starts == [True]
            (ready,) = b.ready()
            (taken,) = ready.take_all()
            await b.until(lambda: not b.router._crew.sessions)
        assert peer.connections == 1
        ready.put(taken)
        for n in range(2, 5):
            await b.submit()
            await b.records("Delivery", n)
        assert clock.current_time() < 5


async def test_a_message_that_waits_for_a_connection_keeps_its_token(bench: Any, clock: MockClock) -> None:
    """Counted as a message, and then no connection may be made yet: not counted again and again."""
    path = {"idle_timeout": 0, "max_message_rate": "2/h", "max_connection_rate": "1/min"}
    async with open_peer() as peer, bench(to(peer, **path)) as b:
        await b.submit()
        await b.records("Delivery")
        await b.until(lambda: peer.open == 0)
        await b.submit()
        await b.records("Delivery", 2, seconds=70)


async def test_a_peer_that_speaks_behind_its_hello_is_backed_off_from(bench: Any, clock: MockClock) -> None:
    """Its message has had an attempt, and no connection follows at once."""
    hello = "250-peer.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n421 4.3.2 overloaded, go away"
    async with open_peer(replies={"EHLO": hello}) as peer, bench(to(peer, connection_limit=1)) as b:
        await b.submit()
        await trio.sleep(40)
        assert peer.connections == 1 and b.log.kinds() == ["TransientFailure"]
        peer.replies.clear()
        await b.records("Delivery", seconds=2000)
