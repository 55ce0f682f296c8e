"""Fixtures: a router on its bench, and a clock that waits for nobody."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Any

import pytest
from trio.testing import MockClock

from engine.egress import tls
from tests.support.bench import open_bench

_QUIET = 0.006
"""Seconds without any octet or runnable task after which time jumps. The peers live in the same process,
and the kernel's loopback hands over within the send call, so nothing is under way then."""


@pytest.fixture
def bench() -> Callable[..., Any]:
    """`async with bench({...hooks...}) as b`."""
    return open_bench


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> MockClock:
    """Time that jumps to the next deadline as soon as nobody has anything to do; the wall clock follows.

    A test that asks for it may wait for an hour, and does not depend on how busy the machine is. Not
    for tests whose code under test works in threads: while a thread works nobody seems to. So TLS contexts
    are made in the event loop here.
    """

    async def in_place(setting: tls.TlsSetting) -> ssl.SSLContext:
        return tls._make(setting)

    monkeypatch.setattr(tls, "_in_thread", in_place)
    clock = MockClock(autojump_threshold=_QUIET)
    begun = time.time()
    monkeypatch.setattr(time, "time", lambda: begun + clock.current_time())
    return clock
