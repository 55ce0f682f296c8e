"""engine/hooks.py: whatever a hook does, its caller gets an answer, `Reject` or `HookError`."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any

import pytest
import trio

import engine.hooks
import policy
from engine.errors import HookError
from engine.hooks import Hooks
from policy.hooks import EVENTS, HookTable, on, registering

REFUSABLE = [event for event in EVENTS if event.startswith("smtp_server") or event == "get_listener_domain"]
ANY = "smtp_server_rcpt_to"


def hooks_of(event: str, *functions: Callable[..., Any], keysource: bool = False) -> Hooks:
    table = HookTable()
    token = registering.set(table)
    try:
        for function in functions:
            on(event, keysource=keysource)(function)
    finally:
        registering.reset(token)
    return Hooks(table)


def doing(action: Callable[[], Any], kind: str) -> Callable[..., Any]:
    def plain(*args: Any) -> Any:
        return action()

    async def at_once(*args: Any) -> Any:
        return action()

    async def waiting(*args: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return action()

    return {"plain": plain, "at once": at_once, "waiting": waiting}[kind]


KINDS = ["plain", "at once", "waiting"]


def raising(error: BaseException) -> Callable[[], Any]:
    def action() -> Any:
        raise error

    return action


class Mute(BaseException):
    """Says nothing about itself."""

    def __str__(self) -> str:
        raise SystemExit(9)

    __repr__ = __str__


ERRORS = [
    ValueError("x"), Exception(), BaseException(), KeyboardInterrupt(), SystemExit(3), GeneratorExit(),
    StopIteration(1), StopAsyncIteration(), MemoryError(), RecursionError(), asyncio.CancelledError(), Mute(),
    ExceptionGroup("g", [ValueError()]), BaseExceptionGroup("g", [KeyboardInterrupt()]),
    BaseExceptionGroup("g", [SystemExit(1), ValueError()]),
    ExceptionGroup("g", [policy.Reject(550, "no"), ValueError()]),
    trio.Cancelled._create(source="unknown"),  # type: ignore[attr-defined]
    BaseExceptionGroup("g", [trio.Cancelled._create(source="unknown")]),  # type: ignore[attr-defined]
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("event", [*EVENTS, "key-source"])
async def test_whatever_a_hook_raises_is_a_hook_error(event: str, kind: str) -> None:
    args = (None,) * len(EVENTS[event].arguments) if event in EVENTS else ()
    for error in ERRORS:
        hooks = hooks_of(event, doing(raising(error), kind), keysource=event not in EVENTS)
        with pytest.raises(HookError, match=rf"test_hooks.py:\d+ in .*: {event} raised \w+ at ") as caught:
            await hooks.call(event, *args)
        assert caught.value.__cause__ is not None
        fast = hooks.fast(event)
        assert (fast is None) == (kind != "plain")
        if fast is not None:
            with pytest.raises(HookError):
                fast(*args)
        assert hooks.running is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("event", EVENTS)
async def test_a_reject_passes_where_a_client_waits_for_it(event: str, kind: str) -> None:
    reject = policy.Reject(550, "5.7.1 no")
    hooks = hooks_of(event, doing(raising(reject), kind))
    with pytest.raises(policy.Reject if event in REFUSABLE else HookError) as caught:
        await hooks.call(event, *(None,) * len(EVENTS[event].arguments))
    if event in REFUSABLE:
        assert caught.value is reject
        assert reject.__cause__ is None


async def test_a_reject_may_come_out_of_a_nursery_of_the_hook() -> None:
    async def in_the_body(*args: Any) -> None:
        async with trio.open_nursery():
            raise policy.Reject(550, "5.7.1 not you")

    async def in_a_task(*args: Any) -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(trio.sleep_forever)
            inner.start_soon(refuse)
            await trio.sleep_forever()

    async def with_a_defect(*args: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError

    for hook in (in_the_body, in_a_task):
        with pytest.raises(policy.Reject, match=r"no"):
            await hooks_of(ANY, hook).call(ANY, None, None)
        with pytest.raises(HookError):
            await hooks_of("get_queue_config", hook).call("get_queue_config", *(None,) * 4)
    with pytest.raises(HookError):
        await hooks_of(ANY, with_a_defect).call(ANY, None, None)


async def test_a_hook_that_swallows_cancellation_is_named(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def stubborn(*args: Any) -> None:
        for _ in range(150):
            try:
                await trio.sleep(40)
            except trio.Cancelled:
                caught.append(1)

    caught: list[int] = []
    await hooks_of(ANY, stubborn).call(ANY, None, None)
    assert len(caught) == 150
    # A busy machine may have made it hold the loop besides, which is another line.
    said = [text for text in caplog.messages if "held the event loop" not in text]
    assert len(said) == 1 and "although it is cancelled" in said[0]


async def test_cancellation_passes() -> None:
    async def waiting(*args: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()

    async def with_a_defect_too(*args: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError

    with trio.CancelScope() as scope:
        scope.cancel()
        await hooks_of(ANY, waiting).call(ANY, None, None)
    assert scope.cancelled_caught
    with trio.CancelScope() as scope, pytest.raises(HookError, match="ValueError"):
        scope.cancel()
        await hooks_of(ANY, with_a_defect_too).call(ANY, None, None)


async def test_a_hook_that_waits_too_long(autojump_clock: trio.testing.MockClock) -> None:
    async def forever(*args: Any) -> None:
        await trio.sleep_forever()

    with pytest.raises(HookError, match="not done after 30 s"):
        await hooks_of(ANY, forever).call(ANY, None, None)
    assert trio.current_time() == 30


async def refuse(*args: Any) -> None:
    await trio.lowlevel.checkpoint()
    raise policy.Reject(550, "5.7.1 nobody")


def hiding(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that says nothing of what it wraps."""

    def inner(*args: Any) -> Any:
        return function(*args)

    return inner


