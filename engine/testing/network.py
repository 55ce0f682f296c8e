"""A network in a process: pairs of sockets that have no address, and a table of who is where.

Nothing leaves the process and no port is taken, so a policy may name any host. What is sent is there at once,
which is why `clock` can tell that nothing is on its way.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

import trio

from engine.errors import ConnectError
from engine.net import Listener, Stream

from .hop import NextHop

__all__ = ["Door", "Network"]

_OURS = "198.51.100.1"
"""The address connections come from where no source has one of its own (RFC 5737)."""


class Network:
    """Who listens where. `hops`: by ``(address, port)``, or ``(address, None)`` for every port. `nursery`: of
    their sessions."""

    nursery: trio.Nursery

    def __init__(self) -> None:
        self.hops: dict[tuple[str, int | None], NextHop] = {}
        self.doors: list[Door] = []
        self._ports = iter(range(32768, 1 << 30))

    async def connect(self, address: str, port: int, *, source_address: str | None = None) -> Stream:
        """See `engine.net.connect`. Where nobody listens the connection is refused."""
        await trio.lowlevel.checkpoint()
        address = str(ip_address(address))
        hop = self.hops.get((address, port)) or self.hops.get((address, None))
        if hop is not None and hop.down == "silent":
            await trio.sleep_forever()
        if hop is None or hop.down is not None:
            raise ConnectError("connection refused", stage="connect")
        ours, theirs = socket.socketpair()
        local = (source_address or _OURS, next(self._ports))
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        self.nursery.start_soon(hop.serve, stream, local[0])
        return Stream(ours, (address, port), local)

    def listen(self, host: str, port: int) -> Listener:
        """See `engine.net.open_listener`; port 0 is one that is free."""
        door = Door((host, port or next(self._ports)))
        self.doors.append(door)
        return door

    async def call(self, address: tuple[str, int], client: str) -> trio.SocketStream:
        """A connection from outside to a listener. Raises: ConnectError when nobody listens there."""
        for door in self.doors:
            if door.address == address and not door.closed:
                ours, theirs = socket.socketpair()
                await door.enter(Stream(theirs, (client, next(self._ports)), address))
                return trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        raise ConnectError("connection refused", stage="connect")


class Door(Listener):
    """A listener that takes connections of this process."""

    __slots__ = ("_arrivals", "_send", "closed")

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.closed = False
        self._send, self._arrivals = trio.open_memory_channel[Stream](float("inf"))

    async def enter(self, stream: Stream) -> None:
        """Somebody connects."""
        await self._send.send(stream)

    async def accept(self) -> Stream:
        """See `Listener.accept`."""
        return await self._arrivals.receive()

    def close(self) -> None:
        """See `Listener.close`."""
        self.closed = True
        self._arrivals.close()
