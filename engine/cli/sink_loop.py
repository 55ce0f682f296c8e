"""The sink's loop over its connections: one epoll for all of them, no task per connection.

This is not how the relay does it. The relay's streams wait with Trio, about 10 us a time; a sink
that is measured against must be cheaper than that. So connections are registered with an epoll of
their own, whatever is ready is read, answered and forgotten, and only what takes time (a delay, a
TLS handshake, storing a message) becomes a Trio task for as long as it takes.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
from trio.lowlevel import wait_readable, wait_writable

from engine.errors import ConfigError

from .sink_session import Arrival, Session

__all__ = ["Loop"]

_READ = 64 * 1024
_BACKLOG = 4096
_TURN = 0.02
"""Seconds the loop may go on before other tasks (status line, signals) get their turn."""

_NO_DESCRIPTORS = 0.1
"""Seconds before accept is tried again after the system refused."""

_LATER = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Loop:
    """Accepts and serves. `session` makes the session of a peer; `keep` stores a message, in a thread;
    `context` is for STARTTLS; `took` is called after messages were accepted, in Trio's thread.

    `patience`: seconds the loop may block everything else in the process while it waits for input:
    zero where other tasks share the process, a little where there is nothing else to do.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        session: Callable[[tuple[str, int]], Session],
        opened: Callable[[], None],
        closed: Callable[[], None],
        took: Callable[[], None],
        keep: Callable[[Arrival], None] | None,
        context: ssl.SSLContext | None,
        patience: float,
    ) -> None:
        self._listener = _listen(host, port)
        name = self._listener.getsockname()
        self.address: tuple[str, int] = (name[0], name[1])
        self.session = session
        self.opened = opened
        self.closed = closed
        self.took = took
        self.keep = keep
        self.context = context
        self.epoll = select.epoll()
        self.connections: dict[int, _Connection] = {}
        self._patience = patience
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Serve until cancelled."""
        fd = self._listener.fileno()
        self.epoll.register(fd, select.EPOLLIN)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            while True:
                await wait_readable(self.epoll.fileno())
                turn = time.monotonic() + _TURN
                while events := self.epoll.poll(self._patience, 256):
                    for ready, mask in events:
                        if ready == fd:
                            self._accept()
                        elif (connection := self.connections.get(ready)) is not None:
                            connection.ready(mask)
                    if not self._patience or time.monotonic() >= turn:
                        break

    def close(self) -> None:
        """Close every socket."""
        for connection in list(self.connections.values()):
            connection.close()
        self._listener.close()
        self.epoll.close()

    def spawn(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run what takes time beside the loop."""
        assert self._nursery is not None
        self._nursery.start_soon(function)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, peer = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                # No descriptors left: do not spin on what cannot be accepted.
                self.epoll.modify(self._listener.fileno(), 0)
                self.spawn(self._accept_again)
                return
            sock.setblocking(False)
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.opened()
            _Connection(self, sock, self.session((peer[0], peer[1]))).begin()

    async def _accept_again(self) -> None:
        await trio.sleep(_NO_DESCRIPTORS)
        self.epoll.modify(self._listener.fileno(), select.EPOLLIN)


class _Connection:
    """One peer. `_out`: what the kernel did not take yet; nothing is read before it is gone."""

    __slots__ = ("_fd", "_loop", "_out", "_session", "_sock", "_tls")

    def __init__(self, loop: Loop, sock: socket.socket, session: Session) -> None:
        self._loop = loop
        self._sock = sock
        self._fd = sock.fileno()
        self._session = session
        self._out = b""
        self._tls = False

    def begin(self) -> None:
        """Greet, and listen to the peer."""
        loop = self._loop
        loop.connections[self._fd] = self
        loop.epoll.register(self._fd, select.EPOLLIN)
        self._answer(self._session.begin())

    def ready(self, mask: int) -> None:
        """The kernel has something: read, answer."""
        if self._out and not self._answer(b""):
            return
        session = self._session
        try:
            while True:
                data = self._sock.recv(_READ)
                if not data:
                    self.close()
                    return
                before = session.accepted
                out = session.feed(data)
                if session.accepted != before:
                    self._loop.took()
                if (out or session.pause is not None) and not self._answer(out):
                    return
                # OpenSSL may hold more than it gave; the kernel does not tell of that.
                if not self._tls or not self._sock.pending():  # type: ignore[attr-defined]
                    return
        except _LATER:
            return
        except OSError:
            self.close()

    def close(self) -> None:
        """Let go of the peer. Idempotent."""
        if self._fd in self._loop.connections and self._loop.connections[self._fd] is self:
            del self._loop.connections[self._fd]
            with suppress(OSError, ValueError):
                self._loop.epoll.unregister(self._fd)
            self._loop.closed()
            self._sock.close()

    def _answer(self, out: bytes) -> bool:
        """Send; False when reading has to wait, because of the peer or because of a pause."""
        rest = self._out + out if self._out else out
        waiting = bool(self._out)
        if rest:
            try:
                sent = self._sock.send(rest)
            except _LATER:
                sent = 0
            except OSError:
                self.close()
                return False
            self._out = rest = rest[sent:] if sent < len(rest) else b""
        if rest:
            if not waiting:
                self._loop.epoll.modify(self._fd, select.EPOLLOUT)
            return False
        if self._session.pause is not None:
            self._loop.epoll.unregister(self._fd)
            self._loop.spawn(self._take_time)
            return False
        if waiting:
            self._loop.epoll.modify(self._fd, select.EPOLLIN)
        return True

    async def _take_time(self) -> None:
        """Do what the session's pause asks for, with Trio's means; then go back to the loop."""
        try:
            going_on = await self._pauses()
        except OSError:
            going_on = False
        except BaseException:
            self.close()
            raise
        if not going_on:
            self.close()
            return
        self._loop.epoll.register(self._fd, select.EPOLLIN)
        if self._tls and self._sock.pending():  # type: ignore[attr-defined]
            self.ready(select.EPOLLIN)

    async def _pauses(self) -> bool:
        session = self._session
        while (pause := session.pause) is not None:
            if pause.seconds:
                await trio.sleep(pause.seconds)
            if pause.kind == "close":
                return False
            if pause.kind == "hang":
                while await self._receive():
                    continue
                return False
            if pause.kind == "tls":
                session.tls_started(await self._handshake())
            elif pause.kind == "keep":
                assert pause.arrival is not None and self._loop.keep is not None
                await trio.to_thread.run_sync(self._loop.keep, pause.arrival)
            before = session.accepted
            out = session.feed(b"")
            if session.accepted != before:
                self._loop.took()
            await self._send(out)
        return True

    async def _handshake(self) -> str:
        assert self._loop.context is not None
        sock = self._loop.context.wrap_socket(self._sock, server_side=True, do_handshake_on_connect=False)
        self._sock = sock
        self._tls = True
        while True:
            try:
                sock.do_handshake()
                return sock.version() or ""
            except ssl.SSLWantReadError:
                await wait_readable(sock)
            except ssl.SSLWantWriteError:
                await wait_writable(sock)

    async def _receive(self) -> bytes:
        while True:
            try:
                return self._sock.recv(_READ)
            except (BlockingIOError, ssl.SSLWantReadError):
                await wait_readable(self._sock)

    async def _send(self, data: bytes) -> None:
        while data:
            try:
                data = data[self._sock.send(data) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await wait_writable(self._sock)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from None
        raise
    return sock
