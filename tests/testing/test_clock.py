"""engine/testing/clock.py: time passes only while nobody has anything to do."""

from __future__ import annotations

import inspect
import socket
import threading
import time
from pathlib import Path

import pytest
import trio

from engine.testing import clock as module
from engine.testing.clock import Stuck, run, run_from, scenario, sleep


@scenario
async def test_a_day_takes_no_time_and_the_wall_clock_follows() -> None:
    begun, wall = time.perf_counter(), time.time()
    await sleep("1 day")
    assert trio.current_time() == 86400.0
    assert time.time() - wall == pytest.approx(86400.0)
    assert time.perf_counter() - begun < 5


@scenario
async def test_what_comes_first_happens_first() -> None:
    order: list[str] = []

    async def after(seconds: float, name: str) -> None:
        await trio.sleep(seconds)
        order.append(name)

    async with trio.open_nursery() as nursery:
        for seconds, name in ((30.0, "late"), (0.1, "soon"), (10.0, "middle")):
            nursery.start_soon(after, seconds, name)
    assert order == ["soon", "middle", "late"] and trio.current_time() == 30.0


@scenario
async def test_no_time_passes_while_a_thread_works() -> None:
    with trio.fail_after(0.001):
        await trio.to_thread.run_sync(time.sleep, 0.05)
    assert trio.current_time() == 0.0


@scenario
async def test_nor_while_something_is_on_its_way_between_two_sockets() -> None:
    ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(s)) for s in socket.socketpair())

    async def back() -> None:
        async for octets in theirs:
            await theirs.send_all(octets)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(back)
        with trio.fail_after(0.001):
            for number in range(1000):
                await ours.send_all(b"%d" % number)
                assert await ours.receive_some() == b"%d" % number
        nursery.cancel_scope.cancel()
    await ours.aclose()
    await theirs.aclose()


@scenario
async def test_news_from_outside_is_waited_for() -> None:
    event = trio.Event()
    token = trio.lowlevel.current_trio_token()
    thread = threading.Timer(0.05, token.run_sync_soon, (event.set,))
    thread.start()
    await event.wait()
    assert trio.current_time() == 0.0
    thread.join()


@pytest.mark.parametrize("forever", [trio.sleep_forever, lambda: trio.Event().wait()])
def test_a_test_that_would_never_end_does(forever: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STUCK", 0.05)
    with pytest.raises(Stuck, match=r"waits for something that does not happen"):
        run(forever)  # type: ignore[arg-type]


def test_and_one_around_which_things_go_on_happening() -> None:
    async def test() -> None:
        async with trio.open_nursery() as nursery:

            async def tick() -> None:
                while True:
                    await trio.sleep(3600)

            nursery.start_soon(tick)
            await trio.Event().wait()

    with pytest.raises(Stuck, match=r"30 days"):
        run(test)


def test_results_and_failures_come_out_as_they_are() -> None:
    async def answer(number: int, *, plus: int) -> int:
        return number + plus

    async def fail() -> None:
        async with trio.open_nursery() as nursery, trio.open_nursery():
            nursery.start_soon(trio.sleep_forever)
            raise KeyError("mine")

    async def fail_twice() -> None:
        async def one(error: Exception) -> None:
            raise error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, KeyError())
            nursery.start_soon(one, ValueError())

    assert run(answer, 1, plus=2) == 3
    with pytest.raises(KeyError, match=r"mine"):
        run(fail)
    with pytest.raises(ExceptionGroup):
        run(fail_twice)


def test_the_clock_of_the_process_is_given_back() -> None:
    real = time.time

    async def test() -> None:
        assert time.time is not real and time.time() == 1000.0
        raise KeyError

    with pytest.raises(KeyError):
        run_from(1000.0, test)
    assert time.time is real


@pytest.fixture
def seven() -> int:
    return 7


@pytest.mark.parametrize("other", [1, 2])
@scenario
async def test_fixtures_and_parameters_stay(seven: int, other: int, tmp_path: Path) -> None:
    assert (seven, other in (1, 2), tmp_path.exists()) == (7, True, True)


def test_a_plain_function_is_no_scenario() -> None:
    def plain() -> None: ...

    with pytest.raises(TypeError, match=r"plain is no async function; right would be `async def plain`"):
        scenario(plain)  # type: ignore[arg-type, type-var]
    assert not inspect.iscoroutinefunction(test_fixtures_and_parameters_stay)
