"""engine/egress/stops.py: orders are carried out among very many queues without keeping the event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from engine.egress import stops
from engine.egress.stops import Stopper
from engine.model import QueueName
from engine.queues.scheduled import ScheduledQueue, Timer
from policy.shaping import Stop

SLICE = 10


class Orders:
    """Stands for the automation: which domains stand still."""

    stops_queues = True

    def __init__(self) -> None:
        self.stopped: set[str] = set()
        self.asked: list[str] = []
        self.stops_changed: Any = None

    def of_queue(self, domain: str, tenant: object, campaign: object, providers: object) -> Stop | None:
        self.asked.append(domain)
        return Stop(1e9, "stopped") if domain in self.stopped else None

    def monotonic(self, moment: float) -> float:
        return moment


class Desk:
    """A stopper among `queues`; `turns`: how often the event loop came round."""

    def __init__(self, queues: Sequence[ScheduledQueue], nursery: trio.Nursery) -> None:
        self.orders = Orders()
        self.services = SimpleNamespace(draining=False)
        self.settler = SimpleNamespace(failed=None)
        self.queues = queues
        self.turns = 0
        finder: Any = SimpleNamespace(ready_queues=lambda: ())
        self.stopper = Stopper(self, nursery, finder, Timer(), self.orders)  # type: ignore[arg-type]

    def scheduled_queues(self) -> Sequence[ScheduledQueue]:
        return self.queues

    def look_at(self, queue: object) -> None:
        pass

    def stopped(self) -> list[str]:
        return [queue.name.domain for queue in self.queues if queue.stop is not None]

    async def count_turns(self) -> None:
        while len(self.stopped()) < 2:
            await trio.lowlevel.checkpoint()
            self.turns += 1


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stops, "_LOOKS", SLICE)


@asynccontextmanager
async def among(count: int) -> AsyncIterator[Desk]:
    queues = [ScheduledQueue(QueueName(f"d{number}.example")) for number in range(count)]
    async with trio.open_nursery() as nursery:
        desk = Desk(queues, nursery)
        yield desk
        nursery.cancel_scope.cancel()


async def test_more_queues_than_a_slice_are_looked_at_with_turns_for_others_between() -> None:
    async with among(10 * SLICE) as desk:
        desk.orders.stopped = {"d3.example", "d97.example"}
        desk.stopper.renew(True, frozenset({"domain:d3.example", "domain:d97.example"}))
        assert desk.stopped() == ["d3.example"], "a slice at once"
        await desk.count_turns()
        assert desk.turns >= 8
        assert desk.orders.asked == ["d3.example", "d97.example"], "no others have to do with it"


async def test_what_changes_during_a_walk_is_carried_out_by_the_next(autojump_clock: MockClock) -> None:
    async with among(10 * SLICE) as desk:
        desk.orders.stopped = {"d99.example"}
        desk.stopper.renew(False, frozenset({"domain:d99.example"}))
        desk.orders.stopped = {"d2.example"}
        for place in ("domain:d99.example", "domain:d2.example"):
            desk.stopper.renew(False, frozenset({place}))
        with trio.fail_after(60):
            while desk.stopped() != ["d2.example"]:
                await trio.sleep(0.001)


async def test_a_stop_that_is_over_is_taken_off_whatever_place_is_told(autojump_clock: MockClock) -> None:
    async with among(3) as desk:
        desk.orders.stopped = {"d1.example"}
        desk.stopper.renew(False, frozenset({"domain:d1.example"}))
        assert desk.stopped() == ["d1.example"]
        desk.orders.stopped = set()
        desk.stopper.renew(False, frozenset({"domain:other.example"}))
        assert desk.stopped() == []


async def test_ready_queues_alone_cost_no_look_at_scheduled_ones() -> None:
    async with among(3) as desk:
        desk.orders.stopped = {"d1.example"}
        desk.stopper.renew(True, frozenset())
        assert desk.orders.asked == []


async def test_a_defect_ends_a_walk_and_not_the_relay(caplog: pytest.LogCaptureFixture) -> None:
    async with among(3 * SLICE) as desk:
        asked = desk.orders.of_queue
        desk.orders.of_queue = lambda *_: 1 // 0  # type: ignore[method-assign]
        desk.stopper.renew(False, frozenset({"domain:d25.example"}))
        while "ZeroDivisionError" not in caplog.text:
            await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        desk.orders.of_queue = asked  # type: ignore[method-assign]
        desk.orders.stopped = {"d25.example"}
        desk.stopper.renew(False, frozenset({"domain:d25.example"}))
        while not desk.stopped():
            await trio.lowlevel.checkpoint()
