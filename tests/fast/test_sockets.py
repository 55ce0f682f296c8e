"""What a socket has or takes now: the compiled twin and the plain one on real sockets."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fast.pieces import Compiled, reference

twins = pytest.mark.parametrize("twin", [Compiled, reference], ids=["compiled", "reference"])

Pair = tuple[socket.socket, socket.socket]


def connected() -> Pair:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, theirs


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = connected()
    with closing(ours), closing(theirs):
        yield ours, theirs


def everything(sock: socket.socket) -> bytes:
    found = b""
    while True:
        try:
            data = sock.recv(1 << 20)
        except BlockingIOError:
            return found
        if not data:
            return found
        found += data


@twins
def test_receive(twin: Any, pair: Pair) -> None:
    ours, theirs = pair
    assert twin.receive_now(ours.fileno(), 10) is None
    theirs.send(b"250 OK\r\n221 bye\r\n")
    assert twin.receive_now(ours.fileno(), 8) == b"250 OK\r\n"
    assert twin.receive_now(ours.fileno(), 65536) == b"221 bye\r\n"
    assert twin.receive_now(ours.fileno(), 65536) is None
    theirs.close()
    assert twin.receive_now(ours.fileno(), 65536) == b""


@twins
def test_receive_at_most(twin: Any, pair: Pair) -> None:
    ours, theirs = pair
    theirs.send(bytes(70_000))
    assert len(twin.receive_now(ours.fileno(), 1 << 30)) == 65536
    for limit in (0, -1):
        with pytest.raises(ValueError, match="limit"):
            twin.receive_now(ours.fileno(), limit)


@twins
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_send(twin: Any, kind: Any, pair: Pair) -> None:
    ours, theirs = pair
    assert twin.send_now(ours.fileno(), kind(b"EHLO a\r\n")) == 8
    assert everything(theirs) == b"EHLO a\r\n"
    assert twin.send_now(ours.fileno(), b"") == 0
    with pytest.raises(TypeError):
        twin.send_now(ours.fileno(), "text")


@twins
def test_no_room(twin: Any, pair: Pair) -> None:
    ours, theirs = pair
    piece = bytes(range(256)) * 256
    sent = 0
    while size := twin.send_now(ours.fileno(), piece):
        sent += size
    assert sent
    assert twin.send_parts_now(ours.fileno(), [piece, piece], 0, 7) == (0, 7)
    assert len(everything(theirs)) == sent
    assert twin.send_now(ours.fileno(), b"x") == 1


@twins
def test_errors(twin: Any, pair: Pair) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(BrokenPipeError):
        twin.send_now(ours.fileno(), b"x")
    with pytest.raises(BrokenPipeError):
        twin.send_parts_now(ours.fileno(), [b"x"], 0, 0)
    for call in (
        lambda: twin.receive_now(-1, 1),
        lambda: twin.send_now(-1, b"x"),
        lambda: twin.send_parts_now(-1, [b"x"], 0, 0),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EBADF


@twins
def test_reset(twin: Any) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    with closing(ours):
        ours.setblocking(False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        with pytest.raises(ConnectionResetError):
            twin.receive_now(ours.fileno(), 1)


@twins
def test_no_such_place(twin: Any, pair: Pair) -> None:
    fd = pair[0].fileno()
    for parts, index, offset in (
        ([b"x"], 2, 0),
        ([b"x"], -1, 0),
        ([b"x"], 0, 2),
        ([b"x"], 0, -1),
        ([], 0, 1),
    ):
        with pytest.raises(ValueError, match="no such place"):
            twin.send_parts_now(fd, parts, index, offset)
    assert twin.send_parts_now(fd, [b"x"], 1, 0) == (1, 0)
    assert twin.send_parts_now(fd, [], 0, 0) == (0, 0)
    with pytest.raises(TypeError):
        twin.send_parts_now(fd, [b"x", "y"], 0, 0)


@twins
def test_many_parts(twin: Any, pair: Pair) -> None:
    ours, theirs = pair
    parts = [b"%d " % number for number in range(1300)]
    place = (0, 0)
    calls = 0
    found = b""
    while place[0] < len(parts):
        place = twin.send_parts_now(ours.fileno(), parts, *place)
        found += everything(theirs)
        calls += 1
    assert found == b"".join(parts)
    assert calls == 3


@twins
@given(
    parts=st.lists(st.binary(max_size=20) | st.integers(1, 200_000).map(bytes), max_size=8),
    start=st.integers(0, 20),
)
def test_parts_in_order(twin: Any, parts: list[bytes], start: int) -> None:
    """Whatever the kernel takes at a time, all of it goes out once and in order."""
    ours, theirs = connected()
    with closing(ours), closing(theirs):
        start = min(start, len(parts[0])) if parts else 0
        index, offset = 0, start
        found = b""
        while index < len(parts):
            before = index, offset
            index, offset = twin.send_parts_now(ours.fileno(), parts, index, offset)
            if (index, offset) == before:
                found += everything(theirs)
        assert (index, offset) == (len(parts), 0)
        found += everything(theirs)
    assert found == b"".join(parts)[start:]


@twins
def test_events(twin: Any, pair: Pair) -> None:
    ours, theirs = pair
    with select.epoll() as epoll:
        assert twin.events_now(epoll) == []
        epoll.register(ours.fileno(), select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        assert twin.events_now(epoll) == []
        theirs.send(b"250 OK\r\n")
        assert twin.events_now(epoll) == [(ours.fileno(), select.EPOLLIN)]
        assert twin.events_now(epoll) == []
        theirs.close()
        gone = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP
        assert twin.events_now(epoll) == [(ours.fileno(), gone)]
    with pytest.raises(ValueError, match="closed"):
        twin.events_now(epoll)


@twins
def test_events_at_most(twin: Any) -> None:
    with select.epoll() as epoll, ExitStack() as stack:
        ours, theirs = connected()
        stack.enter_context(closing(ours))
        stack.enter_context(closing(theirs))
        theirs.send(b"x")
        for _ in range(300):
            same = stack.enter_context(closing(ours.dup()))
            epoll.register(same.fileno(), select.EPOLLIN | select.EPOLLET)
        first, second = twin.events_now(epoll), twin.events_now(epoll)
        assert (len(first), len(second)) == (256, 44)
        assert len({fd for fd, _ in first + second}) == 300
