"""engine/pressure.py: what the process takes is measured, and two marks have consequences (O1)."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import trio
from trio.testing import MockClock

from engine import pressure as pressure_module
from engine.errors import ConfigError
from engine.pressure import Level, Pressure, resident

MIB = 1 << 20
LIMIT = 1000 * MIB


class Taken:
    """What the process takes."""

    def __init__(self, mib: float) -> None:
        self.mib = mib

    def __call__(self) -> int:
        return int(self.mib * MIB)


def test_the_kernel_is_asked() -> None:
    before = resident()
    held = bytearray(b"x") * (64 * MIB)
    assert 60 * MIB < resident() - before < 80 * MIB
    assert 10 * MIB < before < 1 << 40
    assert held


async def test_two_marks_and_their_ends(caplog: pytest.LogCaptureFixture) -> None:
    taken = Taken(100)
    pressure = Pressure(LIMIT, measure=taken)
    told: list[Level] = []
    steps = [
        (800, Level.CALM),
        (800.1, Level.SOFT),
        (761, Level.SOFT),
        (759, Level.CALM),
        (1001, Level.HARD),
        (951, Level.HARD),
        (949, Level.SOFT),
        (1001, Level.HARD),
        (100, Level.CALM),
    ]
    with caplog.at_level(logging.INFO, "posthorn.memory"), pressure.telling(told.append):
        for mib, level in steps:
            taken.mib = mib
            pressure.look()
            assert pressure.level == level, mib
    S, H, C = Level.SOFT, Level.HARD, Level.CALM
    assert told == [C, S, C, H, S, H, C]
    assert pressure.most == 1001 * MIB
    assert [record.levelname for record in caplog.records] == (
        ["WARNING", "WARNING", "ERROR", "WARNING", "ERROR", "WARNING"]
    )
    assert "1,001 MiB are taken, and the limit is 1,000 MiB: no new mail until" in caplog.text
    taken.mib = 2000
    pressure.look()
    assert told[-1] == C, "nobody is told any more"


async def test_it_is_looked_at_all_the_time_and_said_again(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[float] = []

    async def give_back() -> float:
        given_back.append(trio.current_time())
        return 0.05

    monkeypatch.setattr(pressure_module, "_give_back", give_back)
    taken = Taken(2000)
    pressure = Pressure(LIMIT, measure=taken)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pressure.run)
        await trio.sleep(150)
        assert caplog.text.count("no new mail") == 3
        assert given_back[:15] == [10.0 * number for number in range(15)] and len(given_back) < 17
        pressure._measure = lambda: 1 // 0
        await trio.sleep(1)
        assert "ZeroDivisionError" in caplog.text
        pressure._measure = Taken(1)
        await trio.sleep(1)
        assert pressure.level == Level.CALM
        nursery.cancel_scope.cancel()


def test_what_was_freed_goes_back_to_the_kernel() -> None:
    """Many small pieces, every other of which is freed, stay with the allocator otherwise."""
    pieces = [bytes(2000) for _ in range(100_000)]
    full = resident()
    del pieces[::2], pieces[:25_000]
    trio.run(pressure_module._give_back)
    assert full - resident() > 40 * MIB
    assert pieces


_QUEUED = """
import random, trio
from engine import pressure
from engine.model import QueueName
from engine.queues.queued import Queued
from engine.queues.scheduled import ScheduledQueue, Timer
dice = random.Random(1)
before = pressure.resident()
queue = ScheduledQueue(QueueName("example.com"))
timer = Timer()
for number in range(200_000):
    timer.add(Queued(dice.randbytes(16), number, queue, 0.0, dice.random(), 1000))
full = pressure.resident() - before
while timer.pop_due(2.0, 1000):
    pass
trio.run(pressure._give_back)
print(full, pressure.resident() - before)
"""


def test_what_many_queued_messages_took_goes_back_as_well() -> None:
    """In a process of its own: what others have freed before would be used first."""
    run = subprocess.run([sys.executable, "-c", _QUEUED], capture_output=True, text=True, check=True)
    full, rest = map(int, run.stdout.split())
    assert full > 25 * MIB and rest < full / 3


def test_a_limit_that_leaves_nothing_for_mail_is_an_error() -> None:
    Pressure(LIMIT, measure=Taken(900)).check()
    with pytest.raises(ConfigError, match=r"limit is 1,000 MiB, and the process takes 990 MiB .* 1,996 MiB"):
        Pressure(LIMIT, measure=Taken(990)).check()
