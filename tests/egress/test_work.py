"""engine/egress/work.py: who is suspected of stumbling, and rates that are given back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from engine.egress import work
from engine.egress.work import (
    Stumblers,
    connection_rate,
    give_back_rates,
    message_not_sent,
    message_rate,
)
from engine.queues.limits import LocalLimits
from engine.queues.ready import ReadyQueue
from policy.egress import EgressPath, EgressSource
from policy.units import parse_throttle
from tests.support.bench import to
from tests.support.peer import DROP, open_peer

HOST = "192.0.2.1"


# Suspicion


async def test_twice_within_the_hour_is_once_too_often(clock: MockClock) -> None:
    stumblers = Stumblers()
    assert not stumblers.suspect(HOST) and not stumblers.has(HOST)
    await trio.sleep(3590)
    assert not stumblers.suspect("192.0.2.2"), "each host for itself"
    assert stumblers.suspect(HOST) and stumblers.has(HOST)
    assert not stumblers.has("192.0.2.2")


async def test_twice_within_a_day_is_not(clock: MockClock) -> None:
    stumblers = Stumblers()
    for _ in range(5):
        assert not stumblers.suspect(HOST)
        await trio.sleep(3610)
    assert not stumblers.has(HOST)
    assert not stumblers.suspect(HOST)
    await trio.sleep(60)
    assert stumblers.suspect(HOST), "the last suspicion is the one that counts"


async def test_a_day_later_it_takes_two_again(clock: MockClock) -> None:
    stumblers = Stumblers()
    stumblers.suspect(HOST)
    stumblers.suspect(HOST)
    await trio.sleep(24 * 3600 + 1)
    assert not stumblers.has(HOST)
    assert not stumblers.suspect(HOST) and not stumblers.has(HOST)


async def test_one_that_is_known_at_once_is_not_suspected_besides(clock: MockClock) -> None:
    stumblers = Stumblers()
    stumblers.suspect(HOST)
    stumblers.add(HOST)
    assert stumblers.has(HOST) and not stumblers._suspected


async def test_suspicions_are_bounded(clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_STUMBLERS", 10)
    stumblers = Stumblers()
    for i in range(200):
        stumblers.suspect(f"192.0.2.{i}")
        assert len(stumblers._suspected) <= 11
    assert stumblers.suspect("192.0.2.199")


async def test_stumblers_are_bounded_however_many_stumble_in_a_day(
    clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_STUMBLERS", 10)
    stumblers = Stumblers()
    for i in range(200):
        stumblers.add(f"192.0.2.{i}")
        stumblers.add("192.0.2.255")
        assert len(stumblers._until) <= 10
    assert stumblers.has("192.0.2.199") and stumblers.has("192.0.2.255") and not stumblers.has("192.0.2.100")


async def test_one_lost_connection_makes_no_stumbler(bench: Any, clock: MockClock) -> None:
    async with open_peer(replies={".": ["250 taken", DROP, "250 taken"]}) as peer:
        async with bench(to(peer, connection_limit=1)) as b:
            await b.submit_many(5)
            await b.records("Delivery", 5, seconds=120)
            assert not b.router.services.stumblers.has("127.0.0.1")
            peer.replies["."] = ["250 taken", DROP, "250 taken"]
            await b.submit_many(5)
            await b.records("Delivery", 10, seconds=120)
            assert b.router.services.stumblers.has("127.0.0.1"), "the second one does"


@pytest.mark.parametrize("refusal", ["501 5.1.7 bad sender", "554 5.7.1 rejected"])
async def test_one_odd_sender_makes_no_stumbler(refusal: str, bench: Any, clock: MockClock) -> None:
    """Its MAIL is refused behind a final dot, and again when it is sent plainly: the sender it is."""
    replies: dict[str, Any] = {"MAIL": lambda line: refusal if "odd" in line else "250 ok"}
    async with open_peer(replies=replies) as peer, bench(to(peer, connection_limit=1)) as b:
        for _ in range(3):
            await b.submit()
            await b.submit(sender="odd@x.example")
            await b.submit()
        await b.records("Delivery", 6)
        await b.records("Bounce", 3)
        assert not b.router.services.stumblers.has("127.0.0.1") and len(b.log.records) == 9


# Rates


def queue(*, message: str | None = None, connection: str | None = None) -> ReadyQueue:
    path = EgressPath(
        max_message_rate=parse_throttle(message) if message else None,
        max_connection_rate=parse_throttle(connection) if connection else None,
    )
    return ReadyQueue(EgressSource(name="src"), SimpleNamespace(name="site"), path, LocalLimits())


def test_a_message_given_back_may_go_at_once() -> None:
    limits, ready = LocalLimits(), queue(message="2/min")
    assert [message_rate(limits, ready, 0.0) for _ in range(3)] == [0.0, 0.0, 30.0]
    message_not_sent(limits, ready, 0.0)
    assert message_rate(limits, ready, 0.0) == 0.0 < message_rate(limits, ready, 0.0)


def test_a_message_given_back_is_no_connection() -> None:
    limits, ready = LocalLimits(), queue(message="1/min", connection="1/min")
    assert message_rate(limits, ready, 0.0) == connection_rate(limits, ready, 0.0) == 0.0
    message_not_sent(limits, ready, 0.0)
    assert message_rate(limits, ready, 0.0) == 0.0 and connection_rate(limits, ready, 0.0) == 60.0


def test_a_session_that_found_nothing_gives_both_back() -> None:
    limits, ready = LocalLimits(), queue(message="1/min", connection="1/min")
    for _ in range(5):
        assert message_rate(limits, ready, 0.0) == connection_rate(limits, ready, 0.0) == 0.0
        give_back_rates(limits, ready, 0.0)
    message_rate(limits, ready, 0.0)
    connection_rate(limits, ready, 0.0)
    assert message_rate(limits, ready, 0.0) == connection_rate(limits, ready, 0.0) == 60.0


@pytest.mark.parametrize("only", ["message", "connection"])
def test_one_rate_without_the_other(only: str) -> None:
    limits, ready = LocalLimits(), queue(**{only: "1/min"})
    for _ in range(3):
        assert message_rate(limits, ready, 0.0) == connection_rate(limits, ready, 0.0) == 0.0
        give_back_rates(limits, ready, 0.0)


def test_without_rates_nothing_is_counted() -> None:
    limits, ready = LocalLimits(), queue()
    for _ in range(100):
        assert message_rate(limits, ready, 0.0) == connection_rate(limits, ready, 0.0) == 0.0
    give_back_rates(limits, ready, 0.0)
    assert not limits._rates
