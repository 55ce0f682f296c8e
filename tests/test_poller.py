"""engine/poller.py: who waits for a socket is woken once, whenever the kernel noticed something."""

from __future__ import annotations

import os
import resource
import select
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import pytest
import trio
import trio.testing

from engine.errors import ConnectionLost
from engine.net import Stream
from engine.poller import Poller, Watch, current_poller

Pair = tuple[Stream, socket.socket]


def connected() -> Pair:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    return Stream(ours, ("192.0.2.1", 25), ("192.0.2.2", 25)), theirs


@pytest.fixture
def pair() -> Iterator[Pair]:
    stream, theirs = connected()
    with theirs:
        yield stream, theirs
        stream.close()


async def fill(stream: Stream) -> None:
    """Send until there is no room, and the kernel said so."""
    with trio.move_on_after(0):
        await stream.send_all(bytes(8_000_000))


def empty(sock: socket.socket) -> None:
    with pytest.raises(BlockingIOError):
        while sock.recv(1 << 20):
            pass


async def waiting(wait: Callable[[], Awaitable[object]], nursery: trio.Nursery) -> list[str]:
    """A task that waits: what became of it is in the list, once it is over."""
    ends: list[str] = []

    async def run() -> None:
        try:
            await wait()
        except ConnectionLost as error:
            ends.append(str(error))
        except trio.Cancelled:
            ends.append("cancelled")
            raise
        else:
            ends.append("woken")

    nursery.start_soon(run)
    await trio.testing.wait_all_tasks_blocked()
    return ends


async def test_what_comes_wakes_the_reader_and_not_the_sender(pair: Pair) -> None:
    stream, theirs = pair
    await fill(stream)
    async with trio.open_nursery() as nursery:
        reader = await waiting(stream._watch.until_readable, nursery)
        sender = await waiting(stream._watch.until_writable, nursery)
        theirs.send(b"250 OK\r\n")
        await trio.testing.wait_all_tasks_blocked()
        assert (reader, sender) == (["woken"], [])
        empty(theirs)
        await trio.testing.wait_all_tasks_blocked()
        assert sender == ["woken"]
    assert stream.receive_nowait() == b"250 OK\r\n"


@pytest.mark.parametrize("registered", [False, True])
async def test_what_comes_between_the_attempt_and_the_wait_is_not_lost(pair: Pair, registered: bool) -> None:
    stream, theirs = pair
    if registered:
        theirs.send(b"220 hello\r\n")
        assert await stream.receive_some() == b"220 hello\r\n"
    for _ in range(2):
        assert stream.receive_nowait() is None
        theirs.send(b"250 OK\r\n")
        with trio.fail_after(5):
            await stream.wait_readable()
        assert stream.receive_nowait() == b"250 OK\r\n"


async def test_what_came_while_nobody_waited_is_remembered(pair: Pair) -> None:
    stream, theirs = pair
    assert stream.receive_nowait() is None
    with trio.move_on_after(0):
        await stream.wait_readable()
    theirs.send(b"421 bye\r\n")
    await trio.testing.wait_all_tasks_blocked()
    with trio.fail_after(5):
        await stream._watch.until_readable()


async def test_what_was_read_already_is_no_news(pair: Pair, autojump_clock: trio.testing.MockClock) -> None:
    """A session that waits for its next message must not take the reply to the last one for a goodbye."""
    stream, theirs = pair
    with trio.move_on_after(1):
        await stream.wait_readable()
    theirs.send(b"250 OK\r\n")
    await trio.testing.wait_all_tasks_blocked()
    assert stream.receive_nowait(8) == b"250 OK\r\n"  # as much as was asked for: there might be more
    with trio.move_on_after(1) as scope:
        await stream.wait_readable()
    assert scope.cancelled_caught


