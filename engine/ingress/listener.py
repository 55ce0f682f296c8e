"""Listeners: who gets a session, how many at once, and how they end.

The accept loop survives whatever `accept` may say: out of descriptors means a pause, never an end
(reliability O4). Connections over a limit are turned away with one write, before a session object
or a banner has cost anything (S33).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from engine.errors import ConfigError, ConnectionLost
from engine.net import Listener, Stream, open_listener
from engine.smtp import Reply
from engine.tripwire import Tripwire

from .accept import Enqueue
from .guesses import Guesses, peer_group
from .logins import offered
from .service import Counters, Service
from .smtp import InboundSession
from .strangers import Strangers

if TYPE_CHECKING:
    from engine.hooks import Hooks
    from engine.keys import KeyRing
    from engine.log import Log
    from engine.memory import Memory
    from engine.spool import Spool
    from policy.ingress import ListenerDeclaration

__all__ = ["Listeners", "open_listeners"]

logger = logging.getLogger("posthorn.ingress")

_PAUSE_FIRST = 0.05
_PAUSE_LAST = 1.0
"""Seconds between tries to accept while the system refuses: 0.05, 0.1, ... 1."""
_SAY_EVERY = 30.0
"""Seconds between two diagnostic lines about the same trouble."""
_FAIR = 16
"""Connections accepted in a row before other tasks get a turn."""
_TURNED_AWAY = 1.0
"""Seconds that writing a refusal may take."""

BUSY = Reply(421, "4.7.0", "Too many connections; try again later").encode()
BUSY_PEER = Reply(421, "4.7.0", "Too many connections from your address; try again later").encode()


class Listeners:
    """The open listeners and their sessions."""

    def __init__(self, limits: PeerLimits) -> None:
        self._pairs: list[tuple[Listener, Service]] = []
        self._peers = limits
        self._sessions: dict[InboundSession, None] = {}
        self._draining = False
        self._empty = trio.Event()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where the listeners really listen, in the order they were declared."""
        return [listener.address for listener, _ in self._pairs]

    def statistics(self) -> dict[str, Counters]:
        """Counters per listener, by its ``ip:port``."""
        return {service.address: service.counters for _, service in self._pairs}

    async def drain(self, seconds: float) -> None:
        """Stop accepting; idle sessions end with 421 4.3.2 now, transactions under way after `seconds`.

        A message whose commit has begun is finished in any case; leaving `open_listeners` waits for it.
        """
        self._draining = True
        for listener, _ in self._pairs:
            listener.close()
        for session in list(self._sessions):
            session.drain()
        if self._sessions:
            self._empty = trio.Event()
            with trio.move_on_after(seconds):
                await self._empty.wait()
            for session in list(self._sessions):
                session.stop()

    def close(self) -> None:
        """Close the listening sockets. Idempotent."""
        for listener, _ in self._pairs:
            listener.close()

    def add(self, listener: Listener, service: Service) -> None:
        """One more listener, bound but not accepting yet."""
        self._pairs.append((listener, service))

    def start(self, nursery: trio.Nursery) -> None:
        """Begin to accept."""
        for listener, service in self._pairs:
            nursery.start_soon(self._accept, listener, service, nursery)

    async def _accept(self, listener: Listener, service: Service, nursery: trio.Nursery) -> None:
        counters = service.counters
        limit = service.declaration.max_connections
        limit_per_peer = service.declaration.max_connections_per_peer
        pause = _PAUSE_FIRST
        said = float("-inf")
        turns = 0
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                now = trio.current_time()
                if now - said >= _SAY_EVERY:
                    said = now
                    logger.error("listener %s: cannot accept connections: %s", service.address, error)
                await trio.sleep(pause)
                pause = min(pause * 2, _PAUSE_LAST)
                continue
            pause = _PAUSE_FIRST
            peer = stream.peer[0]
            if counters.sessions >= limit:
                await self._turn_away(stream, BUSY, counters)
            elif not self._peers.take(service, peer, limit_per_peer):
                await self._turn_away(stream, BUSY_PEER, counters)
            else:
                counters.sessions += 1
                counters.accepted += 1
                nursery.start_soon(self._serve, stream, service, peer)
            turns += 1
            if turns >= _FAIR:
                turns = 0
                await trio.lowlevel.checkpoint()

    async def _turn_away(self, stream: Stream, reply: bytes, counters: Counters) -> None:
        counters.denied += 1
        try:
            with trio.move_on_after(_TURNED_AWAY):
                await stream.send_all(reply)
        except ConnectionLost:
            pass
        finally:
            stream.close()

    async def _serve(self, stream: Stream, service: Service, peer: str) -> None:
        session: InboundSession | None = None
        try:
            session = InboundSession(stream, service)
            self._sessions[session] = None
            if self._draining:
                session.drain()
            await session.run()
        finally:
            stream.close()
            service.counters.sessions -= 1
            self._peers.give_back(service, peer)
            if session is not None:
                self._sessions.pop(session, None)
            if not self._sessions:
                self._empty.set()


