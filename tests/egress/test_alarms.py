"""engine/egress/alarms.py: moments that are numbers, and one task that looks at them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from engine.egress.alarms import _GRAIN, Alarm, Alarms


class Looks(trio.abc.Instrument):
    """Counts the steps of the task that watches."""

    def __init__(self) -> None:
        self.number = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.number += task.name.endswith("Alarms.run")


@asynccontextmanager
async def watched() -> AsyncIterator[tuple[Alarms, Looks]]:
    """Alarms that go off."""
    alarms, looks = Alarms(), Looks()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarms.run)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(looks)
        yield alarms, looks
        trio.lowlevel.remove_instrument(looks)
        nursery.cancel_scope.cancel()


class Bell:
    """An alarm, and when it went off."""

    def __init__(self, alarms: Alarms) -> None:
        self.rung: list[float] = []
        self.alarm = Alarm(alarms, lambda: self.rung.append(trio.current_time()))
        self.alarm.open()


async def test_it_goes_off_once_at_its_moment(clock: MockClock) -> None:
    async with watched() as (alarms, _):
        bell = Bell(alarms)
        bell.alarm.move(trio.current_time() + 7)
        await trio.sleep(100)
        assert bell.rung == [pytest.approx(7, abs=_GRAIN)] and bell.rung[0] >= 7


async def test_the_moment_counts_that_it_was_moved_to_last(clock: MockClock) -> None:
    async with watched() as (alarms, _):
        later, sooner = Bell(alarms), Bell(alarms)
        later.alarm.move(5)
        sooner.alarm.move(500)
        await trio.sleep(1)
        later.alarm.move(50)
        sooner.alarm.move(3)
        await trio.sleep(100)
        assert sooner.rung == [pytest.approx(3, abs=_GRAIN)] and later.rung == [pytest.approx(50, abs=_GRAIN)]


async def test_it_does_not_go_off(clock: MockClock) -> None:
    async with watched() as (alarms, _):
        off, closed, never = Bell(alarms), Bell(alarms), Bell(alarms)
        for bell in (off, closed):
            bell.alarm.move(trio.current_time() + 5)
        off.alarm.off()
        closed.alarm.close()
        await trio.sleep(1000)
        assert off.rung == closed.rung == never.rung == [] and len(alarms) == 2


async def test_to_move_it_on_and_on_wakes_nobody(clock: MockClock) -> None:
    async with watched() as (alarms, looks):
        bell = Bell(alarms)
        for _ in range(200):
            bell.alarm.move(trio.current_time() + 300)
            await trio.sleep(3)
        assert not bell.rung and looks.number <= 3


async def test_an_earlier_moment_of_another_one_is_not_slept_over(clock: MockClock) -> None:
    async with watched() as (alarms, _):
        first, second = Bell(alarms), Bell(alarms)
        first.alarm.move(300)
        await trio.sleep(20)
        second.alarm.move(30)
        await trio.sleep(20)
        assert second.rung == [pytest.approx(30, abs=_GRAIN)] and not first.rung
        await trio.sleep(300)
        assert first.rung == [pytest.approx(300, abs=_GRAIN)]


async def test_moments_that_lie_close_together_are_looked_at_together(clock: MockClock) -> None:
    async with watched() as (alarms, looks):
        bells = [Bell(alarms) for _ in range(1000)]
        for number, bell in enumerate(bells):
            bell.alarm.move(1 + number / 1000)
        await trio.sleep(10)
        assert looks.number <= 1 / _GRAIN + 3
        for number, bell in enumerate(bells):
            (at,) = bell.rung
            assert 0 <= at - (1 + number / 1000) <= _GRAIN + 1e-6


async def test_what_is_past_already_goes_off_soon(clock: MockClock) -> None:
    async with watched() as (alarms, _):
        bell = Bell(alarms)
        await trio.sleep(5)
        bell.alarm.move(2)
        await trio.sleep(1)
        assert bell.rung == [pytest.approx(5, abs=_GRAIN)]


async def test_one_that_was_set_before_anybody_watched(clock: MockClock) -> None:
    alarms = Alarms()
    bell = Bell(alarms)
    bell.alarm.move(5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarms.run)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert bell.rung == [pytest.approx(5, abs=_GRAIN)]


async def test_it_may_be_set_again_when_it_has_gone_off(clock: MockClock) -> None:
    async with watched() as (alarms, _):
        bell = Bell(alarms)
        bell.alarm.move(2)
        await trio.sleep(4)
        bell.alarm.move(6)
        await trio.sleep(4)
        assert bell.rung == [pytest.approx(2, abs=_GRAIN), pytest.approx(6, abs=_GRAIN)]
