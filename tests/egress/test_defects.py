"""A defect of ours, met by one message, loses nothing and harms nobody else (reliability O6, Y1).

Wherever it is met, the message has a place afterwards in which it waits to be tried again, and the
engine goes on. The defects here are made up: an exception that no code expects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

import policy
from tests.support.bench import to
from tests.support.peer import open_peer


class Defect(RuntimeError):
    """Made up."""


def in_places(b: Any) -> int:
    """Messages in one of their places; the others are in the hands of sessions."""
    statistics = b.router.statistics()
    return int(statistics.timed + statistics.waiting + statistics.ready)


def broken(real: Callable[..., Any], meets: Callable[..., bool]) -> Callable[..., Any]:
    """`real`, which fails where `meets` says so of its arguments."""

    def fails(*arguments: Any, **options: Any) -> Any:
        if meets(*arguments):
            raise Defect
        return real(*arguments, **options)

    return fails


def once() -> Callable[..., bool]:
    """True the first time."""
    left = [True]
    return lambda *_: bool(left) and left.pop()


async def test_in_settling(bench: Any, clock: MockClock) -> None:
    """The peer took the second message and its record cannot be written. The third one's commands were
    sent along with it: that one is innocent and untried."""
    async with open_peer() as peer, bench(to(peer, connection_limit=1)) as b:
        await b.submit("first@example.com")
        await b.records("Delivery")
        await b.until(lambda: peer.open == 0)
        b.log.write = broken(
            b.log.write, lambda record: record.recipient == "bad@example.com" and record.type == "Delivery"
        )
        for name in ("one", "bad", "two", "three"):
            await b.submit(f"{name}@example.com")
        await b.records("Delivery", 4)
        assert "bad" not in b.outcomes()
        assert {name: b.outcomes()[name] for name in ("one", "two", "three")} == {
            name: ["Delivery"] for name in ("one", "two", "three")
        }
        assert len(peer.arrived) == 5
        await trio.sleep(1)
        assert b.router.statistics().queued == in_places(b) == b.spool.statistics().messages == 0


async def test_in_settling_a_refusal(bench: Any, clock: MockClock) -> None:
    """Nothing was noted of it, so it is tried again."""
    replies: dict[str, Any] = {"RCPT": lambda line: "451 4.2.1 later" if "bad" in line else "250 ok"}
    async with open_peer(replies=replies) as peer, bench(to(peer, connection_limit=1)) as b:
        dice = b.router.settler._dice
        dice.random = broken(dice.random, once())
        for name in ("one", "bad", "two"):
            await b.submit(f"{name}@example.com")
        await b.records("Delivery", 2)
        await b.records("TransientFailure")
        assert b.router.statistics().queued == in_places(b) == 1
        peer.replies.clear()
        await b.records("Delivery", 3, seconds=200)
        assert b.outcomes()["one"] == b.outcomes()["two"] == ["Delivery"]


async def test_in_reading(bench: Any, clock: MockClock) -> None:
    """Met by the session, and again when the failure is to be settled: the message must be read for both."""
    async with open_peer() as peer, bench(to(peer, connection_limit=1, idle_timeout=0)) as b:
        await b.submit()
        await b.records("Delivery")
        b.router._resident_limit = 0
        bad = True
        read = b.spool.read
        last = b.spool.store.last
        b.spool.read = broken(read, lambda handle: bad and handle.ordinal == last + 1)
        await b.submit("bad@example.com")
        await b.submit("good@example.com")
        await b.records("Delivery", 2, seconds=30)
        assert b.outcomes()["good"] == ["Delivery"]
        await b.until(lambda: not b.router._crew.sessions, 30)
        assert in_places(b) == b.router.statistics().queued == 1
        bad = False
        await b.records("Delivery", 3, seconds=120)
        assert b.router.statistics().queued == b.router.settler.resident == 0


async def test_in_settling_a_whole_queue(bench: Any, clock: MockClock) -> None:
    """One message of a queue that gets one outcome together: the others get it all the same."""
    path = {"connection_limit": 1, "consecutive_connection_failures_before_delay": 1}
    async with open_peer(replies={"connect": "421 4.3.2 busy"}) as peer, bench(to(peer, **path)) as b:
        bad = True
        b.log.write = broken(b.log.write, lambda record: bad and record.recipient == "bad@example.com")
        for name in ("one", "bad", "two"):
            await b.submit(f"{name}@example.com")
        await b.records("TransientFailure", 2)
        await b.until(lambda: not b.router._crew.sessions)
        assert sorted(b.outcomes()) == ["one", "two"]
        assert in_places(b) == b.router.statistics().queued == 3
        bad = False
        peer.replies.clear()
        await b.records("Delivery", 3, seconds=300)


async def test_in_settling_a_line_without_route(bench: Any, clock: MockClock) -> None:
    """The line goes on waiting, and so does the engine: for the next look at its routes."""
    async with open_peer() as peer:
        hooks = to(peer)
        good = hooks["get_queue_config"]

        def config(domain: str, *names: str) -> object:
            return policy.make_queue_config() if domain == "nowhere.example" else good(domain, *names)

        async with bench({**hooks, "get_queue_config": config}) as b:
            b.router._resident_limit = 0
            read = b.spool.read
            b.spool.read = broken(read, lambda handle: True)
            await b.submit("x@nowhere.example")
            await trio.sleep(1)
            assert in_places(b) == b.router.statistics().queued == 1
            b.spool.read = read
            await b.submit("y@example.com")
            await b.records("Delivery")
            await b.records("Bounce", seconds=100)
            assert b.router.statistics().queued == 0


async def test_in_looking_for_routes(bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer, bench(to(peer)) as b:
        b.router._finder.find = broken(b.router._finder.find, once())
        await b.submit()
        await b.records("TransientFailure")
        assert b.log.records[0].num_attempts == 0 and "diagnostics" in b.log.records[0].content
        await b.records("Delivery", seconds=120)


async def test_in_connecting(bench: Any, clock: MockClock) -> None:
    """A stranger may have said what nobody expects. That is an attempt: the mail must not wait for ever."""
    options: dict[str, Any] = {"connection_limit": 1, "idle_timeout": 0, "queue": {"max_age": "1h"}}
    async with open_peer() as peer, bench(to(peer, **options)) as b:
        real = b.router.services.dialer.open
        b.router.services.dialer.open = broken(real, once())
        for name in ("one", "two"):
            await b.submit(f"{name}@example.com")
        await b.records("Delivery", 2, seconds=100)
        (failed,) = b.recorded("TransientFailure")
        assert failed.num_attempts == 1 and "diagnostics" in failed.content
        b.router.services.dialer.open = broken(real, lambda *_: True)
        await b.submit("three@example.com")
        await b.records("Expiration", seconds=7200)
        assert b.router.statistics().queued == 0


async def test_in_placing_what_is_due(bench: Any, clock: MockClock) -> None:
    async with open_peer(replies={"RCPT": ["451 4.2.1 later", "250 ok"]}) as peer, bench(to(peer)) as b:
        await b.submit()
        await b.records("TransientFailure")
        b.router._promote = broken(b.router._promote, once())
        await trio.sleep(90)
        assert in_places(b) == 1 and len(peer.arrived) == 0
        await b.records("Delivery", seconds=60)


@pytest.mark.parametrize("what", ["set_to_work", "_refresh_for"])
async def test_in_looking_at_a_queue_that_stands_still(what: str, bench: Any, clock: MockClock) -> None:
    path = {"enable_tls": "Required", "hold_interval": 10}
    async with open_peer() as peer, bench(to(peer, **path)) as b:
        await b.submit()
        await b.records("TransientFailure")
        await b.until(lambda: not b.router._crew.sessions)
        before = peer.connections
        whose = b.router if hasattr(b.router, what) else b.router._crew
        setattr(whose, what, broken(getattr(whose, what), once()))
        await trio.sleep(15)
        assert peer.connections == before and in_places(b) == 1
        await b.records("TransientFailure", 2, seconds=70)


async def test_in_sweeping(bench: Any, clock: MockClock) -> None:
    async with open_peer() as peer, bench(to(peer, queue={"reap_interval": 10})) as b:
        await b.submit()
        await b.records("Delivery")
        b.router._finder.sweep = broken(b.router._finder.sweep, once())
        await trio.sleep(70)
        await b.submit()
        await b.records("Delivery", 2)
        await trio.sleep(1300)
        assert b.router.statistics().scheduled_queues == b.router.statistics().ready_queues == 0