class PeerLimits:
    """Connections per listener and client address; an IPv6 client is its /64 (reliability S33)."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[tuple[int, str], int] = {}

    def take(self, listener: object, peer: str, limit: int) -> bool:
        """Count one more; False, and nothing counted, when the client has `limit` already."""
        key = (id(listener), peer_group(peer))
        count = self._counts.get(key, 0)
        if count >= limit:
            return False
        self._counts[key] = count + 1
        return True

    def give_back(self, listener: object, peer: str) -> None:
        """A connection that was counted has ended."""
        key = (id(listener), peer_group(peer))
        count = self._counts[key] - 1
        if count:
            self._counts[key] = count
        else:
            del self._counts[key]


@asynccontextmanager
async def open_listeners(
    declarations: Sequence[ListenerDeclaration],
    *,
    hooks: Hooks,
    spool: Spool,
    enqueue: Enqueue,
    log: Log,
    keys: KeyRing,
    hostname: str,
    memory: Memory,
    strangers: Strangers | None = None,
    tripwire: Tripwire | None = None,
    listen: Callable[[str, int], Listener] = open_listener,
) -> AsyncIterator[Listeners]:
    """Bind all listeners, then accept on them; owner of the accept loops and the inbound sessions.

    Call `Listeners.drain` before leaving for a graceful end; leaving the block cancels what is
    left (a commit under way is finished first). `hostname` serves listeners that declare none; `memory`
    is that of messages under way, for all of them; `listen` binds an address and port. `strangers`: what
    unknown users are shown; None: what no restart remembers.
    `tripwire` knows the secrets that no reply may hold.

    Raises: ConfigError naming the address that cannot be listened on, or the mechanism that no hook
    serves, and why.
    """
    listeners = Listeners(PeerLimits())
    guesses = Guesses()
    strangers = strangers if strangers is not None else Strangers()
    tripwire = tripwire if tripwire is not None else Tripwire()
    try:
        for declaration in declarations:
            where = declaration.listen
            mechanisms = offered(
                declaration, plain=hooks.has("smtp_server_auth_plain"), store=hooks.has("smtp_server_auth")
            )
            try:
                listener = listen(where.host, where.port)
            except OSError as error:
                raise ConfigError(f"cannot listen on {where}: {error.strerror or error}") from None
            host, port = listener.address
            service = Service(
                declaration,
                hostname=hostname,
                address=f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
                hooks=hooks,
                spool=spool,
                enqueue=enqueue,
                log=log,
                keys=keys,
                mechanisms=mechanisms,
                guesses=guesses,
                memory=memory,
                strangers=strangers,
                tripwire=tripwire,
            )
            listeners.add(listener, service)
        async with trio.open_nursery() as nursery:
            listeners.start(nursery)
            yield listeners
            nursery.cancel_scope.cancel()
    finally:
        listeners.close()