def wrapping(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as they should be."""
    return functools.wraps(function)(hiding(function))


class Plain:
    def __call__(self, *args: Any) -> Any:
        return refuse()


class Waiting:
    async def __call__(self, recipient: Any, conn_meta: Any) -> Any:
        await refuse()


@pytest.mark.parametrize(
    "hook",
    [
        *(wrapping(refuse), wrapping(wrapping(refuse)), functools.partial(refuse)),
        *(wrapping(functools.partial(refuse)), Waiting(), wrapping(Waiting())),
    ],
)
async def test_an_async_hook_behind_a_decorator_is_awaited(hook: Callable[..., Any]) -> None:
    hooks = hooks_of(ANY, hook)
    assert hooks.fast(ANY) is None
    with pytest.raises(policy.Reject, match="nobody"):
        await hooks.call(ANY, None, None)


class Later:
    def __await__(self) -> Any:
        return refuse().__await__()


def _generator() -> Any:
    yield


async def _async_generator() -> Any:
    yield


NOT_RUN = [hiding(refuse), lambda *args: refuse(), Plain(), lambda *args: Later(),
           lambda *args: _generator(), lambda *args: _async_generator(),
           lambda *args: policy.Reject(550, "returned"), doing(lambda: refuse(), "waiting")]  # fmt: skip


@pytest.mark.parametrize("number", range(len(NOT_RUN)))
@pytest.mark.parametrize("event", EVENTS)
async def test_an_answer_that_says_the_hook_did_not_run_is_an_error(event: str, number: int) -> None:
    hooks = hooks_of(event, NOT_RUN[number])
    args = (None,) * len(EVENTS[event].arguments)
    with pytest.raises(HookError, match=f"{event} returned a (coroutine|generator|Reject)"):
        await hooks.call(event, *args)
    fast = hooks.fast(event)
    if fast is not None:
        with pytest.raises(HookError):
            fast(*args)


@pytest.mark.parametrize("function", [_generator, _async_generator, wrapping(_generator)])
def test_a_hook_that_yields_is_refused_at_load(function: Callable[..., Any]) -> None:
    with pytest.raises(policy.PolicyError, match="yield"):
        hooks_of("pre_init", function)


async def test_a_decorator_may_answer_without_its_async_function() -> None:
    @functools.wraps(refuse)
    def cached(*args: Any) -> Any:
        return refuse() if args[0] is None else None

    hooks = hooks_of(ANY, cached)
    assert await hooks.call(ANY, "known", None) is None
    with pytest.raises(policy.Reject):
        await hooks.call(ANY, None, None)


async def test_a_wait_of_another_library_is_a_hook_error() -> None:
    async def foreign(*args: Any) -> None:
        await asyncio.sleep(0)

    async def stubborn(*args: Any) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            await trio.lowlevel.checkpoint()

    for hook in (foreign, stubborn):
        with pytest.raises(HookError, match="TypeError"):
            await hooks_of(ANY, hook).call(ANY, None, None)


async def test_values_and_errors_go_through_the_steps_of_an_async_hook() -> None:
    async def hook(*args: Any) -> Any:
        found: list[int] = []
        send, receive = trio.open_memory_channel[int](1)
        for number in range(3):
            await send.send(number)
            found.append(await receive.receive())
        with trio.move_on_after(0) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        assert found == [0, 1, 2]
        return policy.make_queue_config(max_age="1h")

    answer = await hooks_of("get_queue_config", hook).call("get_queue_config", "a", None, None, None)
    assert answer == policy.make_queue_config(max_age="1h")


@pytest.mark.parametrize("kind", KINDS)
async def test_the_running_hook_is_noted(kind: str) -> None:
    seen: list[Any] = []
    hooks: Hooks

    def look() -> None:
        seen.append((hooks.running, hooks.since))

    hooks = hooks_of(ANY, doing(look, kind))
    for call in (hooks.call(ANY, None, None), hooks.call(ANY, None, None)):
        await call
        assert hooks.running is None
    (hook, first), (again, second) = seen
    assert hook is again
    assert hook.event == ANY
    assert 0 < first < second


async def test_nobody_is_noted_while_a_hook_waits() -> None:
    gate = trio.Event()

    async def hook(*args: Any) -> None:
        await gate.wait()

    hooks = hooks_of(ANY, hook)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hooks.call, ANY, None, None)
        await trio.testing.wait_all_tasks_blocked()
        assert hooks.running is None
        gate.set()


class Clock:
    """Time that passes only when a hook says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1.0
        monkeypatch.setattr(engine.hooks.time, "perf_counter", lambda: self.now)

    def pass_(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seconds", [0.09, 0.11])
async def test_a_hook_that_holds_the_loop_is_named(
    seconds: float, kind: str, fails: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock(monkeypatch)

    def block() -> None:
        clock.pass_(seconds)
        if fails:
            raise policy.Reject(450, "later")

    hooks = hooks_of(ANY, doing(block, kind))
    with caplog.at_level(logging.WARNING):
        if fails:
            with pytest.raises(policy.Reject):
                await hooks.call(ANY, None, None)
        else:
            await hooks.call(ANY, None, None)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (seconds > 0.1)
    assert all(ANY in line and "test_hooks.py:" in line and "110 ms" in line for line in said)


async def test_a_plain_hook_past_its_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    hooks = hooks_of(ANY, doing(lambda: clock.pass_(1.1), "plain"))
    with pytest.raises(HookError, match=r"took 1\.1 s, limit 1 s"):
        await hooks.call(ANY, None, None)
