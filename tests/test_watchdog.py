"""engine/watchdog.py: a hook that does not come back is named from outside."""

from __future__ import annotations

import logging
import threading
from typing import Any

import pytest
import trio

from engine import watchdog
from engine.hooks import Hooks
from engine.watchdog import Watchdog, open_watchdog
from policy.hooks import HookTable, on, registering

EVENT = "smtp_server_rcpt_to"


def hooks_of(function: Any) -> Hooks:
    table = HookTable()
    token = registering.set(table)
    try:
        on(EVENT)(function)
    finally:
        registering.reset(token)
    return Hooks(table)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1.0
        monkeypatch.setattr(watchdog.time, "perf_counter", lambda: self.now)


async def test_it_is_named_after_a_second_and_again_after_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)
    said: list[int] = []

    def hang(*args: Any) -> None:
        for seconds in (0.9, 0.2, 30, 29, 2, 58, 3):
            clock.now += seconds
            dog.look()
            said.append(len(caplog.records))

    hooks = hooks_of(hang)
    dog = Watchdog(hooks, threading.get_ident())
    dog.look()
    with pytest.raises(Exception, match="limit 1 s"):
        await hooks.call(EVENT, None, None)
    assert said == [0, 1, 1, 1, 2, 2, 3]
    line = caplog.records[0].getMessage()
    code = hang.__code__
    assert line.startswith(f"{code.co_filename}:{code.co_firstlineno} in hang(): {EVENT} has been holding")
    assert f"for 1.1 s, now at {code.co_filename}:{code.co_firstlineno + 3};" in line
    caplog.clear()
    clock.now += 100
    dog.look()
    assert not caplog.records, "nothing runs"


async def test_a_new_call_begins_anew(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)

    async def busy(*args: Any) -> None:
        for _ in range(5):
            clock.now += 0.9
            dog.look()
            await trio.lowlevel.checkpoint()
            dog.look()

    hooks = hooks_of(busy)
    dog = Watchdog(hooks, threading.get_ident())
    await hooks.call(EVENT, None, None)
    assert not [record for record in caplog.records if "has been holding" in record.getMessage()]
    assert len([record for record in caplog.records if "900 ms" in record.getMessage()]) == 5


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_the_thread_sees_a_hook_that_hangs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_PATIENCE", 0.0)
    monkeypatch.setattr(watchdog, "_LOOK", 0.001)
    named = threading.Event()
    lines: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            named.set()

    def hang(*args: Any) -> None:
        assert named.wait(20)

    async def hang_behind_a_wait(*args: Any) -> None:
        await trio.lowlevel.checkpoint()
        assert named.wait(20)

    hooks = hooks_of(hang if kind == "plain" else hang_behind_a_wait)
    logger, ear = logging.getLogger("posthorn.hooks"), Ear(logging.ERROR)
    logger.addHandler(ear)
    before = threading.active_count()
    try:
        with open_watchdog(hooks):
            assert threading.active_count() == before + 1
            await hooks.call(EVENT, None, None)
    finally:
        logger.removeHandler(ear)
    assert threading.active_count() == before
    assert EVENT in lines[0]
    assert "now at " + __file__ in lines[0], "the hook's own line, not that of the library it waits in"
