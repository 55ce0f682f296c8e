"""engine/net.py: what a stream does while the other side does not read."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from engine.errors import ConnectionLost, TlsError
from engine.net import Stream
from tests.support.certificates import Authority

NAME = "mx.example"
MUCH = b"x" * 8_000_000
"""More than the buffers of a connection on loopback take."""


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Stream, socket.socket]]:
    """A stream and the socket at its other end, by TCP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    stream = Stream(ours, ours.getpeername(), ours.getsockname())
    try:
        with theirs:
            yield stream, theirs
    finally:
        stream.close()


async def test_a_peer_that_speaks_instead_of_reading_is_heard() -> None:
    async with pair() as (stream, peer), trio.open_nursery() as nursery:

        async def speak() -> None:
            await trio.testing.wait_all_tasks_blocked()
            peer.sendall(b"552 too big\r\n")

        nursery.start_soon(speak)
        with trio.fail_after(5):
            assert await stream.send_unless_heard(MUCH) == b"552 too big\r\n"


async def test_what_was_said_before_a_reset_is_heard() -> None:
    async with pair() as (stream, peer):
        await stream.send_all(b"unread, so that closing is a reset")
        peer.sendall(b"421 gone\r\n")
        peer.close()
        await trio.sleep(0.01)
        assert await stream.send_unless_heard(b"more") == b"421 gone\r\n"
        with pytest.raises(ConnectionLost):
            await stream.send_unless_heard(b"more")


async def test_a_peer_that_reads_gets_everything() -> None:
    async with pair() as (stream, peer), trio.open_nursery() as nursery:
        got = 0

        async def read() -> None:
            nonlocal got
            while got < len(MUCH):
                got += len(await trio.to_thread.run_sync(peer.recv, 65536))

        nursery.start_soon(read)
        with trio.fail_after(10):
            assert await stream.send_unless_heard(MUCH) is None
            assert await stream.room_or_heard() is None
    assert got == len(MUCH)


async def test_records_of_tls_that_hold_no_data_are_not_words() -> None:
    """Session tickets arrive behind the handshake, as soon as the peer likes."""
    authority = Authority()
    context = ssl.create_default_context(cadata=authority.pem.decode())
    async with pair() as (stream, peer):
        with authority.server_context(NAME).wrap_socket(
            peer, server_side=True, do_handshake_on_connect=False
        ) as tls:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, tls.do_handshake)
                await stream.start_tls(context, server_hostname=NAME)
            await trio.sleep(0.01)
            with trio.move_on_after(0.2) as scope:
                await stream.send_unless_heard(MUCH)
            assert scope.cancelled_caught, "the tickets passed for words, or the buffers took all of it"
            tls.sendall(b"552 too big\r\n")
            with trio.fail_after(5):
                assert await stream.room_or_heard() == b"552 too big\r\n"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("goodbye", [True, False])
async def test_the_end_of_tls_is_said_where_everything_was(version: ssl.TLSVersion, goodbye: bool) -> None:
    authority = Authority()
    context = ssl.create_default_context(cadata=authority.pem.decode())
    context.minimum_version = context.maximum_version = version
    async with pair() as (stream, peer):
        stream.end_tls()  # there is none
        with authority.server_context(NAME).wrap_socket(
            peer, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=False
        ) as tls:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, tls.do_handshake)
                await stream.start_tls(context, server_hostname=NAME)
            await stream.send_all(b"QUIT\r\n")
            if goodbye:
                stream.end_tls()
            stream.close()
            stream.end_tls()  # harmless
            assert tls.recv(100) == b"QUIT\r\n"
            if goodbye:
                assert tls.recv(100) == b""
            else:
                with pytest.raises(ssl.SSLError, match=r"(?i)eof"):
                    tls.recv(100)


async def test_the_end_of_tls_waits_for_nobody() -> None:
    authority = Authority()
    context = ssl.create_default_context(cadata=authority.pem.decode())
    async with pair() as (stream, peer):
        with authority.server_context(NAME).wrap_socket(
            peer, server_side=True, do_handshake_on_connect=False
        ) as tls:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, tls.do_handshake)
                await stream.start_tls(context, server_hostname=NAME)
            with trio.move_on_after(0.2):
                await stream.send_all(MUCH)
            stream.end_tls()


class Obstructed:
    """A TLS socket that must answer a KeyUpdate before it reads on, and whose peer does not read."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.calls = 0

    def recv(self, limit: int) -> bytes:
        self.calls += 1
        if not select.select([], [self._sock], [], 0)[1]:
            raise ssl.SSLWantWriteError
        return self._sock.recv(limit)

    def close(self) -> None:
        self._sock.close()


@pytest.mark.parametrize("wait", ["wait_readable", "room_or_heard", "receive_some"])
async def test_tls_that_must_send_before_it_reads_does_not_spin(wait: str) -> None:
    async with pair() as (stream, peer), trio.open_nursery() as nursery:
        with trio.move_on_after(0.1):
            await stream.send_all(MUCH)
        peer.sendall(b"NOOP\r\n")
        await trio.sleep(0.01)
        stream._sock = sock = Obstructed(stream._sock)  # type: ignore[assignment]
        stream._fd = -1
        done: list[object] = []

        async def heard() -> None:
            if wait == "wait_readable":
                assert stream.receive_nowait() is None
            done.append(await getattr(stream, wait)())

        nursery.start_soon(heard)
        await trio.testing.wait_all_tasks_blocked()
        assert not done and sock.calls == 1
        while not done:
            await trio.to_thread.run_sync(peer.recv, 1 << 20)
        assert sock.calls <= 2
        assert done == [b"NOOP\r\n"] if wait == "receive_some" else stream.receive_nowait() == b"NOOP\r\n"


async def test_a_stream_that_is_closed_meanwhile_wakes_who_waits() -> None:
    async with pair() as (stream, _), trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(ConnectionLost):
                await stream.send_unless_heard(MUCH)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        stream.close()


@pytest.mark.parametrize("detached", [False, True], ids=["before the socket is touched", "after"])
async def test_nothing_goes_out_in_clear_where_tls_could_not_begin(detached: bool) -> None:
    context = ssl.create_default_context()
    context.check_hostname = not detached
    async with pair() as (stream, far):
        with pytest.raises(TlsError, match="cannot start TLS"):
            await stream.start_tls(context, server_hostname="" if detached else None)
        with pytest.raises(ConnectionLost):
            await stream.send_all(b"AUTH PLAIN secret\r\n")
        with pytest.raises(ConnectionLost):
            await stream.send_parts([b"AUTH PLAIN ", b"secret\r\n"])
        with pytest.raises(ConnectionLost):
            await stream.receive_some()
        far.setblocking(True)
        far.settimeout(5)
        assert far.recv(100) == b""
