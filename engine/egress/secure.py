"""Making a connection as safe as its path demands, before anything but EHLO is said in it.

One class holds what is remembered between connections: TLS contexts, and the hosts whose handshake
failed lately. The need (`TlsNeed`) is obeyed here and nowhere else.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
import trio

from engine.errors import NetworkError, PeerTimeout, RemoteProtocolError, TlsError, TlsRequired
from engine.smtp import StartTlsReply

from .tls import TlsContexts

if TYPE_CHECKING:
    from policy.egress import EgressPath

    from .connection import Connection
    from .resolve import Candidate
    from .tlsneed import TlsNeed

__all__ = ["Safety"]

logger = logging.getLogger("posthorn.egress")

_BROKEN_TLS_DEFAULT = 900.0
"""Seconds a failed handshake is remembered when only the reconnect option is set (egress 3.2)."""

_BROKEN_KEPT = 10_000

_Broken = tuple[str, int, "TlsNeed", object]


def _broken_key(candidate: Candidate, need: TlsNeed, path: EgressPath) -> _Broken:
    """What a failed handshake says something about: this host under these demands, no others."""
    return (candidate.address, candidate.port, need, path.tls_ca)


class Safety:
    """See the module. One for the engine."""

    def __init__(self) -> None:
        self._contexts = TlsContexts()
        self._broken: dict[_Broken, float] = {}

    def remember_broken(self, candidate: Candidate, need: TlsNeed, path: EgressPath) -> bool:
        """Note a failed handshake if the path wants that; True when a clear-text retry is allowed."""
        seconds = path.remember_broken_tls
        retry = path.opportunistic_tls_reconnect_on_failed_handshake
        if seconds is None and retry:
            seconds = _BROKEN_TLS_DEFAULT
        if seconds is not None:
            now = trio.current_time()
            if len(self._broken) > _BROKEN_KEPT:
                self._broken = {k: t for k, t in self._broken.items() if t > now}
            self._broken[_broken_key(candidate, need, path)] = now + seconds
        return retry

    def _is_broken(self, candidate: Candidate, need: TlsNeed, path: EgressPath) -> bool:
        until = self._broken.get(_broken_key(candidate, need, path))
        return until is not None and trio.current_time() < until

    async def secure(
        self,
        connection: Connection,
        candidate: Candidate,
        need: TlsNeed,
        path: EgressPath,
        ca_pem: bytes | None,
        *,
        clear_allowed: bool,
    ) -> bool:
        """TLS as `need` says; True when it is there now and EHLO is due again.

        `clear_allowed`: a host whose handshake failed lately may be spoken to in clear text.
        Raises: TlsRequired when the peer does not give what is needed, TlsError when a handshake failed or
        the peer is not who it must be, NetworkError, RemoteProtocolError.
        """
        if not need.use:
            connection.tls_why = "disabled by the path"
            return False
        if clear_allowed and not need.required and self._is_broken(candidate, need, path):
            connection.tls_why = "a handshake with this host failed lately; the path allows clear text"
            return False
        if not await _ask(connection, need, path.starttls_timeout):
            return False
        await self._handshake(connection, candidate, need, path, ca_pem)
        connection.client.tls_established()
        return True

    async def _handshake(
        self,
        connection: Connection,
        candidate: Candidate,
        need: TlsNeed,
        path: EgressPath,
        ca_pem: bytes | None,
    ) -> None:
        stream = connection.stream
        context = self._contexts.get(verify=need.verify, ca_pem=ca_pem)
        with trio.move_on_after(path.starttls_timeout) as scope:
            await stream.start_tls(context, server_hostname=need.name_for(candidate.name))
        if scope.cancelled_caught:
            raise PeerTimeout(f"TLS handshake not done within {path.starttls_timeout:g} s", stage="STARTTLS")
        facts = stream.tls
        if facts is None:  # `start_tls` returns with TLS
            raise TlsError("no TLS after the handshake", stage="STARTTLS")
        if need.check is not None:
            verdict = need.check(stream.peer_chain())
            if not verdict.ok:
                raise TlsError(verdict.why, stage="STARTTLS")
            facts = stream.tls = msgspec.structs.replace(facts, verified=True, why=verdict.why)
        elif not need.verify:
            facts = stream.tls = msgspec.structs.replace(
                facts, why=f"enable_tls is {need.mode}: the certificate is not checked"
            )
        connection.tls_why = facts.why


async def _ask(connection: Connection, need: TlsNeed, seconds: float) -> bool:
    """STARTTLS. False: the peer does not do it, and need not."""
    client = connection.client
    if not client.capabilities.starttls:
        if need.required:
            raise TlsRequired(f"{need.demand} and the peer does not offer STARTTLS")
        connection.tls_why = "not offered by the peer"
        return False
    client.starttls()
    event = await connection.event("STARTTLS", seconds)
    if not isinstance(event, StartTlsReply):
        raise RemoteProtocolError(f"expected a reply to STARTTLS, got {event!r}")
    if event.reply.code == 421:
        raise NetworkError(f"the peer ended the session: {event.reply.line}", stage="STARTTLS")
    if event.reply.code != 220:
        if need.required:
            raise TlsRequired(f"{need.demand} and STARTTLS was refused: {event.reply.line}")
        # The session is intact: the peer said no before anything changed.
        connection.tls_why = f"STARTTLS refused: {event.reply.line}"
        return False
    return True
