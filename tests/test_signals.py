"""engine/signals.py: what a signal does before, in and after the event loop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import trio

from engine.signals import LAST_RESORT, Signals, Stopped

STOP = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def alarms(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The alarms that were set; none ever rings."""
    found: list[int] = []
    monkeypatch.setattr("engine.signals.signal.alarm", found.append)
    before = [signal.getsignal(number) for number in (*STOP, signal.SIGHUP, signal.SIGALRM)]
    yield found
    assert before == [signal.getsignal(number) for number in (*STOP, signal.SIGHUP, signal.SIGALRM)]
    assert found[-1] == 0


@pytest.mark.parametrize("number", STOP)
def test_before_the_loop_a_stop_is_raised(number: signal.Signals, alarms: list[int]) -> None:
    with Signals() as signals:
        with pytest.raises(Stopped):
            signal.raise_signal(number)
        assert alarms == [LAST_RESORT]
        assert signals.note_only(), "also when somebody caught it and went on"
        signal.raise_signal(number)
        assert signals.stops == 2


def test_hanging_up_before_the_loop_stops_nothing(alarms: list[int]) -> None:
    with Signals() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert not signals.note_only()
        assert alarms == []


def test_hanging_up_may_have_been_switched_off(alarms: list[int]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_between_policy_and_loop_nothing_is_lost(alarms: list[int]) -> None:
    async def life() -> list[int]:
        with signals.in_loop():
            return [await signals.wait(), await signals.wait()]

    with Signals() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert not signals.note_only()
        signal.raise_signal(signal.SIGTERM)
        assert trio.run(life) == [signal.SIGHUP, signal.SIGTERM]
        signal.raise_signal(signal.SIGTERM)  # after the loop: too late to matter


async def test_in_the_loop_a_sleeping_task_is_told(alarms: list[int]) -> None:
    found: list[int] = []

    async def listen() -> None:
        while True:
            found.append(await signals.wait())

    with Signals() as signals, signals.in_loop():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                await trio.testing.wait_all_tasks_blocked()
                os.kill(os.getpid(), number)
                await trio.testing.wait_all_tasks_blocked()
            assert found == [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]
            nursery.cancel_scope.cancel()
    assert alarms == [LAST_RESORT, LAST_RESORT, 0]


async def test_signals_that_come_together_are_all_told(alarms: list[int]) -> None:
    with Signals() as signals, signals.in_loop():
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGTERM):
            signal.raise_signal(number)
        with trio.fail_after(5):
            assert [await signals.wait() for _ in range(3)] == [15, 1, 15]


async def test_the_alarm_follows_the_drain_and_cannot_be_put_off(alarms: list[int]) -> None:
    with Signals() as signals, signals.in_loop():
        for _ in range(5):
            signal.raise_signal(signal.SIGTERM)
        assert alarms == [LAST_RESORT] * 2
        signals.within(59.5)
        assert alarms[-1] == 60 + LAST_RESORT