async def test_a_part_that_was_not_read_is_not_waited_for(pair: Pair) -> None:
    stream, theirs = pair
    theirs.send(b"250 one\r\n250 two\r\n")
    with trio.fail_after(5):
        assert await stream.receive_some(9) == b"250 one\r\n"
        await stream.wait_readable()
        assert await stream.receive_some(100) == b"250 two\r\n"


async def test_the_end_right_behind_the_last_words_is_heard(pair: Pair) -> None:
    stream, theirs = pair
    with trio.fail_after(5):
        for _ in range(2):  # registered by the first, which finds nothing
            theirs.send(b"x")
            assert await stream.receive_some() == b"x"
        theirs.send(b"221 bye\r\n")
        theirs.close()
        assert await stream.receive_some() == b"221 bye\r\n"
        assert await stream.receive_some() == b""


async def test_a_peer_that_is_gone_wakes_both(pair: Pair) -> None:
    stream, theirs = pair
    await fill(stream)
    async with trio.open_nursery() as nursery:
        reader = await waiting(stream._watch.until_readable, nursery)
        sender = await waiting(stream._watch.until_writable, nursery)
        theirs.close()
        await trio.testing.wait_all_tasks_blocked()
        assert (reader, sender) == (["woken"], ["woken"])


async def test_closing_wakes_both_with_an_error(pair: Pair) -> None:
    stream, _ = pair
    await fill(stream)
    async with trio.open_nursery() as nursery:
        reader = await waiting(stream._watch.until_readable, nursery)
        sender = await waiting(stream._watch.until_writable, nursery)
        stream.close()
        await trio.testing.wait_all_tasks_blocked()
        assert (reader, sender) == (["connection closed"], ["connection closed"])
        stream.close()
    for wait in (stream._watch.until_readable, stream._watch.until_writable, stream._watch.until_either):
        with pytest.raises(ConnectionLost, match="connection closed"):
            await wait()


async def test_who_waits_for_either_is_woken_once(pair: Pair) -> None:
    stream, _ = pair
    watch = stream._watch
    await fill(stream)
    assert stream.receive_nowait() is None
    async with trio.open_nursery() as nursery:
        both = await waiting(watch.until_either, nursery)
        watch.note(select.EPOLLIN | select.EPOLLOUT)
        watch.note(select.EPOLLIN | select.EPOLLOUT)
        await trio.testing.wait_all_tasks_blocked()
        assert both == ["woken"]
        watch.readable = watch.writable = False
        both = await waiting(watch.until_either, nursery)
        stream.close()
        await trio.testing.wait_all_tasks_blocked()
        assert both == ["connection closed"]


async def test_which_of_the_two_it_was(pair: Pair) -> None:
    stream, theirs = pair
    await fill(stream)
    with trio.fail_after(5):
        theirs.send(b"552 too big\r\n")
        assert await stream.room_or_heard() == b"552 too big\r\n"
        empty(theirs)
        assert await stream.room_or_heard() is None


async def test_room_that_was_there_once_is_asked_for_again(
    pair: Pair, autojump_clock: trio.testing.MockClock
) -> None:
    """The last send may have taken all of it, and nothing has said so yet."""
    stream, _ = pair
    await fill(stream)
    stream._watch.writable = True
    with trio.move_on_after(1) as scope:
        await stream.room_or_heard()
    assert scope.cancelled_caught


async def test_two_tasks_cannot_wait_for_the_same(pair: Pair) -> None:
    stream, _ = pair
    watch = stream._watch
    await fill(stream)
    async with trio.open_nursery() as nursery:
        await waiting(watch.until_readable, nursery)
        for wait in (watch.until_readable, watch.until_either):
            with pytest.raises(trio.BusyResourceError):
                await wait()
        await waiting(watch.until_writable, nursery)
        with pytest.raises(trio.BusyResourceError):
            await watch.until_writable()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("kind", ["until_readable", "until_writable", "until_either"])
