"""Time that passes only while nobody has anything to do.

`run` runs a test on a clock that stands still, and a task of its own moves it: when every task waits, no
worker thread is busy and nothing is on its way between sockets, time jumps to the next deadline. So an hour
in which a relay waits costs nothing, an answer that takes long to compute takes no time at all, and a test
gives the same result on a busy machine.

The wall clock, `time.time`, follows for the length of the run: it is the process's own, so one run at a time.
What C code asks for the time is not moved: certificates are judged by the real date.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import trio
from trio.testing import (
    MockClock,
    active_thread_count,
    wait_all_tasks_blocked,
    wait_all_threads_completed,
)

from policy.units import parse_duration

__all__ = ["Stuck", "bare", "run", "run_from", "scenario", "sleep"]

P = ParamSpec("P")
T = TypeVar("T")

_STUCK = 10.0
"""Real seconds in which no deadline comes up and nothing else happens either: a test that would never end."""
_LONGEST = 30 * 86400.0
"""Seconds on the clock of a run after which a test that still waits is taken for one that never ends."""
_GLANCE = 0.001
"""Real seconds between two looks whether something from outside has happened."""


class Stuck(AssertionError):
    """Every task waits for something that nobody will do any more."""


def scenario(test: Callable[P, Awaitable[T]]) -> Callable[P, T]:
    """Decorator: an async test becomes a plain one that `run` runs; its arguments (fixtures) stay."""
    if not inspect.iscoroutinefunction(test):
        name = getattr(test, "__name__", "the function")
        raise TypeError(f"scenario: {name} is no async function; right would be `async def {name}`")

    @functools.wraps(test)
    def plain(*args: P.args, **kwargs: P.kwargs) -> T:
        return run(test, *args, **kwargs)

    return plain


def run(test: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an async function on a clock of its own, and return what it returns.

    Raises: whatever it raises; of a group with one exception in it that exception. Stuck.
    """
    return run_from(time.time(), functools.partial(test, *args, **kwargs))


def run_from(begun: float, test: Callable[[], Awaitable[T]]) -> T:
    """As `run`; the clock begins at the Unix time `begun`."""
    clock = MockClock()
    with _wall_clock(clock, begun), bare():
        return trio.run(_main, clock, test, clock=clock)


async def _main(clock: MockClock, test: Callable[[], Awaitable[T]]) -> T:
    result: list[T] = []
    with trio.CancelScope() as scope:
        # Not in a nursery, which would wrap what the test raises.
        trio.lowlevel.spawn_system_task(_move, clock, scope)
        result.append(await test())
    if not result:
        raise Stuck(
            f"the test waits for something that does not happen: nothing is due any more, or "
            f"{_LONGEST / 86400:g} days of its clock are over"
        )
    return result[0]


async def _move(clock: MockClock, scope: trio.CancelScope) -> None:
    """The task that makes time pass."""
    idle = 0.0
    while True:
        await wait_all_tasks_blocked()
        if active_thread_count():
            await wait_all_threads_completed()
            continue
        left = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if clock.current_time() + left < _LONGEST:
            idle = 0.0
            clock.jump(max(left, 0.0))
            continue
        begun = time.perf_counter()
        await trio.to_thread.run_sync(time.sleep, _GLANCE)
        idle += time.perf_counter() - begun
        if idle > _STUCK or left < float("inf"):
            scope.cancel()
            return


@contextmanager
def _wall_clock(clock: MockClock, begun: float) -> Iterator[None]:
    real = time.time
    time.time = lambda: begun + clock.current_time()
    try:
        yield
    finally:
        time.time = real


@contextmanager
def bare() -> Iterator[None]:
    """Of a group with one exception in it, however deep, only that exception leaves the block: the nurseries
    of a relay mean nothing to a test."""
    try:
        yield
    except BaseExceptionGroup as group:
        only: BaseException = group
        while isinstance(only, BaseExceptionGroup) and len(only.exceptions) == 1:
            only = only.exceptions[0]
        if isinstance(only, BaseExceptionGroup):
            raise
        raise only from only.__cause__


async def sleep(duration: float | str) -> None:
    """Let time pass: seconds, or text like ``"1 hour"``. Raises: ValueError for what is no duration."""
    await trio.sleep(parse_duration(duration))