async def test_who_is_cancelled_leaves_the_place_to_others(pair: Pair, kind: str) -> None:
    stream, theirs = pair
    await fill(stream)
    assert stream.receive_nowait() is None
    wait = getattr(stream._watch, kind)
    async with trio.open_nursery() as nursery:
        ends = await waiting(wait, nursery)
        nursery.cancel_scope.cancel()
    assert ends == ["cancelled"]
    async with trio.open_nursery() as nursery:
        ends = await waiting(wait, nursery)
        theirs.send(b"x")
        empty(theirs)
        await trio.testing.wait_all_tasks_blocked()
        assert ends == ["woken"]


async def test_a_descriptor_that_is_used_again(pair: Pair) -> None:
    first, theirs = pair
    fd = first._fd
    async with trio.open_nursery() as nursery:
        old = await waiting(first.wait_readable, nursery)
        theirs.send(b"for the first")
        twin = os.dup(fd)  # as in a child process that is just being started: the socket lives on
        first.close()
        ours, other = socket.socketpair()
        assert ours.fileno() == fd
        second = Stream(ours, ("192.0.2.1", 25), ("192.0.2.2", 25))
        new = await waiting(second.wait_readable, nursery)
        theirs.send(b"for the first")
        await trio.testing.wait_all_tasks_blocked()
        assert (old, new) == (["connection closed"], [])
        other.send(b"x")
        await trio.testing.wait_all_tasks_blocked()
        assert new == ["woken"]
    os.close(twin)
    second.close()
    other.close()


async def test_events_for_a_stranger_are_harmless(pair: Pair) -> None:
    """They would be what an earlier owner of the descriptor left: the task tries, finds nothing and waits."""
    stream, theirs = pair
    got: list[bytes] = []

    async def read() -> None:
        got.append(await stream.receive_some())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        stream._watch.note(select.EPOLLIN | select.EPOLLHUP)
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        theirs.send(b"x")
    assert got == [b"x"]


async def test_more_than_one_look_shows() -> None:
    """256 events come at once; who is behind them gets its turn."""
    number = 700
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        async with trio.open_nursery() as nursery:
            pairs = [connected() for _ in range(number)]
            for stream, theirs in pairs:
                stack.callback(stream.close)
                stack.enter_context(theirs)
                nursery.start_soon(stream.receive_some)
            await trio.testing.wait_all_tasks_blocked()
            for _, theirs in pairs:
                theirs.send(b"x")
            nursery.cancel_scope.deadline = trio.current_time() + 5
        assert not nursery.cancel_scope.cancelled_caught


async def test_waiting_costs_no_turns(pair: Pair, autojump_clock: trio.testing.MockClock) -> None:
    """A clock that jumps when all tasks wait does jump, and not over what is on its way."""
    stream, theirs = pair
    begun = trio.current_time()

    async def speak() -> None:
        await trio.sleep(3600)
        theirs.send(b"x")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        with trio.fail_after(3601):
            assert await stream.receive_some() == b"x"
    assert trio.current_time() - begun == pytest.approx(3600)


def test_a_stream_outlives_its_run() -> None:
    """What was watched in one run is watched in the next; the first one's epoll is gone."""
    stream, theirs = connected()
    pollers: list[Poller] = []

    async def exchange() -> None:
        with trio.move_on_after(0.01):
            await stream.receive_some()
        pollers.append(current_poller())
        async with trio.open_nursery() as nursery:
            reader = await waiting(stream.receive_some, nursery)
            theirs.send(b"x")
            await trio.testing.wait_all_tasks_blocked()
            assert reader == ["woken"]
            nursery.cancel_scope.cancel()

    for _ in range(2):
        trio.run(exchange)
    assert pollers[0] is not pollers[1] and all(poller.closed for poller in pollers)
    stream.close()
    theirs.close()


async def test_what_cannot_be_watched() -> None:
    directory = os.open("/", os.O_RDONLY)
    try:
        with pytest.raises(ConnectionLost, match=r"cannot wait for the connection: .*not permitted"):
            await Watch(directory).until_readable()
    finally:
        os.close(directory)
